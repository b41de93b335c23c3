"""Loaders over an index: whole micro-batches made in worker processes, positions chosen outside.

The order lives in the main process; a worker gets positions, epochs and rows and returns pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from vitwarm.shards.choose.order import Order
from vitwarm.shards.load.batch import EvalLoader, Share
from vitwarm.shards.load.crops import EvalCrop, TrainCrop
from vitwarm.shards.load.pixels import Batches, Item
from vitwarm.shards.load.slabs import Lending, Slabs
from vitwarm.shards.load.workers import Work, make_data_loader, prefetch
from vitwarm.shards.read.index import ShardIndex

#: Micro-batches that the main process may hold and still get the next without new memory.
_IN_USE = 3


class _Positions:
    """What the micro-batches of one process are, from `start_step` on."""

    def __init__(self, order: Order, share: Share, n_steps: int) -> None:
        self.order, self.share = order, share
        self.start_step, self.n_steps = 0, n_steps

    def __iter__(self) -> Iterator[Item]:
        micros = self.share.micros
        for number in range(self.start_step * micros, self.n_steps * micros):
            positions = self.share.positions(number)
            yield Item(positions, *self.order.rows_at(positions))


def order_loader(
    index: ShardIndex,
    order: Order,
    share: Share,
    *,
    crop: TrainCrop,
    seed: int,
    n_steps: int,
    work: Work,
) -> Callable[[int], DataLoader[Any]]:
    """Returns what starts at a step with one process's share of an order: exact positions."""
    positions = _Positions(order, share, n_steps)
    loader = _make_loader(Batches(index, order.rows, crop, seed), positions, share.micro, work)

    def begin(step: int) -> DataLoader[Any]:
        positions.start_step = step
        return loader

    return begin


def index_loader(
    index: ShardIndex, *, crop: EvalCrop, batch_size: int, rank: int, world_size: int, work: Work
) -> EvalLoader:
    """Returns one process's part of all rows, in order: disjoint, whole, without padding."""
    rows = np.arange(index.n_images, dtype=np.int64)
    low, high = (len(rows) * r // world_size for r in (rank, rank + 1))
    parts = [rows[k : min(k + batch_size, high)] for k in range(low, high, batch_size)]
    items = [Item(part, np.zeros_like(part), part) for part in parts]
    work = work._replace(workers=min(work.workers, len(items)))
    loader = _make_loader(Batches(index, rows, crop, seed=0), items, batch_size, work)
    return EvalLoader(loader, len(items))


def _make_loader(
    batches: Batches, items: Iterable[Item], micro: int, work: Work
) -> DataLoader[Any]:
    batch_bytes = 3 * micro * math.prod(batches.crop.sides)
    if work.workers and work.start_method == "fork":
        n_slabs = work.workers * prefetch(work.workers, batch_bytes) + _IN_USE
        batches.slabs = Slabs(n_slabs, micro, batches.crop.sides)
        items = Lending(items, batches.slabs)
    return make_data_loader(batches, items=items, work=work, batch_bytes=batch_bytes)

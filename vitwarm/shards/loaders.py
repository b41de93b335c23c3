"""Batches of images for training and validation, from shards on a disk or from a stream.

The order lives in the main process; a worker gets positions, epochs and rows and returns pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vitwarm.shards.choose.order import Order, Share
from vitwarm.shards.load.pixels import EvalCrop, TrainCrop
from vitwarm.shards.load.reader import Batches
from vitwarm.shards.load.workers import (
    Failure,
    Item,
    Lent,
    Shipped,
    make_data_loader,
    plan_work,
    start_workers,
)
from vitwarm.shards.read.index import ShardIndex
from vitwarm.shards.stream.index import StreamIndex
from vitwarm.shards.stream.loader import Stream


class ImageBatch(NamedTuple):
    """b images as the workers ship them."""

    images: Tensor
    """uint8 [b, 3, H, W]."""
    labels: Tensor
    """int64 [b], of the images that are shown."""
    rows: Tensor
    """int64 [b], in the index: the images that were asked for."""
    positions: Tensor
    """int64 [b], in the global order; -1 in streamed validation, where nobody knows."""
    epochs: Tensor
    """int64 [b]."""
    unreadable: Tensor
    """int64 scalar: images of this batch that did not decode and were replaced."""


def unpack(shipped: Shipped | Failure) -> ImageBatch:
    """Returns a batch as the training sees it. Raises: what went wrong in the worker."""
    if isinstance(shipped, Failure):
        raise shipped.kind(shipped.text)
    images, *numbers, n_unreadable = shipped
    labels, rows, positions, epochs = map(torch.from_numpy, numbers)
    images = images.receive() if isinstance(images, Lent) else images
    return ImageBatch(images, labels, rows, positions, epochs, torch.tensor(n_unreadable))


@dataclass(eq=False)
class EvalLoader:
    """One process's part of the validation images, each once."""

    loader: DataLoader[Any]
    n_batches: int
    """Of a stream about: how its images spread over the shards is not known."""

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[ImageBatch]:
        return map(unpack, start_workers(self.loader))


@dataclass(eq=False)
class _Items:
    """What the micro-batches of one process are, from `start_step` to `n_steps`."""

    order: Order
    share: Share
    n_steps: int
    start_step: int = 0

    def __iter__(self) -> Iterator[Item]:
        micros = self.share.micros
        for number in range(self.start_step * micros, self.n_steps * micros):
            positions = self.share.positions(number)
            yield Item(positions, *self.order.rows_at(positions))


@dataclass(eq=False)
class TrainLoader:
    """Micro-batches of one process, from `start_step` to `n_steps`.

    Its state is the number of steps done, the same on any rank: it may go on with another number
    of ranks, workers or micro-batches. Each iteration starts at `start_step`, or where a loaded
    state says; what workers had made ahead of an abandoned iteration does not count.
    """

    share: Share
    loader: DataLoader[Any]
    source: _Items | Stream
    """What the loader ships from, beginning at its own `start_step`."""
    start_step: int
    n_steps: int

    def __post_init__(self) -> None:
        self._steps_done = self.start_step

    def __len__(self) -> int:
        """Micro-batches of one iteration."""
        return max(0, self.n_steps - self.start_step) * self.share.micros

    def __iter__(self) -> Iterator[ImageBatch]:
        self.source.start_step = self._steps_done = self.start_step
        shipped = start_workers(self.loader)
        first = self.start_step * self.share.micros
        for number in range(first, first + len(self)):
            yield self._take(shipped, number)  # no name for it: its memory would stay in use

    def _take(self, shipped: Iterator[Any], number: int) -> ImageBatch:
        batch = unpack(next(shipped))
        # Before the yield: who saves after the last micro-batch of a step has done that step.
        self._steps_done = (number + 1) // self.share.micros
        # A stream's workers do not know how many images others have made.
        return batch._replace(positions=torch.from_numpy(self.share.positions(number)))

    def state_dict(self) -> dict[str, int]:
        """The number of steps whose micro-batches have all been handed out."""
        return {"steps_done": self._steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration start behind so many steps."""
        self._steps_done = self.start_step = int(state["steps_done"])


def make_train_loader(
    index: ShardIndex,
    order: Order,
    *,
    crop: TrainCrop,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    n_steps: int,
    workers: int | None = None,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> TrainLoader:
    """Returns the micro-batches of one process.

    Step s takes the positions [s * batch_size, (s + 1) * batch_size), rank r its contiguous part.

    Args:
        seed: of the crops; the order has its own, and of a stream's order only that counts.
        batch_size: images per step over all processes and accumulation; divides by world_size
            times micro_batch_size.
        start_step, n_steps: first step, and the step before which it ends.
        workers: processes; None: the cores of this job; 0: in this process.
        start_method: of the workers: fork, spawn or forkserver; None: the best here.
    Raises: ShardError: a batch that does not divide, or no room in shared memory.
    """
    share = Share(batch_size, micro_batch_size, rank, world_size)
    share.check()
    work = plan_work(workers, world_size, pin_memory, start_method)
    size = (micro_batch_size, *crop.sides)
    if isinstance(index, StreamIndex):
        stream = Stream(index, share, crop, order.seed)
        loader = make_data_loader(stream, None, work=work, size=size)
        return TrainLoader(share, loader, stream, start_step, n_steps)
    items = _Items(order, share, n_steps)
    batches = Batches(index, order.rows, crop, seed)
    loader = make_data_loader(batches, items, work=work, size=size)
    return TrainLoader(share, loader, items, start_step, n_steps)


def make_val_loader(
    index: ShardIndex,
    *,
    crop: EvalCrop,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> EvalLoader:
    """Returns this rank's part of all images, in order, each once; the last batch may be short.

    Args: as `make_train_loader`.
    Raises: ShardError: no room in shared memory.
    """
    work = plan_work(workers, world_size, pin_memory, start_method)
    size = (batch_size, *crop.sides)
    if isinstance(index, StreamIndex):  # whole shards
        share = Share(world_size * batch_size, batch_size, rank, world_size)
        loader = make_data_loader(Stream(index, share, crop, 0), None, work=work, size=size)
        return EvalLoader(loader, -(-index.n_images // share.batch_size))
    rows = np.arange(index.n_images, dtype=np.int64)
    low, high = (len(rows) * r // world_size for r in (rank, rank + 1))
    parts = [rows[k : min(k + batch_size, high)] for k in range(low, high, batch_size)]
    items = [Item(part, np.zeros_like(part), part) for part in parts]
    work = work._replace(workers=min(work.workers, len(items)))
    batches = Batches(index, rows, crop, seed=0)
    loader = make_data_loader(batches, items, work=work, size=size)
    return EvalLoader(loader, len(items))

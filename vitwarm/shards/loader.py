"""Loaders over an index: whole micro-batches made in worker processes, positions chosen outside.

The order lives in the main process; a worker gets positions, epochs and rows and returns pixels.
Nothing epoch-dependent lives in a worker, so neither their number nor a resume changes a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitwarm.errors import ShardError
from vitwarm.shards.crops import EvalCrop, TrainCrop
from vitwarm.shards.index import ShardIndex
from vitwarm.shards.order import Order
from vitwarm.shards.reader import ImageReader, centre, cut_out, read_or_replace

Item = tuple[np.ndarray, np.ndarray, np.ndarray]


class ImageBatch(NamedTuple):
    """b images as the workers ship them."""

    images: Tensor
    """uint8 [b, 3, H, W]."""
    labels: Tensor
    """int64 [b]."""
    rows: Tensor
    """int64 [b], in the index."""
    positions: Tensor
    """int64 [b], in the global order."""
    epochs: Tensor
    """int64 [b]."""
    unreadable: Tensor
    """int64 scalar: images of this batch that did not decode and were replaced."""


class _Batches(Dataset[ImageBatch]):
    def __init__(
        self, index: ShardIndex, rows: np.ndarray, crop: TrainCrop | EvalCrop, seed: int
    ) -> None:
        self.reader = ImageReader(index)
        self.labels = index.labels
        self.rows = np.asarray(rows, np.int64)
        self.crop = crop
        self.seed = seed

    def __getitem__(self, item: Item) -> ImageBatch:
        positions, epochs, rows = item
        size = self.crop.size
        out = np.empty((len(rows), size, size, 3), np.uint8)
        bad = 0
        for k, row in enumerate(rows.tolist()):
            image, replaced = read_or_replace(self.reader, row, self.rows)
            bad += replaced
            if isinstance(self.crop, TrainCrop):
                box = self.crop.box(self.seed, int(epochs[k]), row, *image.shape[:2])
                out[k] = cut_out(image, box, size, interpolation=self.crop.interpolation)
            else:
                out[k] = centre(image, self.crop)
        return ImageBatch(
            images=torch.from_numpy(out).permute(0, 3, 1, 2).contiguous(),
            labels=torch.from_numpy(np.asarray(self.labels)[rows].astype(np.int64)),
            rows=torch.from_numpy(rows),
            positions=torch.from_numpy(positions),
            epochs=torch.from_numpy(epochs),
            unreadable=torch.tensor(bad),
        )


class _Positions(Sampler[Item]):
    """What the micro-batches of one process are, from `start_step` on."""

    def __init__(
        self, order: Order, *, batch_size: int, micro: int, first: int, local: int, n_steps: int
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.micro = micro
        self.first = first
        self.local = local
        self.n_steps = n_steps
        self.start_step = 0

    def __len__(self) -> int:
        return max(0, self.n_steps - self.start_step) * (self.local // self.micro)

    def __iter__(self) -> Iterator[Item]:
        for step in range(self.start_step, self.n_steps):
            for begin in range(0, self.local, self.micro):
                low = step * self.batch_size + self.first + begin
                positions = np.arange(low, low + self.micro, dtype=np.int64)
                yield (positions, *self.order.rows_at(positions))


class _Slices(Sampler[Item]):
    """Every rank's own part of all rows: disjoint, whole, without padding."""

    def __init__(self, n: int, *, batch_size: int, rank: int, world_size: int) -> None:
        self.low, self.high = n * rank // world_size, n * (rank + 1) // world_size
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-(self.high - self.low) // self.batch_size)

    def __iter__(self) -> Iterator[Item]:
        for low in range(self.low, self.high, self.batch_size):
            rows = np.arange(low, min(low + self.batch_size, self.high), dtype=np.int64)
            yield rows, np.zeros_like(rows), rows


class TrainLoader:
    """Micro-batches of one process; its state is the number of steps done, the same on any rank."""

    def __init__(self, loader: DataLoader[ImageBatch], positions: _Positions) -> None:
        self.loader = loader
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter(self.loader)

    def state_dict(self) -> dict[str, int]:
        """The step it starts from; the trainer counts the steps done since."""
        return {"steps_done": self.positions.start_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Starts from another step."""
        self.positions.start_step = int(state["steps_done"])


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
) -> TrainLoader:
    """Returns the micro-batches of one process.

    Step s takes the positions [s * batch_size, (s + 1) * batch_size), rank r its contiguous part.

    Args:
        batch_size: images per step over all processes and accumulation; divides by world_size
            times micro_batch_size.
        start_step, n_steps: first step, and the step before which it ends.
        workers: processes; None: the cores of this job; 0: in this process.
    """
    local = batch_size // world_size
    if local % micro_batch_size or batch_size % world_size:
        raise ShardError(
            f"train.batch_size is {batch_size}; it must divide by {world_size} processes and their "
            f"share by train.micro_batch_size ({micro_batch_size})."
        )
    positions = _Positions(
        order,
        batch_size=batch_size,
        micro=micro_batch_size,
        first=rank * local,
        local=local,
        n_steps=n_steps,
    )
    positions.start_step = start_step
    batches = _Batches(index, order.rows, crop, seed)
    return TrainLoader(_loader(batches, positions, workers, pin_memory, world_size), positions)


def make_val_loader(
    index: ShardIndex,
    *,
    crop: EvalCrop,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    pin_memory: bool = False,
) -> DataLoader[ImageBatch]:
    """Returns this rank's part of all images, in order, each once; the last batch may be short."""
    rows = np.arange(index.n_images)
    slices = _Slices(index.n_images, batch_size=batch_size, rank=rank, world_size=world_size)
    batches = _Batches(index, rows, crop, seed=0)
    return _loader(batches, slices, workers, pin_memory, world_size)


def count_workers(world_size_here: int = 1) -> int:
    """Returns the loader processes per training process: the job's cores, shared out."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, world_size_here))


def _loader(
    batches: _Batches,
    sampler: Sampler[Item],
    workers: int | None,
    pin_memory: bool,
    world_size: int,
) -> DataLoader[Any]:
    n = count_workers(world_size) if workers is None else workers
    return DataLoader(
        batches,
        batch_size=None,  # an item is a whole micro-batch
        sampler=sampler,
        num_workers=n,
        pin_memory=pin_memory,
        persistent_workers=n > 0,
        prefetch_factor=4 if n else None,
        worker_init_fn=_one_thread,
        multiprocessing_context="fork" if n else None,
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)

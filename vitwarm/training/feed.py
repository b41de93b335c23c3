"""From image batches of a loader, or images that live on the device, to what the model is fed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

from vitwarm.augment import Augmentation
from vitwarm.loop import Cut
from vitwarm.shards import Order, TrainCrop
from vitwarm.training.module import TrainBatch
from vitwarm.training.resident import ResidentImages, resample
from vitwarm.world import World

#: Numbers of the largest tensor that is made at once for resident images: a CPU's caches, or so
#: much that a GPU's kernels are large against their launches.
CHUNK_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 26}
CHUNK_IMAGES = 4096


def here(device: torch.device) -> torch.device:
    """Returns the device of this process: Lightning has chosen among the GPUs when a fit runs."""
    if device.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


@dataclass(frozen=True, eq=False)
class LoaderFeed:
    """Moves a loader's batches to the device and augments them there."""

    loader: Any
    """Gives `ImageBatch`es, as many as its `len`."""
    augment: Augmentation
    device: torch.device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[TrainBatch]:
        device = here(self.device)
        for batch in self.loader:
            out = self.augment(
                batch.images.to(device, non_blocking=True),
                batch.labels.to(device, non_blocking=True),
                rows=batch.rows.numpy(),
                epochs=batch.epochs.numpy(),
                positions=batch.positions.numpy(),
            )
            yield TrainBatch(out.images, out.targets, int(batch.unreadable))


@dataclass(frozen=True, eq=False)
class ResidentFeed:
    """Makes the loader's batches out of images that live on the device, several steps at once."""

    images: ResidentImages
    """Of all rows in the order."""
    order: Order
    _: KW_ONLY
    crop: TrainCrop
    augment: Augmentation
    seed: int
    """Of the crops."""
    cut: Cut
    world: World
    start_step: int
    n_steps: int
    """The step before which it ends."""
    device: torch.device
    unreadable: np.ndarray | tuple[()] = ()
    """Rows that did not decode and were replaced."""
    chunk_images: int | None = None
    """Made at once; None: by size. Changes nothing in what comes out."""

    def __len__(self) -> int:
        return max(0, self.n_steps - self.start_step) * self.cut.accumulate

    def __iter__(self) -> Iterator[TrainBatch]:
        device = here(self.device)
        images = self.images.to(device)
        local = self.cut.batch_size // self.world.size
        limit = CHUNK_NUMBERS.get(device.type, 1 << 20) // (3 * math.prod(self.crop.sides))
        steps = max(1, (self.chunk_images or min(limit, CHUNK_IMAGES)) // local)
        for start in range(self.start_step, self.n_steps, steps):
            chosen = np.arange(start, min(start + steps, self.n_steps), dtype=np.int64)
            first = chosen[:, None] * self.cut.batch_size + self.world.rank * local
            yield from self._chunk(images, (first + np.arange(local)).reshape(-1))

    def _chunk(self, images: ResidentImages, positions: np.ndarray) -> Iterator[TrainBatch]:
        epochs, rows = self.order.rows_at(positions)
        height, width = images.images.shape[2:]
        boxes = self.crop.boxes(self.seed, epochs, rows, height, width)
        places = images.find(rows)
        cropped = resample(
            images.images.index_select(0, places),
            torch.from_numpy(boxes).to(places.device, non_blocking=True),
            self.crop.sides,
            interpolation=self.crop.interpolation,
            reflect=self.crop.mode == "pad",
        )
        labels = images.labels.index_select(0, places)
        out = self.augment(cropped, labels, rows=rows, epochs=epochs, positions=positions)
        bad = np.isin(rows, self.unreadable)
        size = self.cut.micro_batch_size
        for k in range(0, len(positions), size):
            part = slice(k, k + size)
            yield TrainBatch(out.images[part], out.targets.part(part), int(bad[part].sum()))

"""Loaders over an index: whole micro-batches made in worker processes, positions chosen outside.

The order lives in the main process; a worker gets positions, epochs and rows and returns pixels.
Nothing epoch-dependent lives in a worker, so neither their number nor a resume changes a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitwarm.errors import ShardError, VitwarmError
from vitwarm.shards.crops import EvalCrop, TrainCrop
from vitwarm.shards.cutting import centre, cut_out
from vitwarm.shards.decode import UnreadableImage, decode, quiet
from vitwarm.shards.index import ShardIndex
from vitwarm.shards.order import Order
from vitwarm.shards.reader import ImageReader
from vitwarm.shards.slabs import Lending, Lent, Slabs
from vitwarm.shards.workers import (
    Failure,
    count_workers,
    empty_images,
    make_data_loader,
    prefetch,
    start_workers,
)

#: Images whose bytes a worker holds at a time beside the pixels.
_CHUNK = 32

#: Images that are decoded before the first of them is cut out. In turns, image by image, decoding
#: and cutting push each other's code and tables out of the caches: a quarter more for the cutting.
_GROUP = 8

#: Micro-batches that the main process may hold and still get the next without new memory.
_IN_USE = 3


class ImageBatch(NamedTuple):
    """b images as the workers ship them."""

    images: Tensor
    """uint8 [b, 3, H, W]."""
    labels: Tensor
    """int64 [b], of the images that are shown."""
    rows: Tensor
    """int64 [b], in the index: the images that were asked for."""
    positions: Tensor
    """int64 [b], in the global order."""
    epochs: Tensor
    """int64 [b]."""
    unreadable: Tensor
    """int64 scalar: images of this batch that did not decode and were replaced."""


class Item(NamedTuple):
    """What a worker is asked for."""

    positions: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray
    slab: int | None = None
    """Where its pixels go; None: into memory of their own."""


class Shipped(NamedTuple):
    """What a worker returns. Only the pixels are a tensor: each costs a file descriptor."""

    images: Tensor | Lent
    labels: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    epochs: np.ndarray
    n_unreadable: int


def unpack(shipped: Shipped | Failure) -> ImageBatch:
    """Returns a batch as the training sees it. Raises: what went wrong in the worker."""
    if isinstance(shipped, Failure):
        raise shipped.kind(shipped.text)
    numbers = (shipped.labels, shipped.rows, shipped.positions, shipped.epochs)
    labels, rows, positions, epochs = map(torch.from_numpy, numbers)
    unreadable = torch.tensor(shipped.n_unreadable)
    images = shipped.images.receive() if isinstance(shipped.images, Lent) else shipped.images
    return ImageBatch(images, labels, rows, positions, epochs, unreadable)


class EvalLoader(Protocol):
    """What both kinds of validation loader offer: this one and the one that streams."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[ImageBatch]: ...


class ImageLoader(EvalLoader, Protocol):
    """What both kinds of training loader offer."""

    def state_dict(self) -> dict[str, int]:
        """The number of steps done, the same on any rank."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on behind that many steps at the next iteration."""
        ...


class _Batches(Dataset[Shipped | Failure]):
    """Makes the pixels of one micro-batch."""

    def __init__(
        self, index: ShardIndex, rows: np.ndarray, crop: TrainCrop | EvalCrop, seed: int
    ) -> None:
        self.reader = ImageReader(index, rows)
        self.labels = index.labels
        self.crop = crop
        self.seed = seed
        self.slabs: Slabs | None = None

    def __getitem__(self, item: Item) -> Shipped | Failure:
        try:
            with quiet():
                return self._make(item)
        except VitwarmError as error:  # raised in a worker it would arrive as a traceback
            return Failure.of(error)

    def _make(self, item: Item) -> Shipped:
        self.reader.announce(item.rows)
        n = len(item.rows)
        images: Tensor | Lent
        if self.slabs is None or item.slab is None:
            images = empty_images(n, self.crop.size)
            out = images.numpy()
        else:
            images, out = self.slabs.ship(item.slab, n), self.slabs.pixels(item.slab, n)
        shown = np.empty_like(item.rows)
        make = self._train if isinstance(self.crop, TrainCrop) else self._eval
        for first in range(0, n, _CHUNK):
            some = slice(first, first + _CHUNK)
            make(item.rows[some], item.epochs[some], out[some], shown[some])
        labels = np.asarray(self.labels)[shown].astype(np.int64)
        n_unreadable = int((shown != item.rows).sum())
        return Shipped(images, labels, item.rows, item.positions, item.epochs, n_unreadable)

    def _train(
        self, rows: np.ndarray, epochs: np.ndarray, out: np.ndarray, shown: np.ndarray
    ) -> None:
        """Headers first: the crops of all images are drawn at once, and say how to decode each."""
        reader, crop = self.reader, self.crop
        assert isinstance(crop, TrainCrop)
        found = [reader.first_good(row, reader.header) for row in rows.tolist()]
        shown[:] = [row for row, _ in found]
        encoded = [image for _, image in found]
        heights = np.array([image.height for image in encoded])
        widths = np.array([image.width for image in encoded])
        boxes = crop.boxes(self.seed, epochs, rows, heights, widths)
        reductions = crop.reduction(boxes).tolist()
        ends = np.ceil(boxes[:, 0] + boxes[:, 2]).astype(int).tolist()
        for group in _groups(len(rows)):
            decoded = []
            for k in group:
                try:
                    pixels = decode(encoded[k], reduction=reductions[k], rows=ends[k])
                except UnreadableImage:
                    shown[k], pixels = reader.first_good(int(shown[k]), reader.pixels)
                    where = (int(epochs[k]), int(rows[k]), *pixels.shape[:2])
                    boxes[k] = crop.box(self.seed, *where)
                else:
                    if reductions[k] > 1 and pixels.shape[1] < encoded[k].width:
                        boxes[k, :4] /= reductions[k]
                decoded.append(pixels)
            for k, pixels in zip(group, decoded, strict=True):
                box = boxes[k].tolist()
                cut = cut_out(pixels, box, crop.size, interpolation=crop.interpolation)
                out[k] = cut.transpose(2, 0, 1)

    def _eval(
        self, rows: np.ndarray, epochs: np.ndarray, out: np.ndarray, shown: np.ndarray
    ) -> None:
        reader, crop = self.reader, self.crop
        assert isinstance(crop, EvalCrop)
        for group in _groups(len(rows)):
            found = [reader.first_good(int(rows[k]), reader.pixels) for k in group]
            for k, (row, pixels) in zip(group, found, strict=True):
                shown[k] = row
                out[k] = centre(pixels, crop).transpose(2, 0, 1)


def _groups(n: int) -> Iterator[range]:
    return (range(first, min(first + _GROUP, n)) for first in range(0, n, _GROUP))


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

    @property
    def micros(self) -> int:
        """Micro-batches per step and process."""
        return self.local // self.micro

    def __len__(self) -> int:
        return max(0, self.n_steps - self.start_step) * self.micros

    def __iter__(self) -> Iterator[Item]:
        for step in range(self.start_step, self.n_steps):
            for begin in range(0, self.local, self.micro):
                low = step * self.batch_size + self.first + begin
                positions = np.arange(low, low + self.micro, dtype=np.int64)
                yield Item(positions, *self.order.rows_at(positions))


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
            yield Item(rows, np.zeros_like(rows), rows)


class TrainLoader:
    """Micro-batches of one process, from a step on.

    Its state is the number of steps done, the same on any rank: it may go on with another number
    of ranks, workers or micro-batches. Each iteration starts at `start_step`, or where a loaded
    state says; what workers had made ahead of an abandoned iteration does not count.
    """

    def __init__(self, loader: DataLoader[Any], positions: _Positions) -> None:
        self.loader = loader
        self.positions = positions
        self._steps_done = positions.start_step

    def __len__(self) -> int:
        """Micro-batches of one iteration."""
        return len(self.positions)

    def __iter__(self) -> Iterator[ImageBatch]:
        start, micros = self.positions.start_step, self.positions.micros
        self._steps_done = start
        for number, shipped in enumerate(start_workers(self.loader), 1):
            # Before the yield: who saves after the last micro-batch of a step has done that step.
            self._steps_done = start + number // micros
            yield unpack(shipped)

    def state_dict(self) -> dict[str, int]:
        """The number of steps whose micro-batches have all been handed out."""
        return {"steps_done": self._steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration start behind so many steps."""
        self._steps_done = self.positions.start_step = int(state["steps_done"])


class ValLoader:
    """One process's part of the validation images, each once, in order."""

    def __init__(self, loader: DataLoader[Any], n_images: int) -> None:
        self.loader = loader
        self.n_images = n_images
        """Of this process."""

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[ImageBatch]:
        for shipped in start_workers(self.loader):
            yield unpack(shipped)


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
    start_method: str = "fork",
) -> ImageLoader:
    """Returns the micro-batches of one process.

    Step s takes the positions [s * batch_size, (s + 1) * batch_size), rank r its contiguous part.

    Args:
        seed: of the crops; the order has its own.
        batch_size: images per step over all processes and accumulation; divides by world_size
            times micro_batch_size.
        start_step, n_steps: first step, and the step before which it ends.
        workers: processes; None: the cores of this job; 0: in this process.
        start_method: of the workers: fork, spawn or forkserver.
    Raises: ShardError: a batch that does not divide, or no room in shared memory.
    """
    local = batch_size // world_size
    if local % micro_batch_size or batch_size % world_size:
        raise ShardError(
            f"train.batch_size is {batch_size}; it must divide by {world_size} processes and their "
            f"share by train.micro_batch_size ({micro_batch_size}). "
            f"Use {max(1, local // micro_batch_size) * micro_batch_size * world_size}."
        )
    n_workers = count_workers(world_size) if workers is None else workers
    if index.streaming:
        from vitwarm.shards.streamloader import StreamLoader

        return StreamLoader(
            index,
            crop=crop,
            seed=order.seed,
            micro=micro_batch_size,
            micros=local // micro_batch_size,
            rank=rank,
            world_size=world_size,
            start_step=start_step,
            n_steps=n_steps,
            workers=n_workers,
            pin_memory=pin_memory,
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
    loader = _make_loader(
        _Batches(index, order.rows, crop, seed),
        positions,
        micro=micro_batch_size,
        workers=n_workers,
        pin_memory=pin_memory,
        start_method=start_method,
    )
    return TrainLoader(loader, positions)


def make_val_loader(
    index: ShardIndex,
    *,
    crop: EvalCrop,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    pin_memory: bool = False,
    start_method: str = "fork",
) -> EvalLoader:
    """Returns this rank's part of all images, in order, each once; the last batch may be short.

    Args:
        workers: processes; None: the cores of this job; 0: in this process.
    Raises: ShardError: no room in shared memory.
    """
    n_workers = count_workers(world_size) if workers is None else workers
    if index.streaming:
        from vitwarm.shards.streamloader import make_stream_val_loader

        return make_stream_val_loader(
            index,
            crop=crop,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            workers=n_workers,
            pin_memory=pin_memory,
        )
    slices = _Slices(index.n_images, batch_size=batch_size, rank=rank, world_size=world_size)
    loader = _make_loader(
        _Batches(index, np.arange(index.n_images), crop, seed=0),
        slices,
        micro=batch_size,
        workers=min(n_workers, len(slices)),
        pin_memory=pin_memory,
        start_method=start_method,
    )
    return ValLoader(loader, slices.high - slices.low)


def _make_loader(
    batches: _Batches, sampler: Sampler[Item], *, micro: int, workers: int, pin_memory: bool,
    start_method: str,
) -> DataLoader[Any]:  # fmt: skip
    batch_bytes = 3 * micro * batches.crop.size**2
    if workers and start_method == "fork":
        n_slabs = workers * prefetch(workers, batch_bytes) + _IN_USE
        batches.slabs = Slabs(n_slabs, micro, batches.crop.size)
        sampler = Lending(sampler, batches.slabs)
    return make_data_loader(
        batches,
        sampler=sampler,
        workers=workers,
        pin_memory=pin_memory,
        start_method=start_method,
        batch_bytes=batch_bytes,
    )

"""From rows of the index to pixels: positioned reads, decoding, stand-ins for bad images.

Nothing epoch-dependent lives in a worker process, which makes whole micro-batches out of positions,
epochs and rows: neither the number of workers nor a resume changes a batch.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitwarm.errors import ShardError, VitwarmError
from vitwarm.records import count_cpus
from vitwarm.shards.load.pixels import (
    Encoded,
    EvalCrop,
    TrainCrop,
    UnreadableImage,
    centre,
    cut_out,
    decode,
    quiet,
    read_header,
    resize,
    tell_decoder,
)
from vitwarm.shards.load.workers import Failure, Item, Lent, Shipped, Slabs, empty_images
from vitwarm.shards.read.index import ShardIndex
from vitwarm.shards.read.walk import open_file, read_at

log = logging.getLogger("vitwarm")

#: Rows that are tried in place of one that does not decode.
MAX_STAND_INS = 10

#: Unreadable images that one process names in the log; after that they are only counted.
_NAMED = 20

#: Images whose bytes a worker holds at a time beside the pixels.
_CHUNK = 32

#: Images that are decoded before the first of them is cut out. In turns, image by image, decoding
#: and cutting push each other's code and tables out of the caches: a quarter more for the cutting.
_GROUP = 8

#: Images that a thread takes at a time where a whole set is decoded.
_OF_THREAD = 64

Result = TypeVar("Result")


class ImageReader:
    """Reads and decodes images by row. Safe to fork and to pickle: files open on first use.

    Not for several threads at once: the least recently used file is closed when too many are open.
    """

    def __init__(self, index: ShardIndex, rows: np.ndarray) -> None:
        """Takes the index and the rows that may stand in for one another, int64, ascending."""
        self.index = index
        self.rows = np.asarray(rows, np.int64)
        self.named = 0
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(self, row: int) -> bytes:
        """Returns an encoded image. Raises: ShardError: its shard is gone, or became shorter."""
        index = self.index
        shard, size = int(index.shard_of[row]), int(index.sizes[row])
        try:
            data = read_at(self._open(shard), size, int(index.offsets[row]))
        except OSError as error:
            raise ShardError(
                f"{index.paths[shard]} cannot be read: {error.strerror}. Restore it and run "
                "the same command again; it resumes."
            ) from error
        if len(data) < size:
            raise ShardError(
                f"{index.paths[shard]} became shorter while in use: {len(data):,} of {size:,} "
                f"bytes of {index.keys[row]!r} are there. Run `vitwarm shards check`."
            )
        return data

    def announce(self, rows: np.ndarray) -> None:
        """Tells the system which images will be read, so that a disk can fetch them at once."""
        index = self.index
        for row in rows.tolist():
            shard = int(index.shard_of[row])
            try:
                where, n_bytes = int(index.offsets[row]), int(index.sizes[row])
                os.posix_fadvise(self._open(shard), where, n_bytes, os.POSIX_FADV_WILLNEED)
            except (OSError, AttributeError):
                return  # a hint; `read` says what is wrong

    def first_good(self, row: int, use: Callable[[int], Result]) -> tuple[int, Result]:
        """Applies `use` to a row, or to the next of `rows` for which it works: the same everywhere.

        Returns: the row for which it did not raise UnreadableImage, and what it returned.
        Raises: ShardError: so many rows on end are unreadable that nothing else can be.
        """
        place = int(np.searchsorted(self.rows, row))
        for step in range(min(MAX_STAND_INS, len(self.rows))):
            candidate = row if step == 0 else int(self.rows[(place + step) % len(self.rows)])
            try:
                return candidate, use(candidate)
            except UnreadableImage as error:
                self.named += 1
                if self.named <= _NAMED:
                    log.warning(
                        "%s: image %r does not decode (%s); a neighbour replaces it.%s",
                        self.index.paths[int(self.index.shard_of[candidate])],
                        self.index.keys[candidate],
                        error,
                        " Further ones are not listed." if self.named == _NAMED else "",
                    )
        shard = self.index.paths[int(self.index.shard_of[row])]
        raise ShardError(
            f"{shard}: image {self.index.keys[row]!r} and those after it do "
            "not decode. Run `vitwarm shards check` on the shards."
        )

    def header(self, row: int) -> Encoded:
        """Reads an image and its header. Raises: UnreadableImage, ShardError."""
        return read_header(self.read(row))

    def pixels(self, row: int) -> np.ndarray:
        """Returns a decoded image, uint8 [H, W, 3]. Raises: UnreadableImage, ShardError."""
        return decode(self.header(row))

    def _open(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        while len(self._files) >= _most_open():
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = open_file(self.index.paths[shard])
        return self._files[shard]

    def close(self) -> None:
        """Closes the tars that this process has opened."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict()}


class Batches(Dataset[Shipped | Failure]):
    """Makes the pixels of one micro-batch per item."""

    def __init__(
        self, index: ShardIndex, rows: np.ndarray, crop: TrainCrop | EvalCrop, seed: int
    ) -> None:
        """Takes the images that may stand in for one another, and what is cut out of each."""
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
            return Failure(type(error), str(error))

    def _make(self, item: Item) -> Shipped:
        self.reader.announce(item.rows)
        n = len(item.rows)
        images: Tensor | Lent
        if self.slabs is None or item.slab is None:
            images = empty_images(n, self.crop.sides)
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
        for group in _parts(len(rows), _GROUP):
            decoded = []
            for k in group:
                try:
                    pixels = decode(encoded[k], reduction=reductions[k], rows=ends[k])
                except UnreadableImage:
                    shown[k], pixels = reader.first_good(int(shown[k]), reader.pixels)
                    one = slice(k, k + 1)
                    boxes[one] = crop.boxes(self.seed, epochs[one], rows[one], *pixels.shape[:2])
                else:
                    if reductions[k] > 1 and pixels.shape[1] < encoded[k].width:
                        boxes[k, :4] /= reductions[k]
                decoded.append(pixels)
            for k, pixels in zip(group, decoded, strict=True):
                box = boxes[k].tolist()
                cut = cut_out(pixels, box, crop.sides, interpolation=crop.interpolation)
                out[k] = cut.transpose(2, 0, 1)

    def _eval(
        self, rows: np.ndarray, epochs: np.ndarray, out: np.ndarray, shown: np.ndarray
    ) -> None:
        reader, crop = self.reader, self.crop
        assert isinstance(crop, EvalCrop)
        for group in _parts(len(rows), _GROUP):
            found = [reader.first_good(int(rows[k]), reader.pixels) for k in group]
            for k, (row, pixels) in zip(group, found, strict=True):
                shown[k] = row
                out[k] = centre(pixels, crop).transpose(2, 0, 1)


class Decoded(NamedTuple):
    """Decoded images of n rows, all of one size: uint8 [n, 3, H, W]."""

    images: Tensor
    unreadable: np.ndarray
    """int64, rows that did not decode and hold a neighbour instead."""
    labels: np.ndarray
    """int64 [n], of the images that are shown: a neighbour brings its own label."""


def decode_all(index: ShardIndex, rows: np.ndarray, size: int | None = None) -> Decoded:
    """Decodes the images of some rows into one tensor, for sets small enough to keep.

    Args:
        rows: int64 [n], ascending; they stand in for one another.
        size: pixels of both sides; None: as they are, which must be the same for all.
    Raises: ShardError: images of different sizes, a streamed source, or too many unreadable ones.
    """
    if index.streaming:
        raise ShardError(
            "data.resident is on, but the source is streamed. Use data.resident=off, or copy the "
            "shards to a disk."
        )
    tell_decoder()
    rows = np.asarray(rows, np.int64)
    readers = threading.local()

    def read(row: int) -> tuple[int, np.ndarray]:
        if not hasattr(readers, "one"):
            readers.one = ImageReader(index, rows)
        shown, pixels = readers.one.first_good(row, readers.one.pixels)
        if size is not None:
            pixels = resize(pixels, size, size, "bicubic")
        return shown, pixels.transpose(2, 0, 1)

    with quiet():
        first = read(int(rows[0]))[1]
    images = torch.empty((len(rows), *first.shape), dtype=torch.uint8)
    out = images.numpy()
    shown = np.empty(len(rows), np.int64)

    def fill(places: range) -> None:
        for place in places:
            shown[place], pixels = read(int(rows[place]))
            if pixels.shape != first.shape:
                raise ShardError(
                    f"data.resident: image {index.keys[shown[place]]!r} has {pixels.shape[2]} x "
                    f"{pixels.shape[1]} pixels, others {first.shape[2]} x {first.shape[1]}. Use "
                    "data.resident=off."
                )
            out[place] = pixels

    with quiet(), ThreadPoolExecutor(min(8, count_cpus())) as pool:
        list(pool.map(fill, _parts(len(rows), _OF_THREAD)))
    labels = np.asarray(index.labels)[shown].astype(np.int64)
    return Decoded(images, rows[shown != rows], labels)


def first_size(index: ShardIndex, rows: np.ndarray) -> tuple[int, int]:
    """Returns (height, width) of the first of some rows, or of the next that has a header."""
    reader = ImageReader(index, rows)
    image = reader.first_good(int(rows[0]), reader.header)[1]
    return image.height, image.width


@cache
def _most_open() -> int:
    """A part of what the system lets one process open: the rest is for pipes and shared memory."""
    try:
        import resource
    except ImportError:  # Windows; its C library opens 512
        return 128
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 512 if soft == resource.RLIM_INFINITY else max(4, min(512, soft // 4))


def _parts(n: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, n)) for first in range(0, n, size))

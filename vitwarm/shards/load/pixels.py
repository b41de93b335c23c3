"""Whole micro-batches of pixels out of positions, epochs and rows: what a worker process does.

Nothing epoch-dependent lives in a worker, so neither their number nor a resume changes a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from vitwarm.errors import VitwarmError
from vitwarm.shards.load.batch import Shipped
from vitwarm.shards.load.crops import EvalCrop, TrainCrop
from vitwarm.shards.load.cutting import centre, cut_out
from vitwarm.shards.load.decode import UnreadableImage, decode, quiet
from vitwarm.shards.load.reader import ImageReader
from vitwarm.shards.load.slabs import Lent, Slabs
from vitwarm.shards.load.workers import Failure, empty_images
from vitwarm.shards.read.index import ShardIndex

#: Images whose bytes a worker holds at a time beside the pixels.
_CHUNK = 32

#: Images that are decoded before the first of them is cut out. In turns, image by image, decoding
#: and cutting push each other's code and tables out of the caches: a quarter more for the cutting.
_GROUP = 8


class Item(NamedTuple):
    """What a worker is asked for."""

    positions: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray
    slab: int | None = None
    """Where its pixels go; None: into memory of their own."""


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
            return Failure.of(error)

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
                cut = cut_out(pixels, box, crop.sides, interpolation=crop.interpolation)
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

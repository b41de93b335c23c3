"""From a row of the index to pixels: one positioned read, a decoder, a crop."""

from __future__ import annotations

import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from vitwarm.errors import ShardError
from vitwarm.shards.crops import EvalCrop
from vitwarm.shards.index import ShardIndex

#: Larger images are not decoded: a header may promise any number of pixels.
MAX_PIXELS = 64_000_000

#: Tars kept open at a time by one process.
MAX_OPEN = 256

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class UnreadableImage(Exception):
    """An image that does not decode, or that nobody should try to."""


class ImageReader:
    """Reads and decodes images by row. Safe to fork and to pickle: files open on first use."""

    def __init__(self, index: ShardIndex) -> None:
        self.paths: list[Path] = index.paths
        self.shard_of = index.shard_of
        self.offsets = index.offsets
        self.sizes = index.sizes
        self._files: OrderedDict[int, int] = OrderedDict()
        self._owner = -1

    def read(self, row: int) -> bytes:
        """Returns the encoded image.

        Raises: ShardError: the shard is gone, or shorter than its index says.
        """
        shard, size = int(self.shard_of[row]), int(self.sizes[row])
        try:
            data = os.pread(self._open(shard), size, int(self.offsets[row]))
        except OSError as error:
            raise ShardError(f"{self.paths[shard]} cannot be read: {error.strerror}.") from error
        if len(data) < size:
            raise ShardError(
                f"{self.paths[shard]} became shorter while in use. Run `vitwarm shards check`."
            )
        return data

    def decode(self, row: int) -> np.ndarray:
        """Returns uint8 [H, W, 3]. Raises: UnreadableImage."""
        return decode_image(self.read(row))

    def _open(self, shard: int) -> int:
        if self._owner != os.getpid():  # after a fork, positions are shared but closing is not
            self._files, self._owner = OrderedDict(), os.getpid()
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._files.move_to_end(shard)
        return self._files[shard]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict(), "_owner": -1}


def decode_image(data: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG or WebP to uint8 [H, W, 3].

    simplejpeg first; Pillow for everything it refuses (CMYK, a PNG named JPEG, other formats).

    Raises: UnreadableImage: no image, or one of more than MAX_PIXELS.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            _refuse_bomb(height, width)
            if colours != "CMYK":
                return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
        except ValueError:
            pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and transparency notes are not ours
            with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
                _refuse_bomb(image.height, image.width)
                return np.array(image.convert("RGB"))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise UnreadableImage(str(error) or type(error).__name__) from None


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


def cut_out(
    image: np.ndarray, box: Sequence[float], size: int, *, interpolation: str
) -> np.ndarray:
    """Cuts (top, left, height, width, flip) out of an image and resizes it; uint8 [size, size, 3].

    Boxes that reach over the edge see the image reflected there.
    """
    top, left, height, width = (int(v) for v in box[:4])
    over = max(-top, -left, top + height - image.shape[0], left + width - image.shape[1], 0)
    if over:
        image = np.pad(image, ((over, over), (over, over), (0, 0)), mode="reflect")
        top, left = top + over, left + over
    picture = Image.fromarray(image)
    if (height, width) != (size, size):
        picture = picture.resize(
            (size, size), PILLOW[interpolation], box=(left, top, left + width, top + height)
        )
    else:
        picture = picture.crop((left, top, left + width, top + height))
    out = np.asarray(picture)
    return np.ascontiguousarray(out[:, ::-1] if box[4] else out)


def centre(image: np.ndarray, crop: EvalCrop) -> np.ndarray:
    """Resizes the shorter side and cuts out the centre, as torchvision does."""
    height, width = image.shape[:2]
    short = min(height, width)
    new_h, new_w = (
        side if crop.resize == short else int(crop.resize * side / short)
        for side in (height, width)
    )
    picture = Image.fromarray(image)
    if (new_h, new_w) != (height, width):
        picture = picture.resize((new_w, new_h), PILLOW[crop.interpolation])
    top, left = round((new_h - crop.size) / 2), round((new_w - crop.size) / 2)
    return np.asarray(picture.crop((left, top, left + crop.size, top + crop.size)))


class Decoded(NamedTuple):
    """Decoded images of some rows, all of one size."""

    images: Tensor
    """uint8 [n, 3, H, W]."""
    unreadable: np.ndarray
    """int64, rows that did not decode and hold a neighbour instead."""


def decode_all(index: ShardIndex, rows: np.ndarray, *, threads: int = 2) -> Decoded:
    """Decodes the images of some rows into one tensor, for sets small enough to keep.

    Raises: ShardError: images of different sizes.
    """
    reader = ImageReader(index)
    rows = np.asarray(rows, np.int64)
    bad: list[int] = []
    first, _ = read_or_replace(reader, int(rows[0]), rows)
    out = np.empty((len(rows), *first.shape), np.uint8)

    def fill(place: int) -> None:
        image, replaced = read_or_replace(reader, int(rows[place]), rows)
        if image.shape != first.shape:
            raise ShardError(
                f"data.resident: image {index.key(int(rows[place]))!r} has "
                f"{image.shape[1]} x {image.shape[0]} pixels, others "
                f"{first.shape[1]} x {first.shape[0]}. Use data.resident=off."
            )
        out[place] = image
        if replaced:
            bad.append(int(rows[place]))

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, range(len(rows)), chunksize=64):
            pass
    images = torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
    return Decoded(images, np.array(sorted(bad), np.int64))


def read_or_replace(reader: ImageReader, row: int, rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """Decodes a row, or the next row of `rows` that decodes; the same neighbour everywhere.

    Args:
        rows: int64, ascending: the images that may stand in.
    Returns: uint8 [H, W, 3], and whether it is a stand-in.
    Raises: ShardError: ten rows in a row do not decode.
    """
    place = int(np.searchsorted(rows, row))
    for step in range(10):
        try:
            return reader.decode(int(rows[(place + step) % len(rows)])), step > 0
        except UnreadableImage:
            continue
    shard = reader.paths[int(reader.shard_of[row])]
    raise ShardError(f"{shard}: ten images in a row do not decode. Run `vitwarm shards check`.")

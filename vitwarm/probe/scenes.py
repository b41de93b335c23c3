"""Where things are in images: masks `KEY.mask.png` and boxes in `KEY.json` beside them in shards.

A mask is a PNG of one channel (grey or palette) as large as its image: 0 is background, 255 is not
counted, other values are classes. `KEY.json` holds `"boxes": [[x0, y0, x1, y1], ...]` in pixels
from the upper left corner, x1 and y1 one beyond the last. An image with a mask alone has the boxes
around the connected regions of each class.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage  # type: ignore[import-untyped]

from vitwarm.errors import ShardError
from vitwarm.probe.images import ProbeImages
from vitwarm.shards.load.reader import ImageReader
from vitwarm.shards.read.rows import split_name
from vitwarm.shards.read.walk import Member, read_at, scan_tar

IGNORED = 255
_FORM = 'Write "boxes": [[x0, y0, x1, y1], ...] in pixels, x1 and y1 one beyond the last.'


class Scenes:
    """Masks and boxes of some images, by their place among them; both may be missing.

    Attributes:
        masked: places that have a mask, ascending.
        n_classes: of the masks, background included; 0 without any.
        boxes: place -> float64 [k, 4], k >= 1, x0 y0 x1 y1 as shares of the image's sides.
    """

    def __init__(self, images: ProbeImages) -> None:
        """Reads every mask and box once, so that what is wrong is said before any model runs.

        Raises: ShardError: a mask of another size than its image or of several channels, a box
            outside of its image or without area, JSON of another form.
        """
        self.images, index = images, images.index
        self._masks: dict[int, tuple[Path, Member]] = {}
        self.boxes: dict[int, np.ndarray] = {}
        self.n_classes = 0
        place_of = {index.keys.raw(row): k for k, row in enumerate(images.rows.tolist())}
        stated: dict[int, list[Any]] = {}
        for shard in np.unique(index.shard_of[images.rows]).tolist():
            for key, ending, member in _members(index.paths[shard]):
                place = place_of.get(key)
                if place is None:
                    continue
                if ending == b"mask.png":
                    self._masks[place] = index.paths[shard], member
                elif ending == b"json":
                    stated[place] = self._parse(place, member.content or b"")
        self.masked = sorted(self._masks)
        reader = ImageReader(index, images.rows)
        for place in sorted({*self._masks, *(k for k, boxes in stated.items() if boxes)}):
            header = reader.header(int(images.rows[place]))
            self._check(place, stated.get(place, []), header.height, header.width)
        reader.close()

    def mask(self, place: int, size: int) -> np.ndarray:
        """Returns the mask of an image squeezed to a square, by nearest pixels; uint8 [S, S]."""
        mask = self._read_mask(place)
        rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in mask.shape)
        return mask[np.ix_(rows, columns)]

    def _check(self, place: int, boxes: list[Any], height: int, width: int) -> None:
        """Checks the mask and the boxes of an image, and keeps its boxes."""
        for box in boxes:
            x0, y0, x1, y1 = box
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise ShardError(
                    f"{self._name(place)}: the box {box} does not lie inside the image of {width} "
                    f"x {height} pixels, or has no area. {_FORM}"
                )
        if place in self._masks:
            mask = self._read_mask(place)
            if mask.shape != (height, width):
                raise ShardError(
                    f"{self._name(place)}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, "
                    f"its image {width} x {height}. Write them in one size."
                )
            counted = mask[mask != IGNORED]
            self.n_classes = max(self.n_classes, int(counted.max(initial=0)) + 1)
            boxes = boxes or region_boxes(mask)
        if boxes:
            sides = np.array([width, height, width, height], np.float64)
            self.boxes[place] = np.array(boxes, np.float64) / sides

    def _read_mask(self, place: int) -> np.ndarray:
        path, member = self._masks[place]
        with open(path, "rb") as file:
            data = read_at(file.fileno(), member.size, member.offset)
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.mode not in ("L", "P", "1"):
                    raise ShardError(
                        f"{self._name(place)}: the mask is a PNG of mode {image.mode}; it must "
                        "have one channel of 8 bits whose values are the classes (mode L or P)."
                    )
                return np.array(image.convert("L") if image.mode == "1" else image, np.uint8)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise ShardError(
                f"{self._name(place)}: the mask does not decode ({type(error).__name__}). Write "
                "it again as a PNG."
            ) from error

    def _parse(self, place: int, content: bytes) -> list[Any]:
        try:
            plain = json.loads(content)
            boxes = plain.get("boxes", []) if isinstance(plain, dict) else []
            if all(len(box) == 4 and all(float(v) == v for v in box) for box in boxes):
                return list(boxes)
        except (ValueError, TypeError, RecursionError):
            pass
        raise ShardError(f"{self._name(place)}: its .json holds no list of boxes. {_FORM}")

    def _name(self, place: int) -> str:
        index, row = self.images.index, int(self.images.rows[place])
        return f"{index.paths[int(index.shard_of[row])]}: image {index.keys[row]!r}"


def region_boxes(mask: np.ndarray) -> list[list[int]]:
    """Returns x0 y0 x1 y1 around each connected region of each class of a mask, uint8 [H, W]."""
    found = []
    for label in np.unique(mask):
        if label not in (0, IGNORED):
            regions, _ = ndimage.label(mask == label)
            found += [[c.start, r.start, c.stop, r.stop] for r, c in ndimage.find_objects(regions)]
    return found


def _members(path: Any) -> Iterator[tuple[bytes, bytes, Member]]:
    for member in scan_tar(path, lambda name: name.lower().endswith(".json")).members:
        key, ending = split_name(os.fsencode(member.name))
        yield key, ending, member

"""The images that models are probed on, and where things are in them.

A shard may hold a mask `KEY.mask.png` and boxes in `KEY.json` beside an image. A mask is a PNG of
one channel (grey or palette) as large as its image: 0 is background, 255 is not counted, other
values are classes. `KEY.json` holds `"boxes": [[x0, y0, x1, y1], ...]` in pixels from the upper
left corner, x1 and y1 one beyond the last. An image with a mask alone has the boxes around the
connected regions of each class.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from vitwarm.errors import ConfigError, ShardError
from vitwarm.shards import ShardIndex, decode_all
from vitwarm.shards.choose.fraction import choose_rows, fraction_order
from vitwarm.shards.load.reader import ImageReader
from vitwarm.shards.read.rows import split_name
from vitwarm.shards.read.sources import is_streamed
from vitwarm.shards.read.walk import Member, read_at, scan_tar

#: Share of the images that linear probes and neighbours learn from; the others test them.
FIT_SHARE = 0.75
LEAST_IMAGES = 8
IGNORED = 255
_FORM = 'Write "boxes": [[x0, y0, x1, y1], ...] in pixels, x1 and y1 one beyond the last.'


class ProbeImages:
    """Some images of a set of shards, whole ones squeezed into a square.

    Nothing is cut off, so boxes and masks keep their meaning: the overlap of two boxes does not
    change where one axis is scaled.

    Attributes:
        rows: int64 [n], of the index, ascending.
        is_fit: bool [n]; the others are for tests.
        labels: int64 [n].
    """

    def __init__(self, source: str | Path, *, n_images: int, seed: int) -> None:
        """Chooses a class-balanced prefix of the global order that `data.fraction` uses as well.

        Raises:
            ConfigError: fewer images asked for than a probe needs.
            ShardError: as `ShardIndex.open`; a streamed source, or too few images there.
        """
        if n_images < LEAST_IMAGES:
            raise ConfigError(f"--images is {n_images}; a probe needs at least {LEAST_IMAGES}.")
        if is_streamed(str(source)):
            raise ShardError(f"{source!r} is streamed; copy the shards to a disk to probe on them.")
        self.source = str(source)
        self.index = ShardIndex.open(source)
        if self.index.n_images < LEAST_IMAGES:
            raise ShardError(
                f"{source} holds {self.index.n_images} image(s); a probe needs {LEAST_IMAGES}."
            )
        labels = np.asarray(self.index.labels)
        order = fraction_order(np.asarray(self.index.key_hashes), labels, seed=seed)[:n_images]
        self.rows = np.sort(order)
        self.is_fit = np.isin(self.rows, order[: round(FIT_SHARE * len(order))])
        self.labels = labels[self.rows].astype(np.int64)
        self._decoded: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def facts(self) -> dict[str, Any]:
        """Returns what the JSON says of them; the hash is that of a subset of these keys."""
        return {
            "source": self.source,
            "n": len(self),
            "n_fit": int(self.is_fit.sum()),
            "n_classes": len(np.unique(self.labels)),
            "n_unknown": int((~np.isin(self.labels, self.labels[self.is_fit])).sum()),
            "subset_sha256": choose_rows(self.index, self.rows).sha256,
        }

    def pixels(self, size: int) -> Tensor:
        """Returns uint8 [n, 3, size, size]."""
        if size not in self._decoded:
            decoded = decode_all(self.index, self.rows, size)
            if len(decoded.unreadable):
                raise ShardError(
                    f"{self.source}: image {self.index.keys[decoded.unreadable[0]]!r} does not "
                    "decode. `vitwarm shards check` lists what is damaged; take it out."
                )
            self._decoded[size] = decoded.images
        return self._decoded[size]


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
        for path in [index.paths[k] for k in np.unique(index.shard_of[images.rows]).tolist()]:
            for member in scan_tar(path, lambda name: name.lower().endswith(".json")).members:
                key, ending = split_name(os.fsencode(member.name))
                place = place_of.get(key)
                if place is not None and ending == b"mask.png":
                    self._masks[place] = path, member
                elif place is not None and ending == b"json":
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
                return np.array(image, np.uint8)  # one bit: classes 0 and 1
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

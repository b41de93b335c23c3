"""From the folders of Pascal VOC (VOC2007, VOC2012) to shards with masks and boxes.

Every image has `KEY.json` with its boxes and their classes, and `KEY.mask.png` where VOC has a
segmentation of classes. A VOC image may hold several classes; its label is that of its largest box.

Source: Everingham et al. 2010; the development kit's documentation for the folders, and for
coordinates that count from 1 and include the last pixel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vitwarm.errors import ShardError
from vitwarm.seeding import shuffled
from vitwarm.shards.read.rows import hash_keys
from vitwarm.shards.write.writer import Sample, check_empty, write_set

#: In VOC's order, in which their masks number them from 1.
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
#: VOC's name of a list -> ours of the split.
SPLITS = {"train": "train", "val": "validation"}


def make_voc_shards(
    source: Path, out: Path, *, masked_only: bool = False, images_per_shard: int = 1250
) -> dict[str, int]:
    """Writes the images of `ImageSets/Main`'s train and val lists, each in random order.

    Args:
        source: a folder such as VOCdevkit/VOC2012.
        masked_only: those of `ImageSets/Segmentation` instead, which all have masks.
        images_per_shard: about.
    Returns: the images of each split.
    Raises: ShardError: a folder of another layout, a file that is missing or damaged, or `out`
        holds shards or cannot be written.
    """
    if images_per_shard < 1:
        raise ShardError(f"--images-per-shard is {images_per_shard}; it must be at least 1.")
    name = source.resolve().name.lower()
    check_empty(out, own=f"{name}-")
    lists = source / "ImageSets" / ("Segmentation" if masked_only else "Main")
    samples = {}
    for theirs, split in SPLITS.items():
        keys = sorted(_read(lists / f"{theirs}.txt").decode().split())
        if not keys:
            raise ShardError(f"{lists / theirs}.txt names no images. Download VOC again.")
        turn = shuffled(hash_keys(key.encode() for key in keys), 0, "voc", split)
        samples[split] = len(keys), _samples(source, [keys[k] for k in turn])
    return write_set(out, name, samples, CLASSES, images_per_shard=images_per_shard)


def read_annotation(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of an image: `class`, and `box`, x0 y0 x1 y1, the last two exclusive.

    Raises: ShardError: no such file, or one of another form.
    """
    try:
        objects = []
        for thing in ElementTree.fromstring(_read(path)).iterfind("object"):
            kind = str(thing.findtext("name"))
            if kind not in CLASSES:
                raise ValueError(f"{kind!r} is not a class of VOC")
            corners = ("xmin", "ymin", "xmax", "ymax")
            x0, y0, x1, y1 = (float(str(thing.findtext(f"bndbox/{c}"))) for c in corners)
            objects.append({"class": kind, "box": [x0 - 1, y0 - 1, x1, y1]})
    except (ElementTree.ParseError, ValueError) as error:
        raise ShardError(
            f"{path} is not an annotation of VOC ({error}). Download VOC again."
        ) from error
    if not objects:
        raise ShardError(f"{path} names no object. Download VOC again.")
    return objects


def _samples(source: Path, keys: list[str]) -> Iterator[Sample]:
    for key in keys:
        objects = read_annotation(source / "Annotations" / f"{key}.xml")
        kinds, boxes = ([thing[name] for thing in objects] for name in ("class", "box"))
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
        facts = {"boxes": boxes, "classes": kinds}
        beside = {"json": json.dumps(facts).encode()}
        mask = source / "SegmentationClass" / f"{key}.png"
        if mask.is_file():
            beside["mask.png"] = _read(mask)
        image = _read(source / "JPEGImages" / f"{key}.jpg")
        yield Sample(key, "jpg", image, CLASSES.index(kinds[areas.index(max(areas))]), beside)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShardError(
            f"{path} cannot be read: {error.strerror}. Give a folder with JPEGImages, Annotations "
            "and ImageSets, such as VOCdevkit/VOC2012."
        ) from error

"""Fractions of the images: class-balanced, exact in size, nested, without rewriting a tar."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.seeding import hash_bits, mix_u64
from vitwarm.shards.index import ShardIndex


@dataclass(frozen=True)
class Subset:
    """Some of the images of an index."""

    rows: np.ndarray
    """int64, ascending."""
    sha256: str
    """Of the sorted keys, one a line."""
    per_class: np.ndarray
    """int64 [n_classes], images of each class."""

    def __len__(self) -> int:
        return len(self.rows)


def choose_fraction(index: ShardIndex, fraction: float, *, seed: int) -> Subset:
    """Returns the first round(fraction x n) images of one global order.

    Each image is keyed by (its hashed rank within its class + a hashed offset of the class) / size
    of the class, so any prefix is balanced to within one image per class, any two fractions of a
    seed are nested, and neither shard names nor their order matter.

    Args:
        fraction: share of the images, in (0, 1].
    Raises: ShardError: a fraction out of range, or one that leaves a class without an image.
    """
    if not 0 < fraction <= 1:
        raise ShardError(f"data.fraction is {fraction}; it must lie above 0 and at most 1.")
    n = index.n_images
    n_wanted = max(1, round(fraction * n))
    if n_wanted == n:
        return _subset(index, np.arange(n))
    labels = np.asarray(index.labels)
    hashes = mix_u64(np.asarray(index.key_hashes), hash_bits(seed, "fraction", "image"))
    classes = np.arange(index.n_classes)
    offsets = mix_u64(classes, hash_bits(seed, "fraction", "class")) / np.float64(2.0**64)
    by_class = np.lexsort((hashes, labels))
    sizes = np.bincount(labels, minlength=index.n_classes)
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    ranks = np.empty(n, np.int64)
    ranks[by_class] = np.arange(n) - firsts[labels[by_class]]
    place = (ranks + offsets[labels]) / sizes[labels]
    rows = np.lexsort((hashes, place))[:n_wanted]
    subset = _subset(index, np.sort(rows))
    empty = np.flatnonzero((sizes > 0) & (subset.per_class == 0))
    if len(empty):
        smallest = int(np.ceil((1 - offsets[empty]).size and n / sizes[sizes > 0].min()))
        raise ShardError(
            f"data.fraction is {fraction}: {n_wanted} of {n} images leave {len(empty)} of "
            f"{int((sizes > 0).sum())} classes without an image (class {int(empty[0])} first). "
            f"Use at least {min(1.0, smallest / n):.4g}."
        )
    return subset


def choose_list(index: ShardIndex, path: str | Path) -> Subset:
    """Returns the images that a file lists, one a line: keys, or file names with these base names.

    Raises: ShardError: no such file, or a line that names no image of the shards.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ShardError(f"data.image_list is {str(path)!r}: {error.strerror}.") from None
    where = {key.rpartition("/")[2]: row for row, key in enumerate(index.keys)}
    rows = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = line.strip().rpartition("/")[2].partition(".")[0]
        if name not in where:
            raise ShardError(
                f"{path}, line {number}: no image of the shards has the key {name!r}. Is the list "
                "of another data set?"
            )
        rows.add(where[name])
    if not rows:
        raise ShardError(f"data.image_list is {str(path)!r}, which lists no images.")
    return _subset(index, np.array(sorted(rows), np.int64))


def _subset(index: ShardIndex, rows: np.ndarray) -> Subset:
    keys = sorted(np.asarray(index._keys)[rows].tolist())
    return Subset(
        rows=rows.astype(np.int64),
        sha256=hashlib.sha256(b"\n".join(keys)).hexdigest(),
        per_class=np.bincount(np.asarray(index.labels)[rows], minlength=index.n_classes),
    )

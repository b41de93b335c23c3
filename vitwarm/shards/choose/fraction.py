"""Fractions of the images: class-balanced, exact in size, nested, without rewriting a tar."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitwarm.errors import ShardError, nearest
from vitwarm.seeding import hash_bits, mix_u64
from vitwarm.shards.read.index import ShardIndex
from vitwarm.shards.read.labels import Labels
from vitwarm.shards.read.rows import split_name


@dataclass(frozen=True)
class Subset:
    """Some of the images of an index."""

    rows: np.ndarray
    """int64, ascending."""
    sha256: str
    """Of the keys in sorted order, one a line; the same wherever the images lie."""
    per_class: np.ndarray
    """int64 [n_classes], images of each class; empty for a streamed source."""
    keys: list[bytes] | None = None
    """The keys in sorted order; None: all images."""

    def __len__(self) -> int:
        return len(self.rows)


def choose_all(index: ShardIndex) -> Subset:
    """Returns all images."""
    return choose_rows(index, np.arange(index.n_images))


def choose_rows(index: ShardIndex, rows: np.ndarray) -> Subset:
    """Returns the images of some rows, ascending."""
    rows = rows.astype(np.int64)
    if index.streaming:
        return Subset(rows, index.sha256, np.zeros(0, np.int64))
    everything = len(rows) == index.n_images
    keys = index.keys.all_raw()
    chosen = sorted(keys if everything else (keys[row] for row in rows.tolist()))
    return Subset(
        rows=rows,
        sha256=hashlib.sha256(b"\n".join(chosen)).hexdigest(),
        per_class=np.bincount(np.asarray(index.labels)[rows], minlength=index.n_classes),
        keys=None if everything else chosen,
    )


def find_labels(index: ShardIndex, text: str) -> list[int]:
    """Returns the labels that `--classes` names, ascending: with commas between, or a file's lines.

    Raises: ShardError: a class that is not there, or is named again.
    """
    try:
        words = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except OSError:  # no file, or a list too long to be the name of one
        words = text.split(",")
    except ValueError as error:
        raise ShardError(f"--classes is {text!r}, not a text file. Give another.") from error
    words = [word.strip() for word in words if word.strip() and not word.startswith("#")]
    names = class_names(index)
    label_of = {str(label): label for label in range(index.n_classes)}
    label_of |= Labels(names=tuple(names)).number_of
    labels: list[int] = []
    for line in words:
        word = line if line in label_of else line.split()[0].rstrip(",")
        if word not in label_of:
            raise ShardError(
                f"--classes names {word!r}, which is not a class here.{nearest(word, label_of)} "
                f"Give names of {index.paths[0].parent / 'classes.txt'}, or labels below "
                f"{index.n_classes}."
            )
        if label_of[word] in labels:
            raise ShardError(f"--classes names {word!r} twice. Take one of the two out.")
        labels.append(label_of[word])
    if not labels:
        raise ShardError(f"--classes is {text!r}, which names no class.")
    return sorted(labels)


def class_names(index: ShardIndex) -> list[str]:
    """Returns the names of the classes; their labels where nothing names them."""
    if len(index.classes) == index.n_classes:
        return list(index.classes)
    return [str(label) for label in range(index.n_classes)]


def choose_classes(index: ShardIndex, labels: Sequence[int]) -> Subset:
    """Returns all images of some classes. Raises: ShardError: a class without an image."""
    rows = np.flatnonzero(np.isin(np.asarray(index.labels), list(labels)))
    subset = choose_rows(index, rows)
    empty = [label for label in labels if not subset.per_class[label]]
    if empty:
        raise ShardError(f"Class {empty[0]} has no image in {index.paths[0].parent}. Leave it out.")
    return subset


def choose_fraction(
    index: ShardIndex, fraction: float, *, seed: int, among: Subset | None = None
) -> Subset:
    """Returns the first round(fraction x n) images of one global order.

    Any prefix of it holds of each class its share to within about one image where classes are of
    like size, and any two fractions of a seed are nested; neither the names of the shards nor their
    order matter.

    Args:
        fraction: share of the images, in (0, 1].
        among: take them from these images alone; none: from all.
    Raises: ShardError: a fraction out of range, or one that leaves a class without an image.
    """
    if not 0 < fraction <= 1:
        raise ShardError(
            f"data.fraction is {fraction}; it must lie above 0 and at most at 1. Use 0.01 for 1 %."
        )
    n = index.n_images if among is None else len(among)
    n_wanted = round(fraction * n)
    if n_wanted == n:
        return among or choose_all(index)
    if index.streaming:
        raise ShardError(
            f"data.fraction is {fraction}, but the source is streamed, and a fraction needs an "
            "index. Copy the shards to a disk, or use data.fraction=1."
        )
    rows = np.arange(n) if among is None else among.rows
    labels = np.asarray(index.labels)[rows]
    order = fraction_order(np.asarray(index.key_hashes)[rows], labels, seed=seed)
    subset = choose_rows(index, np.sort(rows[order[:n_wanted]]))
    empty = np.flatnonzero(
        (subset.per_class == 0) & (np.bincount(labels, minlength=index.n_classes) > 0)
    )
    if len(empty):
        n_needed = int(np.unique(labels[order], return_index=True)[1].max()) + 1
        n_classes = len(np.unique(labels))
        least = np.ceil(n_needed / n * 1e6) / 1e6
        raise ShardError(
            f"data.fraction is {fraction}: {n_wanted:,} of {n:,} images leave "
            f"{len(empty):,} of {n_classes:,} classes without any (class {empty[0]} first). With "
            f"this seed the smallest fraction is {least:g} ({n_needed:,} images)."
        )
    return subset


def fraction_order(key_hashes: np.ndarray, labels: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns the global order whose prefixes are the fractions, int64 [n].

    Each image's place is (its hashed rank within its class + a hashed offset of the class) / size
    of the class. Keys are hashed by `rows.hash_key`, uint64 [n]; labels are int64 [n].
    """
    n, sizes = len(labels), np.bincount(labels)
    hashes = mix_u64(key_hashes, hash_bits(seed, "fraction", "image"))
    key = hash_bits(seed, "fraction", "class")
    offsets = mix_u64(np.arange(len(sizes)), key) / np.float64(2.0**64)
    by_class = np.lexsort((hashes, labels))
    firsts = np.cumsum(sizes) - sizes
    ranks = np.empty(n, np.int64)
    ranks[by_class] = np.arange(n) - firsts[labels[by_class]]
    place = (ranks + offsets[labels]) / sizes[labels]
    return np.lexsort((hashes, place)).astype(np.int64)


def choose_list(index: ShardIndex, path: str | Path, *, among: Subset | None = None) -> Subset:
    """Returns the images that a file lists, one a line: keys, or file names such as SimCLR's.

    A line may carry folders and endings (`n01440764/n01440764_10026.JPEG`); what counts is the base
    name up to its first dot, unless base names are ambiguous in these shards: then the whole key.

    Args:
        among: leave out what is listed and not among these images; none: keep all.
    Raises: ShardError: no such file, no lines, a line that names no image of the shards or names
        one again, or a streamed source.
    """
    if index.streaming:
        raise ShardError(
            f"data.image_list is {str(path)!r}, but the source is streamed, and a list needs an "
            "index. Copy the shards to a disk."
        )
    try:
        lines = Path(path).read_text("utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ShardError(
            f"data.image_list is {str(path)!r}, which cannot be read: {error.strerror}. Give a "
            "text file with one key or file name a line."
        ) from error
    keys = index.keys.all_raw()
    rows_of_base = {key.rpartition(b"/")[2]: row for row, key in enumerate(keys)}
    whole = len(rows_of_base) < len(keys)
    rows_of = {key: row for row, key in enumerate(keys)} if whole else rows_of_base
    lines_of_row: dict[int, int] = {}
    unknown: list[int] = []
    for number, line in enumerate(lines, 1):
        key = split_name(os.fsencode(line.strip()))[0]
        row = rows_of.get(key if whole else key.rpartition(b"/")[2])
        if row is None and (not line.strip() or line.startswith("#")):
            continue  # a comment, where it is no key
        if row is None:
            unknown.append(number)
        elif row in lines_of_row:
            raise ShardError(
                f"{path}, line {number}: {line.strip()!r} is in line {lines_of_row[row]} "
                "already. Remove one of the two."
            )
        else:
            lines_of_row[row] = number
    if unknown:
        raise ShardError(
            f"{path}: {len(unknown):,} of {len(unknown) + len(lines_of_row):,} lines name no image "
            f"of the shards, line {unknown[0]} first ({lines[unknown[0] - 1].strip()[:80]!r}; keys "
            f"here look like {index.keys[0]!r}). Is the list of another data set?"
        )
    if not lines_of_row:
        raise ShardError(f"data.image_list is {str(path)!r}, which lists no images. Give another.")
    rows = np.array(sorted(lines_of_row), np.int64)
    if among is not None:
        rows = np.intersect1d(rows, among.rows)
        if not len(rows):
            raise ShardError(
                f"{path} names no image of the classes that are asked for ({len(lines_of_row):,} "
                "of others). Give another list or other classes."
            )
    return choose_rows(index, rows)

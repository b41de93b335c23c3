"""Looks at shards as a whole and finds everything that is wrong with them, not only the first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.shards.decode import UnreadableImage, decode, quiet, read_header
from vitwarm.shards.index import ShardIndex
from vitwarm.shards.shardrows import ShardRows, read_shard
from vitwarm.shards.sources import Source, find_shards

_WNID = re.compile(rb"(?:.*/)?(n\d{8})_")
#: Images per piece of decoding work.
_PIECE = 256
#: Fewer images than this are decoded before other processes have started.
_ALONE = 2000


@dataclass
class Findings:
    """What a check found."""

    n_shards: int = 0
    n_images: int = 0
    n_classes: int = 0
    n_decoded: int = 0
    n_undecodable: int = 0
    problems: list[str] = field(default_factory=list)
    """Each keeps a training from starting, or makes its result wrong."""
    notes: list[str] = field(default_factory=list)
    """Odd, but harmless or possibly meant."""


def check_shards(
    source: str,
    *,
    label_key: str | None = None,
    decode: bool = True,
    workers: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Findings:
    """Reads every header and label, and decodes every image.

    Args:
        source: as `ShardIndex.open` takes it.
        decode: decode all images, not only their headers' tar entries.
        workers: processes that decode.
        progress: told what is done, how many, of how many.
    Raises: ShardError: no shards there at all, or images without a label everywhere.
    """
    found = find_shards(source)
    findings = Findings(n_shards=len(found.paths))
    parts: list[tuple[Path, ShardRows]] = []
    for number, path in enumerate(found.paths, 1):
        try:
            parts.append((path, read_shard(path, label_key=label_key or found.label_key)))
        except ShardError as error:
            findings.problems.append(str(error))
        progress("headers", number, len(found.paths))
    findings.n_images = sum(len(rows.keys) for _, rows in parts)
    if findings.n_images:
        _check_counts(found, parts, findings)
        _check_keys(parts, findings)
        _check_labels(found, parts, findings)
        if decode:
            _check_images(parts, findings, workers, progress)
    elif not findings.problems:
        findings.problems.append(f"{source} holds no labelled images (KEY.jpg beside KEY.cls).")
    return findings


def describe(index: ShardIndex) -> dict[str, Any]:
    """Returns the facts of an index that a person wants to see."""
    per_class = np.bincount(np.asarray(index.labels), minlength=index.n_classes)
    per_shard = np.bincount(np.asarray(index.shard_of), minlength=len(index.paths))
    sizes = np.asarray(index.sizes)
    return {
        "folder": str(index.paths[0].parent),
        "shards": len(index.paths),
        "images": index.n_images,
        "classes": index.n_classes,
        "images_per_class": [int(per_class.min()), int(per_class.max())],
        "empty_classes": int((per_class == 0).sum()),
        "images_per_shard": [int(per_shard.min()), int(per_shard.max())],
        "image_bytes_mean": round(float(sizes.mean())),
        "image_bytes_total": int(sizes.sum()),
        "sorted_by_class": index.is_class_sorted,
        "first_key": index.keys.raw(0).decode(errors="replace"),
        "sha256": index.sha256,
        "index": str(index.file) if index.file else None,
    }


def _check_counts(
    source: Source, parts: Sequence[tuple[Path, ShardRows]], findings: Findings
) -> None:
    for path, rows in parts:
        n, stated = len(rows.keys), source.info.lengths.get(path.name)
        if not n:
            findings.problems.append(f"{path} holds no labelled images.")
        if stated is not None and stated != n:
            findings.problems.append(
                f"{path} holds {n:,} labelled images, but the info file beside it says {stated:,}."
            )
    if source.n_expected not in (None, findings.n_images):
        findings.problems.append(
            f"{source.text!r} states {source.n_expected:,} images; there are {findings.n_images:,}."
        )
    ignored = sum(rows.n_ignored for _, rows in parts)
    pickles = sum(rows.n_pickles for _, rows in parts)
    if ignored:
        findings.notes.append(
            f"{ignored:,} members are neither image nor label and are never read"
            + (f"; {pickles:,} of them are pickles by their names." if pickles else ".")
        )


def _check_keys(parts: Sequence[tuple[Path, ShardRows]], findings: Findings) -> None:
    """Names keys that several shards have; within one shard `read_shard` refuses them."""
    first: dict[bytes, Path] = {}
    twins: dict[tuple[Path, Path], list[bytes]] = {}
    for path, rows in parts:
        for key in rows.keys:
            other = first.setdefault(key, path)
            if other is not path:
                twins.setdefault((other, path), []).append(key)
    for (one, two), keys in twins.items():
        findings.problems.append(
            f"{one} and {two.name} have {len(keys):,} key(s) in common, "
            f"{keys[0].decode(errors='replace')!r} first."
        )


def _check_labels(
    source: Source, parts: Sequence[tuple[Path, ShardRows]], findings: Findings
) -> None:
    labels = np.concatenate([rows.labels for _, rows in parts])
    largest, stated = int(labels.max()), source.info.n_classes
    findings.n_classes = stated or largest + 1
    if stated is not None and largest >= stated:
        path, rows = next(part for part in parts if (part[1].labels >= stated).any())
        key = rows.keys[int(rows.labels.argmax())].decode(errors="replace")
        findings.problems.append(
            f"{path}: image {key!r} has the label {int(rows.labels.max())}, but the set has "
            f"{stated} classes; labels count from 0."
        )
    sizes = np.bincount(labels, minlength=findings.n_classes)
    empty = np.flatnonzero(sizes[: findings.n_classes] == 0)
    if len(empty):
        findings.notes.append(
            f"{len(empty):,} of {findings.n_classes:,} classes have no image (class {empty[0]} "
            "first)."
        )
    _check_wnids(parts, labels, findings)
    together = [rows.labels[1:] == rows.labels[:-1] for _, rows in parts]
    chance = float(((sizes / len(labels)) ** 2).sum())
    share = float(np.concatenate(together).mean()) if sum(map(len, together)) else 0.0
    if share - chance > 0.5 * (1 - chance) and chance < 0.9:
        findings.notes.append(
            f"the shards are sorted by class ({share:.0%} of neighbours share theirs): train with "
            "data.order=full, or write them again in random order (vitwarm shards make)."
        )


def _check_wnids(
    parts: Sequence[tuple[Path, ShardRows]], labels: np.ndarray, findings: Findings
) -> None:
    """ImageNet's keys begin with a WordNet id; its classes are these ids in sorted order."""
    label_of: dict[bytes, int] = {}
    for path, rows in parts:
        for key, label in zip(rows.keys, rows.labels.tolist(), strict=True):
            match = _WNID.match(key)
            if match and label_of.setdefault(match[1], label) != label:
                findings.problems.append(
                    f"{path}: image {key.decode()!r} has the label {label}, others of "
                    f"{match[1].decode()} have {label_of[match[1]]}."
                )
                return
    ordered = [label_of[wnid] for wnid in sorted(label_of)]
    if ordered != sorted(ordered) and len(set(ordered)) == len(ordered):
        findings.notes.append(
            "the labels do not follow the sorted WordNet ids; weights that others trained on "
            "ImageNet expect that order."
        )


def _check_images(
    parts: Sequence[tuple[Path, ShardRows]],
    findings: Findings,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> None:
    pieces = [
        (path, rows.offsets[first : first + _PIECE], rows.sizes[first : first + _PIECE],
         rows.keys[first : first + _PIECE])
        for path, rows in parts
        for first in range(0, len(rows.keys), _PIECE)
    ]  # fmt: skip
    done = 0
    named = 0

    def take(n: int, bad: list[str]) -> None:
        nonlocal done, named
        done += n
        findings.n_undecodable += len(bad)
        for text in bad[: max(0, 50 - named)]:
            findings.problems.append(text)
            named += 1
        progress("images", done, findings.n_images)

    if workers <= 1 or findings.n_images < _ALONE:
        for piece in pieces:
            take(*decode_piece(piece))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for result in pool.map(decode_piece, pieces):
                take(*result)
    findings.n_decoded = done
    if findings.n_undecodable > named:
        findings.problems.append(f"{findings.n_undecodable:,} images in all do not decode.")


def decode_piece(
    piece: tuple[Path, np.ndarray, np.ndarray, list[bytes]],
) -> tuple[int, list[str]]:
    """Decodes some images of one tar; returns how many it tried, and a sentence per bad one."""
    path, offsets, sizes, keys = piece
    bad = []
    with quiet(), open(path, "rb") as file:
        for offset, size, key in zip(offsets.tolist(), sizes.tolist(), keys, strict=True):
            try:
                decode(read_header(os.pread(file.fileno(), size, offset)))
            except UnreadableImage as error:
                name = key.decode(errors="replace")
                bad.append(f"{path}: image {name!r} does not decode ({error}).")
    return len(keys), bad

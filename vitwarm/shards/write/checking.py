"""Looks at shards as a whole and finds what is wrong, the first fault of each tar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.shards.bars import make_bar
from vitwarm.shards.load.pixels import UnreadableImage, decode, quiet, read_header
from vitwarm.shards.read.index import ShardIndex, sorted_by_class
from vitwarm.shards.read.labels import LabelOptions
from vitwarm.shards.read.rows import ShardRows, read_shard
from vitwarm.shards.read.scan import DOTTED, beside
from vitwarm.shards.read.sources import Source, find_shards
from vitwarm.shards.read.walk import read_at
from vitwarm.shards.write.pool import sharing

_WNID = re.compile(rb"(?:.*/)?(n\d{8})_")
#: Images per piece of decoding work.
_PIECE = 256
#: Images that do not decode, and are named one by one.
_NAMED = 50
#: Fewer images than this are decoded before other processes have started.
_ALONE = 2000


Parts = Sequence[tuple[Path, ShardRows]]
#: Images to decode: their tar, offsets, sizes and keys.
Piece = tuple[Path, np.ndarray, np.ndarray, list[bytes]]


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
    source: str, *, decode: bool = True, workers: int = 1, **how: Unpack[LabelOptions]
) -> Findings:
    """Reads every header and label, and decodes every image unless told not to.

    Args:
        source, how: as `ShardIndex.open` takes them.
        workers: processes that decode.
    Raises: ShardError: no shards there at all, or images without a label everywhere.
    """
    found = find_shards(source)
    labels = found.info.labels([str(path) for path in found.paths], **how)
    findings = Findings(n_shards=len(found.paths))
    parts: list[tuple[Path, ShardRows]] = []
    for path in make_bar("headers", total=len(found.paths), items=found.paths):
        try:
            parts.append((path, read_shard(path, labels)))
        except ShardError as error:
            findings.problems.append(str(error))
    findings.n_images = sum(len(rows.keys) for _, rows in parts)
    if findings.n_images:
        _check_counts(found, parts, findings)
        _check_keys(parts, findings)
        _check_labels(labels.n_classes, parts, findings)
        if decode:
            _check_images(parts, findings, workers)
    elif not findings.problems:
        dotted = f" {DOTTED}" if any(rows.n_dotted for _, rows in parts) else ""
        text = f"{source} holds no labelled images (KEY.jpg beside KEY.cls).{dotted}"
        findings.problems.append(text)
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


def _check_counts(source: Source, parts: Parts, findings: Findings) -> None:
    counts = {path: len(rows.keys) for path, rows in parts}
    empty = [path for path, n in counts.items() if not n]
    findings.problems += [f"{path} holds no labelled images." for path in empty]
    findings.problems += source.miscounts(counts)
    for path, rows in parts:
        if rows.n_behind:
            findings.notes.append(
                f"{path} has {rows.n_behind:,} bytes after its first end-of-archive mark: joined "
                "tars. Their images are read and counted here, but other programs stop at the "
                "mark; write the shard again (vitwarm shards materialise --fraction 1)."
            )
        if rows.n_dotted:
            findings.problems.append(f"{path} holds {rows.n_dotted:,} unread images. {DOTTED}")
    if skipped := sum(rows.n_skipped for _, rows in parts):
        findings.notes.append(
            f"{skipped:,} members that macOS added (._NAME, .DS_Store, __MACOSX/) are skipped."
        )
    if ignored := sum(rows.n_ignored for _, rows in parts):
        pickles = sum(rows.n_pickles for _, rows in parts)
        findings.notes.append(
            f"{ignored:,} members are neither image nor label and are never read"
            + (f"; {pickles:,} of them are pickles by their names." if pickles else ".")
        )


def _check_keys(parts: Parts, findings: Findings) -> None:
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
            f"{one} and {beside(one, two)} have {len(keys):,} key(s) in common, "
            f"{keys[0].decode(errors='replace')!r} first."
        )


def _check_labels(stated: int | None, parts: Parts, findings: Findings) -> None:
    labels = np.concatenate([rows.labels for _, rows in parts])
    largest = int(labels.max())
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
        of = f"{len(empty):,} of {findings.n_classes:,} classes"
        findings.notes.append(f"{of} have no image (class {empty[0]} first).")
    _check_wnids(parts, findings)
    together = np.concatenate([rows.labels[1:] == rows.labels[:-1] for _, rows in parts])
    if sorted_by_class(together, labels):
        findings.notes.append(
            f"the shards are sorted by class ({together.mean():.0%} of neighbours share theirs): "
            "train with data.order=full, or write them again in random order (vitwarm shards make)."
        )


def _check_wnids(parts: Parts, findings: Findings) -> None:
    """ImageNet's keys begin with a WordNet id; its classes are these ids in sorted order."""
    label_of: dict[bytes, int] = {}
    for path, rows in parts:
        for key, label in zip(rows.keys, rows.labels.tolist(), strict=True):
            match = _WNID.match(key)
            if match and label_of.setdefault(match[1], label) != label:
                findings.problems.append(
                    f"{path}: image {key.decode(errors='replace')!r} has the label {label}, others "
                    f"of {match[1].decode()} have {label_of[match[1]]}."
                )
                return
    ordered = [label_of[wnid] for wnid in sorted(label_of)]
    if ordered != sorted(ordered) and len(set(ordered)) == len(ordered):
        findings.notes.append(
            "the labels do not follow the sorted WordNet ids; weights that others trained on "
            "ImageNet expect that order."
        )


def _check_images(parts: Parts, findings: Findings, workers: int) -> None:
    pieces: list[Piece] = []
    for path, rows in parts:
        for first in range(0, len(rows.keys), _PIECE):
            some = slice(first, first + _PIECE)
            pieces.append((path, rows.offsets[some], rows.sizes[some], rows.keys[some]))
    bad: list[str] = []
    with (
        sharing(1 if findings.n_images < _ALONE else workers) as run,
        make_bar("images", total=findings.n_images) as bar,
    ):
        for n, sentences in run(decode_piece, pieces):
            bad += sentences
            bar.update(n)
    findings.n_undecodable, findings.n_decoded = len(bad), findings.n_images - len(bad)
    findings.problems += bad[:_NAMED]
    if len(bad) > _NAMED:
        findings.problems.append(f"{len(bad):,} images in all do not decode.")


def decode_piece(piece: Piece) -> tuple[int, list[str]]:
    """Decodes some images of one tar; returns how many it tried, and a sentence per bad one."""
    path, offsets, sizes, keys = piece
    bad = []
    with quiet(), open(path, "rb") as file:
        for offset, size, key in zip(offsets.tolist(), sizes.tolist(), keys, strict=True):
            try:
                decode(read_header(read_at(file.fileno(), size, offset)))
            except UnreadableImage as error:
                name = key.decode(errors="replace")
                bad.append(f"{path}: image {name!r} does not decode ({error}).")
    return len(keys), bad

"""From the members of one tar to its labelled images. Only labels are read, never an image."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.shards.tarscan import MAX_CONTENT_BYTES, scan_tar

#: The allow-list. What ends otherwise is not read at all; order: which image of a key counts.
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
LABEL_ENDINGS = ("cls", "json")
_CODES = {ending.encode(): code for code, ending in enumerate((*IMAGE_ENDINGS, *LABEL_ENDINGS))}
_CLS, _JSON, _OTHER = 4, 5, 6

#: Endings whose usual reader would run code out of the file. They are ignored like any other
#: unknown ending, but named in the log.
PICKLE_ENDINGS = frozenset({b"pkl", b"pickle", b"pyd", b"pth", b"pt", b"ckpt", b"joblib"})

#: Larger images are refused: no labelled photograph needs as much.
MAX_MEMBER_BYTES = 256 << 20

#: A label beyond it is a mistake (a wnid's number, a hash), and would ask for such a head.
MAX_CLASSES = 1 << 24

#: Below this size the compiled walk saves less than it takes to load.
_COMPILE_BYTES = 8 << 20


@dataclass(frozen=True)
class ShardRows:
    """The n labelled images of one tar, in their order."""

    keys: list[bytes]
    """Path and name up to the first dot."""
    labels: np.ndarray
    """int64 [n]."""
    offsets: np.ndarray
    """int64 [n], bytes."""
    sizes: np.ndarray
    """int64 [n], bytes."""
    key_hashes: np.ndarray
    """uint64 [n]."""
    n_ignored: int = 0
    """Members that are neither image nor label."""
    n_pickles: int = 0
    """Those among them that hold pickles, going by their names."""


class _Table(NamedTuple):
    """All members of a tar, column by column."""

    keys: list[bytes]
    endings: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    contents: list[bytes]
    n_pickles: int


def read_shard(path: Path, *, label_key: str | None, fast: bool | None = None) -> ShardRows:
    """Lists the labelled images of a tar.

    Args:
        label_key: field of KEY.json that is the label; None: KEY.cls, or `label` in KEY.json.
        fast: walk with compiled code; None: where the tar is large enough to gain by it.
    Raises: ShardError: the tar is damaged, an image has no label or none that is a number from 0
        on, a label has no image, or a key comes twice.
    """
    table = _read_table(path, label_key, fast)
    groups = _group(table.keys)
    n_groups = int(groups[-1]) + 1 if len(groups) else 0
    images = _first_of(groups, table.endings, np.arange(4), n_groups)
    cls = _first_of(groups, table.endings, np.array([_CLS]), n_groups)
    jsons = _first_of(groups, table.endings, np.array([_JSON]), n_groups)
    labelled = jsons if label_key else np.where(cls >= 0, cls, jsons)
    orphans = np.flatnonzero((images < 0) & (cls >= 0))
    if len(orphans):
        key = _text(table.keys[cls[orphans[0]]])
        raise ShardError(
            f"{path}: {key}.cls has no image beside it ({', '.join(IMAGE_ENDINGS)}). The members "
            "of one key must follow one another; write the shard again (vitwarm shards make)."
        )
    kept = np.flatnonzero(images >= 0)
    images, labelled = images[kept], labelled[kept]
    if len(labelled) and labelled.min() < 0:
        key = _text(table.keys[images[labelled.argmin()]])
        wanted = f"{key}.json with a field {label_key!r}" if label_key else f"{key}.cls"
        raise ShardError(
            f"{path}: image {key!r} has no label; there is no {wanted} right beside it. Label it, "
            "or name the field of KEY.json that is the label: data.label_key=..."
        )
    _check_sizes(path, table, images)
    keys = [table.keys[k] for k in images.tolist()]
    _check_twins(path, keys)
    return ShardRows(
        keys=keys,
        labels=_read_labels(path, table, labelled, label_key),
        offsets=table.offsets[images],
        sizes=table.sizes[images],
        key_hashes=np.array([hash_key(key) for key in keys], np.uint64),
        n_ignored=int((table.endings == _OTHER).sum()),
        n_pickles=table.n_pickles,
    )


def hash_key(key: bytes) -> int:
    """Returns 64 bits that depend on a key alone; orders and fractions are made of them."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Splits a member's name at the first dot of its last part, as webdataset does.

    Returns: (key with its folders, ending in lower case); the ending is empty without a dot.
    """
    folder, slash, base = name.removeprefix(b"./").rpartition(b"/")
    stem, _, ending = base.partition(b".")
    return folder + slash + stem, ending.lower()


def _read_table(path: Path, label_key: str | None, fast: bool | None) -> _Table:
    if fast is None:
        fast = path.is_file() and path.stat().st_size >= _COMPILE_BYTES
    if fast:
        from vitwarm.shards.fastscan import scan_plain  # numba takes half a second to load

        plain = scan_plain(path)
        if plain is not None:
            names = plain.names.tolist()
            return _table(names, plain.offsets, plain.sizes, plain.inline.tolist())
    label = ("json",) if label_key else LABEL_ENDINGS
    members = scan_tar(path, lambda name: name.lower().endswith(label))
    return _table(
        [os.fsencode(member.name) for member in members],
        np.array([member.offset for member in members], np.int64),
        np.array([member.size for member in members], np.int64),
        [member.content or b"" for member in members],
    )


def _table(
    names: list[bytes], offsets: np.ndarray, sizes: np.ndarray, contents: list[bytes]
) -> _Table:
    split = [split_name(name) for name in names]
    endings = np.array([_CODES.get(ending, _OTHER) for _, ending in split], np.int8)
    n_pickles = sum(ending.rpartition(b".")[2] in PICKLE_ENDINGS for _, ending in split)
    return _Table([key for key, _ in split], endings, offsets, sizes, contents, n_pickles)


def _group(keys: list[bytes]) -> np.ndarray:
    """Numbers the runs of equal keys: members of one sample follow one another. int64 [m]."""
    if not keys:
        return np.zeros(0, np.int64)
    new = np.fromiter((a != b for a, b in zip(keys[1:], keys, strict=False)), bool, len(keys) - 1)
    return np.concatenate([[0], np.cumsum(new)]).astype(np.int64)


def _first_of(groups: np.ndarray, endings: np.ndarray, codes: np.ndarray, n: int) -> np.ndarray:
    """Returns per group the member with the smallest of some ending codes, or -1. int64 [n]."""
    found = np.full(n, -1, np.int64)
    for code in codes[::-1]:
        rows = np.flatnonzero(endings == code)
        found[groups[rows]] = rows
    return found


def _check_sizes(path: Path, table: _Table, images: np.ndarray) -> None:
    large = images[table.sizes[images] > MAX_MEMBER_BYTES]
    if len(large):
        raise ShardError(
            f"{path}: image {_text(table.keys[large[0]])!r} has {table.sizes[large[0]]:,} bytes; "
            f"at most {MAX_MEMBER_BYTES:,} are read. Take it out of the shard."
        )


def _check_twins(path: Path, keys: list[bytes]) -> None:
    if len(set(keys)) == len(keys):
        return
    seen: set[bytes] = set()
    for key in keys:
        if key in seen:
            raise ShardError(
                f"{path}: two images have the key {_text(key)!r}. A key is a name up to its first "
                "dot and must be unique; rename one and write the shard again."
            )
        seen.add(key)


def _read_labels(
    path: Path, table: _Table, members: np.ndarray, label_key: str | None
) -> np.ndarray:
    labels = np.empty(len(members), np.int64)
    with open(path, "rb") as file:
        for row, member in enumerate(members.tolist()):
            text = table.contents[member]
            is_json = table.endings[member] == _JSON
            if is_json and not text:  # the compiled walk takes only the smallest along
                n_bytes = min(int(table.sizes[member]), MAX_CONTENT_BYTES)
                text = os.pread(file.fileno(), n_bytes, int(table.offsets[member]))
            try:
                label = int(json.loads(text)[label_key or "label"] if is_json else text)
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
                field = f" in its field {label_key or 'label'!r}" if is_json else ""
                name = f"{_text(table.keys[member])}.{'json' if is_json else 'cls'}"
                raise ShardError(
                    f"{path}: {name} holds no whole number as label{field} "
                    f"({type(error).__name__}: {str(error)[:60]}). Mend it, or name the field that "
                    "is the label: data.label_key=..."
                ) from None
            if not 0 <= label < MAX_CLASSES:
                raise ShardError(
                    f"{path}: image {_text(table.keys[member])!r} has the label {label}; labels "
                    f"count from 0 to {MAX_CLASSES:,} at most. Mend it and write the shard again."
                )
            labels[row] = label
    return labels


def _text(key: bytes) -> str:
    return os.fsdecode(key)

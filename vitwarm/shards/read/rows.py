"""From the members of one tar to its labelled images. Only labels are read, never an image."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.shards.read.labels import LABEL_ENDINGS, Labels, NoLabel
from vitwarm.shards.read.walk import MAX_CONTENT_BYTES, read_at, scan_tar

log = logging.getLogger("vitwarm")

#: The allow-list. What ends otherwise is not read at all; order: which image of a key counts.
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
_ENDINGS = (*IMAGE_ENDINGS, *LABEL_ENDINGS)
_CODES = {ending.encode(): code for code, ending in enumerate(_ENDINGS)}
_CLS, _OTHER = _CODES[b"cls"], len(_ENDINGS)

#: Endings whose usual reader would run code out of the file. They are ignored like any other
#: unknown ending, but named in the log.
PICKLE_ENDINGS = frozenset({b"pkl", b"pickle", b"pyd", b"pth", b"pt", b"ckpt", b"joblib"})

#: Larger images are refused: no labelled photograph needs as much.
MAX_MEMBER_BYTES = 256 << 20

#: Below this size the compiled walk saves less than it takes to load.
_COMPILE_BYTES = 8 << 20


@dataclass(frozen=True)
class ShardRows:
    """The n labelled images of one tar, in their order."""

    keys: list[bytes]
    """Path and name up to the first dot."""
    labels: np.ndarray
    """int64 [n], as offsets and sizes, in bytes, are."""
    offsets: np.ndarray
    sizes: np.ndarray
    key_hashes: np.ndarray
    """uint64 [n]."""
    n_ignored: int = 0
    """Members that are neither image nor label."""
    n_pickles: int = 0
    """Those among them that hold pickles, going by their names."""
    n_skipped: int = 0
    """Members that a Mac adds to a tar: `._NAME`, `.DS_Store`, `__MACOSX/`."""
    n_behind: int = 0
    """Bytes behind the first end-of-archive mark: another tar, whose images count too."""
    n_dotted: int = 0
    """Images that are none because of a dot inside their names: `cat.0.jpg`."""


class _Table(NamedTuple):
    """The members of a tar, column by column."""

    keys: list[bytes]
    kinds: list[bytes]
    """Endings as they are, and below as codes."""
    endings: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    contents: list[bytes]
    n_skipped: int
    n_behind: int


def read_shard(path: Path, labels: Labels | None = None, *, fast: bool | None = None) -> ShardRows:
    """Lists the labelled images of a tar.

    Args:
        labels: where they stand; None: KEY.cls, or `label` in KEY.json.
        fast: walk with compiled code; None: where the tar is large enough to gain by it.
    Raises: ShardError: the tar is damaged, an image has no label or none that is a number from 0
        on or the name of a class, a label has no image, or a key comes twice.
    """
    labels = labels or Labels()
    table = _read_table(path, labels, fast)
    groups = _group(table.keys)
    n_groups = int(groups[-1]) + 1 if len(groups) else 0
    every = _first_of(groups, table.endings, range(len(IMAGE_ENDINGS)), n_groups)
    cls = _first_of(groups, table.endings, [_CLS], n_groups)
    orphans = np.flatnonzero((every < 0) & (cls >= 0))
    if len(orphans):
        _raise_orphan(path, table, np.flatnonzero(groups == orphans[0]).tolist())
    _check_members(path, table, groups, labels)
    kept = np.flatnonzero(every >= 0)
    codes = [_CODES[ending.encode()] for ending in labels.endings]
    labelled = _first_of(groups, table.endings, codes, n_groups)[kept] if codes else None
    images = every[kept]
    keys = [table.keys[k] for k in images.tolist()]
    if labelled is not None and len(labelled) and labelled.min() < 0:
        raise ShardError(f"{path}: {labels.missing(os.fsdecode(keys[labelled.argmin()]))}")
    sizes = table.sizes[images]
    for k in np.flatnonzero(sizes > MAX_MEMBER_BYTES):
        raise ShardError(
            f"{path}: image {os.fsdecode(keys[k])!r} has {sizes[k]:,} bytes; "
            f"at most {MAX_MEMBER_BYTES:,} are read. Take it out of the shard."
        )
    _check_twins(path, keys)
    n_of = Counter(table.kinds)
    read = [*IMAGE_ENDINGS, *LABEL_ENDINGS[:2], *labels.endings]  # a KEY.txt only as the label
    return ShardRows(
        keys=keys,
        labels=_read_labels(path, table, images if labelled is None else labelled, labels),
        offsets=table.offsets[images],
        sizes=sizes,
        key_hashes=hash_keys(keys),
        n_ignored=len(table.kinds) - sum(n_of[ending.encode()] for ending in set(read)),
        n_pickles=sum(n for end, n in n_of.items() if end.rpartition(b".")[2] in PICKLE_ENDINGS),
        n_skipped=table.n_skipped,
        n_behind=table.n_behind,
        n_dotted=_count_dotted(table, groups, every),
    )


def hash_key(key: bytes) -> int:
    """Returns 64 bits that depend on a key alone; orders and fractions are made of them."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def hash_keys(keys: Iterable[bytes]) -> np.ndarray:
    """Returns the `hash_key` of each key; uint64 [n]."""
    return np.array([hash_key(key) for key in keys], np.uint64)


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Splits a name as webdataset does: (key with its folders, ending in lower case or empty)."""
    folder, slash, base = name.removeprefix(b"./").rpartition(b"/")
    stem, _, ending = base.partition(b".")
    return folder + slash + stem, ending.lower()


def is_litter(name: bytes) -> bool:
    """Whether a Mac put a member into a tar that nobody asked it to."""
    parts = name.split(b"/")
    return parts[-1].startswith(b"._") or parts[-1] == b".DS_Store" or b"__MACOSX" in parts


def tell_litter(tar: Path | str, n: int, *, also: str = "") -> None:
    """Logs how many such members a tar holds."""
    log.warning(
        "%s holds %d member(s) added by macOS (._NAME, .DS_Store, __MACOSX/). They are skipped%s.",
        tar,
        n,
        also,
    )


def _read_table(path: Path, labels: Labels, fast: bool | None) -> _Table:
    if fast is None:
        fast = path.is_file() and path.stat().st_size >= _COMPILE_BYTES
    plain, n_behind = None, 0
    if fast:
        from vitwarm.shards.read.fastwalk import scan_plain  # numba takes half a second to load

        plain = scan_plain(path)
    if plain is not None:
        names, contents = plain.names.tolist(), plain.inline.tolist()
        offsets, sizes = plain.offsets, plain.sizes
    else:
        members, n_behind = scan_tar(path, lambda name: name.lower().endswith(labels.endings))
        names = [os.fsencode(member.name) for member in members]
        contents = [member.content or b"" for member in members]
        offsets = np.array([member.offset for member in members], np.int64)
        sizes = np.array([member.size for member in members], np.int64)
    n_all = len(names)
    text = b"/".join(names)
    if any(part in text for part in (b"/._", b".DS_Store", b"__MACOSX")) or text[:2] == b"._":
        kept = [k for k, name in enumerate(names) if not is_litter(name)]
        names, contents = [names[k] for k in kept], [contents[k] for k in kept]
        offsets, sizes = offsets[kept], sizes[kept]
    split = [split_name(name) for name in names]
    keys, kinds = [key for key, _ in split], [ending for _, ending in split]
    endings = np.array([_CODES.get(ending, _OTHER) for ending in kinds], np.int8)
    skipped = n_all - len(names)
    return _Table(keys, kinds, endings, offsets, sizes, contents, skipped, n_behind)


def _count_dotted(table: _Table, groups: np.ndarray, images: np.ndarray) -> int:
    """Members that end like an image where their key has none; beside one it may be a mask."""
    others = np.flatnonzero(table.endings == _OTHER)
    alone = others[images[groups[others]] < 0].tolist()
    return sum(table.kinds[k].rpartition(b".")[2].decode("latin-1") in IMAGE_ENDINGS for k in alone)


def _raise_orphan(path: Path, table: _Table, group: Sequence[int]) -> NoReturn:
    """Says that a label has no image, and what lies beside it instead."""
    key, kinds = os.fsdecode(table.keys[group[0]]), [os.fsdecode(table.kinds[k]) for k in group]
    others = ", ".join(f"{key}.{kind}" for kind in kinds if kind != "cls")
    raise ShardError(
        f"{path}: {key}.cls has no image beside it ({', '.join(IMAGE_ENDINGS)})"
        + (f", only {others}. " if others else ". The members of one key must follow one another. ")
        + "Write the shard again (vitwarm shards make)."
    )


def _group(keys: list[bytes]) -> np.ndarray:
    """Numbers the runs of equal keys: members of one sample follow one another. int64 [m]."""
    if not keys:
        return np.zeros(0, np.int64)
    new = np.fromiter((a != b for a, b in zip(keys[1:], keys, strict=False)), bool, len(keys) - 1)
    return np.concatenate([[0], np.cumsum(new)]).astype(np.int64)


def _first_of(groups: np.ndarray, endings: np.ndarray, codes: Sequence[int], n: int) -> np.ndarray:
    """Returns per group the member with the first of some ending codes, or -1. int64 [n]."""
    found = np.full(n, -1, np.int64)
    for code in codes[::-1]:
        rows = np.flatnonzero(endings == code)
        found[groups[rows]] = rows
    return found


def twins(where: Path | str, key: bytes) -> ShardError:
    """Two images, or labels, of one key: which of them belong together cannot be known."""
    return ShardError(
        f"{where}: two images have the key {os.fsdecode(key)!r}. A key is a name up to its "
        "first dot and must be unique; rename one and write the shard again."
    )


def _check_members(path: Path, table: _Table, groups: np.ndarray, labels: Labels) -> None:
    """Twins that follow one another: an ending that comes twice, or two images of a folder's."""
    codes = table.endings.astype(np.int64)
    if not labels.endings:  # every image of a folder is one of its own
        codes[codes < len(IMAGE_ENDINGS)] = 0
    known = np.flatnonzero(codes != _OTHER)
    places = groups[known] * _OTHER + codes[known]
    first = np.unique(places, return_index=True)[1]
    if len(first) < len(places):
        twice = np.setdiff1d(np.arange(len(places)), first)[0]
        raise twins(path, table.keys[int(known[twice])])


def _check_twins(path: Path, keys: list[bytes]) -> None:
    if len(set(keys)) == len(keys):
        return
    seen: set[bytes] = set()
    for key in keys:
        if key in seen:
            raise twins(path, key)
        seen.add(key)


def _read_labels(path: Path, table: _Table, members: np.ndarray, how: Labels) -> np.ndarray:
    """Reads the labels out of some members, or out of the keys of images. int64 [n]."""
    labels = np.empty(len(members), np.int64)
    of_folder = not how.endings
    codes, sizes = table.endings[members].tolist(), table.sizes[members].tolist()
    with open(path, "rb") as file:
        for row, member in enumerate(members.tolist()):
            try:
                if of_folder:
                    labels[row] = how.of_folder(table.keys[member])
                    continue
                text = table.contents[member]
                if not text and sizes[row]:  # the compiled walk takes only the smallest along
                    n_bytes = min(sizes[row], MAX_CONTENT_BYTES)
                    text = read_at(file.fileno(), n_bytes, int(table.offsets[member]))
                labels[row] = how.read(_ENDINGS[codes[row]], text)
            except NoLabel as error:
                about = error.about(os.fsdecode(table.keys[member]), _ENDINGS[codes[row]])
                raise ShardError(f"{path}: {about}") from None
    return labels

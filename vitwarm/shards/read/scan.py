"""From a source to the columns of its index: cached ones, and the headers of what changed.

The cache is a safetensors file, columns of numbers and a header of text, nothing that could be
executed; it is memory-mapped, so that all processes share its pages.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from safetensors.numpy import save_file

from vitwarm.errors import RunError, ShardError
from vitwarm.files import replacing
from vitwarm.shards.bars import make_bar
from vitwarm.shards.read.labels import Labels
from vitwarm.shards.read.rows import ShardRows, read_shard
from vitwarm.shards.read.sources import Source

log = logging.getLogger("vitwarm")

DOTTED = "A key ends at its first dot: `cat.0.jpg` is of the key `cat`, and no image of its own."

FORMAT = "4"
_TYPES = {"I32": np.int32, "I64": np.int64, "U64": np.uint64, "U8": np.uint8}
#: Columns that a shard's rows have too.
_OF_ROWS = ("labels", "offsets", "sizes", "key_hashes")
COLUMNS = ("shard_of", *_OF_ROWS, "key_ends", "key_bytes")

#: Threads that wait for the disk; the work between two reads is small.
_THREADS = 8

#: Name relative to the first shard's folder, bytes, mtime in ns: what a shard is known by.
Fingerprint = tuple[str, int, int]


class IndexFile(NamedTuple):
    """The columns of an index, as they lie on the disk if they are cached."""

    path: Path | None
    """None: it is not kept."""
    columns: dict[str, np.ndarray]
    fingerprints: list[Fingerprint]
    lengths: list[int]
    """Images per shard."""


class Keys(Sequence[str]):
    """The keys of all images, in one block of memory; an item is decoded when it is asked for."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self._bytes, self._ends = columns["key_bytes"], columns["key_ends"]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[k] for k in range(*row.indices(len(self)))]
        return os.fsdecode(self.raw(row))

    def raw(self, row: int) -> bytes:
        """Returns a key as it stands in the tar."""
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        first = int(self._ends[row - 1]) if row else 0
        return self._bytes[first : int(self._ends[row])].tobytes()

    def all_raw(self) -> list[bytes]:
        """Returns all keys as they stand in the tars; quicker than one by one."""
        text, ends = self._bytes.tobytes(), self._ends.tolist()
        return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def scan_shards(source: Source, labels: Labels, *, cache: str | Path | None) -> IndexFile:
    """Returns the cached index, with what changed scanned anew. Raises: as `ShardIndex.open`."""
    index = _load_or_scan(source, labels, _homes(source, cache, labels))
    for miscount in source.miscounts(dict(zip(source.paths, index.lengths, strict=True))):
        raise ShardError(miscount)
    return index


def load_index(path: Path) -> IndexFile | None:
    """Maps a cached index into memory; None: there is none, or none that this version wrote."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:start])
        facts = header.pop("__metadata__")
        if facts["format"] != FORMAT:
            return None
        columns = {}
        for name in COLUMNS:
            first, last = header[name]["data_offsets"]
            kind = np.dtype(_TYPES[header[name]["dtype"]])
            n = (last - first) // kind.itemsize
            columns[name] = np.frombuffer(mapped, kind, n, offset=start + first)
        shards = json.loads(facts["shards"])
        prints = [(str(name), int(size), int(mtime)) for name, size, mtime, _ in shards]
        return IndexFile(path, columns, prints, [int(shard[3]) for shard in shards])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def file_state(path: Path | None) -> tuple[int, int, int] | None:
    """Returns what tells one version of an index file from the next; None: there is none."""
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else None


def beside(one: Path, two: Path) -> Path | str:
    """Returns how a second tar is named behind a first: briefly where they share a folder."""
    return two.name if two.parent == one.parent else two


def _homes(source: Source, cache: str | Path | None, labels: Labels) -> list[Path]:
    """Where the index of a source may lie, best first."""
    folder = source.paths[0].parent.resolve()
    what = [source.text if "::" in source.text else Path(source.text).name, *labels.digest]
    beside = folder / ".vitwarm-index" / f"{_digest(what)}.safetensors"
    elsewhere = f"{_digest([*what, str(folder), source.text])}.safetensors"
    if cache:
        return [Path(cache).expanduser() / elsewhere]
    # Nobody's write bit: a folder meant to stay as it is, also where root could write to it.
    is_frozen = not folder.stat().st_mode & 0o222
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if home.startswith("~"):  # a user without a home
        return [beside]
    user = Path(home) / "vitwarm" / "index" / elsewhere
    return [user] if is_frozen else [beside, user]


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _load_or_scan(source: Source, labels: Labels, homes: Sequence[Path]) -> IndexFile:
    folder = source.paths[0].parent
    prints: list[Fingerprint] = []
    for path in source.paths:
        stat = path.stat()
        prints.append((os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns))
    cached = [found for found in map(load_index, homes) if found]
    for found in cached:
        if found.fingerprints == prints:
            return found
    known: dict[Fingerprint, ShardRows] = {}
    for found in cached[:1]:
        known = dict(zip(found.fingerprints, _split(found), strict=True))
    parts = _scan(source.paths, [known.get(one) for one in prints], labels)
    if not any(part.keys for part in parts):
        dotted = f" {DOTTED} Rename them." if any(part.n_dotted for part in parts) else ""
        raise ShardError(
            f"{source.text}: the {len(parts)} tar(s) there hold no labelled images (KEY.jpg beside "
            f"KEY.cls, or as data.label_from says).{dotted} `vitwarm shards make` makes some."
        )
    scanned = IndexFile(None, _join(parts), prints, [len(part.keys) for part in parts])
    _check_twins(scanned.columns, source.paths)
    return _save(scanned, homes) or scanned


def _scan(
    paths: Sequence[Path], known: Sequence[ShardRows | None], labels: Labels
) -> list[ShardRows]:
    todo = [k for k, rows in enumerate(known) if rows is None]
    parts = list(known)
    if len(todo) > 16:
        log.info("reading the headers of %d shards in %s", len(todo), paths[0].parent)
    with ThreadPoolExecutor(min(_THREADS, max(1, len(todo)))) as pool:
        found = pool.map(lambda k: read_shard(paths[k], labels), todo)
        shown = make_bar("index", total=len(todo), unit="shard", items=found)
        for k, rows in zip(todo, shown, strict=True):
            parts[k] = rows
    whole = [part for part in parts if part is not None]
    _tell_oddities([(paths[k], whole[k]) for k in todo])
    return whole


def _tell_oddities(scanned: Sequence[tuple[Path, ShardRows]]) -> None:
    """Logs what lies in tars beside images and labels: a line per kind, with the number."""
    for name, text in (
        ("n_pickles", "%s holds %s member(s) that are pickles by their names (%s in all shards). "
         "They are never opened; unpickling runs code."),
        ("n_skipped", "%s holds %s member(s) added by macOS (._NAME, .DS_Store, __MACOSX/; %s in "
         "all shards). They are skipped."),
        ("n_behind", "%s holds %s bytes after its end-of-archive mark (%s in all shards): joined "
         "tars. They are read too, but other programs stop at the mark."),
        ("n_dotted", "%s holds %s image(s) that are not read (%s in all shards). " + DOTTED),
    ):  # fmt: skip
        found = [(path, getattr(rows, name)) for path, rows in scanned if getattr(rows, name)]
        if found:
            total = sum(n for _, n in found)
            log.warning(text, found[0][0], f"{found[0][1]:,}", f"{total:,}")


def _join(parts: Sequence[ShardRows]) -> dict[str, np.ndarray]:
    keys = [key for part in parts for key in part.keys]
    lengths = [len(part.keys) for part in parts]
    return {
        "shard_of": np.repeat(np.arange(len(parts), dtype=np.int32), lengths),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _OF_ROWS},
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "key_bytes": np.frombuffer(b"".join(keys), np.uint8),
    }


def _split(index: IndexFile) -> list[ShardRows]:
    """Takes a cached index apart again, shard by shard."""
    keys, parts, first = Keys(index.columns).all_raw(), [], 0
    for length in index.lengths:
        rows = slice(first, first + length)
        labels, offsets, sizes, hashes = (index.columns[name][rows] for name in _OF_ROWS)
        parts.append(ShardRows(keys[rows], labels, offsets, sizes, hashes))
        first += length
    return parts


def _check_twins(columns: dict[str, np.ndarray], paths: Sequence[Path]) -> None:
    hashes = columns["key_hashes"]
    order = np.argsort(hashes, kind="stable")
    keys = Keys(columns)
    for k in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
        a, b = int(order[k]), int(order[k + 1])
        if keys.raw(a) == keys.raw(b):
            one, two = (paths[columns["shard_of"][row]] for row in (a, b))
            raise ShardError(
                f"{one} and {beside(one, two)} both have an image with the key {keys[a]!r}; keys "
                "must be unique. Leave one shard out, or write them again (vitwarm shards make)."
            )


def _save(index: IndexFile, homes: Sequence[Path]) -> IndexFile | None:
    """Writes an index to the first place that can be written to, and maps it: pages of all."""
    shards = [[*one, n] for one, n in zip(index.fingerprints, index.lengths, strict=True)]
    facts = {"format": FORMAT, "shards": json.dumps(shards)}
    columns = {name: np.ascontiguousarray(column) for name, column in index.columns.items()}
    reasons = []
    for path in homes:
        try:
            with replacing(path) as temporary:
                save_file(columns, temporary, facts)
        except (OSError, RunError) as error:
            reasons.append(str(error))
        else:
            return load_index(path)
    log.warning("The shards' index cannot be cached; every start makes it again: %s", reasons[-1])
    return None

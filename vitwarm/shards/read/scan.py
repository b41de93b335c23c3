"""From a source to the columns of its index: cached ones, and the headers of what changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.shards.bars import make_bar
from vitwarm.shards.read.cache import Fingerprint, IndexFile, Keys, load_index, save_index
from vitwarm.shards.read.labels import Labels
from vitwarm.shards.read.rows import ShardRows, read_shard
from vitwarm.shards.read.sources import Source

log = logging.getLogger("vitwarm")

DOTTED = "A key ends at its first dot: `cat.0.jpg` is of the key `cat`, and no image of its own."

#: Threads that wait for the disk; the work between two reads is small.
_THREADS = 8


def scan_shards(source: Source, labels: Labels, *, cache: str | Path | None) -> IndexFile:
    """Returns the cached index, with what changed scanned anew; its path is empty if not kept.

    Args: as `ShardIndex.open`.
    Raises: ShardError: as `ShardIndex.open`.
    """
    index = _load_or_scan(source, labels, _homes(source, cache, labels))
    for miscount in source.miscounts(dict(zip(source.paths, index.lengths, strict=True))):
        raise ShardError(miscount)
    return index


def beside(one: Path, two: Path) -> Path | str:
    """Returns how a second tar is named behind a first: briefly where they share a folder."""
    return two.name if two.parent == one.parent else two


def _homes(source: Source, cache: str | Path | None, labels: Labels) -> list[Path]:
    """Where the index of a source may lie, best first."""
    folder = source.paths[0].parent.resolve()
    what = [source.text if "::" in source.text else Path(source.text).name, *labels.digest]
    beside = folder / ".vitwarm-index" / f"{_digest(what)}.safetensors"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitwarm" / "index"
    elsewhere = f"{_digest([*what, str(folder), source.text])}.safetensors"
    if cache:
        return [Path(cache).expanduser() / elsewhere]
    # Nobody's write bit: a folder meant to stay as it is, also where root could write to it.
    is_frozen = not folder.stat().st_mode & 0o222
    return [user / elsewhere] if is_frozen else [beside, user / elsewhere]


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _fingerprint(path: Path, folder: Path) -> Fingerprint:
    stat = path.stat()
    return os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns


def _load_or_scan(source: Source, labels: Labels, homes: Sequence[Path]) -> IndexFile:
    folder = source.paths[0].parent
    prints = [_fingerprint(path, folder) for path in source.paths]
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
    columns = _join(parts)
    _check_twins(columns, source.paths)
    lengths = [len(part.keys) for part in parts]
    kept = save_index(homes, columns, prints, lengths)
    found_again = load_index(kept) if kept else None  # mapped pages instead of our own copy
    return found_again or IndexFile(Path(), columns, prints, lengths)


def _scan(
    paths: Sequence[Path], known: Sequence[ShardRows | None], labels: Labels
) -> list[ShardRows]:
    todo = [k for k, rows in enumerate(known) if rows is None]
    parts = list(known)
    if len(todo) > 16:
        log.info("reading the headers of %d shards in %s", len(todo), paths[0].parent)
    bar = make_bar("index", total=len(todo), unit="shard")
    with ThreadPoolExecutor(min(_THREADS, max(1, len(todo)))) as pool:
        jobs = [pool.submit(read_shard, paths[k], labels) for k in todo]
        try:
            for k, job in zip(todo, jobs, strict=True):
                parts[k] = job.result()
                bar.update()
        finally:
            bar.close()
            for job in jobs:
                job.cancel()
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
        "offsets": np.concatenate([part.offsets for part in parts]),
        "sizes": np.concatenate([part.sizes for part in parts]),
        "labels": np.concatenate([part.labels for part in parts]),
        "key_hashes": np.concatenate([part.key_hashes for part in parts]),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "key_bytes": np.frombuffer(b"".join(keys), np.uint8),
    }


def _split(index: IndexFile) -> list[ShardRows]:
    """Takes a cached index apart again, shard by shard."""
    columns = index.columns
    keys = Keys(columns["key_bytes"], columns["key_ends"]).all_raw()
    parts, first = [], 0
    for length in index.lengths:
        rows = slice(first, first + length)
        first += length
        parts.append(
            ShardRows(
                keys=keys[rows],
                labels=columns["labels"][rows],
                offsets=columns["offsets"][rows],
                sizes=columns["sizes"][rows],
                key_hashes=columns["key_hashes"][rows],
            )
        )
    return parts


def _check_twins(columns: dict[str, np.ndarray], paths: Sequence[Path]) -> None:
    hashes = columns["key_hashes"]
    order = np.argsort(hashes, kind="stable")
    keys = Keys(columns["key_bytes"], columns["key_ends"])
    for k in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
        a, b = int(order[k]), int(order[k + 1])
        if keys.raw(a) == keys.raw(b):
            one, two = (paths[columns["shard_of"][row]] for row in (a, b))
            raise ShardError(
                f"{one} and {beside(one, two)} both have an image with the key {keys[a]!r}; keys "
                "must be unique. Leave one shard out, or write them again (vitwarm shards make)."
            )

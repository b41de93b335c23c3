"""One pass over the tar headers of a set of shards, cached: where each image lies and its label.

webdataset 1.0 streams; exact epochs, fractions without rewriting, exact validation counts and
resuming in the middle of an epoch need random access, hence an index of our own. Nothing in a tar
is ever executed or unpickled: members are read by an allow-list of endings.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.shards.bars import make_bar
from vitwarm.shards.indexfile import (
    Fingerprint,
    IndexFile,
    Keys,
    file_state,
    load_index,
    save_index,
)
from vitwarm.shards.shardrows import ShardRows, read_shard
from vitwarm.shards.sources import Source, find_shards, is_streamed

log = logging.getLogger("vitwarm")

#: Threads that wait for the disk; the work between two reads is small.
_THREADS = 8


class ShardIndex:
    """The images of a set of shards, row by row, in the order in which they lie in the tars.

    Attributes:
        paths: the tars.
        shard_of: int32 [n], which tar a row lies in.
        offsets, sizes: int64 [n], where its image lies, in bytes.
        labels: int64 [n].
        keys: the n keys as text, decoded on access.
        key_hashes: uint64 [n], of the keys, for orders that depend on keys alone.
        file: the cached index, or None where it is not kept.
        n_classes: from `_info.json` or `classes.txt` beside the shards, or the largest label + 1.
    """

    #: Sources that cannot be read at random places have an index of another kind (stream.py).
    streaming = False

    def __init__(
        self,
        paths: Sequence[Path],
        columns: dict[str, np.ndarray],
        *,
        n_classes: int | None,
        file: Path | None = None,
    ) -> None:
        """Takes the columns of a scan or of a cached index.

        Args:
            file: the cached index, which unpickling in another process maps again.
        Raises: ShardError: a label that is not below n_classes.
        """
        self.paths = list(paths)
        self._take(columns)
        self.file = file
        self._file_state = file_state(file)
        largest = self.largest_label
        if n_classes is not None and largest >= n_classes:
            row = int(self.labels.argmax())
            raise ShardError(
                f"{self.paths[self.shard_of[row]]}: image {self.keys[row]!r} has the label "
                f"{largest}, but the set has {n_classes} classes (_info.json or classes.txt beside "
                "it). Mend the label or the file."
            )
        self.n_classes = n_classes or largest + 1

    def _take(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns
        self.shard_of = columns["shard_of"]
        self.offsets = columns["offsets"]
        self.sizes = columns["sizes"]
        self.labels = columns["labels"]
        self.key_hashes = columns["key_hashes"]
        self.keys = Keys(columns["key_bytes"], columns["key_ends"])

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ShardIndex({self.n_images:,} images, {len(self.paths):,} shards)"

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key in _PICKLED}
        return {**state, "_columns": None if self.file else self._columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        columns = state.pop("_columns")
        self.__dict__.update(state)
        if columns is None:
            found = load_index(state["file"])
            if found is None or file_state(state["file"]) != state["_file_state"]:
                raise ShardError(
                    f"{state['file']}, the index of the shards, was replaced while it was in use. "
                    "Give the same command again."
                )
            columns = found.columns
        self._take(columns)

    @property
    def n_images(self) -> int:
        """Images of all shards."""
        return len(self.labels)

    @property
    def known_classes(self) -> int | None:
        """As `n_classes`; None for a streamed source of which nothing says it."""
        return self.n_classes

    @property
    def largest_label(self) -> int:
        """The largest label that occurs."""
        return int(self.labels.max())

    @property
    def shard_names(self) -> list[str]:
        """File names of the shards."""
        return [path.name for path in self.paths]

    @cached_property
    def sha256(self) -> str:
        """64 hex digits of what an order and a result depend on: keys, labels, sizes, shards."""
        digest = hashlib.sha256()
        counts = np.bincount(self.shard_of, minlength=len(self.paths))
        for array in (counts, self.labels, self.sizes, self._columns["key_ends"]):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
        digest.update(self._columns["key_bytes"].tobytes())
        return digest.hexdigest()

    @cached_property
    def is_class_sorted(self) -> bool:
        """Whether neighbours in a shard share their class far more often than chance has it."""
        labels, shards = np.asarray(self.labels), np.asarray(self.shard_of)
        pairs = shards[1:] == shards[:-1]
        shares = np.bincount(labels) / len(labels)
        chance = float((shares**2).sum())
        if pairs.sum() < 8 or chance > 0.9:
            return False
        together = float((labels[1:] == labels[:-1])[pairs].mean())
        return (together - chance) / (1 - chance) > 0.5

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        cache: str | Path | None = None,
        label_key: str | None = None,
        allow_pipe: bool = False,
    ) -> ShardIndex:
        """Reads the headers of all shards, or what is cached of those that did not change.

        Args:
            source: a folder of tars, DIR/SPLIT, a brace or glob pattern, several of them joined
                by `::` (see `sources.find_shards`); or an http(s) address or `pipe:` command,
                which is streamed (stream.py) and promises less.
            cache: folder for the index; None: beside the shards, or the user's cache folder where
                those are read-only.
            label_key: field of KEY.json that is the label; None: the one that `_info.json` names,
                else KEY.cls, else `label` in KEY.json.
            allow_pipe: permits `pipe:` sources, which run a shell command.
        Raises: ShardError: no shards, a tar cut short or damaged, an image without a label, two
            images with one key, a label that is none or beyond the classes, another number of
            images than `_info.json` states.
        """
        if is_streamed(str(source)):
            from vitwarm.shards.stream import StreamIndex

            return StreamIndex.open_stream(str(source), label_key=label_key, allow_pipe=allow_pipe)
        found = find_shards(str(source))
        key = label_key or found.label_key
        index = _load_or_scan(found, homes=_homes(found, cache, key), label_key=key)
        _check_counts(found, index.lengths)
        file = None if index.path == Path() else index.path
        return cls(found.paths, index.columns, n_classes=found.info.n_classes, file=file)


_PICKLED = {"paths", "n_classes", "file", "_file_state", "sha256"}


def _homes(source: Source, cache: str | Path | None, label_key: str | None) -> list[Path]:
    """Where the index of a source may lie, best first."""
    folder = source.paths[0].parent.resolve()
    what = [source.text if "::" in source.text else Path(source.text).name, label_key]
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


def _load_or_scan(source: Source, *, homes: Sequence[Path], label_key: str | None) -> IndexFile:
    """Returns the cached index, with what changed scanned anew; its path is empty if not kept."""
    folder = source.paths[0].parent
    prints = [_fingerprint(path, folder) for path in source.paths]
    cached = [found for found in map(load_index, homes) if found]
    for found in cached:
        if found.fingerprints == prints:
            return found
    known: dict[Fingerprint, ShardRows] = {}
    for found in cached[:1]:
        known = dict(zip(found.fingerprints, _split(found), strict=True))
    parts = _scan(source.paths, [known.get(one) for one in prints], label_key)
    if not any(part.keys for part in parts):
        raise ShardError(
            f"{source.text}: the {len(parts)} tar(s) there hold no labelled images (KEY.jpg beside "
            "KEY.cls). Make some with scripts/make_shards.py."
        )
    columns = _join(parts)
    _check_twins(columns, source.paths)
    lengths = [len(part.keys) for part in parts]
    kept = save_index(homes, columns, prints, lengths)
    found_again = load_index(kept) if kept else None  # mapped pages instead of our own copy
    return found_again or IndexFile(Path(), columns, prints, lengths)


def _scan(
    paths: Sequence[Path], known: Sequence[ShardRows | None], label_key: str | None
) -> list[ShardRows]:
    todo = [k for k, rows in enumerate(known) if rows is None]
    parts = list(known)
    if len(todo) > 16:
        log.info("reading the headers of %d shards in %s", len(todo), paths[0].parent)
    bar = make_bar("index", total=len(todo), unit="shard")
    with ThreadPoolExecutor(min(_THREADS, max(1, len(todo)))) as pool:
        jobs = [pool.submit(read_shard, paths[k], label_key=label_key) for k in todo]
        try:
            for k, job in zip(todo, jobs, strict=True):
                parts[k] = job.result()
                bar.update()
        finally:
            bar.close()
            for job in jobs:
                job.cancel()
    whole = [part for part in parts if part is not None]
    _name_pickles([whole[k] for k in todo], [paths[k] for k in todo])
    return whole


def _name_pickles(parts: Sequence[ShardRows], paths: Sequence[Path]) -> None:
    found = [(path, part.n_pickles) for path, part in zip(paths, parts, strict=True)]
    found = [(path, n) for path, n in found if n]
    if found:
        log.warning(
            "%s holds %d member(s) that are pickles by their names (%d in all shards). They are "
            "never opened; unpickling runs code.",
            found[0][0],
            found[0][1],
            sum(n for _, n in found),
        )


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
                f"{one} and {two.name} both have an image with the key {keys[a]!r}; keys must be "
                "unique. Leave one shard out, or write them again (vitwarm shards make)."
            )


def _check_counts(source: Source, lengths: Sequence[int]) -> None:
    for path, n in zip(source.paths, lengths, strict=True):
        stated = source.info.lengths.get(path.name, n)
        if stated != n:
            raise ShardError(
                f"{path} holds {n:,} labelled images, but the info file beside it says {stated:,}. "
                "Fetch the shard again, or mend or take away the info file."
            )
    if source.n_expected not in (None, sum(lengths)):
        raise ShardError(
            f"{source.text!r} states {source.n_expected:,} images, but the shards hold "
            f"{sum(lengths):,}. Mend the number, or fetch what is missing."
        )

"""The cached index: one file of columns, memory-mapped, so that all processes share its pages.

It is a safetensors file: columns of numbers and a header of text, nothing that could be executed.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from safetensors.numpy import save_file

from vitwarm.errors import RunError
from vitwarm.files import replacing

log = logging.getLogger("vitwarm")

FORMAT = "4"
_TYPES = {"I32": np.int32, "I64": np.int64, "U64": np.uint64, "U8": np.uint8}
COLUMNS = ("shard_of", "offsets", "sizes", "labels", "key_hashes", "key_ends", "key_bytes")

#: Name relative to the first shard's folder, bytes, mtime in ns: what a shard is known by.
Fingerprint = tuple[str, int, int]


class IndexFile(NamedTuple):
    """A cached index as it lies on the disk."""

    path: Path
    columns: dict[str, np.ndarray]
    fingerprints: list[Fingerprint]
    lengths: list[int]
    """Images per shard."""


class Keys(Sequence[str]):
    """The keys of all images, in one block of memory; an item is decoded when it is asked for."""

    def __init__(self, key_bytes: np.ndarray, key_ends: np.ndarray) -> None:
        self._bytes, self._ends = key_bytes, key_ends

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


def save_index(
    homes: Sequence[Path],
    columns: Mapping[str, np.ndarray],
    fingerprints: Sequence[Fingerprint],
    lengths: Sequence[int],
) -> Path | None:
    """Writes an index to the first place that can be written to; None: to none of them."""
    shards = [[*one, n] for one, n in zip(fingerprints, lengths, strict=True)]
    facts = {"format": FORMAT, "shards": json.dumps(shards)}
    reasons = []
    for path in homes:
        try:
            with replacing(path) as temporary:
                save_file(
                    {k: np.ascontiguousarray(v) for k, v in columns.items()}, temporary, facts
                )
        except (OSError, RunError) as error:
            reasons.append(str(error))
            continue
        return path
    log.warning("The shards' index cannot be cached; every start makes it again: %s", reasons[-1])
    return None

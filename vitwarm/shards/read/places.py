"""Reading at a place of a file, on every system: Windows has no pread and opens files as text."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path


def open_file(path: Path | str) -> int:
    """Returns a descriptor for reading bytes; children do not inherit it. Raises: OSError."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))


def read_at(descriptor: int, n_bytes: int, place: int) -> bytes:
    """Reads up to so many bytes at a place; fewer at the end of the file. Raises: OSError.

    Without pread it moves the descriptor, so that no two threads may share one.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, n_bytes, place)
    os.lseek(descriptor, place, os.SEEK_SET)
    return os.read(descriptor, n_bytes)


def make_reader(descriptor: int, buffer: memoryview) -> Callable[[int], int]:
    """Returns a function that reads into a buffer at a place, and says how many bytes it read."""
    if hasattr(os, "preadv"):
        return partial(os.preadv, descriptor, [buffer])

    def read(place: int) -> int:
        content = read_at(descriptor, len(buffer), place)
        buffer[: len(content)] = content
        return len(content)

    return read

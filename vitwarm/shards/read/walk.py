"""Walks the headers of one tar and skips the payloads: milliseconds for a thousand images.

Handles what webdataset writers make: ustar with its prefix field, GNU long names, pax headers
(every member that webdataset writes has one, for its fractional time), base-256 sizes. Nothing but
names, sizes and the few small members asked for is ever read; nothing is ever executed.

Python's tarfile takes six times as long (71 ms against 11 for 3,756 members), and ends without a
word at the first damaged header behind the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from vitwarm.errors import ShardError

BLOCK = 512
REMEDY = "Copy or download it again, or write it again (vitwarm shards make)."
#: Label files and headers are small; one that claims more is no label file.
MAX_CONTENT_BYTES = 1 << 20

#: One read takes in the headers and small members between two images.
_WINDOW = 16 * BLOCK
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device",
    b"6": "a pipe", b"S": "a sparse file",
}  # fmt: skip


class Member(NamedTuple):
    """One regular file in a tar: its content has `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int
    content: bytes | None
    """Where `wanted` asked for it."""


class Scan(NamedTuple):
    """The regular files of a tar in their order."""

    members: list[Member]
    n_behind: int
    """Bytes behind the first end-of-archive mark and its zeros: another tar, joined with `cat`."""


def scan_tar(path: Path, wanted: Callable[[str], bool]) -> Scan:
    """Lists the regular files of a tar in their order, with the content of the wanted ones.

    Behind the end-of-archive mark it reads on: tars joined with `cat` are one.

    Args:
        path: an uncompressed tar.
        wanted: says by name whether a member's content is to be read; at most a megabyte is.
    Raises: ShardError: the tar is missing, compressed, cut short, damaged, or holds a link, a
        device or another member that is no regular file.
    """
    try:
        descriptor = open_file(path)
    except OSError as error:
        raise ShardError(
            f"{path} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error
    try:
        walk = _Walk(path, descriptor)
        return Scan(walk.members(wanted), walk.size - walk.behind if walk.behind else 0)
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}. {REMEDY}") from error
    finally:
        os.close(descriptor)


class _Walk:
    """One pass over one tar, and the sentences for what may be wrong with it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.size = os.fstat(descriptor).st_size
        self.headers: list[bytes] = []
        self.positions: list[int] = []
        #: Where something follows the first end-of-archive mark; 0: nothing does.
        self.behind = 0

    def members(self, wanted: Callable[[str], bool]) -> list[Member]:
        """Returns the regular files. One flat loop: it turns millions of times for ImageNet."""
        found: list[Member] = []
        position, window, start = 0, b"", 0
        long_name: str | None = None
        pax_size: int | None = None
        while True:
            at = position - start
            if at + BLOCK > len(window):
                window, start, at = read_at(self.descriptor, _WINDOW, position), position, 0
                if len(window) < BLOCK:
                    self.raise_cut(position, found)
            header = window[at : at + BLOCK]
            if not header[0] and not header.strip(b"\0"):
                after = self.find_behind(position, found)
                if after is None:
                    return found
                position = after
                continue
            self.headers.append(header)
            self.positions.append(position)
            try:
                size = int(header[124:135], 8)
            except ValueError:
                size = self.odd_size(header, position)
            content_at = position + BLOCK
            kind = header[156]
            if kind == 48 or kind == 0:  # "0": a regular file
                if pax_size is not None:
                    size = pax_size
                name = _header_name(header) if long_name is None else long_name
                long_name = pax_size = None
                if content_at + size > self.size:
                    self.raise_cut(position, found)
                content = None
                if wanted(name):
                    content = window[at + BLOCK : at + BLOCK + size]
                    if len(content) < size:
                        content = self.read_small(content_at, size, name)
                found.append(Member(name, content_at, size, content))
            elif kind == 53:  # "5": a folder, no content
                long_name = pax_size = None
                size = 0
            elif header[156:157] in b"xgLKX":  # facts about the next member
                if content_at + size > self.size:
                    self.raise_cut(position, found)
                facts = window[at + BLOCK : at + BLOCK + size]
                if len(facts) < size:
                    facts = self.read_small(content_at, size, "a header")
                if kind == 76:  # "L"
                    long_name = _text(facts.rstrip(b"\0"))
                elif kind != 75 and (b"path=" in facts or b"size=" in facts or b"GNU." in facts):
                    name_of, size_of = self.pax_facts(facts, kind, position)
                    long_name = long_name if name_of is None else name_of
                    pax_size = pax_size if size_of is None else size_of
            elif header[156:157] in _REFUSED:
                self.raise_refused(_REFUSED[header[156:157]], position)
            else:
                self.raise_damaged(position)
            position = content_at + (size + BLOCK - 1) // BLOCK * BLOCK

    def read_small(self, position: int, n_bytes: int, name: str) -> bytes:
        """Reads a label file or a header's facts."""
        if n_bytes > MAX_CONTENT_BYTES:
            raise ShardError(
                f"{self.path}: member {name} has {n_bytes:,} bytes; a label file may have "
                f"{MAX_CONTENT_BYTES:,}. Take it out of the shard."
            )
        return read_at(self.descriptor, n_bytes, position)

    def find_behind(self, position: int, found: list[Member]) -> int | None:
        """Checks the end mark, two blocks of zeros; returns where something follows its zeros.

        One whose end is missing was cut short.
        """
        self.check_sums()
        end = read_at(self.descriptor, 2 * BLOCK, position)
        if len(end) < 2 * BLOCK:
            self.raise_cut(position, found)
        if end.strip(b"\0"):
            self.raise_damaged(position + BLOCK)
        behind = first_byte(self.descriptor, position + 2 * BLOCK)
        if behind is None:
            return None
        behind -= behind % BLOCK
        self.behind = self.behind or behind
        if self.size - behind < BLOCK:
            self.raise_damaged(behind)
        return behind

    def check_sums(self) -> None:
        """Checks the checksums of all headers at once: one by one they cost more than the walk."""
        if not self.headers:
            return
        blocks = np.frombuffer(b"".join(self.headers), dtype=np.uint8).reshape(-1, BLOCK)
        digits = blocks[:, 148:154].astype(np.int64) - ord("0")
        stated = digits @ (8 ** np.arange(5, -1, -1))
        stated[((digits < 0) | (digits > 7)).any(axis=1)] = -1
        sums = blocks.sum(axis=1, dtype=np.int64)
        sums += 8 * ord(" ") - blocks[:, 148:156].sum(axis=1, dtype=np.int64)
        for row in np.flatnonzero(sums != stated):
            if _octal(self.headers[row][148:156]) != sums[row]:
                self.raise_damaged(self.positions[row])

    def odd_size(self, header: bytes, position: int) -> int:
        """Reads a size that is not eleven octal digits: fewer and padded, or base 256."""
        if header[124] == 0x80:
            return int.from_bytes(header[125:136], "big")
        size = _octal(header[124:136])
        if size is None:
            self.raise_damaged(position)
        return size

    def pax_facts(self, facts: bytes, kind: int, position: int) -> tuple[str | None, int | None]:
        """Returns (name, size) of the next member as far as a pax header says them.

        Its records read `LENGTH KEY=VALUE\\n`; LENGTH counts the whole record.
        """
        records: dict[str, str] = {}
        at = 0
        while at < len(facts) and facts[at]:
            space = facts.find(b" ", at, at + 20)
            length = self.digits(_text(facts[at : max(space, at)]), position)
            key, equals, value = facts[space + 1 : at + length - 1].partition(b"=")
            if not equals or facts[at + length - 1 : at + length] != b"\n":
                self.raise_damaged(position)
            records[_text(key)] = _text(value)
            at += length
        if kind == 103 and records.keys() & {"path", "size"}:
            self.raise_refused("a global header that renames its members", position)
        if any(key.startswith("GNU.sparse") for key in records):
            self.raise_refused("a sparse file", position)
        size = records.get("size")
        return records.get("path"), None if size is None else self.digits(size, position)

    def digits(self, text: str, position: int) -> int:
        """Reads a decimal number of a pax header."""
        if not (text.isascii() and text.isdigit()):
            self.raise_damaged(position)
        return int(text)

    def raise_cut(self, position: int, found: list[Member]) -> NoReturn:
        """Says that the tar ends too early, unless a damaged header explains that."""
        self.check_sums()
        last = f", after {found[-1].name}" if found else ""
        raise ShardError(
            f"{self.path} is cut short: it ends at byte {self.size:,}{last}, without the "
            f"end-of-archive mark that follows byte {position:,}. {REMEDY}"
        )

    def raise_damaged(self, position: int) -> NoReturn:
        if not position and read_at(self.descriptor, 6, 0).startswith(_COMPRESSED):
            raise ShardError(
                f"{self.path} is compressed; images are read at their place in a plain tar. "
                "Unpack it first (gunzip)."
            )
        if self.behind and position >= self.behind:
            raise ShardError(
                f"{self.path} is damaged: {self.size - self.behind:,} bytes lie after its "
                f"end-of-archive mark, and they are no tar (byte {position:,}). If they are not "
                f"needed, cut them off (truncate -s {self.behind} FILE). {REMEDY}"
            )
        raise ShardError(f"{self.path} is damaged: byte {position:,} is no tar header. {REMEDY}")

    def raise_refused(self, what: str, position: int) -> NoReturn:
        self.check_sums()
        raise ShardError(
            f"{self.path} holds {what} at byte {position:,}; only regular files and folders are "
            "allowed in a shard. Write it again without (tar --dereference --hard-dereference, or "
            "vitwarm shards make)."
        )


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


def first_byte(descriptor: int, position: int) -> int | None:
    """Returns the place of the first byte from a position on that is not zero; None: there is none.

    An end mark is followed by zeros to the end of a record of 10 kB, or by more of them.
    """
    step = 20 * BLOCK
    while chunk := read_at(descriptor, step, position):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return position + zeros
        position, step = position + len(chunk), 1 << 20
    return None


def _octal(field: bytes) -> int | None:
    try:
        number = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    return number if number >= 0 else None


def _header_name(header: bytes) -> str:
    name = header[:100]
    if not name[99]:
        name = name[: name.index(0)]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")

"""The labelled images of a tar that comes as a stream: tarfile's walk, our members and labels."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from vitwarm.errors import ShardError
from vitwarm.shards.read.labels import LABEL_ENDINGS, Labels, NoLabel
from vitwarm.shards.read.rows import (
    IMAGE_ENDINGS,
    MAX_MEMBER_BYTES,
    hash_key,
    is_litter,
    split_name,
    twins,
)
from vitwarm.shards.read.walk import BLOCK, MAX_CONTENT_BYTES

#: What a stream that ends early, or is no tar, raises.
BROKEN = (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)

#: Beginnings of compressed files. Python's own readers go on behind the end of the first of several
#: that were joined; tarfile's way with streams does not.
_PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}


class Raw(NamedTuple):
    """A labelled image as it came out of a stream."""

    key: int
    """63 bits of its hash: what crops are seeded with in place of a row."""
    epoch: int
    data: bytes
    label: int
    name: str
    """Address and key, for messages."""


@dataclass
class TarStream:
    """Iterates over the labelled images of one tar, or of several that were joined with `cat`.

    Members of one key follow one another. Nothing runs: endings are allow-listed, sizes capped.
    """

    stream: Any
    url: str
    how: Labels
    n_classes: int | None
    """Labels from so many on are refused; None: any label goes."""
    n_skipped: int = 0
    """Members added by macOS."""

    def __iter__(self) -> Iterator[Raw]:
        """Raises: ShardError: a bad label, a member too large; BROKEN: a tar that is not whole."""
        key = b""
        parts: dict[str, bytes] = {}
        for name, ending, content in self._members():
            if name != key:
                yield from self._whole(key, parts)
                key, parts = name, {}
            others = (
                IMAGE_ENDINGS if ending in IMAGE_ENDINGS and not self.how.endings else (ending,)
            )
            if any(other in parts for other in others):
                raise twins(self.url, name)
            parts[ending] = content
        yield from self._whole(key, parts)
        while self.stream.read(1 << 16):  # a command whose output nobody reads ends with an error
            pass

    def _members(self) -> Iterator[tuple[bytes, str, bytes]]:
        """Yields (key, ending, content) of the members that count, of all joined tars."""
        source = _Source(self.stream)
        is_more = True
        while is_more:
            source.n_given = 0
            with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    tar.members = []
                    yield from self._read(tar, member)
                is_more = source.find_behind(tar.fileobj)

    def _read(self, tar: Any, member: tarfile.TarInfo) -> Iterator[tuple[bytes, str, bytes]]:
        full = member.name.encode("utf-8", "surrogateescape")
        if is_litter(full):
            self.n_skipped += 1
            return
        name, ending = split_name(full)
        wanted = ending.decode("ascii", "replace")
        if not member.isreg() or wanted not in (*IMAGE_ENDINGS, *LABEL_ENDINGS):
            return
        if wanted == "txt" and "txt" not in self.how.endings:
            return
        limit = MAX_MEMBER_BYTES if wanted in IMAGE_ENDINGS else MAX_CONTENT_BYTES
        if member.size > limit:
            raise ShardError(
                f"{self.url}: member {member.name} has {member.size:,} bytes; at most {limit:,} "
                "are read. Take it out of the shard."
            )
        yield name, wanted, tar.extractfile(member).read()

    def _whole(self, key: bytes, parts: dict[str, bytes]) -> Iterator[Raw]:
        image = next((parts[ending] for ending in IMAGE_ENDINGS if ending in parts), None)
        if image is None:
            return
        text = key.decode(errors="replace")
        name = f"{self.url}: image {text!r}"
        ending = next((ending for ending in self.how.endings if ending in parts), "")
        if self.how.endings and not ending:
            raise ShardError(f"{self.url}: {self.how.missing(text)}")
        try:
            label = self.how.read(ending, parts[ending]) if ending else self.how.of_folder(key)
        except NoLabel as error:
            raise ShardError(f"{self.url}: {error.about(text, ending)}") from None
        if self.n_classes is not None and label >= self.n_classes:
            raise ShardError(
                f"{name} has the label {label}, but the set has {self.n_classes} classes; labels "
                "count from 0. Fix the label, data.classes, the num_classes of the _info.json "
                "beside it, or train.num_classes."
            )
        yield Raw(hash_key(key) >> 1, 0, image, label, name)


class _Source:
    """A stream, decompressed if it is compressed, that takes bytes back."""

    def __init__(self, stream: Any, *, first: bytes | None = None) -> None:
        self.stream, self.returned, self.n_given = stream, first or b"", 0
        if first is None:
            self.returned = self.read(6)
            for start, opener in _PACKED.items():
                if self.returned.startswith(start):
                    self.stream = opener(_Source(stream, first=self.returned))
                    self.returned = b""
                    break

    def read(self, n: int) -> bytes:
        """Returns n bytes; fewer at the end."""
        parts = [self.returned[:n]]
        self.returned = self.returned[n:]
        n_left = n - len(parts[0])
        while n_left and (some := self.stream.read(n_left)):
            parts.append(some)
            n_left -= len(some)
        self.n_given += n - n_left
        return b"".join(parts)

    def find_behind(self, tar: Any) -> bool:
        """Goes to what follows the end mark and its zeros; returns whether anything does.

        Args:
            tar: tarfile's stream on this one, behind the mark's first block; it reads ahead.
        """
        # tarfile takes a cut between two members for the end.
        if tar.read(BLOCK) != bytes(BLOCK):
            raise EOFError("it ends without the end-of-archive mark")
        self.returned = tar.read(self.n_given - tar.tell())
        while block := self.read(BLOCK):
            if block.strip(b"\0"):
                self.returned = block + self.returned
                return True
        return False

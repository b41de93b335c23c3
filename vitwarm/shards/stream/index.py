"""Shards that can only be streamed: http(s) addresses, or what a permitted command prints.

What a stream cannot promise stands in WARNING, which goes to the log.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn, Unpack
from urllib.error import HTTPError

import numpy as np
from braceexpand import braceexpand

from vitwarm.errors import ShardError
from vitwarm.seeding import hash_bits
from vitwarm.shards.read.index import ShardIndex
from vitwarm.shards.read.labels import LabelOptions, Labels
from vitwarm.shards.read.sources import INFO_NAMES, Info, is_streamed, join_infos, parse_info
from vitwarm.shards.read.walk import MAX_CONTENT_BYTES

WARNING = (
    "%s is streamed, which guarantees less than shards on a disk: the order depends on the number "
    "of processes and workers; a broken stream loses the rest of its shard for that epoch; a "
    "resume continues at a shard boundary, so some images come again, some later; labels and "
    "counts are trusted until they are seen; fractions and image lists are refused."
)

_HOW = "Give http(s)://HOST/NAME-{0000..0031}.tar, or pipe:COMMAND with data.allow_pipe=true."


class StreamIndex(ShardIndex):
    """What is known of a streamed source beforehand: its shards, and how many images there are."""

    streaming = True

    def __init__(self, urls: Sequence[str], n_images: int, info: Info, how: Labels) -> None:
        """Takes what `open_stream` found out."""
        self.urls = list(urls)
        self.paths = [Path(url) for url in urls]
        #: Images of each shard, or None where nothing says how many.
        self.lengths = [info.lengths.get(url) for url in urls]
        #: How the labels are read.
        self.how = how
        self.classes = how.names
        self.n_images = n_images
        self.known_classes = how.n_classes
        # One shard and one key for all, without memory: only their number matters.
        self.shard_of = np.broadcast_to(np.int32(0), n_images)
        self.key_hashes = np.broadcast_to(np.uint64(0), n_images)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def n_classes(self) -> int:  # type: ignore[override]
        """As the info file states it. Raises: ShardError: it does not."""
        if self.known_classes is None:
            raise ShardError(
                f"{self.urls[0]}: nothing says how many classes the streamed shards have. Put "
                "num_classes into the _info.json beside them, or give train.num_classes=..."
            )
        return self.known_classes

    def expect(self, n_classes: int) -> None:
        """Makes a label from so many classes on an error when it is seen."""
        self.known_classes = n_classes

    @property
    def largest_label(self) -> int:
        """-1: not known before the images are seen; each is then checked."""
        return -1

    @property
    def is_class_sorted(self) -> bool:
        """Not known."""
        return False

    @property
    def sha256(self) -> str:
        """Of the addresses, the count and how labels are read: all that is known of the content."""
        how = [] if self.how == Labels(field=self.how.field) else [str(self.how.digest)]
        return f"{hash_bits(self.n_images, 'stream', *self.urls, *how, n_bytes=32):064x}"

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("labels", "keys", "offsets", "sizes"):
            raise ShardError(
                f"The {name} of {self.urls[0]} are not known: the source is streamed. Copy the "
                "shards to a disk for fractions, lists and resident images."
            )
        raise AttributeError(name)

    @classmethod
    def open_stream(
        cls, source: str, *, allow_pipe: bool, **how: Unpack[LabelOptions]
    ) -> StreamIndex:
        """Finds out what a source consists of; reads no shard.

        Args:
            source: an http(s) brace pattern or `pipe:` command, with |COUNT behind it unless an
                `_info.json` lies beside the shards.
        Raises: ShardError: another scheme, no permission for commands, no count, no such host.
        """
        text, count = source, None
        if found := re.search(r"\|\s*(\d+)\s*$", source):
            text, count = source[: found.start()], int(found[1])
        try:
            words = [word.strip() for word in text.split("::")]
            urls = [url for word in words for url in braceexpand(word, escape=False)]
        except ValueError as error:
            raise ShardError(f"{source!r} has unbalanced braces. {_HOW}") from error
        for url in urls:
            _check_scheme(url, allow_pipe)
        folders = [url.rpartition("/")[0] for url in urls if not url.startswith("pipe:")]
        infos = {folder: _fetch_info(folder) for folder in dict.fromkeys(folders)}
        info = join_infos(infos, "{}/{}".format)
        if count is None and all(url in info.lengths for url in urls):
            count = sum(info.lengths[url] for url in urls)
        if not count:
            raise ShardError(
                f"{source!r} is streamed, and nothing says how many images it has. Append "
                f"the number: '{text}|50000', or put an _info.json beside the shards."
            )
        return cls(urls, count, info, info.labels(urls, **how))


def open_shards(
    source: str | Path,
    *,
    cache: str | Path | None = None,
    allow_pipe: bool = False,
    **how: Unpack[LabelOptions],
) -> ShardIndex:
    """Returns the index of a source: of all headers on a disk, of what is known of a stream.

    Args:
        source, cache: as `ShardIndex.open` takes them; or an http(s) address or `pipe:` command,
            which is streamed and promises less.
        allow_pipe: permits `pipe:` sources, which run a shell command.
        how: labels are read.
    Raises: ShardError: as `ShardIndex.open` and `StreamIndex.open_stream`.
    """
    if is_streamed(str(source)):
        return StreamIndex.open_stream(str(source), allow_pipe=allow_pipe, **how)
    return ShardIndex.open(source, cache=cache, **how)


def _check_scheme(url: str, allow_pipe: bool) -> None:
    if url.startswith("pipe:"):
        if not allow_pipe:
            raise ShardError(
                f"{url!r} runs a shell command. If you trust its origin, allow it: "
                "data.allow_pipe=true."
            )
    elif not url.startswith(("http://", "https://")):
        raise ShardError(
            f"{url!r} has an unsupported scheme. {_HOW} For object stores: pipe:aws s3 cp "
            "s3://BUCKET/NAME-{0000..0031}.tar -"
        )
    elif shutil.which("curl") is None:
        raise ShardError(f"{url!r} is fetched with curl, which is not installed. Install it.")


def _fetch_info(folder: str) -> Info:
    """Fetches the info file of an address; an empty one where there is none."""
    for name in INFO_NAMES:
        try:
            with urllib.request.urlopen(f"{folder}/{name}", timeout=20) as answer:
                return parse_info(json.loads(answer.read(MAX_CONTENT_BYTES)))
        except HTTPError as refusal:
            refusal.close()  # it is an answer itself, and holds the connection
        except (OSError, HTTPException):  # nobody answers
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardError(
                f"{folder}/{name} is not an info file of shards ({type(error).__name__}: {error}). "
                "Fix or remove it."
            ) from error
    return Info()

"""One pass over the tar headers of a set of shards, cached: where each image lies and its label.

Exact epochs, fractions without rewriting, exact validation counts and resuming in the middle of an
epoch need random access, and webdataset streams. Nothing in a tar is ever executed or unpickled:
members are read by an allow-list of endings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.shards.read.labels import LabelOptions, Labels, differ
from vitwarm.shards.read.scan import IndexFile, Keys, file_state, load_index, scan_shards
from vitwarm.shards.read.sources import find_shards


class ShardIndex:
    """The images of a set of shards, row by row, in the order in which they lie in the tars.

    Attributes:
        paths: the tars.
        n_images: of all of them.
        shard_of: int32 [n], which tar a row lies in.
        offsets, sizes: int64 [n], where its image lies, in bytes.
        labels: int64 [n].
        keys: the n keys as text, decoded on access.
        key_hashes: uint64 [n], of the keys, for orders that depend on keys alone.
        file: the cached index, or None where it is not kept.
        n_classes: from data.classes, from `_info.json` or `classes.txt` beside the shards, or the
            largest label + 1.
        known_classes: the same; None for a streamed source of which nothing says it.
        classes: their names, where something says them.
    """

    #: Sources that cannot be read at random places have an index of another kind (stream/index.py).
    streaming = False

    def __init__(self, paths: Sequence[Path], index: IndexFile, how: Labels) -> None:
        """Takes what a scan found. Raises: ShardError: a label not below the number of classes."""
        self.paths = list(paths)
        self._take(index.columns)
        self.file = index.path
        self._file_state = file_state(index.path)
        n_classes, largest = how.n_classes, self.largest_label
        if n_classes is not None and largest >= n_classes:
            row = int(self.labels.argmax())
            raise ShardError(
                f"{self.paths[self.shard_of[row]]}: image {self.keys[row]!r} has the label "
                f"{largest}, but the set has {n_classes} classes (data.classes, or _info.json or "
                "classes.txt beside it). Fix the label or the file."
            )
        self.n_classes = n_classes or largest + 1
        self.known_classes: int | None = self.n_classes
        self.classes = how.names

    def _take(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns
        self.shard_of = columns["shard_of"]
        self.offsets = columns["offsets"]
        self.sizes = columns["sizes"]
        self.labels = columns["labels"]
        self.key_hashes = columns["key_hashes"]
        self.keys = Keys(columns)
        self.n_images = len(self.labels)

    def __len__(self) -> int:
        return self.n_images

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
                    "Run the same command again."
                )
            columns = found.columns
        self._take(columns)

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
        return sorted_by_class((labels[1:] == labels[:-1])[pairs], labels)

    @classmethod
    def open(
        cls, source: str | Path, *, cache: str | Path | None = None, **how: Unpack[LabelOptions]
    ) -> ShardIndex:
        """Reads the headers of all shards, or what is cached of those that did not change.

        Args:
            source: a folder of tars, DIR/SPLIT, a brace or glob pattern, several of them joined
                by `::` (see `sources.find_shards`); `open_shards` takes streams too.
            cache: folder for the index; None: beside the shards, or the user's cache folder where
                those are read-only.
            how: labels are read.
        Raises: ShardError: no shards, a tar cut short or damaged, an image without a label, two
            images with one key, a label that is none or beyond the classes, another number of
            images than `_info.json` states.
        """
        found = find_shards(str(source))
        labels = found.info.labels([str(path) for path in found.paths], **how)
        return cls(found.paths, scan_shards(found, labels, cache=cache), labels)


def sorted_by_class(together: np.ndarray, labels: np.ndarray) -> bool:
    """Returns whether neighbours share their class far more often than chance has it.

    Args:
        together: bool [pairs], whether two neighbours in a shard share theirs.
        labels: int [images].
    """
    chance = float(((np.bincount(labels) / len(labels)) ** 2).sum())
    if len(together) < 8 or chance > 0.9:
        return False
    return bool((together.mean() - chance) / (1 - chance) > 0.5)


def check_classes(train: ShardIndex, val: ShardIndex) -> None:
    """Refuses two sets whose lists of classes disagree: a label would mean two things.

    Raises: ShardError: the first class that has another name, or another number of them.
    """
    if not train.classes or not val.classes:
        return
    if found := differ(train.classes, val.classes, "training", "validation"):
        raise ShardError(
            f"The lists of classes beside {train.paths[0].parent} and {val.paths[0].parent} "
            f"disagree: {found}. Fix one (classes.txt or _info.json), or give data.classes=FILE "
            "for both."
        )


_PICKLED = {"paths", "n_classes", "known_classes", "classes", "file", "_file_state", "sha256"}

"""The one order of all images over all epochs; every process and worker reads its part of it."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import numpy as np

from vitwarm.errors import ShardError
from vitwarm.seeding import hash_bits, mix_u64
from vitwarm.shards.read.index import ShardIndex

log = logging.getLogger("vitwarm")

#: Epochs kept at a time: a batch of a small set may straddle several.
_KEPT_EPOCHS = 4


class Order:
    """Position p is item p mod n of epoch p div n; batches may straddle epochs.

    `windows`: shards in random order, in windows of so many; samples shuffled within a window, so
    that reads stay near one another. `full`: one permutation of all images. Either is made by
    sorting hashes, of keys and shard numbers, and so the same on every machine.
    """

    def __init__(
        self,
        index: ShardIndex,
        rows: np.ndarray,
        *,
        seed: int,
        mode: Literal["windows", "full"] = "windows",
        window_shards: int = 32,
    ) -> None:
        """Takes the rows to be ordered, int64 [n], ascending, and the shards of a window.

        Raises: ShardError: no rows, a window below one shard, or another mode.
        """
        if mode not in ("windows", "full"):
            raise ShardError(f"data.order is {mode!r}; it must be windows or full.")
        if window_shards < 1:
            raise ShardError(f"data.window_shards is {window_shards}; it must be at least 1.")
        self.rows = np.asarray(rows, np.int64)
        if not len(self.rows):
            raise ShardError("The training set holds no images. Raise data.fraction.")
        self.n_shards = len(index.paths)
        self.seed = seed
        self.mode = mode
        self.window_shards = window_shards
        self._epochs: dict[int, np.ndarray] = {}
        self._shards = np.asarray(index.shard_of)[self.rows]
        self._hashes = np.asarray(index.key_hashes)[self.rows]
        if mode == "windows" and window_shards < self.n_shards and index.is_class_sorted:
            log.warning(
                "The shards in %s are sorted by class: windows of %d of %d shards hold few classes "
                "at a time. Use data.order=full, or write the shards again in random order "
                "(vitwarm shards make).",
                index.paths[0].parent,
                window_shards,
                self.n_shards,
            )

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, number: int) -> np.ndarray:
        """Returns the rows of an epoch in their order, int64 [n]."""
        if number not in self._epochs:
            if len(self._epochs) >= _KEPT_EPOCHS:
                del self._epochs[min(self._epochs)]
            shuffled = mix_u64(self._hashes, hash_bits(self.seed, "order", number, "image"))
            if self.mode == "full":
                places = np.argsort(shuffled, kind="stable")
            else:
                key = hash_bits(self.seed, "order", number, "shard")
                turn = np.argsort(np.argsort(mix_u64(np.arange(self.n_shards), key)))
                places = np.lexsort((shuffled, turn[self._shards] // self.window_shards))
            self._epochs[number] = self.rows[places]
        return self._epochs[number]

    def rows_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (epochs, rows) of global positions, int64 [m] each."""
        positions = np.asarray(positions, np.int64)
        epochs, items = np.divmod(positions, len(self.rows))
        rows = np.empty_like(positions)
        for number in np.unique(epochs):
            chosen = epochs == number
            rows[chosen] = self.epoch(int(number))[items[chosen]]
        return epochs, rows


class Share(NamedTuple):
    """One process's part of every step, in micro-batches."""

    batch_size: int
    """Images per step over all processes and accumulation."""
    micro: int
    """Images per micro-batch."""
    rank: int
    world_size: int

    @property
    def local(self) -> int:
        """Images per step and process."""
        return self.batch_size // self.world_size

    @property
    def micros(self) -> int:
        """Micro-batches per step and process."""
        return self.local // self.micro

    def positions(self, number: int) -> np.ndarray:
        """Returns the positions of this process's micro-batch so and so, from step 0 on; int64."""
        step, part = divmod(number, self.micros)
        first = step * self.batch_size + self.rank * self.local + part * self.micro
        return np.arange(first, first + self.micro, dtype=np.int64)

    def check(self) -> None:
        """Raises ShardError: a batch that does not divide."""
        if self.local % self.micro or self.batch_size % self.world_size:
            raise ShardError(
                f"train.batch_size is {self.batch_size}; it must divide by {self.world_size} "
                f"processes and their share by train.micro_batch_size ({self.micro}). "
                f"Use {max(1, self.micros) * self.micro * self.world_size}."
            )

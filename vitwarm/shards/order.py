"""The one order of all images over all epochs; every process and worker reads its part of it."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vitwarm.seeding import hash_bits, mix_u64
from vitwarm.shards.index import ShardIndex


class Order:
    """Position p is item p mod n of epoch p div n; batches may straddle epochs.

    `windows`: shards in random order, in windows of so many; samples shuffled within a window, so
    that reads stay near one another. `full`: one permutation of all images.
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
        self.rows = np.asarray(rows, np.int64)
        self.shards = np.asarray(index.shard_of)[self.rows]
        self.hashes = np.asarray(index.key_hashes)[self.rows]
        self.n_shards = len(index.paths)
        self.seed = seed
        self.mode = mode
        self.window_shards = window_shards
        self._epochs: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, number: int) -> np.ndarray:
        """Returns the rows of an epoch in their order, int64 [n]."""
        if number not in self._epochs:
            if len(self._epochs) >= 4:  # a batch of a small set may straddle several
                del self._epochs[min(self._epochs)]
            shuffled = mix_u64(self.hashes, hash_bits(self.seed, "order", number, "image"))
            if self.mode == "full":
                places = np.argsort(shuffled, kind="stable")
            else:
                key = hash_bits(self.seed, "order", number, "shard")
                turn = np.argsort(np.argsort(mix_u64(np.arange(self.n_shards), key)))
                places = np.lexsort((shuffled, turn[self.shards] // self.window_shards))
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

"""`random`: independent tokens, in which there is nothing to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from vitwarm.rules.base import Bools, Ceiling, Ids, Rows, Rule, to_rows
from vitwarm.rules.draws import GAMMA, below, below_low, compiled, mixed, stream


@dataclass(frozen=True, kw_only=True)
class RandomTokens(Rule):
    """Tokens that are drawn on their own, uniformly; any of them may be hidden."""

    name: ClassVar[str] = "random"
    aliases: ClassVar[tuple[str, ...]] = ("iid", "noise")

    n_symbols: int = 128
    """Ids, from 2 on."""

    def __post_init__(self) -> None:
        if self.n_symbols < 2:
            raise self.refuse("n_symbols", self.n_symbols, "needs at least 2 symbols")
        self.check_ids()

    @property
    def n_ids(self) -> int:
        """The symbols."""
        return self.n_symbols

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        """Writes the sequences of these rows."""
        _fill(out_BT, self.key(seed), rows_B, self.n_symbols)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Everything that holds only ids of the rule. Returns: bool [B]."""
        ids = to_rows(ids_BT)
        return np.array(((ids >= 0) & (ids < self.n_symbols)).all(axis=1))

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """The same."""
        return self.accepts(ids_BT)

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """Every token. Returns: bool [B, T]."""
        return np.ones(to_rows(ids_BT).shape, dtype=np.bool_)

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Returns chance: what is visible tells nothing."""
        chance = 1 / self.n_symbols
        return Ceiling(chance, chance, "exact: tokens are independent and uniform")


@compiled
def _fill(out: Ids, key: np.uint64, rows: Rows, n_symbols: int) -> None:
    n_rows, n_tokens = out.shape
    n = np.uint64(n_symbols)
    for b in range(n_rows):
        state = stream(key, rows[b])
        for t in range(0, n_tokens, 2):
            state += GAMMA
            bits = mixed(state)
            out[b, t] = below(bits, n)
            if t + 1 < n_tokens:
                out[b, t + 1] = below_low(bits, n)

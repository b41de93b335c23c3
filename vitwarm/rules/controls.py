"""The controls: `shuffled`, a rule's own tokens without their order, and `random`, pure noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.rules.base import Bools, Ceiling, Ids, Rows, Rule, to_rows
from vitwarm.rules.draws import GAMMA, below, compiled, mixed, stream, write_symbols
from vitwarm.rules.dyck import BracketRule


@dataclass(frozen=True, kw_only=True)
class Shuffled(Rule):
    """Every sequence of another rule with its tokens in a random order.

    Row i holds the very tokens of row i of that rule. Separators and pads stay in their places, so
    that as many tokens may be hidden as in the rule itself: for brackets the closing tokens.
    """

    name: ClassVar[str] = "shuffled"
    of: Rule
    """The rule whose order is destroyed: no wrapper itself."""

    def __post_init__(self) -> None:
        if self.of.name in ("shuffled", "mixture", "curriculum"):
            raise self.refuse(
                "of", self.of.name, "takes a plain rule (shuffle the members of a mixture instead)"
            )

    @property
    def n_ids(self) -> int:
        return self.of.n_ids

    @property
    def pad_id(self) -> int | None:
        return self.of.pad_id

    @property
    def separator_ids(self) -> tuple[int, ...]:
        return self.of.separator_ids

    @property
    def hide_share(self) -> float:
        return self.of.hide_share

    def fit_length(self, n_tokens: int) -> int:
        return self.of.fit_length(n_tokens)

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        self.of.fill(out_BT, seed, rows_B)
        stays = np.zeros(self.n_ids, dtype=np.bool_)
        stays[list(self.separator_ids)] = True
        places = np.empty(out_BT.shape[1], dtype=np.int64)
        _shuffle(out_BT, self.key(seed), rows_B, stays, places)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Sequences of which some order is a word of the rule inside. Returns: bool [B]."""
        return self.of.accepts_any_order(ids_BT)

    accepts_any_order = accepts

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """The same tokens, or as many places, as in the rule inside. Returns: bool [B, T]."""
        return self.of.maskable_in_any_order(ids_BT)

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Returns what an oracle reaches that knows which ids are hidden, and not where.

        For balanced brackets the visible tokens tell which ids are hidden, so that it is exact.
        """
        n_hidden = n_right = 0
        for ids, visible in zip(ids_BT, visible_BT, strict=True):
            counts = np.bincount(ids[visible == self.n_ids], minlength=1)
            n_hidden += int(counts.sum())
            n_right += int(counts.max())
        share = n_right / max(n_hidden, 1)
        exact = isinstance(self.of, BracketRule) and self.of.ending == "balanced"
        return Ceiling(
            share if exact else 0.0,
            share,
            f"{'exact' if exact else 'bound'}: the most frequent hidden id of each sequence",
        )


@compiled
def _shuffle(out: Ids, key: np.uint64, rows: Rows, stays: Bools, places: NDArray[np.int64]) -> None:
    n_rows, n_tokens = out.shape
    for b in range(n_rows):
        n = 0
        for t in range(n_tokens):
            places[n] = t
            n += 0 if stays[out[b, t]] else 1
        state = stream(key, rows[b])
        for i in range(n - 1, 0, -1):  # Fisher and Yates
            state += GAMMA
            j = places[below(mixed(state), np.uint64(i + 1))]
            here = places[i]
            kept = out[b, here]
            out[b, here] = out[b, j]
            out[b, j] = kept


@dataclass(frozen=True, kw_only=True)
class RandomTokens(Rule):
    """Tokens that are drawn on their own, uniformly; any of them may be hidden."""

    name: ClassVar[str] = "random"
    aliases: ClassVar[tuple[str, ...]] = ("iid", "noise")
    pads: ClassVar[bool] = False

    n_symbols: int = 128
    """Ids, from 2 on."""

    def __post_init__(self) -> None:
        self.check("n_symbols", self.n_symbols >= 2, "needs at least 2 symbols")
        self.check_ids()

    @property
    def n_ids(self) -> int:
        return self.n_symbols

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        _draw(out_BT, self.key(seed), rows_B, self.n_symbols)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Everything that holds only ids of the rule. Returns: bool [B]."""
        return self.has_ids(to_rows(ids_BT))

    accepts_any_order = accepts

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """Every token. Returns: bool [B, T]."""
        return np.ones(to_rows(ids_BT).shape, dtype=np.bool_)

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Returns chance: what is visible tells nothing."""
        chance = 1 / self.n_symbols
        return Ceiling(chance, chance, "exact: tokens are independent and uniform")


@compiled
def _draw(out: Ids, key: np.uint64, rows: Rows, n_symbols: int) -> None:
    for b in range(len(out)):
        state = stream(key, rows[b])
        write_symbols(out[b], 0, np.uint64(n_symbols), state)

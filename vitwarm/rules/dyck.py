"""k-Dyck: brackets of k kinds, each closed by its own kind, the last opened first."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from vitwarm.errors import RuleError
from vitwarm.rules.base import MOST_TOKENS, Bools, Ids, Rows, Rule, to_rows
from vitwarm.rules.draws import GAMMA, below, compiled, happens, mixed, stream, to_threshold

#: Stands for "no cap" inside compiled code.
NO_CAP = 1 << 30


@dataclass(frozen=True, kw_only=True)
class BracketRule(Rule):
    """What the bracket rules share: ids, lengths, and that only closing tokens are ever hidden.

    Ids: kind t opens as t and closes as n_kinds + t; the pad is 2 * n_kinds.
    """

    n_kinds: int = 64
    """Kinds of brackets, from 1 on."""
    p_open: float = 0.6
    """Probability of opening wherever both are possible, between 0 and 1."""
    max_depth: int | None = None
    """Most brackets open at a time; none: no cap."""
    ending: Literal["balanced", "truncated"] = "balanced"
    """`balanced`: everything is closed at the end; `truncated`: cut at the end of the sequence."""

    def __post_init__(self) -> None:
        self.check("n_kinds", self.n_kinds >= 1, "needs at least 1 kind of brackets")
        self.check_ids()
        self.check("p_open", 0 < self.p_open < 1, "takes a probability between 0 and 1")
        allowed = f"takes a depth from 1 to {MOST_TOKENS:,}, or none"
        self.check_range("max_depth", 1, MOST_TOKENS, allowed)

    @property
    def n_ids(self) -> int:
        """Opening ids, closing ids and the pad."""
        return 2 * self.n_kinds + 1

    @property
    def cap(self) -> int:
        """The depth cap as a number."""
        return NO_CAP if self.max_depth is None else self.max_depth

    def fit_length(self, n_tokens: int) -> int:
        """Returns `n_tokens`, or for balanced words the next even number below; from 2 on."""
        self.check_tokens(n_tokens, at_least=2)
        return n_tokens - n_tokens % 2 if self.ending == "balanced" else n_tokens

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """Closing tokens. Returns: bool [B, T]."""
        ids = to_rows(ids_BT)
        return (ids >= self.n_kinds) & (ids < 2 * self.n_kinds)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Words; truncated: beginnings of words."""
        return np.array([self.is_word(row) for row in to_rows(ids_BT).tolist()], dtype=bool)

    @abstractmethod
    def is_word(self, row: list[int]) -> bool:
        """Says whether a row is a word of the language, within the cap."""

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """As many closing as opening tokens of every kind (at most as many if truncated)."""
        ids = to_rows(ids_BT)
        fine = self.has_ids(ids)
        for row in np.flatnonzero(fine):
            counts = np.bincount(ids[row], minlength=2 * self.n_kinds)
            extra = counts[: self.n_kinds] - counts[self.n_kinds :]
            bound = 0 if self.ending == "balanced" else self.cap
            fine[row] = extra.min() >= 0 and extra.sum() <= bound
        return fine


@dataclass(frozen=True, kw_only=True)
class Dyck(BracketRule):
    """k-Dyck: every close matches the most recent open bracket (context-free).

    Source: Shinnick et al. 2026 (k = 64, p = 0.6); the variants are told apart in `PRESETS`.
    """

    name: ClassVar[str] = "dyck"
    aliases: ClassVar[tuple[str, ...]] = ("k-dyck", "kdyck")

    determined = True  # the structure stays visible, and it gives every close its kind

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        key, p, balanced = self.key(seed), to_threshold(self.p_open), self.ending == "balanced"
        opened = np.zeros(out_BT.shape[1] + 2, np.int16)
        _fill(out_BT, key, rows_B, self.n_kinds, p, self.cap, balanced, opened)

    def is_word(self, row: list[int]) -> bool:
        """Every close matches the most recent open bracket."""
        opened: list[int] = []
        for token in row:
            if 0 <= token < self.n_kinds:
                opened.append(token)
            elif not opened or opened.pop() != token - self.n_kinds:
                return False
            if len(opened) > self.cap:
                return False
        return not opened or self.ending == "truncated"

    def solve(self, visible_BT: ArrayLike) -> Ids:
        """Gives every hidden close the kind of the bracket that it closes; pads may follow a word.

        Raises: RuleError: a row that is no word however its hidden tokens are filled in.
        """
        solved = to_rows(visible_BT).copy()
        for number, row in enumerate(solved):
            n_words = len(row)
            while n_words and row[n_words - 1] == self.pad_id:
                n_words -= 1
            opened: list[int] = []
            for t, token in enumerate(row[:n_words].tolist()):
                place = f"ids[{number}, {t}] is {token}"
                if 0 <= token < self.n_kinds:
                    opened.append(token)
                    if len(opened) > self.cap:
                        raise _no_word(f"{place}; at most {self.cap} brackets may be open")
                    continue
                close = opened.pop() + self.n_kinds if opened else None
                if close is None:
                    raise _no_word(f"{place}; no bracket is open there")
                if token not in (close, self.n_ids):
                    raise _no_word(f"{place}; only {close} or the mask {self.n_ids} closes there")
                row[t] = close
            if opened and self.ending == "balanced":
                raise _no_word(f"ids[{number}] leaves {len(opened)} brackets open")
        return solved


def _no_word(reason: str) -> RuleError:
    return RuleError(
        f"{reason}, so this is no Dyck word. Give rows that `sample` and `make_batch` made."
    )


@compiled
def _fill(
    out: Ids, key: np.uint64, rows: Rows, n_kinds: int, p: np.uint64, cap: int, balanced: bool,
    opened: Ids,
) -> None:  # fmt: skip
    # One draw per token: the lower half decides whether it opens, the upper half is the kind.
    # opened[1 : depth + 1] are the kinds of the open brackets. No branch depends on a draw: the
    # kind is written above the top of the stack even where the token closes. Unsigned numbers spare
    # the tests for negative places: 410 M tokens/s, signed 280; drawing a whole row first (which
    # vectorises) 260.
    n_tokens, kinds, most = np.uint64(out.shape[1]), np.uint64(n_kinds), np.uint64(cap)
    zero, one = np.uint64(0), np.uint64(1)
    for b in range(len(out)):
        row = out[b]
        state = stream(key, rows[b])
        depth = zero
        for t in range(n_tokens):
            state += GAMMA
            bits = mixed(state)
            # Lengths are even, so more tokens left than open brackets means two more at least.
            limit = min(most, n_tokens - t) if balanced else most
            opens = (depth == zero) | ((depth < limit) & happens(bits, p))
            new, top = np.int16(below(bits, kinds)), opened[depth]
            opened[depth + one] = new
            row[t] = new if opens else top + n_kinds
            depth = depth + one if opens else depth - one

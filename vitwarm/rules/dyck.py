"""k-Dyck: words over k kinds of brackets, each closed by its own kind, last opened first closed.

Source: arXiv 2511.13945; the generation as in its reproductions: with r tokens left, close if only
closing still fits, open if nothing is open, else open with probability p where there is room.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from vitwarm.rules.base import Rule, check_choice, check_int, check_share
from vitwarm.rules.draws import GOLDEN, below, row_state, scramble, threshold


class Dyck(Rule):
    """Balanced (or truncated) bracket words; closing tokens may be hidden.

    Opening brackets are the ids 0..k-1, closing ones k..2k-1, the pad is 2k.
    """

    name = "dyck"

    def __init__(
        self,
        *,
        n_kinds: int = 64,
        p_open: float = 0.6,
        max_depth: int | None = None,
        ending: str = "balanced",
    ) -> None:
        """Args:
            n_kinds: k, kinds of brackets.
            p_open: probability of opening where both are possible.
            max_depth: at most so many open at a time; None: no cap.
            ending: `balanced` words close everything; `truncated` ones are cut at the length.
        Raises: RuleError: a parameter out of its range.
        """
        self.n_kinds = check_int(self.name, "n_kinds", n_kinds, 1, 16_000)
        self.p_open = check_share(self.name, "p_open", p_open)
        self.max_depth = max_depth
        if max_depth is not None:
            check_int(self.name, "max_depth", max_depth, 1, 1_000_000)
        self.ending = check_choice(self.name, "ending", ending, ("balanced", "truncated"))
        self.pad_id = 2 * n_kinds
        self.n_ids = 2 * n_kinds + 1

    def fit_length(self, n_tokens: int) -> int:
        """Balanced words are even; any length of at least 2 can be cut from one."""
        if self.ending == "balanced":
            return n_tokens // 2 * 2
        return n_tokens if n_tokens >= 2 else 0

    def _fill(self, out: np.ndarray, key: np.uint64, start: int) -> None:
        cap = out.shape[1] if self.max_depth is None else self.max_depth
        _dyck(out, key, start, self.n_kinds, threshold(self.p_open), cap, self.ending == "balanced")

    def accepts(self, ids: np.ndarray) -> np.ndarray:
        """By cancelling: matched neighbours are removed, kind by kind, until none is left."""
        good = np.zeros(len(ids), dtype=np.bool_)
        for b, row in enumerate(np.asarray(ids)):
            good[b] = self._is_word(row.tolist())
        return good

    def _is_word(self, word: list[int]) -> bool:
        k = self.n_kinds
        open_kinds: list[int] = []
        for token in word:
            if not 0 <= token < 2 * k:
                return False
            if token < k:
                open_kinds.append(token)
                if self.max_depth is not None and len(open_kinds) > self.max_depth:
                    return False
            elif not open_kinds or open_kinds.pop() != token - k:
                return False
        return not open_kinds if self.ending == "balanced" else True

    def accepts_any_order(self, ids: np.ndarray) -> np.ndarray:
        """Balanced: of each kind as many closing as opening; truncated: at most as many."""
        good = np.asarray(((ids >= 0) & (ids < 2 * self.n_kinds)).all(axis=1))
        for b in np.flatnonzero(good):
            counts = np.bincount(ids[b], minlength=2 * self.n_kinds)
            left = counts[: self.n_kinds] - counts[self.n_kinds :]
            good[b] = (left == 0).all() if self.ending == "balanced" else (left >= 0).all()
        return good

    def maskable(self, ids: np.ndarray) -> np.ndarray:
        """Closing tokens: with the structure visible, each hidden kind is determined."""
        return (ids >= self.n_kinds) & (ids < 2 * self.n_kinds)


@njit(nogil=True, cache=True)
def _dyck(
    out: np.ndarray,
    key: np.uint64,
    start: int,
    n_kinds: int,
    p_open: np.uint64,
    cap: int,
    balanced: bool,
) -> None:
    n_rows, n_tokens = out.shape
    stack = np.empty(n_tokens + 1, dtype=np.int16)
    for b in range(n_rows):
        state = row_state(key, start + b)
        depth = 0
        for t in range(n_tokens):
            left = n_tokens - t
            if balanced and left <= depth:
                opens = False
            elif depth == 0:
                opens = True
            elif depth >= cap or (balanced and left < depth + 2):
                opens = False
            else:
                state += GOLDEN
                opens = bool(scramble(state) < p_open)
            if opens:
                state += GOLDEN
                kind = below(scramble(state), n_kinds)
                stack[depth] = kind
                depth += 1
                out[b, t] = kind
            else:
                depth -= 1
                out[b, t] = n_kinds + stack[depth]

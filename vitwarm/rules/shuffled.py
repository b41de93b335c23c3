"""The control: the same tokens, the order of each sequence destroyed."""

from __future__ import annotations

import numpy as np
from numba import njit

from vitwarm.rules.base import Rule
from vitwarm.rules.draws import GOLDEN, below, row_state, scramble


class Shuffled(Rule):
    """Another rule's sequences with their tokens in random order; the same tokens may be hidden.

    Keeps every statistic that does not depend on order and nothing that does.
    """

    name = "shuffled"

    def __init__(self, *, of: Rule) -> None:
        """Args:
        of: the rule whose sequences are shuffled.
        """
        self.of = of
        self.n_ids = of.n_ids
        self.pad_id = of.pad_id
        self.hide_share = of.hide_share

    def fit_length(self, n_tokens: int) -> int:
        return self.of.fit_length(n_tokens)

    def sample(
        self,
        seed: int,
        start: int,
        n_sequences: int,
        n_tokens: int,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the other rule's very rows of this seed, each in random order."""
        ids = self.of.sample(seed, start, n_sequences, n_tokens, out)
        self._fill(ids, self.key(seed), start)
        return ids

    def _fill(self, out: np.ndarray, key: np.uint64, start: int) -> None:
        _shuffle(out, key, start)

    def accepts(self, ids: np.ndarray) -> np.ndarray:
        """Whether the tokens, in some order, could be a sequence of the other rule."""
        return self.of.accepts_any_order(ids)

    def maskable(self, ids: np.ndarray) -> np.ndarray:
        return self.of.maskable(ids)


@njit(nogil=True, cache=True)
def _shuffle(out: np.ndarray, key: np.uint64, start: int) -> None:
    """Fisher-Yates per row."""
    for b in range(out.shape[0]):
        state = row_state(key, start + b)
        for t in range(out.shape[1] - 1, 0, -1):
            state += GOLDEN
            other = below(scramble(state), t + 1)
            out[b, t], out[b, other] = out[b, other], out[b, t]

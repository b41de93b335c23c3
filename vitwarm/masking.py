"""Ids in, (input ids, target ids) out: what may be hidden, and how much of it, the rule says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules import Rule
from vitwarm.rules.hide import IGNORE, hide


class Masked(NamedTuple):
    """B sequences of T tokens, some of them hidden."""

    input_ids: NDArray[np.int16]
    """[B, T], `rule.n_ids` (the mask id) where hidden."""
    target_ids: NDArray[np.int16]
    """[B, T], the hidden id, and IGNORE where nothing is hidden."""


def make_batch(
    rule: Rule,
    *,
    seed: int,
    start: int,
    n_sequences: int,
    n_tokens: int,
    hide_share: float | None = None,
) -> Masked:
    """Returns the sequences [start, start + n_sequences) of a rule with some tokens hidden.

    Each row, ids and hidden positions, is a pure function of (rule, seed, its number, n_tokens,
    hide_share): batches can be cut in any way. Each maskable token is hidden on its own, so a share
    of 0.5 is a mean; a larger share hides what a smaller one hides, and more. Threads may call
    this at once; it releases the GIL.

    Args:
        n_tokens: T. Where the rule refuses this length, its next shorter one is filled up with
            visible pads at the end.
        hide_share: share of the maskable tokens, in (0, 1]; None: what the rule says.
    Raises: RuleError: a length or share that is impossible.
    """
    n_words = rule.fit_length(n_tokens)
    ids_BW = rule.sample(seed, start, n_sequences, n_words)
    input_BT = np.full((n_sequences, n_tokens), rule.pad_id or 0, dtype=np.int16)
    target_BT = np.full((n_sequences, n_tokens), IGNORE, dtype=np.int16)
    hide(rule, ids_BW, input_BT, target_BT, seed=seed, start=start, hide_share=hide_share)
    return Masked(input_BT, target_BT)


__all__ = ["IGNORE", "Masked", "make_batch"]

"""ids -> (input ids, target ids). What may be hidden, and how much of it, the rule says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitwarm.errors import RuleError
from vitwarm.rules import Rule
from vitwarm.rules.draws import hide_rows, threshold

#: Target where nothing is hidden, as torch's cross-entropy expects it.
IGNORE = -100


class Masked(NamedTuple):
    """A batch of sequences with hidden tokens."""

    input_ids: np.ndarray
    """int16 [B, T]: the mask id, rule.n_ids, where hidden."""
    target_ids: np.ndarray
    """int16 [B, T]: the hidden id, IGNORE elsewhere."""


def make_batch(
    rule: Rule,
    *,
    seed: int,
    start: int,
    n_sequences: int,
    n_tokens: int,
    hide_share: float | None = None,
) -> Masked:
    """Generates the rows [start, start + n_sequences) of a seed's stream and hides tokens in them.

    A row and its hidden positions depend on the rule, the seed, the row's number and the length
    alone. A length that the rule refuses is made of the next shorter one and visible pads.

    Args:
        hide_share: share of the maskable tokens; None: the rule's own.
    Raises: RuleError: no length up to `n_tokens` has sequences, or pads are needed and there is no
        pad id.
    """
    words = rule.fit_length(n_tokens)
    if words < 1 or (words < n_tokens and rule.pad_id is None):
        raise RuleError(
            f"n_tokens is {n_tokens}; {rule.name} has no sequence that fits. Use a longer one."
        )
    ids = rule.sample(seed, start, n_sequences, words)
    hidden = np.empty(ids.shape, dtype=np.bool_)
    share = rule.hide_share if hide_share is None else hide_share
    hide_rows(rule.maskable(ids), rule.key(seed, "hidden"), start, threshold(share), hidden)
    shape = (n_sequences, n_tokens)
    inputs = np.full(shape, rule.n_ids if rule.pad_id is None else rule.pad_id, dtype=np.int16)
    targets = np.full(shape, IGNORE, dtype=np.int16)
    inputs[:, :words] = np.where(hidden, np.int16(rule.n_ids), ids)
    targets[:, :words] = np.where(hidden, ids, np.int16(IGNORE))
    return Masked(inputs, targets)

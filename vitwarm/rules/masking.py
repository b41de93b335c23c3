"""Ids in, (input ids, target ids) out: each maskable token is hidden on its own, or is not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitwarm.errors import RuleError
from vitwarm.rules.base import Bools, Ids, Rows, Rule
from vitwarm.rules.draws import GAMMA, compiled, happens, mixed, stream
from vitwarm.seeding import hash_bits

#: The target where nothing is hidden; torch's cross entropy leaves it out.
IGNORE = -100


class Masked(NamedTuple):
    """B sequences of T tokens, some of them hidden."""

    input_ids: Ids
    """[B, T], `rule.n_ids` (the mask id) where hidden."""
    target_ids: Ids
    """[B, T], the hidden id, and IGNORE where nothing is hidden."""

    @property
    def hidden(self) -> Bools:
        """[B, T], which tokens are hidden."""
        return np.array(self.target_ids != IGNORE)

    @property
    def ids(self) -> Ids:
        """[B, T], the sequences with nothing hidden."""
        return np.where(self.hidden, self.target_ids, self.input_ids).astype(np.int16)


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
    if hide_share is not None and not 0 < hide_share <= 1:
        raise RuleError(f"hide_share is {hide_share}; it must be above 0 and at most 1.")
    ids_BW = rule.sample(seed, start, n_sequences, rule.fit_length(n_tokens))
    rows_B = np.arange(start, start + n_sequences, dtype=np.uint64)
    maskable_BW, share_B = rule.may_hide(ids_BW, seed, rows_B)
    if hide_share is not None:
        share_B = np.full(n_sequences, hide_share)
    thresholds_B = np.floor(share_B * 2.0**32).astype(np.uint64)
    input_BT = np.full((n_sequences, n_tokens), rule.pad_id or 0, dtype=np.int16)
    target_BT = np.full((n_sequences, n_tokens), IGNORE, dtype=np.int16)
    key = np.uint64(hash_bits(seed, "hidden"))
    _hide(input_BT, target_BT, ids_BW, maskable_BW, key, rows_B, thresholds_B, rule.n_ids)
    return Masked(input_BT, target_BT)


@compiled
def _hide(
    inputs: Ids, targets: Ids, ids: Ids, maskable: Bools, key: np.uint64, rows: Rows,
    thresholds: Rows, mask_id: int,
) -> None:  # fmt: skip
    n_rows, n_words = ids.shape
    for b in range(n_rows):
        state = stream(key, rows[b])
        for t in range(n_words):
            state += GAMMA
            hides = maskable[b, t] & happens(mixed(state), thresholds[b])
            inputs[b, t] = mask_id if hides else ids[b, t]
            targets[b, t] = ids[b, t] if hides else IGNORE

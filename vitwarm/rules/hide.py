"""Which tokens are hidden: each maskable one on its own, as its row and place alone decide."""

from __future__ import annotations

import numpy as np

from vitwarm.errors import RuleError
from vitwarm.rules.base import Bools, Ids, Rows, Rule
from vitwarm.rules.draws import GAMMA, LOW, compiled, mixed, stream
from vitwarm.seeding import hash_bits

#: The target where nothing is hidden; torch's cross entropy leaves it out.
IGNORE = -100


def hide(
    rule: Rule,
    ids_BW: Ids,
    input_BT: Ids,
    target_BT: Ids,
    *,
    seed: int,
    start: int,
    hide_share: float | None = None,
) -> None:
    """Writes sequences into the first W places of inputs and targets, some of their tokens hidden.

    Args:
        ids_BW: the sequences [start, start + B) that `rule.sample` made with this seed.
        input_BT: gets the ids, and the mask id `rule.n_ids` where hidden; T >= W.
        target_BT: gets the hidden ids, and IGNORE elsewhere.
        hide_share: share of the maskable tokens, in (0, 1]; None: what the rule says.
    Raises: RuleError: a share out of range.
    """
    if hide_share is not None and not 0 < hide_share <= 1:
        raise RuleError(f"hide_share is {hide_share}; it must be above 0 and at most 1.")
    rows_B = np.arange(start, start + len(ids_BW), dtype=np.uint64)
    maskable_BW, share_B = rule.may_hide(ids_BW, seed, rows_B)
    if hide_share is not None:
        share_B = np.full(len(ids_BW), hide_share)
    thresholds_B = np.floor(share_B * 2.0**32).astype(np.uint64)
    key = np.uint64(hash_bits(seed, "hidden"))
    _hide(input_BT, target_BT, ids_BW, maskable_BW, key, rows_B, thresholds_B, rule.n_ids)


@compiled
def _hide(
    inputs: Ids,
    targets: Ids,
    ids: Ids,
    maskable: Bools,
    key: np.uint64,
    rows: Rows,
    thresholds: Rows,
    mask_id: int,
) -> None:
    n_rows, n_words = ids.shape
    for b in range(n_rows):
        state = stream(key, rows[b])
        for t in range(n_words):
            state += GAMMA
            hides = maskable[b, t] & ((mixed(state) & LOW) < thresholds[b])
            inputs[b, t] = mask_id if hides else ids[b, t]
            targets[b, t] = ids[b, t] if hides else IGNORE

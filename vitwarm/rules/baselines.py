"""What predictors without insight reach, and how far gzip gets: one scale for every rule.

A model has learned a rule where it does better. Easy tasks transfer worst: look at the gap between
the best of these and the ceiling before a warm-up is paid for.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules.automata import CellularAutomaton
from vitwarm.rules.base import Bools, Ids, Rule
from vitwarm.rules.dyck import BracketRule
from vitwarm.rules.make import make_rule
from vitwarm.rules.masking import Masked

#: Sequences whose n-grams are counted: others than those that are guessed.
NGRAM_SEQUENCES = 4096

#: The largest n; a window of more tokens is too rarely seen twice.
LONGEST_NGRAM = 3


def predictor_accuracies(rule: Rule, seen: Masked, batch: Masked) -> dict[str, float]:
    """Returns the share of the hidden tokens that predictors without any insight get right.

    Args:
        rule: the plain rule: of a shuffled control the one inside.
        seen: other sequences of the rule, whose n-grams are counted.
        batch: the sequences that are guessed.
    """
    ids, visible, hidden = batch.ids, batch.input_ids, batch.hidden
    wanted = ids[hidden]
    if not len(wanted):
        return {}
    hideable = ~hidden & np.isin(ids, np.unique(wanted))
    guesses: dict[str, NDArray[Any]] = {
        "visible token to the left": _nearest(visible, ~hidden),
        "visible token to the right": _nearest(visible[:, ::-1], ~hidden[:, ::-1])[:, ::-1],
        "most frequent such id in the sequence": _modes(visible, hideable),
    }
    if isinstance(rule, BracketRule):
        opens = visible < rule.n_kinds
        guesses["nearest opening token to the left"] = _nearest(visible, opens) + rule.n_kinds
    if isinstance(rule, CellularAutomaton):
        columns = rule.frame_of(ids.shape[1])[1]
        above = np.full(ids.shape, -1, dtype=np.int16)
        for t in range(columns, ids.shape[1]):
            up = t - columns
            above[:, t] = np.where(hidden[:, up], above[:, up], visible[:, up])
        guesses["visible token above"] = above
    found = {name: float((guess[hidden] == wanted).mean()) for name, guess in guesses.items()}
    return {**ngram_accuracies(seen, batch), **found}


def ngram_accuracies(seen: Masked, batch: Masked) -> dict[str, float]:
    """Returns the share of the hidden tokens that n-grams get right: `1-gram`, `2-gram`, `3-gram`.

    An n-gram is a window of n tokens in a row of which one is hidden; the others are taken as the
    input shows them, hidden ones as the mask. The predictor says the id that stood most often at
    the hidden place in such windows of `seen`; where it has seen none, it says what the
    (n - 1)-gram says. The hidden token can be any of the n; the best of these n predictors counts.

    Args: seen: sequences whose windows are counted; batch: those that are guessed, of equal length.
    """
    wanted = batch.target_ids[batch.hidden]
    guess = np.full(len(wanted), -1)
    found = {}
    for n in range(1, LONGEST_NGRAM + 1):
        placed = [_guess_by_window(seen, batch, n, place, guess) for place in range(n)]
        right = [float((told == wanted).mean()) if len(wanted) else 0.0 for told in placed]
        guess, found[f"{n}-gram"] = placed[int(np.argmax(right))], max(right)
    return found


def _guess_by_window(
    seen: Masked, batch: Masked, n: int, place: int, otherwise: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Guesses the hidden tokens of `batch` that stand at `place` of their n-gram: int64 [K]."""
    size = int(max(b.input_ids.max(initial=0) for b in (seen, batch))) + 2  # -1: beyond the ends

    def windows(masked: Masked) -> NDArray[np.int64]:
        padded = np.pad(masked.input_ids.astype(np.int64), ((0, 0), (n, n)), constant_values=-1)
        row, t = np.nonzero(masked.hidden)
        key = np.zeros(len(row), dtype=np.int64)
        for beside in range(-place, n - place):
            if beside:
                key = key * size + padded[row, t + n + beside] + 1
        return key

    keys, answers = windows(seen), seen.target_ids[seen.hidden].astype(np.int64)
    pairs, counts = np.unique(keys * size + answers, return_counts=True)
    best = np.lexsort((pairs, -counts, pairs // size))  # by window, the most frequent id first
    known, first = np.unique(pairs[best] // size, return_index=True)
    if not len(known):
        return otherwise
    asked = windows(batch)
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[at] == asked, (pairs[best] % size)[first][at], otherwise)


def order_blind_accuracy(rule: Rule, ids: Ids, visible: Ids) -> float:
    """Returns what no predictor exceeds that does not see the order of the tokens, as a share.

    It is the ceiling of the rule's shuffled control (of the rule itself where it is one): the
    control's sequences are these with their order destroyed, and its ceiling counts ids alone.

    Args: ids, visible: [B, T], as `Rule.ceiling` takes them.
    """
    return _control(rule).ceiling(ids, visible).high


def _control(rule: Rule) -> Rule:
    return rule if rule.name == "shuffled" else make_rule("shuffled", of=rule)


def gzip_stats(rule: Rule, ids: Ids, seed: int, start: int) -> dict[str, float]:
    """Returns how far gzip (deflate, level 9) shortens sequences, each on its own.

    An id is one byte, or two where the rule has more than 256 ids.

    Args: ids: [B, T], rows from `start` on of the rule's stream under `seed`.
    Returns: `ratio`, compressed over raw bytes, and `over_shuffled`, compressed bytes over those of
        the same sequences with their order destroyed: 1 where gzip sees nothing in the order.
    """
    raw, ours = _n_bytes(ids, rule.n_ids)
    _, blind = _n_bytes(_control(rule).sample(seed, start, *ids.shape), rule.n_ids)
    return {"ratio": ours / raw, "over_shuffled": ours / blind}


def _n_bytes(ids: Ids, n_ids: int) -> tuple[int, int]:
    """Returns the bytes of sequences, and what zlib makes of them, one by one."""
    rows = [row.tobytes() for row in ids.astype("<u1" if n_ids <= 256 else "<u2")]
    return sum(map(len, rows)), sum(len(zlib.compress(row, 9)) for row in rows)


def _nearest(ids: Ids, usable: Bools) -> Ids:
    """Returns at every place the id of the last usable token before it; -1 where there is none."""
    places = np.where(usable, np.arange(ids.shape[1]), -1)
    before = np.maximum.accumulate(places, axis=1)
    before = np.concatenate([np.full((len(ids), 1), -1), before[:, :-1]], axis=1)
    found = np.take_along_axis(ids, np.maximum(before, 0), axis=1)
    return np.where(before < 0, -1, found).astype(np.int16)


def _modes(ids: Ids, usable: Bools) -> Ids:
    """Returns at every place the most frequent usable id of its sequence."""
    rows = zip(ids, usable, strict=True)
    modes = [np.bincount(row[mask]).argmax() if mask.any() else -1 for row, mask in rows]
    return np.repeat(np.array(modes, dtype=np.int16)[:, None], ids.shape[1], axis=1)

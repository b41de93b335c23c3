"""What a rule is like, in numbers: depth, distances, entropy, and what can be reached.

Predictors without insight and gzip are one scale for every rule: a model has learned one where it
does better. Easy tasks transfer worst: look at the gap between the best of these and the ceiling
before a warm-up is paid for.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules.automata import CellularAutomaton, NeuralAutomaton
from vitwarm.rules.base import Bools, Ids, Rule
from vitwarm.rules.controls import Shuffled
from vitwarm.rules.dyck import BracketRule
from vitwarm.rules.make import find_preset, make_rule, rule_config
from vitwarm.rules.masking import Masked, make_batch

Counts = NDArray[np.int64]

#: Sequences that the ceiling is measured on: some of its methods take milliseconds for each.
CEILING_SEQUENCES = 64

#: Sequences whose n-grams are counted: others than those that are guessed.
NGRAM_SEQUENCES = 4096

#: The largest n; a window of more tokens is too rarely seen twice.
LONGEST_NGRAM = 3


def rule_stats(
    rule: Rule,
    *,
    seed: int = 0,
    n_sequences: int = 512,
    n_tokens: int = 196,
    hide_share: float | None = None,
) -> dict[str, Any]:
    """Measures a rule on a sample of its sequences; the result is ready for JSON.

    Args:
        n_tokens: asked length; the rule's own next shorter one is measured.
        hide_share: share of maskable tokens that is hidden; None: the rule's own.
    Returns: a mapping with `ids` (their entropy without pads and separators), `hidden`,
        `gzip` (see `gzip_stats`), `predictors` (accuracies on hidden tokens, as shares),
        `order_blind` (no predictor that does not see the order exceeds it), `ceiling`,
        `equal_id_distance`, for brackets `brackets`, and for `nca` `outside_band`; shares lie in
        [0, 1].
    Raises: RuleError: an impossible length or share.
    """
    n_words = rule.fit_length(n_tokens)
    start = rule.evaluation_start
    how: dict[str, Any] = {"seed": seed, "n_tokens": n_words, "hide_share": hide_share}
    batch = make_batch(rule, start=start, n_sequences=n_sequences, **how)
    seen = make_batch(rule, start=start + n_sequences, n_sequences=NGRAM_SEQUENCES, **how)
    ids, visible, hidden = batch.ids, batch.input_ids, batch.hidden
    counts = np.bincount(ids.ravel(), minlength=rule.n_ids)
    contents = np.delete(counts, list(rule.separator_ids))
    hidden_counts = np.bincount(ids[hidden], minlength=rule.n_ids)
    few = slice(0, CEILING_SEQUENCES)
    plain = rule.of if isinstance(rule, Shuffled) else rule
    return {
        "rule": rule_config(rule),
        "preset": find_preset(rule),
        "seed": seed,
        "start": start,
        "n_sequences": n_sequences,
        "n_tokens": n_words,
        "ids": {
            "n_ids": rule.n_ids,
            "used": int((counts > 0).sum()),
            "entropy_bits": _entropy_bits(contents),
            "pad_share": _pad_share(rule, ids, seed, start),
        },
        "hidden": {
            "share": float(hidden.mean()),
            "mean_per_sequence": float(hidden.sum(axis=1).mean()),
            "ids_used": int((hidden_counts > 0).sum()),
            "entropy_bits": _entropy_bits(hidden_counts),
        },
        "gzip": gzip_stats(rule, ids, seed, start),
        "predictors": predictor_accuracies(plain, seen, batch),
        "order_blind": order_blind_accuracy(rule, ids[few], visible[few]),
        "ceiling": rule.ceiling(ids[few], visible[few])._asdict(),
        "equal_id_distance": _equal_id_distance(ids, hidden),
        "brackets": bracket_stats(rule, ids) if isinstance(rule, BracketRule) else None,
        "outside_band": rule.outside_band(ids) if isinstance(rule, NeuralAutomaton) else None,
    }


def bracket_stats(rule: BracketRule, ids: Ids) -> dict[str, Any]:
    """Returns depths and distances of bracket words.

    A close is matched with the last open bracket of its kind: in Dyck words that is its partner,
    in Dyck-Shuffle one of the possible ones. The closing run is the number of closes at the end.
    """
    steps = np.where(ids < rule.n_kinds, 1, -1)
    depth = steps.cumsum(axis=1)
    closes = steps < 0
    last_open = np.where(~closes, np.arange(ids.shape[1]), -1).max(axis=1)
    run = ids.shape[1] - 1 - last_open
    distance = match_distances(rule, ids)[closes]
    deepest = depth.max(axis=1)
    return {
        "mean_max_depth": float(deepest.mean()),
        "sd_max_depth": float(deepest.std(ddof=1)) if len(ids) > 1 else None,
        "mean_closing_run": float(run.mean()),
        "sd_closing_run": float(run.std(ddof=1)) if len(ids) > 1 else None,
        "match_distance": _quantiles(distance),
        "adjacent_share": float((distance == 1).mean()) if len(distance) else None,
        "depth_profile": [round(float(d), 3) for d in depth.mean(axis=0)],
    }


def match_distances(rule: BracketRule, ids: Ids) -> Counts:
    """Returns how many tokens before each close its bracket opened; 0 for an open: int64 [B, T]."""
    # last[b, kind]: where it opened last and is still open; before[b, t]: what that was before t.
    rows, n_tokens = np.arange(len(ids)), ids.shape[1]
    last, before = (np.full((len(ids), n), -1) for n in (rule.n_kinds, n_tokens))
    distances = np.zeros(ids.shape, dtype=np.int64)
    for t in range(n_tokens):
        kinds, opens = ids[:, t] % rule.n_kinds, ids[:, t] < rule.n_kinds
        before[:, t] = latest = last[rows, kinds]
        distances[:, t] = np.where(opens, 0, t - latest)
        last[rows, kinds] = np.where(opens, t, before[rows, latest])
    return distances


def hidden_groups(rule: Rule, ids: Ids, hidden: Bools) -> dict[str, Counts]:
    """Returns what may make a hidden token hard, int64 [K] in the order of `ids[hidden]`.

    For brackets `match_distance` (tokens back to the bracket that it closes) and `depth` (brackets
    open before it closes one); for every other rule `equal_id_distances`. 0: there is none.

    Args: ids, hidden: [B, T].
    """
    if not isinstance(rule, BracketRule):
        return {"equal_id_distance": equal_id_distances(ids, hidden)}
    closes = rule.maskable(ids)
    depth = np.where(ids < rule.n_kinds, 1, -closes.astype(np.int64)).cumsum(axis=1)
    return {"match_distance": match_distances(rule, ids)[hidden], "depth": depth[hidden] + 1}


def equal_id_distances(ids: Ids, hidden: Bools) -> Counts:
    """Returns the tokens from each hidden one to the nearest visible equal; 0: none. int64 [K]."""
    found = [np.zeros(0, dtype=np.int64)]
    for row, mask in zip(ids, hidden, strict=True):
        places, wanted = np.flatnonzero(~mask), np.flatnonzero(mask)
        far = np.abs(places[None, :] - wanted[:, None])
        far[row[places][None, :] != row[wanted][:, None]] = len(row)
        nearest = far.min(axis=1, initial=len(row))
        found.append(np.where(nearest < len(row), nearest, 0))
    return np.concatenate(found)


def octave_name(octave: int) -> str:
    """Names the distances in [2^octave, 2^(octave + 1)): `1`, `2-3`, `4-7`, ..."""
    return "1" if octave == 0 else f"{2**octave}-{2 ** (octave + 1) - 1}"


def _equal_id_distance(ids: Ids, hidden: Bools) -> dict[str, Any]:
    """Distance from a hidden token to the nearest visible one with its id, over all sequences."""
    found = equal_id_distances(ids, hidden)
    none_share = float((found == 0).mean()) if len(found) else None
    return {**_quantiles(found[found > 0]), "none_share": none_share}


def _quantiles(values: Counts) -> dict[str, Any]:
    """Returns the mean and quantiles of distances, and their shares in 1, 2-3, 4-7, 8-15, ..."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "p90", "p99", "shares"))
    median, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99)).tolist()
    counts = np.bincount(np.log2(values).astype(np.int64)).tolist()
    shares = {octave_name(i): n / len(values) for i, n in enumerate(counts)}
    mean = float(values.mean())
    return {"mean": mean, "median": median, "p90": p90, "p99": p99, "shares": shares}


def _pad_share(rule: Rule, ids: Ids, seed: int, start: int) -> float:
    rows = np.arange(start, start + len(ids), dtype=np.uint64)
    pads = [
        np.count_nonzero(ids[places] == part.pad_id + offset)
        for part, places, offset in rule.parts(seed, rows)
        if part.pad_id is not None
    ]
    return sum(pads) / ids.size


def _entropy_bits(counts: Counts) -> float:
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


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
    control's sequences are these with their order destroyed, and its ceiling counts ids alone. Only
    for balanced brackets is it reached; nothing exceeds the ceiling of the rule itself either.

    Args: ids, visible: [B, T], as `Rule.ceiling` takes them.
    """
    return min(one.ceiling(ids, visible).high for one in (_control(rule), rule))


def _control(rule: Rule) -> Rule:
    return rule if isinstance(rule, Shuffled) else make_rule("shuffled", of=rule)


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

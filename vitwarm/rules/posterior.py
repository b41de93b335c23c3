"""What the hidden closes of a Dyck-Shuffle word may be: samples from their posterior."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules.base import Ids
from vitwarm.rules.draws import GAMMA, LOW, below, below_low, compiled, mixed, stream

Words = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Sweeps over the hidden tokens; the first fifth is thrown away.
SWEEPS = 400


def count_votes(
    ids_T: Ids, *, n_kinds: int, by_types: bool, balanced: bool, row: int
) -> NDArray[np.int64]:
    """Samples the kinds of a word's hidden closes, given all that is visible.

    Args:
        ids_T: the word, -1 where a close is hidden.
        by_types: closes are drawn from open types, not from open brackets.
        balanced: everything is closed at the end.
        row: number of the random stream.
    Returns: int64 [hidden, n_kinds], how often each had each kind.
    """
    ids = ids_T.astype(np.int64)
    places = np.flatnonzero(ids < 0)
    votes = np.zeros((len(places), n_kinds), dtype=np.int64)
    if len(places):
        logs = np.log(np.maximum(np.arange(len(ids) + 1), 1))
        need = np.zeros((len(ids) + 1, n_kinds), dtype=np.int64)
        opened = np.zeros(n_kinds, dtype=np.int64)
        _vote(ids, places, n_kinds, by_types, balanced, row, logs, need, opened, votes)
    return votes


@compiled
def _log_weight(
    ids: Words, n_kinds: int, by_types: bool, balanced: bool, logs: Floats, opened: Words
) -> float:
    """Returns the log probability of a word, up to a term that hidden kinds do not change."""
    for kind in range(n_kinds):
        opened[kind] = 0
    n_types = 0
    depth = 0
    total = 0.0
    for t in range(len(ids)):
        if ids[t] < n_kinds:
            n_types += 1 if opened[ids[t]] == 0 else 0
            opened[ids[t]] += 1
            depth += 1
        else:
            kind = ids[t] - n_kinds
            if opened[kind] == 0:
                return -np.inf
            total += -logs[n_types] if by_types else logs[opened[kind]]
            opened[kind] -= 1
            depth -= 1
            n_types -= 1 if opened[kind] == 0 else 0
    return -np.inf if balanced and depth > 0 else total


@compiled
def _start(ids: Words, n_kinds: int, need: Words, opened: Words) -> None:
    """Gives the hidden closes (-1) kinds that make a word, whatever the truth was."""
    # need[t, kind]: brackets that must be open before t to serve the visible closes from t on.
    # What is open beyond that is free, and stays free until a hidden close takes it: so any free
    # one may be taken.
    n_tokens = len(ids)
    for kind in range(n_kinds):
        opened[kind] = 0
        need[n_tokens, kind] = 0
    for t in range(n_tokens - 1, -1, -1):
        for kind in range(n_kinds):
            step = 1 if ids[t] == kind + n_kinds else 0
            step -= 1 if ids[t] == kind else 0
            need[t, kind] = max(0, need[t + 1, kind] + step)
    for t in range(n_tokens):
        if ids[t] < 0:
            best = 0
            for kind in range(1, n_kinds):
                if opened[kind] - need[t, kind] > opened[best] - need[t, best]:
                    best = kind
            ids[t] = n_kinds + best
        opened[ids[t] % n_kinds] += 1 if ids[t] < n_kinds else -1


@compiled
def _vote(
    ids: Words, places: Words, n_kinds: int, by_types: bool, balanced: bool, row: int, logs: Floats,
    need: Words, opened: Words, votes: Words,
) -> None:  # fmt: skip
    """Counts, after every sweep, the kind that each hidden token has."""
    _start(ids, n_kinds, need, opened)
    now = _log_weight(ids, n_kinds, by_types, balanced, logs, opened)
    state = stream(GAMMA, np.uint64(row))
    n = np.uint64(len(places))
    for sweep in range(SWEEPS):
        for _ in range(len(places)):
            state += GAMMA
            bits = mixed(state)
            here = places[below(bits, n)]
            there = places[below_low(bits, n)]
            state += GAMMA
            bits = mixed(state)
            before, other = ids[here], ids[there]
            # In balanced words the hidden kinds are a known bag, so two of them change places.
            if balanced or bits & np.uint64(1):
                ids[here], ids[there] = other, before
            else:
                ids[here] = n_kinds + np.int64(below(bits, np.uint64(n_kinds)))
            after = _log_weight(ids, n_kinds, by_types, balanced, logs, opened)
            chance = np.float64((bits >> np.uint64(1)) & LOW) / 4294967296.0
            if after >= now or chance < math.exp(after - now):
                now = after
            else:
                ids[here], ids[there] = before, other
        if sweep >= SWEEPS // 5:
            for i in range(len(places)):
                votes[i, ids[places[i]] - n_kinds] += 1

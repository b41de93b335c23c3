"""k-Dyck-Shuffle: k interleaved languages of one kind of bracket each; crossings are allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules.base import Ceiling, Ids, Rows
from vitwarm.rules.draws import (
    GAMMA,
    LOW,
    below,
    below_low,
    compiled,
    happens,
    mixed,
    stream,
    to_threshold,
)
from vitwarm.rules.dyck import BracketRule

Words = NDArray[np.int64]

#: Sweeps over the hidden tokens of a word; the first fifth is thrown away.
SWEEPS = 400


@dataclass(frozen=True, kw_only=True)
class ShuffleDyck(BracketRule):
    """k-Dyck-Shuffle: of every kind as many brackets close as open, never more (context-sensitive).

    Which bracket a close takes differs between published codes: uniform over the open brackets (a
    kind with more of them is likelier), or uniform over the kinds that are open.
    """

    name: ClassVar[str] = "shuffle-dyck"
    aliases: ClassVar[tuple[str, ...]] = ("dyck-shuffle", "k-dyck-shuffle", "k-shuffle-dyck")

    closing: Literal["brackets", "types"] = "brackets"
    """What a close is drawn from: the open `brackets`, or the `types` that are open."""

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        key, p, k = self.key(seed), to_threshold(self.p_open), self.n_kinds
        by_types, balanced = self.closing == "types", self.ending == "balanced"
        counts = np.zeros(k, np.int32)
        opened = np.zeros((k if by_types else out_BT.shape[1]) + 1, np.int16)
        _fill(out_BT, key, rows_B, k, p, self.cap, balanced, by_types, opened, counts)

    def is_word(self, row: list[int]) -> bool:
        """No kind closes more often than it opened, up to any place.

        Balanced words close every kind as often as they open it; a cap bounds the open brackets of
        all kinds together.
        """
        opened = dict.fromkeys(range(self.n_kinds), 0)
        depth = 0
        for token in row:
            if not 0 <= token < 2 * self.n_kinds:
                return False
            step = 1 if token < self.n_kinds else -1
            opened[token % self.n_kinds] += step
            depth += step
            if opened[token % self.n_kinds] < 0 or depth > self.cap:
                return False
        return depth == 0 or self.ending == "truncated"

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Estimates what the best predictor reaches: the likeliest kind of every hidden token.

        Given what is visible, the hidden kinds have a posterior that is known up to a factor; it is
        sampled by Metropolis steps (change one kind, or exchange two). `low` is how often its mode
        is the truth; long sequences mix slowly, so that a better sample would do better (by one or
        two points at 196 tokens). `high` is the mean share of the votes that the mode has, which a
        slow chain overstates. Both have the sampling error of the hidden tokens that were read.
        """
        n_hidden = n_right = 0
        confidence = 0.0
        for row, (ids, visible) in enumerate(zip(ids_BT, visible_BT, strict=True)):
            votes = self._count_votes(visible, row)
            n_hidden += len(votes)
            n_right += int(
                (votes.argmax(axis=1) + self.n_kinds == ids[visible == self.n_ids]).sum()
            )
            confidence += float((votes.max(axis=1) / np.maximum(votes.sum(axis=1), 1)).sum())
        low, high = n_right / max(n_hidden, 1), confidence / max(n_hidden, 1)
        return Ceiling(
            low,
            max(low, high),
            f"estimated: the mode of the posterior over hidden kinds, sampled with {SWEEPS} "
            f"Metropolis sweeps, was right for {n_right:,} of {n_hidden:,} hidden tokens, and had "
            f"{high:.1%} of the votes",
        )

    def _count_votes(self, visible_T: Ids, row: int) -> Words:
        """Samples the kinds of a word's hidden closes: how often each had each, [hidden, n_kinds].

        Args: row: number of the random stream.
        """
        ids = np.where(visible_T == self.n_ids, -1, visible_T).astype(np.int64)
        places, k = np.flatnonzero(ids < 0), self.n_kinds
        votes = np.zeros((len(places), k), dtype=np.int64)
        logs = np.log(np.maximum(np.arange(len(ids) + 1), 1))
        by_types, balanced = self.closing == "types", self.ending == "balanced"
        _start(ids, k)
        _vote(ids, places, k, by_types, balanced, row, logs, np.zeros(k, np.int64), votes)
        return votes


@compiled
def _fill(
    out: Ids, key: np.uint64, rows: Rows, n_kinds: int, p: np.uint64, cap: int, balanced: bool,
    by_types: bool, opened: Ids, counts: NDArray[np.int32],
) -> None:  # fmt: skip
    # opened[:n_open]: what a close is drawn from, in any order: the kinds of the open brackets, or
    # each open kind once (counts: its open brackets). As in `dyck`, draws decide few branches.
    n_tokens, kinds, most = np.uint64(out.shape[1]), np.uint64(n_kinds), np.uint64(cap)
    zero, one = np.uint64(0), np.uint64(1)
    for b in range(len(out)):
        row = out[b]
        state = stream(key, rows[b])
        depth = n_open = zero
        for i in range(n_kinds):
            counts[i] = 0
        for t in range(n_tokens):
            state += GAMMA
            bits = mixed(state)
            limit = min(most, n_tokens - t) if balanced else most
            opens = (depth == zero) | ((depth < limit) & happens(bits, p))
            choice = below(bits, kinds if opens else n_open)
            place = n_open if opens else choice
            kind = np.int16(choice) if opens else opened[place]
            row[t] = kind if opens else kind + n_kinds
            depth = depth + one if opens else depth - one
            # The last one moves into the place of the one that leaves.
            if by_types:
                counts[kind] += 1 if opens else -1
                if counts[kind] == (1 if opens else 0):
                    opened[place] = kind if opens else opened[n_open - one]
                    n_open = n_open + one if opens else n_open - one
            else:
                opened[place] = kind if opens else opened[n_open - one]
                n_open = depth


@compiled
def _log_weight(
    ids: Words,
    n_kinds: int,
    by_types: bool,
    balanced: bool,
    logs: NDArray[np.float64],
    opened: Words,
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


def _start(ids: Words, n_kinds: int) -> None:
    """Gives the hidden closes (-1) kinds that make a word, whatever the truth was."""
    # need[t, kind]: brackets that must be open before t to serve the visible closes from t on.
    # What is open beyond that is free, and stays free until a hidden close takes it: so any free
    # one may be taken.
    kinds = np.arange(n_kinds)
    steps = (ids[:, None] == kinds + n_kinds) - (ids[:, None] == kinds).astype(np.int64)
    need = np.zeros((len(ids) + 1, n_kinds), dtype=np.int64)
    for t in range(len(ids) - 1, -1, -1):
        need[t] = np.maximum(0, need[t + 1] + steps[t])
    opened = np.zeros(n_kinds, dtype=np.int64)
    for t in range(len(ids)):
        if ids[t] < 0:
            ids[t] = n_kinds + (opened - need[t]).argmax()
        opened[ids[t] % n_kinds] += 1 if ids[t] < n_kinds else -1


@compiled
def _vote(
    ids: Words, places: Words, n_kinds: int, by_types: bool, balanced: bool, row: int,
    logs: NDArray[np.float64], opened: Words, votes: Words,
) -> None:  # fmt: skip
    """Counts, after every sweep, the kind that each hidden token has."""
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

"""k-Dyck-Shuffle: k interleaved languages of one kind of bracket each; crossings are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.rules.base import Bools, Ceiling, Ids, Rows, to_rows
from vitwarm.rules.draws import GAMMA, below, compiled, happens, mixed, stream, to_threshold
from vitwarm.rules.dyck import BracketRule
from vitwarm.rules.posterior import SWEEPS, count_votes


@dataclass(frozen=True, kw_only=True)
class ShuffleDyck(BracketRule):
    """k-Dyck-Shuffle: of every kind as many brackets close as open, never more (context-sensitive).

    Which bracket a close takes differs between published codes: uniform over the open brackets (a
    kind with more of them is likelier), or uniform over the kinds that are open.
    """

    name: ClassVar[str] = "shuffle-dyck"
    aliases: ClassVar[tuple[str, ...]] = ("dyck-shuffle", "k-dyck-shuffle", "k-shuffle-dyck")

    _any_open: ClassVar[bool] = True
    closing: Literal["brackets", "types"] = "brackets"
    """What a close is drawn from: the open `brackets`, or the `types` that are open."""

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        if self.closing == "brackets":
            super().fill(out_BT, seed, rows_B)
            return
        key, k, p, balanced = self.key(seed), self.n_kinds, self.p_open, self.ending == "balanced"
        opened, types = np.zeros(k, np.int32), np.zeros(k, np.int16)
        _fill(out_BT, key, rows_B, k, to_threshold(p), self.cap, balanced, opened, types)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Words in which no kind closes more often than it opened, up to any place.

        Balanced words close every kind as often as they open it; a cap bounds the open brackets of
        all kinds together. Returns: bool [B].
        """
        return np.array([self._is_word(row) for row in to_rows(ids_BT).tolist()], dtype=bool)

    def _is_word(self, row: list[int]) -> bool:
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
            places = np.flatnonzero(visible == self.n_ids)
            votes = count_votes(
                np.where(visible == self.n_ids, -1, visible),
                n_kinds=self.n_kinds,
                by_types=self.closing == "types",
                balanced=self.ending == "balanced",
                row=row,
            )
            n_hidden += len(places)
            n_right += int((votes.argmax(axis=1) + self.n_kinds == ids[places]).sum())
            confidence += float((votes.max(axis=1) / np.maximum(votes.sum(axis=1), 1)).sum())
        low, high = n_right / max(n_hidden, 1), confidence / max(n_hidden, 1)
        return Ceiling(
            low,
            max(low, high),
            f"estimated: the mode of the posterior over hidden kinds, sampled with {SWEEPS} "
            f"Metropolis sweeps, was right for {n_right:,} of {n_hidden:,} hidden tokens, and had "
            f"{high:.1%} of the votes",
        )


@compiled
def _fill(
    out: Ids, key: np.uint64, rows: Rows, n_kinds: int, p: np.uint64, cap: int, balanced: bool,
    opened: NDArray[np.int32], types: Ids,
) -> None:  # fmt: skip
    # opened[kind]: its open brackets. types[:n_types]: the kinds that are open, in any order.
    n_rows, n_tokens = out.shape
    kinds = np.uint64(n_kinds)
    for b in range(n_rows):
        state = stream(key, rows[b])
        for kind in range(n_kinds):
            opened[kind] = 0
        depth = n_types = 0
        for t in range(n_tokens):
            state += GAMMA
            bits = mixed(state)
            room = (depth < cap) & ((not balanced) | (n_tokens - t > depth))
            opens = (depth == 0) | (room & happens(bits, p))
            if opens:
                new = np.int64(below(bits, kinds))
                if opened[new] == 0:
                    types[n_types] = new
                    n_types += 1
                opened[new] += 1
                out[b, t] = new
                depth += 1
            else:
                place = np.int64(below(bits, np.uint64(n_types)))
                old = np.int64(types[place])
                opened[old] -= 1
                if opened[old] == 0:
                    n_types -= 1
                    types[place] = types[n_types]
                out[b, t] = old + n_kinds
                depth -= 1

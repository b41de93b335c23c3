"""Neural cellular automata: frames of cells, each sequence by a small random network of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vitwarm.rules.automata.cells import CellRule, Cells
from vitwarm.rules.base import MOST_TOKENS, Bools, Ceiling, Ids, Rows
from vitwarm.rules.draws import GAMMA, compiled, mixed, stream

#: Hidden units of a network.
UNITS = 4

#: Networks that are drawn for a sequence before one outside the band is taken.
ATTEMPTS = 32

#: Sequences of which one at least must be inside the band: fewer tell too little of it.
FEW_ROWS = 32

Numbers = NDArray[np.int32]
Table = NDArray[np.int64]

_BYTE, _8 = np.uint64(255), np.uint64(8)
_SHORT, _16 = np.uint64(0xFFFF), np.uint64(16)
_SPREAD = np.int64(0x9E3779B1)


@dataclass(frozen=True, kw_only=True)
class NeuralAutomaton(CellRule):
    """A neural cellular automaton: what follows is to be inferred from the sequence itself.

    A network with 3 x 3 cells as its input, four hidden units (ReLU) and an output for each state
    makes every next cell of a torus: the state with the highest output. Its weights are drawn anew
    for every sequence, and again until the sequence is neither too simple nor too random. Frames
    are cut into patches of 2 x 2 cells, a token each, and stand one behind the other. Ids: the four
    cells as one number, the first state counting most, then the pad.

    Source: arXiv 2603.10055, which trains language models on such automata: a random network per
    sequence, quantised cells, patches, a band of gzip ratios. Ours: whole-number weights, the
    highest output and not a sample, how few states and hidden units there are, and the band's
    measure.
    """

    name: ClassVar[str] = "nca"
    aliases: ClassVar[tuple[str, ...]] = ("neural-ca", "neural-cellular-automaton")

    patch: ClassVar[tuple[int, int]] = (2, 2)

    n_states: int = 2
    """States of a cell. With more of them a sequence shows less of its network: at 196 tokens half
    of the last frame's tokens have neighbourhoods seen before with 2 states, a sixth with 4."""
    frame: tuple[int, int] | None = None
    """Rows and columns of a frame, in tokens; none: the largest square that leaves four frames."""
    complexity: tuple[float, float] = (0.4, 1.0)
    """Share of the tokens that end a run of three tokens new to the sequence, at least and at most:
    a cheap stand-in for the gzip ratio (correlation 0.96 with two states; 0.4 is a ratio of 0.42).
    Most sequences below it stand still. Where 32 networks in a row are outside, the last one is
    taken; `rules stats` says how often. A band that nothing meets is refused."""
    burn_in: int = 0
    """Steps before the first frame, which otherwise is noise."""
    hidden: Literal["random", "last_frame"] = "last_frame"
    """Half of all tokens, or the whole of the last frame, which the others tell most of."""

    def __post_init__(self) -> None:
        self.check_range("n_states", 2, 8, "takes 2 to 8 states")
        rows, columns = self.frame or (2, 2)
        self.check("frame", min(rows, columns) >= 2, "needs at least 2 rows and 2 columns")
        most = MOST_TOKENS
        self.check("frame", 2 * rows * columns <= most, f"makes at most {most:,} tokens")
        low, high = self.complexity
        allowed = "takes two shares from 0 to 1, the lower one first"
        self.check("complexity", 0 <= low < high <= 1, allowed)
        self.check_range("burn_in", 0, most, f"takes 0 to {most:,} steps")

    def frame_of(self, n_tokens: int) -> tuple[int, int]:
        side = max(2, math.isqrt(n_tokens // 4))
        return self.frame or (side, side)

    def fit_length(self, n_tokens: int) -> int:
        """Returns the tokens of as many whole frames as there is room for, two at least."""
        self.check_tokens(n_tokens, at_least=2 * math.prod(self.frame or (2, 2)))
        size = math.prod(self.frame_of(n_tokens))
        return n_tokens // size * size

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        n, n_tokens = self.n_states, out_BT.shape[1]
        rows, columns = self.frame_of(n_tokens)
        low, high = self.complexity
        # the network's two layers, the first one's sums, two frames of cells
        sizes = 9 * n * UNITS, n * UNITS, 3 * n**3 * UNITS, *[4 * rows * columns] * 2
        first, second, triples, old, new = (np.zeros(size, np.int32) for size in sizes)
        table, stamp = np.zeros((2, 1 << (2 * n_tokens).bit_length()), np.int64)
        outside = _fill_frames(
            out_BT, self.key(seed), rows_B, n, rows, columns, self.burn_in,
            math.ceil(low * n_tokens), math.floor(high * n_tokens), first, second, triples, old,
            new, table, stamp,
        )  # fmt: skip
        if outside == len(rows_B) >= FEW_ROWS:
            allowed = f"makes no sequence of {n_tokens} tokens in that band; widen it"
            raise self.refuse("complexity", list(self.complexity), allowed)

    def outside_band(self, ids_BT: Ids) -> float:
        """Returns the share of sequences whose complexity is not in the band."""
        found = [len(np.unique(sliding_window_view(row, 3), axis=0)) / len(row) for row in ids_BT]
        low, high = self.complexity
        return float(np.mean([not low <= share <= high for share in found]))

    def n_last(self, n_tokens: int) -> int:
        return math.prod(self.frame_of(n_tokens))

    def are_histories(self, cells: Cells) -> Bools:
        return self._deduce(cells)

    def fill_in(self, cells: Cells) -> None:
        self._deduce(cells)

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Counts what `solve` fills in, and guesses the rest from the frames before and after."""
        hidden, size = visible_BT == self.n_ids, self.n_last(ids_BT.shape[1])
        solved = self.solve(visible_BT)
        before, after = np.roll(solved, size, axis=1), np.roll(solved, -size, axis=1)
        for other, frame in ((before, np.s_[:, size:]), (after, np.s_[:, :-size])):
            part = solved[frame]
            part[...] = np.where(part == self.n_ids, other[frame], part)
        share = float((solved == ids_BT)[hidden].sum() / max(hidden.sum(), 1))
        method = "bounds: what `solve` fills in, else the same place a frame before or after; all"
        return Ceiling(share, 1.0, method)

    def _deduce(self, cells: Cells) -> Bools:
        """Fills in what follows a neighbourhood seen elsewhere; says where none is contradicted.

        Exact for automata with any rule: which of these rules four hidden units can compute is not
        asked, and a predictor that knows how networks are drawn may guess more.
        """
        fits = np.ones(len(cells), dtype=np.bool_)
        for row, plane in enumerate(cells):
            old, new = plane[:-1], plane[1:]
            while True:
                around, told = _neighbourhoods(old, self.n_states), new < self.n_states
                known = told & (around >= 0)
                seen, first = np.unique(around[known], return_index=True)
                if not len(seen):
                    break
                place = np.searchsorted(seen[:-1], around)
                is_seen, after = seen[place] == around, new[known][first][place]
                fits[row] &= not (is_seen & told & (new != after)).any()
                if not (is_seen & ~told).any():
                    break
                new[is_seen & ~told] = after[is_seen & ~told]
        return fits


def _neighbourhoods(frames: Cells, n: int) -> NDArray[np.int64]:
    """Returns the number of every cell's 3 x 3 cells on a torus; -1 where one is unknown."""
    shifts = [(down, across) for down in (1, 0, -1) for across in (1, 0, -1)]
    around = np.stack([np.roll(frames, shift, axis=(1, 2)) for shift in shifts], axis=-1)
    codes = around.astype(np.int64) @ n ** np.arange(9)
    return np.where((around >= n).any(axis=-1), -1, codes)


@njit(nogil=True, error_model="numpy")
def _draw_weights(out: Numbers, n: int, state: np.uint64) -> np.uint64:
    """Writes whole numbers uniform over [-128, 128), eight from a draw; returns the new state."""
    for i in range(n):
        if i % 8 == 0:
            state += GAMMA
        bits = mixed(state) >> (_8 * np.uint64(i % 8))
        out[i] = np.int32(bits & _BYTE) - 128
    return state


@njit(nogil=True, error_model="numpy")
def _add_triples(first: Numbers, triples: Numbers, n: int) -> None:
    """Adds up the first layer for every three neighbours in a line, for each line of the nine."""
    place = 0
    for line in range(3):
        for left in range(n):
            a = (3 * line * n + left) * UNITS
            for middle in range(n):
                b = ((3 * line + 1) * n + middle) * UNITS
                for right in range(n):
                    c = ((3 * line + 2) * n + right) * UNITS
                    for unit in range(UNITS):
                        triples[place] = first[a + unit] + first[b + unit] + first[c + unit]
                        place += 1


@njit(nogil=True, error_model="numpy")
def _step(
    old: Numbers, new: Numbers, height: int, width: int, triples: Numbers, second: Numbers, n: int
) -> None:  # fmt: skip
    """Makes the next state of every cell of a torus: the output unit with the highest number, of
    equal ones the first. Whole numbers alone, so that every machine makes the same.
    """
    zero, n2, n3 = np.int32(0), n * n, n * n * n
    for y in range(height):
        up, at = (y - 1 if y else height - 1) * width, y * width
        down = (y + 1 if y + 1 < height else 0) * width
        above = old[up + width - 1] * n + old[up]
        beside = old[at + width - 1] * n + old[at]
        below_ = old[down + width - 1] * n + old[down]
        for x in range(width):
            right = x + 1 if x + 1 < width else 0
            above = (above % n2) * n + old[up + right]
            beside = (beside % n2) * n + old[at + right]
            below_ = (below_ % n2) * n + old[down + right]
            p, q, r = above * UNITS, (n3 + beside) * UNITS, (2 * n3 + below_) * UNITS
            a = max(triples[p] + triples[q] + triples[r], zero)
            b = max(triples[p + 1] + triples[q + 1] + triples[r + 1], zero)
            c = max(triples[p + 2] + triples[q + 2] + triples[r + 2], zero)
            d = max(triples[p + 3] + triples[q + 3] + triples[r + 3], zero)
            best, arg = np.int32(-(2**31)), 0
            for k in range(n):
                w = k * UNITS
                value = a * second[w] + b * second[w + 1] + c * second[w + 2] + d * second[w + 3]
                if value > best:
                    best, arg = value, k
            new[at + x] = arg


@njit(nogil=True, error_model="numpy")
def _novelty(ids: Ids, table: Table, stamp: Table, now: int) -> int:
    """Counts the tokens that end a run of three which the sequence has not had before."""
    found, mask = 0, len(stamp) - 1
    for t in range(2, len(ids)):
        key = (np.int64(ids[t]) * 4099 + ids[t - 1]) * 4099 + ids[t - 2]
        place = ((key * _SPREAD) >> 9) & mask
        while stamp[place] == now and table[place] != key:  # `stamp` tells attempts apart
            place = (place + 1) & mask
        if stamp[place] != now:
            stamp[place], table[place] = now, key
            found += 1
    return found


@compiled
def _fill_frames(
    out: Ids, key: np.uint64, rows: Rows, n: int, frame_rows: int, frame_columns: int, burn_in: int,
    low: int, high: int, first: Numbers, second: Numbers, triples: Numbers, old: Numbers,
    new: Numbers, table: Table, stamp: Table,
) -> int:  # fmt: skip
    """Writes sequences of frames, each by a network of its own whose novelty is in [low, high], and
    returns how many are outside.

    Args: n: states of a cell; a frame's rows and columns are tokens; the last seven are scratch.
    """
    height, width = 2 * frame_rows, 2 * frame_columns
    n_frames, states, now = out.shape[1] // (frame_rows * frame_columns), np.uint64(n), 0
    outside = 0
    for b in range(len(rows)):
        state = stream(key, rows[b])
        for _ in range(ATTEMPTS):
            now += 1
            state = _draw_weights(first, 9 * n * UNITS, state)
            state = _draw_weights(second, n * UNITS, state)
            _add_triples(first, triples, n)
            for i in range(height * width):
                if i % 4 == 0:
                    state += GAMMA
                bits = (mixed(state) >> (_16 * np.uint64(i % 4))) & _SHORT
                old[i] = np.int32((bits * states) >> _16)
            for _ in range(burn_in):
                _step(old, new, height, width, triples, second, n)
                old, new = new, old
            place = 0
            for frame in range(n_frames):
                if frame:
                    _step(old, new, height, width, triples, second, n)
                    old, new = new, old
                for y in range(0, height, 2):
                    for x in range(0, width, 2):
                        p = y * width + x
                        upper = old[p] * n + old[p + 1]
                        out[b, place] = (upper * n + old[p + width]) * n + old[p + width + 1]
                        place += 1
            novelty = _novelty(out[b], table, stamp, now)
            if low <= novelty <= high:
                break
        else:
            outside += 1
    return outside

"""The compiled parts of neural cellular automata: running networks, and reasoning without them."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from vitwarm.rules.base import Ids, Rows
from vitwarm.rules.draws import GAMMA, compiled, mixed, stream

#: Hidden units of a network.
UNITS = 4

#: Networks that are drawn for a sequence before one outside the band is taken.
ATTEMPTS = 32

Numbers = NDArray[np.int32]
Table = NDArray[np.int64]

_BYTE, _8 = np.uint64(255), np.uint64(8)
_SHORT, _16 = np.uint64(0xFFFF), np.uint64(16)
_SPREAD = np.int64(0x9E3779B1)


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
def _find(table: Table, stamp: Table, now: int, key: np.int64) -> np.int64:
    """Returns the place of a key, or the free one it would get; `stamp` tells rounds apart."""
    mask = len(stamp) - 1
    place = ((key * _SPREAD) >> 9) & mask
    while stamp[place] == now and table[place] != key:
        place = (place + 1) & mask
    return np.int64(place)


@njit(nogil=True, error_model="numpy")
def _novelty(ids: Ids, table: Table, stamp: Table, now: int) -> int:
    """Counts the tokens that end a run of three which the sequence has not had before."""
    found = 0
    for t in range(2, len(ids)):
        key = (np.int64(ids[t]) * 4099 + ids[t - 1]) * 4099 + ids[t - 2]
        place = _find(table, stamp, now, key)
        if stamp[place] != now:
            stamp[place], table[place] = now, key
            found += 1
    return found


@compiled
def fill_frames(
    out: Ids, key: np.uint64, rows: Rows, n: int, frame_rows: int, frame_columns: int, burn_in: int,
    low: int, high: int, first: Numbers, second: Numbers, triples: Numbers, old: Numbers,
    new: Numbers, table: Table, stamp: Table,
) -> None:  # fmt: skip
    """Writes sequences of frames, each by a network of its own whose novelty is in [low, high].

    Args:
        n: states of a cell.
        frame_rows, frame_columns: tokens of a frame, of two by two cells each.
        first: [9 * n * UNITS], second: [n * UNITS], triples: [3 * n**3 * UNITS], old, new: [cells
            of a frame, to a multiple of 4], table, stamp (zeros): [a power of two above 2 T];
            scratch.
    """
    height, width = 2 * frame_rows, 2 * frame_columns
    n_frames, states, now = out.shape[1] // (frame_rows * frame_columns), np.uint64(n), 0
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


@njit(nogil=True, error_model="numpy")
def _around(cells: NDArray[np.uint8], y: int, x: int, n: int) -> np.int64:
    """Returns the number of a cell's neighbourhood on a torus; -1 where a cell is unknown."""
    height, width = cells.shape
    code = np.int64(0)
    for down in range(-1, 2):
        for across in range(-1, 2):
            cell = cells[(y + down) % height, (x + across) % width]
            if cell >= n:
                return np.int64(-1)
            code = code * n + cell
    return code


@compiled
def deduce(
    cells: NDArray[np.uint8], n: int, fits: NDArray[np.bool_], table: Table, stamp: Table,
    after: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Fills in unknown cells whose neighbourhood the sequence shows elsewhere, until none is left.

    Args:
        cells: [B, frames, height, width], changed; n and above: unknown.
        fits: [B], set: no neighbourhood is followed by two different cells.
        table, stamp (zeros), after: [a power of two above 2 x cells], scratch.
    """
    for b in range(len(cells)):
        fits[b] = True
        moved = True
        while moved:
            moved = False
            for t in range(1, cells.shape[1]):
                for y in range(cells.shape[2]):
                    for x in range(cells.shape[3]):
                        code = _around(cells[b, t - 1], y, x, n)
                        if code < 0:
                            continue
                        place = _find(table, stamp, b + 1, code)
                        is_new, cell = stamp[place] != b + 1, cells[b, t, y, x]
                        if cell < n and is_new:
                            stamp[place], table[place], after[place] = b + 1, code, cell
                            moved = True
                        elif cell < n and after[place] != cell:
                            fits[b] = False
                        elif cell >= n and not is_new:
                            cells[b, t, y, x] = after[place]
                            moved = True

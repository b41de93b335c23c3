"""The compiled parts of elementary cellular automata: generation, deduction, counting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules.base import Ids, Rows
from vitwarm.rules.draws import GAMMA, LOW, compiled, mixed, stream

States = NDArray[np.int32]

_32 = np.uint64(32)


@compiled
def _step(old: np.ndarray, new: np.ndarray, width: int, rule: int, ring: bool) -> None:
    """Makes the next state. States lie in [1, width], what is beyond in places 0 and width + 1."""
    old[0] = old[width] if ring else 0
    old[width + 1] = old[1] if ring else 0
    for i in range(1, width + 1):
        new[i] = (rule >> (4 * old[i - 1] + 2 * old[i] + old[i + 1])) & 1


@compiled
def fill_planes(
    out: Ids, key: np.uint64, rows: Rows, rule: int, columns: int, cells_per_token: int, width: int,
    ring: bool, burn_in: int, density: np.uint64, draws_density: bool, old: States, new: States,
) -> None:  # fmt: skip
    """Writes windows of histories, row by row. old, new: [width + 2], scratch."""
    n_steps = out.shape[1] // columns
    room = np.uint64(width - columns * cells_per_token + 1)
    for b in range(len(rows)):
        state = stream(key, rows[b]) + GAMMA
        bits = mixed(state)
        first = 1 + np.int64(((bits & LOW) * room) >> _32)  # the window's first cell
        threshold = bits >> _32 if draws_density else density
        for i in range(1, width + 1, 2):
            state += GAMMA
            bits = mixed(state)
            old[i] = (bits & LOW) < threshold
            old[i + 1] = (bits >> _32) < threshold  # one place too many is overwritten by _step
        for _ in range(burn_in):
            _step(old, new, width, rule, ring)
            old, new = new, old
        for step in range(n_steps):
            if step:
                _step(old, new, width, rule, ring)
                old, new = new, old
            place = first
            for column in range(columns):
                token = np.int32(0)
                for _ in range(cells_per_token):
                    token = 2 * token + old[place]
                    place += 1
                out[b, step * columns + column] = token


@compiled
def propagate(
    cells: NDArray[np.uint8], rule: int, ring: bool, cropped: bool, seen: NDArray[np.int64]
) -> None:
    """Fills in cells (2: unknown) that their neighbours in time force, until nothing moves.

    Every cell and its three parents are one constraint: values that no consistent choice of the
    four has are ruled out. Beyond the sides: the other end, zeros, or (cropped) anything.
    seen: [4], scratch.
    """
    n, n_steps, width = cells.shape
    for b in range(n):
        moved = True
        while moved:
            moved = False
            for t in range(1, n_steps):
                for i in range(width):
                    for side in range(4):  # left self right new; bit v: value v is possible
                        seen[side] = 0
                    for pattern in range(8):
                        new = (rule >> pattern) & 1
                        if cells[b, t, i] != 2 and cells[b, t, i] != new:
                            continue
                        fits = True
                        for side in range(3):
                            place = i + side - 1
                            value = (pattern >> (2 - side)) & 1
                            known = 2
                            if 0 <= place < width:
                                known = cells[b, t - 1, place]
                            elif not cropped:
                                known = cells[b, t - 1, place % width] if ring else 0
                            if known != 2 and known != value:
                                fits = False
                        if fits:
                            for side in range(3):
                                seen[side] |= 1 << ((pattern >> (2 - side)) & 1)
                            seen[3] |= 1 << new
                    for side in range(4):
                        if seen[side] == 3 or seen[side] == 0:
                            continue
                        time = t if side == 3 else t - 1
                        place = i if side == 3 else i + side - 1
                        if not 0 <= place < width:
                            if cropped or not ring:
                                continue
                            place %= width
                        if cells[b, time, place] == 2:
                            cells[b, time, place] = seen[side] - 1
                            moved = True


@compiled
def consistent_votes(
    cells: np.ndarray, rule: int, ring: bool, burn_in: int, weights: np.ndarray, votes: np.ndarray,
    history: np.ndarray,
) -> None:  # fmt: skip
    """Adds, for every history that agrees with the known cells, its weight to its cells' votes.

    Args:
        cells: [B, steps, width], 2 where hidden.
        weights: [width + 1], of a first state by its number of ones.
        votes: [B, steps, width, 2], added to.
        history: int64 [steps + 1, width + 2], scratch: one state in each row.
    """
    n, n_steps, width = cells.shape
    for first in range(1 << width):
        ones = 0
        for i in range(width):
            history[0, i + 1] = (first >> i) & 1
            ones += history[0, i + 1]
        for _ in range(burn_in):  # the last place serves as the second buffer
            _step(history[0], history[n_steps], width, rule, ring)
            for i in range(1, width + 1):
                history[0, i] = history[n_steps, i]
        for t in range(n_steps - 1):
            _step(history[t], history[t + 1], width, rule, ring)
        for b in range(n):
            agrees = True
            for t in range(n_steps):
                for i in range(width):
                    if cells[b, t, i] != 2 and cells[b, t, i] != history[t, i + 1]:
                        agrees = False
                        break
                if not agrees:
                    break
            if agrees:
                for t in range(n_steps):
                    for i in range(width):
                        votes[b, t, i, history[t, i + 1]] += weights[ones]

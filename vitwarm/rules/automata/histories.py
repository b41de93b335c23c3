"""Which planes of cells are a window on some history of an automaton, and how many ones they hold.

States are whole numbers whose bit i is cell i, so that all cells of many states step at once.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules.automata.cells import Cells
from vitwarm.rules.base import Bools

#: Widest automaton whose states are all listed.
WIDEST_LISTED = 20

#: Most cells beside the window that are searched; cells beyond them may take any value.
MOST_UNSEEN = 16

#: Widest automaton whose histories are all run for the numbers of ones that they can hold.
WIDEST_COUNTED = 16

#: Most burn-in steps that are searched back in automata too wide to list.
MOST_STEPS_BACK = 3

States = NDArray[np.uint32]


class Automaton(NamedTuple):
    """What decides which states follow each other."""

    rule: int
    ring: bool
    burn_in: int
    width: int


def are_histories(cells: Cells, automaton: Automaton) -> Bools:
    """Says of each plane whether a history of the automaton shows it in a window.

    Exact up to 20 simulated cells. Beyond, two cases let too much pass: where more than 16 unseen
    cells can act on the window, each side of it is searched alone and 16 cells deep; and of a
    burn-in 3 steps are searched back, in a cropped window for the seen cells alone.

    Args: cells: [B, steps, seen], 0 or 1; the window may lie anywhere among the simulated cells.
    Returns: bool [B].
    """
    old, new = cells[:, :-1], cells[:, 1:]
    whole = cells.shape[2] == automaton.width
    if whole:
        sides = ((0, 0), (0, 0), (1, 1))
        old = np.pad(old, sides, mode="wrap" if automaton.ring else "constant")
    else:
        new = new[:, :, 1:-1]
    made = _next(automaton.rule, old[:, :, :-2], old[:, :, 1:-1], old[:, :, 2:]) & 1
    fine: Bools = (made == new).all(axis=(1, 2))
    if not whole:
        search = _extends if automaton.width > WIDEST_LISTED else _extends_by_list
        for row in np.flatnonzero(fine):
            fine[row] = search(cells[row], automaton)
    elif automaton.burn_in:
        fine[fine] = _have_past(cells[fine][:, 0], automaton)
    return fine


@lru_cache(maxsize=16)
def counts_of_ones(automaton: Automaton, n_steps: int, n_seen: int) -> frozenset[int]:
    """Returns the numbers of ones that windows [n_steps, n_seen] can hold, over all histories."""
    window = np.uint32((1 << n_seen) - 1)
    places = range(1 if automaton.ring else automaton.width - n_seen + 1)
    states = np.flatnonzero(_reached(automaton)).astype(np.uint32)
    ones = np.zeros((len(places), len(states)), dtype=np.int64)
    for _ in range(n_steps):
        for place in places:
            ones[place] += np.bitwise_count((states >> place) & window)
        states = _step(states, automaton)
    return frozenset(np.unique(ones).tolist())


def best_guesses(
    cells: Cells, automaton: Automaton, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns each cell's chance to have its likelier value, over all histories that agree.

    Args:
        cells: [B, steps, width], 2 where unknown; the window is the whole automaton.
        weights: [width + 1], of a first state by its number of ones.
    """
    states = np.arange(1 << automaton.width, dtype=np.uint32)
    weight = weights[np.bitwise_count(states)]
    for _ in range(automaton.burn_in):
        states = _step(states, automaton)
    history = [states]
    while len(history) < cells.shape[1]:
        history.append(_step(history[-1], automaton))
    best = np.ones(cells.shape)
    for plane, chances in zip(cells, best, strict=True):
        agrees = np.ones(len(states), dtype=np.bool_)
        for now, known, value in zip(
            history, _to_states(plane < 2), _to_states(plane == 1), strict=True
        ):
            agrees &= (now & known) == value
        for now, chance in zip(history, chances, strict=True):
            ones = (now[agrees] >> np.arange(automaton.width)[:, None]) & 1
            votes = np.stack([ones, 1 - ones]) @ weight[agrees]
            chance[:] = votes.max(axis=0) / votes.sum(axis=0)
    return best


def propagate(cells: Cells, rule: int, beyond: Literal["ring", "zero", "any"]) -> None:
    """Fills in cells (2: unknown) that their neighbours in time force, until nothing moves.

    Every cell and its three parents are one constraint: values that no consistent choice of the
    four has are ruled out.

    Args:
        cells: [B, steps, width], changed.
        beyond: what lies beyond the sides: the other end, zeros, or anything.
    """
    while True:
        may_be = np.array([1, 2, 3], dtype=np.uint8)[cells]  # bit v: value v is possible
        sides = ((0, 0), (0, 0), (1, 1))
        old = np.pad(may_be[:, :-1], sides, constant_values=1 if beyond == "zero" else 3)
        if beyond == "ring":
            old[:, :, 0], old[:, :, -1] = old[:, :, -2], old[:, :, 1]
        four = np.stack([old[:, :, :-2], old[:, :, 1:-1], old[:, :, 2:], may_be[:, 1:]])
        seen = np.zeros_like(four)
        for pattern in range(8):
            values = np.array([pattern >> 2, pattern >> 1, pattern, rule >> pattern]) & 1
            values = values[:, None, None, None].astype(np.uint8)
            seen |= ((four >> values) & 1).all(axis=0).astype(np.uint8) << values
        told = np.full_like(old, 3)
        for side in range(3):
            told[:, :, side : side + cells.shape[2]] &= seen[side]
        if beyond == "ring":
            told[:, :, 1] &= told[:, :, -1]
            told[:, :, -2] &= told[:, :, 0]
        may_be[:, :-1] &= told[:, :, 1:-1]
        may_be[:, 1:] &= seen[3]
        forced = (cells == 2) & ((may_be == 1) | (may_be == 2))
        if not forced.any():
            return
        cells[forced] = may_be[forced] - 1


def _next(rule: int, left: Any, here: Any, right: Any) -> Any:
    """Makes the next cells, one in each bit; bits that hold no cell come out as anything."""
    new = here & 0
    for pattern in range(8):
        if (rule >> pattern) & 1:
            new = new | (
                (left if pattern & 4 else ~left)
                & (here if pattern & 2 else ~here)
                & (right if pattern & 1 else ~right)
            )
    return new


def _step(states: States, automaton: Automaton) -> States:
    last = automaton.width - 1
    left, right = states << 1, states >> 1
    if automaton.ring:
        left, right = left | (states >> last), right | ((states & 1) << last)
    return np.array(_next(automaton.rule, left, states, right) & np.uint32((2 << last) - 1))


@lru_cache(maxsize=8)
def _reached(automaton: Automaton) -> Bools:
    """Says of every state whether the burn-in can end in it: bool [2**width]."""
    states = np.arange(1 << automaton.width, dtype=np.uint32)
    reached = np.ones(len(states), dtype=np.bool_)
    for _ in range(automaton.burn_in):
        reached = np.zeros_like(reached)
        reached[_step(states, automaton)] = True
        n_before = len(states)
        states = np.flatnonzero(reached).astype(np.uint32)
        if len(states) == n_before:  # what can be reached only shrinks; now it never will again
            break
    return reached


def _to_states(cells: Cells) -> States:
    weights = np.uint32(1) << np.arange(cells.shape[-1], dtype=np.uint32)
    return np.asarray((cells * weights).sum(axis=-1, dtype=np.uint32))


def _extends_by_list(plane: Cells, automaton: Automaton) -> bool:
    """Tries all values of the unseen cells, the window in all its places."""
    n_seen = plane.shape[1]
    n_unseen = automaton.width - n_seen
    window = np.uint32((1 << n_seen) - 1)
    seen = _to_states(plane)
    unseen = np.arange(1 << n_unseen, dtype=np.uint32)
    for place in range(1 if automaton.ring else n_unseen + 1):
        below = unseen & np.uint32((1 << place) - 1)
        states = below | (seen[0] << place) | ((unseen >> place) << (place + n_seen))
        if automaton.burn_in:
            states = states[_reached(automaton)[states]]
        for now in seen[1:]:
            states = _step(states, automaton)
            states = states[((states >> place) & window) == now]
        if len(states):
            return True
    return False


def _extends(plane: Cells, automaton: Automaton) -> bool:
    """Searches the unseen cells that can act on the window, on each side of it."""
    if automaton.burn_in and not _have_past(plane[:1], automaton)[0]:
        return False
    rule, n_unseen = automaton.rule, automaton.width - plane.shape[1]
    left, right = plane[:, :2], plane[:, :-3:-1]  # the outermost cell, then the one inside of it
    if automaton.ring and n_unseen <= MOST_UNSEEN:
        return _strip_fits(rule, right, n_unseen, left)
    n_acting = len(plane) - 1  # a cell farther from the window cannot act on it in these steps
    depth = min(n_acting, MOST_UNSEEN)

    @cache
    def fits(is_left: bool, n_cells: int) -> bool:
        edge, its_rule = (left, _mirrored(rule)) if is_left else (right, rule)
        is_free = depth < min(n_cells, n_acting)
        return _strip_fits(its_rule, edge, min(n_cells, depth), is_free=is_free)

    far = min(depth + 1, n_unseen)
    if automaton.ring:  # more than MOST_UNSEEN: each side sees the cells as if they never met
        return fits(True, far) and fits(False, far)
    places = {*range(far + 1), *range(n_unseen - far, n_unseen + 1)}
    return any(fits(True, min(n, far)) and fits(False, min(n_unseen - n, far)) for n in places)


def _mirrored(rule: int) -> int:
    return sum(
        ((rule >> pattern) & 1) << ((pattern & 1) << 2 | pattern & 2 | pattern >> 2)
        for pattern in range(8)
    )


def _strip_fits(
    rule: int, near: Cells, n_cells: int, far: Cells | None = None, *, is_free: bool = False
) -> bool:
    """Says whether a strip of unseen cells beside the window can give its outermost cells.

    All states of the strip that agree so far are kept, bit 0 next to the window.

    Args:
        near: [steps, 2], the window's outermost cell and the one inside of it.
        far: the same at the strip's other end; None: zeros.
        is_free: the strip's far neighbour may take any value instead.
    """
    last, mask = max(n_cells - 1, 0), np.uint32((1 << n_cells) - 1)
    near_edge = near.astype(np.uint32)
    far_edge = np.zeros_like(near_edge) if far is None else far.astype(np.uint32)
    states = np.arange(1 << n_cells, dtype=np.uint32)
    for t in range(len(near) - 1):
        (outermost, inside), (end, inside_end) = near_edge[t], far_edge[t]
        agree = _next(rule, inside, outermost, states) & 1 == near_edge[t + 1, 0]
        if far is not None:
            agree &= _next(rule, states >> last, end, inside_end) & 1 == far_edge[t + 1, 0]
        states = states[agree]
        left, right = (states << 1) | outermost, states >> 1
        choices = (0, 1) if is_free else (end,)
        followed = np.zeros(1 << n_cells, dtype=np.bool_)
        for value in choices:
            followed[_next(rule, left, states, right | (value << last)) & mask] = True
        states = np.flatnonzero(followed).astype(np.uint32)
    return len(states) > 0


def _have_past(rows: Cells, automaton: Automaton) -> Bools:
    """Says of each row of seen cells whether the burn-in can end in it (see `are_histories`)."""
    n_seen = rows.shape[1]
    whole = n_seen == automaton.width
    if whole and n_seen <= WIDEST_LISTED:
        return _reached(automaton)[_to_states(rows)]
    # A node is two neighbouring columns of the steps before; a row is a path, each cell an edge.
    n_steps = min(automaton.burn_in, MOST_STEPS_BACK)
    edges = _edges(automaton.rule, n_steps)
    nodes = np.arange(edges.shape[1])
    n_columns = 1 << n_steps
    starts = nodes if automaton.ring or not whole else nodes[nodes < n_columns]
    paths = np.broadcast_to(
        np.eye(len(nodes), dtype=np.float32)[starts], (len(rows), len(starts), len(nodes))
    )
    for cell in rows.T:
        paths = np.minimum(paths @ edges[cell], 1)
    if not whole:
        ends = paths
    elif automaton.ring:
        ends = np.diagonal(paths, axis1=1, axis2=2)
    else:
        ends = paths[:, :, nodes % n_columns == 0]
    return np.array((ends > 0).any(axis=tuple(range(1, ends.ndim))))


@cache
def _edges(rule: int, n_steps: int) -> NDArray[np.float32]:
    """Returns [cell, node, node]: 1 where columns (a, b), then (b, c) make this cell below b.

    A column holds one cell of each of the steps before, bit 0 the oldest; a node is a * size + b.
    """
    size = 1 << n_steps
    a, b, c = np.ogrid[:size, :size, :size]
    made = _next(rule, a, b, c)  # bit t: the cell that step t makes for step t + 1
    agree = (made ^ (b >> 1)) & (size // 2 - 1) == 0
    edges = np.zeros((2, size, size, size, size), dtype=np.float32)
    for cell in (0, 1):
        fits = agree & ((made >> (n_steps - 1)) & 1 == cell)
        before, here, after = np.nonzero(fits)
        edges[cell, before, here, here, after] = 1
    return edges.reshape(2, size * size, size * size)

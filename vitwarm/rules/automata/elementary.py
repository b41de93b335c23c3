"""Elementary cellular automata: rows of cells, each row made from the one above it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.rules.automata.cells import CellRule, Cells
from vitwarm.rules.automata.histories import (
    WIDEST_COUNTED,
    Automaton,
    are_histories,
    best_guesses,
    counts_of_ones,
    propagate,
)
from vitwarm.rules.base import MOST_TOKENS, SOLVED, Bools, Ceiling, Ids, Rows, to_rows
from vitwarm.rules.draws import GAMMA, LOW, below_low, compiled, mixed, stream, to_threshold

#: Cells behind one token of `block`, so that the vocabulary is 2**7 = 128.
BLOCK = 7

#: Widest plane whose first rows are all tried for the exact ceiling: 2**16 of them.
WIDEST_EXACT = 16

_32 = np.uint64(32)


@dataclass(frozen=True, kw_only=True)
class CellularAutomaton(CellRule):
    """An elementary cellular automaton: bit 4 * left + 2 * self + right of `rule` is the next cell.

    A sequence is a window of the automaton's history, row by row, the rows being time. Ids: cell
    values, or numbers of 7 neighbouring cells (the leftmost first), then the pad.
    """

    name: ClassVar[str] = "eca"
    aliases: ClassVar[tuple[str, ...]] = ("ca", "cellular-automaton", "elementary-ca")

    n_states: ClassVar[int] = 2

    rule: int = 110
    """Wolfram's number, 0 to 255."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the window; none: as square as the number of tokens allows."""
    boundary: Literal["ring", "zero"] = "ring"
    """What lies beyond the simulated cells: the other end, or zeros."""
    burn_in: int = 0
    """Steps before the window's first row."""
    width: int | None = None
    """Cells that are simulated, the window lying anywhere among them; none: the window's own."""
    density: float | None = None
    """Share of ones in the first state; none: drawn for every sequence, uniformly over (0, 1)."""
    tokens: Literal["binary", "block"] = "binary"
    """One cell a token, or a block of 7."""
    hidden: Literal["random", "last_rows"] = "random"
    """Half of all tokens, or the whole of the last rows."""
    hidden_rows: int = 1
    """Number of rows that `last_rows` hides."""

    def __post_init__(self) -> None:
        self.check_range("rule", 0, 255, "takes a number from 0 to 255")
        rows, columns = self.grid or (2, 2)
        self.check("grid", min(rows, columns) >= 2, "needs at least 2 rows and 2 columns")
        most = MOST_TOKENS
        self.check("grid", rows * columns <= most, f"makes at most {most:,} tokens")
        self.check_range("burn_in", 0, most, f"takes 0 to {most:,} steps")
        self.check_range("width", 2, most, f"takes 2 to {most:,} cells, or none")
        fine = self.density is None or 0 < self.density < 1
        self.check("density", fine, "takes a share between 0 and 1, or none")
        if self.hidden == "random":
            self.check_acts("hidden_rows", where="hidden=last_rows")
        self.check("hidden_rows", self.hidden_rows >= 1, "hides at least 1 row")
        if self.grid is not None:
            self.plane(rows * columns)

    @property
    def patch(self) -> tuple[int, int]:
        """One cell, or a block of 7 in a row."""
        return (1, BLOCK if self.tokens == "block" else 1)

    @property
    def determined(self) -> bool:
        """True where the last rows are hidden and, whatever the length, all cells are seen.

        With a `width` and no `grid` the length decides; `ceiling` knows it.
        """
        if self.hidden != "last_rows":
            return False
        known = self.grid is not None and not self.is_cropped(math.prod(self.grid))
        return self.width is None or known

    def is_cropped(self, n_tokens: int) -> bool:
        """Says whether there are cells beyond the window's sides."""
        _, columns, width = self.plane(n_tokens)
        return width > columns * self.patch[1]

    def plane(self, n_tokens: int) -> tuple[int, int, int]:
        """Returns rows, columns (of tokens) and simulated cells for a length that fits.

        Raises: RuleError: not enough rows or cells for the parameters.
        """
        rows, columns = self.grid or (math.isqrt(n_tokens), n_tokens // math.isqrt(n_tokens))
        needed = columns * self.patch[1]
        fine = self.width is None or self.width >= needed
        self.check("width", fine, f"needs at least the window's {needed} cells")
        fine = self.hidden == "random" or self.hidden_rows < rows
        self.check("hidden_rows", fine, f"hides at most {rows - 1} of {rows}")
        return rows, columns, self.width or needed

    def frame_of(self, n_tokens: int) -> tuple[int, int]:
        return 1, self.plane(n_tokens)[1]

    def n_last(self, n_tokens: int) -> int:
        return self.hidden_rows * self.plane(n_tokens)[1]

    def fit_length(self, n_tokens: int) -> int:
        """Returns rows times columns of the window."""
        self.check_tokens(n_tokens, at_least=math.prod(self.grid or (2, 2)))
        rows, columns, _ = self.plane(n_tokens)
        return rows * columns

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        _, columns, width = self.plane(out_BT.shape[1])
        old, new = np.zeros((2, width + 2), dtype=np.int32)
        _fill_planes(
            out_BT, self.key(seed), rows_B, self.rule, columns, self.patch[1], width,
            self.boundary == "ring", self.burn_in, to_threshold(self.density or 0.0),
            self.density is None, old, new,
        )  # fmt: skip

    def are_histories(self, cells: Cells) -> Bools:
        """Windows on a history, exact up to 20 simulated cells and mostly beyond: `histories`."""
        return are_histories(cells[:, :, 0], self._automaton(cells.shape[3]))

    def _automaton(self, n_seen: int) -> Automaton:
        return Automaton(self.rule, self.boundary == "ring", self.burn_in, self.width or n_seen)

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Planes with as many ones as some history holds.

        Exact for binary tokens and up to 16 simulated cells; wider planes of any cells pass, and of
        blocks nothing but their ones is counted.
        """
        ids = to_rows(ids_BT)
        fine = super().accepts_any_order(ids)
        if fine.any():
            cells = self.to_cells(ids[fine])[:, :, 0]
            automaton = self._automaton(cells.shape[2])
            if automaton.width <= WIDEST_COUNTED:
                counts = counts_of_ones(automaton, *cells.shape[1:])
                fine[fine] = np.isin(cells.sum(axis=(1, 2), dtype=np.int64), list(counts))
        return fine

    def fill_in(self, cells: Cells) -> None:
        """Fills in what the rule forces: all of hidden last rows, where nothing is cropped."""
        beyond = "any" if (self.width or 0) > cells.shape[3] else self.boundary
        propagate(cells[:, :, 0], self.rule, beyond)

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Counts the histories that agree with what is visible; if wide, what `solve` fills in."""
        width, cropped = self.plane(ids_BT.shape[1])[2], self.is_cropped(ids_BT.shape[1])
        if self.hidden == "last_rows" and not cropped:
            return SOLVED
        if cropped or self.tokens == "block" or width > WIDEST_EXACT:
            return super().ceiling(ids_BT, visible_BT)
        cells = self.to_cells(visible_BT)[:, :, 0]
        best = best_guesses(cells, self._automaton(width), self._first_state_weights(width))
        hidden = visible_BT == self.n_ids
        share = float(best.reshape(hidden.shape)[hidden].sum() / max(hidden.sum(), 1))
        return Ceiling(
            share, share, f"exact: all {2**width:,} first states, weighted by their probability"
        )

    def _first_state_weights(self, width: int) -> NDArray[np.float64]:
        """Returns the probability of a first state with 0..width ones."""
        ones = np.arange(width + 1)
        if self.density is not None:
            return np.array(self.density**ones * (1 - self.density) ** (width - ones))
        return np.array([1 / ((width + 1) * math.comb(width, n)) for n in ones])


@compiled
def _step(old: np.ndarray, new: np.ndarray, width: int, rule: int, ring: bool) -> None:
    """Makes the next state. States lie in [1, width], what is beyond in places 0 and width + 1."""
    old[0] = old[width] if ring else 0
    old[width + 1] = old[1] if ring else 0
    for i in range(1, width + 1):
        new[i] = (rule >> (4 * old[i - 1] + 2 * old[i] + old[i + 1])) & 1


@compiled
def _fill_planes(
    out: Ids, key: np.uint64, rows: Rows, rule: int, columns: int, cells_per_token: int, width: int,
    ring: bool, burn_in: int, density: np.uint64, draws_density: bool, old: NDArray[np.int32],
    new: NDArray[np.int32],
) -> None:  # fmt: skip
    """Writes windows of histories, row by row. old, new: [width + 2], scratch."""
    n_steps = out.shape[1] // columns
    room = np.uint64(width - columns * cells_per_token + 1)
    for b in range(len(rows)):
        state = stream(key, rows[b]) + GAMMA
        bits = mixed(state)
        first = 1 + np.int64(below_low(bits, room))  # the window's first cell
        threshold = bits >> _32 if draws_density else density
        for i in range(1, width + 1, 2):
            state += GAMMA
            bits = mixed(state)
            old[i] = (bits & LOW) < threshold
            old[i + 1] = (bits >> _32) < threshold  # one place too many: _step overwrites it
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

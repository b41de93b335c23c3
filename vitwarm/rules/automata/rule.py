"""Elementary cellular automata: rows of cells, each row made from the one above it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.errors import RuleError
from vitwarm.rules.automata.histories import (
    WIDEST_COUNTED,
    Automaton,
    Cells,
    are_histories,
    counts_of_ones,
)
from vitwarm.rules.automata.kernels import consistent_votes, fill_planes, propagate
from vitwarm.rules.base import MOST_TOKENS, Bools, Ceiling, Ids, Rows, Rule, to_rows
from vitwarm.rules.draws import to_threshold

#: Cells behind one token of `block`, so that the vocabulary is 2**7 = 128.
BLOCK = 7

#: Widest plane whose first rows are all tried for the exact ceiling: 2**16 of them.
WIDEST_EXACT = 16

#: Neither 0 nor 1.
UNKNOWN = 2


@dataclass(frozen=True, kw_only=True)
class CellularAutomaton(Rule):
    """An elementary cellular automaton: bit 4 * left + 2 * self + right of `rule` is the next cell.

    A sequence is a window of the automaton's history, row by row, the rows being time. Ids: cell
    values, or numbers of 7 neighbouring cells (the leftmost first), then the pad.
    """

    name: ClassVar[str] = "eca"
    aliases: ClassVar[tuple[str, ...]] = ("ca", "cellular-automaton", "elementary-ca")

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
        self.check("rule", 0 <= self.rule <= 255, "takes a number from 0 to 255")
        rows, columns = self.grid or (2, 2)
        self.check("grid", min(rows, columns) >= 2, "needs at least 2 rows and 2 columns")
        fine = rows * columns <= MOST_TOKENS
        self.check("grid", fine, f"makes at most {MOST_TOKENS:,} tokens")
        fine = 0 <= self.burn_in <= MOST_TOKENS
        self.check("burn_in", fine, f"takes 0 to {MOST_TOKENS:,} steps")
        fine = self.width is None or 2 <= self.width <= MOST_TOKENS
        self.check("width", fine, f"takes 2 to {MOST_TOKENS:,} cells, or none")
        fine = self.density is None or 0 < self.density < 1
        self.check("density", fine, "takes a share between 0 and 1, or none")
        if self.hidden == "random":
            self.check_acts("hidden_rows", where="hidden=last_rows")
        self.check("hidden_rows", self.hidden_rows >= 1, "hides at least 1 row")
        if self.grid is not None:
            self.plane(rows * columns)

    @property
    def cells_per_token(self) -> int:
        """1, or 7 for blocks."""
        return BLOCK if self.tokens == "block" else 1

    @property
    def n_ids(self) -> int:
        return int(2**self.cells_per_token) + 1

    @property
    def pad_id(self) -> int:
        return int(2**self.cells_per_token)

    @property
    def hide_share(self) -> float:
        return 1.0 if self.hidden == "last_rows" else 0.5

    @property
    def determined(self) -> bool:
        """True where the last rows are hidden and, whatever the length, all cells are seen.

        With a `width` and no `grid` the length decides; `ceiling` knows it.
        """
        if self.hidden != "last_rows":
            return False
        return self.width is None or (
            self.grid is not None and not self.is_cropped(math.prod(self.grid))
        )

    def is_cropped(self, n_tokens: int) -> bool:
        """Says whether there are cells beyond the window's sides."""
        _, columns, width = self.plane(n_tokens)
        return width > columns * self.cells_per_token

    def plane(self, n_tokens: int) -> tuple[int, int, int]:
        """Returns rows, columns (of tokens) and simulated cells for a length that fits.

        Raises: RuleError: not enough rows or cells for the parameters.
        """
        rows, columns = self.grid or (math.isqrt(n_tokens), n_tokens // math.isqrt(n_tokens))
        needed = columns * self.cells_per_token
        fine = self.width is None or self.width >= needed
        self.check("width", fine, f"needs at least the window's {needed} cells")
        fine = self.hidden == "random" or self.hidden_rows < rows
        self.check("hidden_rows", fine, f"hides at most {rows - 1} of {rows}")
        return rows, columns, self.width or needed

    def fit_length(self, n_tokens: int) -> int:
        """Returns rows times columns of the window.

        Raises: RuleError: the window has more tokens.
        """
        self.check_tokens(n_tokens, at_least=math.prod(self.grid or (2, 2)))
        rows, columns, _ = self.plane(n_tokens)
        return rows * columns

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        _, columns, width = self.plane(out_BT.shape[1])
        old, new = np.zeros((2, width + 2), dtype=np.int32)
        fill_planes(
            out_BT, self.key(seed), rows_B, self.rule, columns, self.cells_per_token, width,
            self.boundary == "ring", self.burn_in, to_threshold(self.density or 0.0),
            self.density is None, old, new,
        )  # fmt: skip

    def to_cells(self, ids_BT: ArrayLike) -> Cells:
        """Unpacks sequences into cells [B, rows, cells]; tokens beyond the ids are UNKNOWN."""
        ids = to_rows(ids_BT)
        if not self.makes(ids.shape[1]):
            raise RuleError(
                f"ids have {ids.shape[1]} tokens a row; rule {self.name} makes no words of this "
                "length with these parameters. Use one that `fit_length` returns."
            )
        rows, columns, _ = self.plane(ids.shape[1])
        shifts = np.arange(self.cells_per_token - 1, -1, -1)
        cells = (ids[:, :, None] >> shifts) & 1
        known = (ids >= 0) & (ids < self.pad_id)
        cells = np.where(known[:, :, None], cells, UNKNOWN)
        return cells.astype(np.uint8).reshape(len(ids), rows, columns * self.cells_per_token)

    def to_ids(self, cells: Cells) -> Ids:
        """Packs cells [B, rows, cells] into sequences [B, T]; the mask id where one is UNKNOWN."""
        blocks = cells.reshape(len(cells), -1, self.cells_per_token).astype(np.int16)
        weights = 2 ** np.arange(self.cells_per_token - 1, -1, -1, dtype=np.int16)
        ids = (blocks * weights).sum(axis=2)
        return np.where((blocks == UNKNOWN).any(axis=2), self.n_ids, ids).astype(np.int16)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Windows on a history: each row follows from the one above, and a burn-in can end there.

        Exact up to 20 simulated cells, and mostly beyond: see `are_histories`. Returns: bool [B].
        """
        ids = to_rows(ids_BT)
        good = np.zeros(len(ids), dtype=np.bool_)
        if self.makes(ids.shape[1]):
            cells = self.to_cells(ids)
            good = np.array((cells != UNKNOWN).all(axis=(1, 2)))
            good[good] = are_histories(cells[good], self._automaton(ids.shape[1]))
        return good

    def _automaton(self, n_tokens: int) -> Automaton:
        width = self.plane(n_tokens)[2]
        return Automaton(self.rule, self.boundary == "ring", self.burn_in, width)

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """Every token, or those of the last rows; nothing in lengths that cannot be.

        Returns: bool [B, T].
        """
        ids = to_rows(ids_BT)
        makes = self.makes(ids.shape[1])
        maskable = np.full(ids.shape, makes)
        if makes and self.hidden == "last_rows":
            _, columns, _ = self.plane(ids.shape[1])
            maskable[:, : ids.shape[1] - self.hidden_rows * columns] = False
        return maskable

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Planes with as many ones as some history holds.

        Exact for binary tokens and up to 16 simulated cells; wider planes of any cells pass, and of
        blocks nothing but their ones is counted. Returns: bool [B].
        """
        ids = to_rows(ids_BT)
        n_tokens = ids.shape[1]
        if not self.makes(n_tokens):
            return np.zeros(len(ids), dtype=np.bool_)
        cells = self.to_cells(ids)
        fine = np.array((cells != UNKNOWN).all(axis=(1, 2)))
        automaton = self._automaton(n_tokens)
        if automaton.width <= WIDEST_COUNTED:
            counts = counts_of_ones(automaton, *cells.shape[1:])
            fine &= np.isin(cells.sum(axis=(1, 2), dtype=np.int64), list(counts))
        return fine

    def solve(self, visible_BT: ArrayLike) -> Ids:
        """Fills in the tokens that the rule forces, from neighbour to neighbour, down and up.

        Complete where the last rows alone are hidden; elsewhere the mask id stays on tokens that
        this reasoning leaves open.
        """
        visible = to_rows(visible_BT)
        cells = self.to_cells(visible)
        cropped = self.is_cropped(visible.shape[1])
        propagate(cells, self.rule, self.boundary == "ring", cropped, np.zeros(4, np.int64))
        return np.where(visible == self.n_ids, self.to_ids(cells), visible).astype(np.int16)

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Counts all histories that agree with what is visible, where the plane is narrow enough.

        Else the bounds are what `solve` fills in, and all.
        """
        rows, columns, width = self.plane(ids_BT.shape[1])
        cropped = self.is_cropped(ids_BT.shape[1])
        if self.hidden == "last_rows" and not cropped:
            return Ceiling(1.0, 1.0, "exact: what is visible determines every hidden token")
        if cropped or self.tokens == "block" or width > WIDEST_EXACT:
            return super().ceiling(ids_BT, visible_BT)
        hidden = visible_BT == self.n_ids
        votes = np.zeros((*hidden.shape, 2), dtype=np.float64)
        consistent_votes(
            self.to_cells(visible_BT), self.rule, self.boundary == "ring", self.burn_in,
            self._first_state_weights(columns), votes.reshape(len(votes), rows, columns, 2),
            np.zeros((rows + 1, columns + 2), dtype=np.int64),
        )  # fmt: skip
        best = votes.max(axis=2) / np.maximum(votes.sum(axis=2), 1e-300)
        share = float(best[hidden].sum() / max(hidden.sum(), 1))
        return Ceiling(
            share, share, f"exact: all {2**width:,} first states, weighted by their probability"
        )

    def _first_state_weights(self, width: int) -> NDArray[np.float64]:
        """Returns the probability of a first state with 0..width ones."""
        ones = np.arange(width + 1)
        if self.density is not None:
            return np.array(self.density**ones * (1 - self.density) ** (width - ones))
        return np.array([1 / ((width + 1) * math.comb(width, n)) for n in ones])

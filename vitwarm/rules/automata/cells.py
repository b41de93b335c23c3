"""What all automata share: a sequence is frames of cells, and a token is a patch of cells."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.errors import RuleError
from vitwarm.rules.base import Bools, Ids, Rule, to_rows

Cells = NDArray[np.uint8]


class CellRule(Rule):
    """Frames stand one behind the other. Ids: the cells of a patch as one number, then the pad.

    The first cell counts most. In arrays of cells the number `n_states` is an unknown one.
    """

    hidden: str
    """`random`: half of all tokens; else those that `n_last` counts, at the end."""

    @property
    @abstractmethod
    def n_states(self) -> int:
        """States of a cell."""

    @property
    @abstractmethod
    def patch(self) -> tuple[int, int]:
        """Rows and columns of cells behind one token."""

    @abstractmethod
    def frame_of(self, n_tokens: int) -> tuple[int, int]:
        """Returns rows and columns of a frame, in tokens, for sequences of this length."""

    @abstractmethod
    def n_last(self, n_tokens: int) -> int:
        """Returns how many tokens at the end are hidden where it is not random ones."""

    @abstractmethod
    def are_histories(self, cells: Cells) -> Bools:
        """Says of each plane of known cells whether an automaton makes it: bool [B]."""

    @abstractmethod
    def fill_in(self, cells: Cells) -> None:
        """Writes into unknown cells what the known ones demand."""

    @property
    def n_ids(self) -> int:
        return int(self.n_states ** math.prod(self.patch)) + 1

    @property
    def hide_share(self) -> float:
        return 0.5 if self.hidden == "random" else 1.0

    def to_cells(self, ids_BT: ArrayLike) -> Cells:
        """Unpacks sequences into cells [B, frames, height, width]; foreign ids are unknown cells.

        Raises: RuleError: a length that the rule does not make.
        """
        ids = to_rows(ids_BT)
        if not self.makes(ids.shape[1]):
            raise RuleError(
                f"ids have {ids.shape[1]} tokens a row; rule {self.name} makes no words of this "
                "length with these parameters. Use one that `fit_length` returns."
            )
        (rows, columns), (high, wide) = self.frame_of(ids.shape[1]), self.patch
        cells = ids[:, :, None] // self._weights % self.n_states
        cells[(ids < 0) | (ids >= self.n_ids - 1)] = self.n_states
        patches = cells.astype(np.uint8).reshape(len(ids), -1, rows, columns, high, wide)
        shape = len(ids), ids.shape[1] // (rows * columns), rows * high, columns * wide
        return np.ascontiguousarray(patches.swapaxes(3, 4)).reshape(shape)

    def to_ids(self, cells: Cells) -> Ids:
        """Packs cells into sequences [B, T]; the mask id where one of a patch is unknown."""
        (n, frames, height, width), (high, wide) = cells.shape, self.patch
        patches = cells.reshape(n, frames, height // high, high, width // wide, wide)
        patches = patches.swapaxes(3, 4).reshape(n, -1, high * wide)
        ids = patches.astype(np.int64) @ self._weights
        return np.where((patches == self.n_states).any(axis=2), self.n_ids, ids).astype(np.int16)

    @property
    def _weights(self) -> NDArray[np.int64]:
        return self.n_states ** np.arange(math.prod(self.patch))[::-1]

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Planes of cells that follow from each other as `are_histories` says."""
        ids = to_rows(ids_BT)
        good = self.has_ids(ids) & self.makes(ids.shape[1])
        if good.any():
            good[good] = self.are_histories(self.to_cells(ids[good]))
        return good

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Planes of any cells: which of them have an order is not decided."""
        ids = to_rows(ids_BT)
        return self.has_ids(ids) & self.makes(ids.shape[1])

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """Every token, or those at the end; nothing in lengths that cannot be."""
        ids = to_rows(ids_BT)
        maskable = np.full(ids.shape, self.makes(ids.shape[1]))
        if maskable.any() and self.hidden != "random":
            maskable[:, : -self.n_last(ids.shape[1])] = False
        return maskable

    def solve(self, visible_BT: ArrayLike) -> Ids:
        """Fills in tokens whose cells the visible ones tell; the mask id stays on all others."""
        visible = to_rows(visible_BT)
        cells = self.to_cells(visible)
        self.fill_in(cells)
        return np.where(visible == self.n_ids, self.to_ids(cells), visible).astype(np.int16)

"""Neural cellular automata: frames of cells, each sequence by a small random network of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.rules.automata.networks import UNITS, deduce, fill_frames
from vitwarm.rules.base import MOST_TOKENS, Bools, Ceiling, Ids, Rows, Rule, to_rows

#: Rows and columns of cells behind one token.
PATCH = 2

UNKNOWN = 255


@dataclass(frozen=True, kw_only=True)
class NeuralAutomaton(Rule):
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

    n_states: int = 2
    """States of a cell. With more of them a sequence shows less of its network: at 196 tokens half
    of the last frame's tokens have neighbourhoods seen before with 2 states, a sixth with 4."""
    frame: tuple[int, int] | None = None
    """Rows and columns of a frame, in tokens; none: the largest square that leaves four frames."""
    complexity: tuple[float, float] = (0.4, 1.0)
    """Share of the tokens that end a run of three tokens new to the sequence, at least and at most:
    a cheap stand-in for the gzip ratio (correlation 0.96 with two states; 0.4 is a ratio of 0.42).
    Most sequences below it stand still. Where 32 networks in a row are outside, the last one is
    taken."""
    burn_in: int = 0
    """Steps before the first frame, which otherwise is noise."""
    hidden: Literal["random", "last_frame"] = "last_frame"
    """Half of all tokens, or the whole of the last frame, which the others tell most of."""

    def __post_init__(self) -> None:
        self.check("n_states", 2 <= self.n_states <= 8, "takes 2 to 8 states")
        rows, columns = self.frame or (2, 2)
        self.check("frame", min(rows, columns) >= 2, "needs at least 2 rows and 2 columns")
        fine = 2 * rows * columns <= MOST_TOKENS
        self.check("frame", fine, f"makes at most {MOST_TOKENS:,} tokens")
        low, high = self.complexity
        fine = 0 <= low < high <= 1
        self.check("complexity", fine, "takes two shares from 0 to 1, the lower one first")
        fine = 0 <= self.burn_in <= MOST_TOKENS
        self.check("burn_in", fine, f"takes 0 to {MOST_TOKENS:,} steps")

    @property
    def n_ids(self) -> int:
        return int(self.n_states ** (PATCH * PATCH)) + 1

    @property
    def pad_id(self) -> int:
        return self.n_ids - 1

    @property
    def hide_share(self) -> float:
        return 1.0 if self.hidden == "last_frame" else 0.5

    def frame_of(self, n_tokens: int) -> tuple[int, int]:
        """Returns rows and columns of a frame, in tokens, for sequences of this length."""
        side = max(2, math.isqrt(n_tokens // 4))
        return self.frame or (side, side)

    def fit_length(self, n_tokens: int) -> int:
        """Returns the tokens of as many whole frames as there is room for.

        Raises: RuleError: there is no room for two.
        """
        self.check_tokens(n_tokens, at_least=2 * math.prod(self.frame or (2, 2)))
        size = math.prod(self.frame_of(n_tokens))
        return n_tokens // size * size

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        n, n_tokens = self.n_states, out_BT.shape[1]
        rows, columns = self.frame_of(n_tokens)
        low, high = self.complexity
        sizes = 9 * n * UNITS, n * UNITS, 3 * n**3 * UNITS, *[4 * rows * columns] * 2
        first, second, triples, old, new = (np.zeros(size, np.int32) for size in sizes)
        table, stamp = np.zeros((2, _power_above(2 * n_tokens)), np.int64)
        fill_frames(
            out_BT, self.key(seed), rows_B, n, rows, columns, self.burn_in,
            math.ceil(low * n_tokens), math.floor(high * n_tokens), first, second, triples, old,
            new, table, stamp,
        )  # fmt: skip

    def to_cells(self, ids_BT: ArrayLike) -> NDArray[np.uint8]:
        """Unpacks sequences into cells [B, frames, height, width]; other ids are UNKNOWN."""
        ids = to_rows(ids_BT)
        rows, columns = self.frame_of(ids.shape[1])
        weights = self.n_states ** np.arange(3, -1, -1)
        cells = ids[:, :, None] // weights % self.n_states
        known = (ids >= 0) & (ids < self.pad_id)
        cells = np.where(known[:, :, None], cells, UNKNOWN).astype(np.uint8)
        patches = cells.reshape(len(ids), -1, rows, columns, PATCH, PATCH)
        shape = len(ids), -1, PATCH * rows, PATCH * columns
        return np.ascontiguousarray(patches.swapaxes(3, 4)).reshape(shape)

    def to_ids(self, cells: NDArray[np.uint8]) -> Ids:
        """Packs cells into sequences [B, T]; the mask id where one of the four is UNKNOWN."""
        n, _, height, width = cells.shape
        patches = cells.reshape(n, -1, height // PATCH, PATCH, width // PATCH, PATCH)
        patches = patches.swapaxes(3, 4).reshape(n, -1, PATCH * PATCH)
        ids = patches.astype(np.int64) @ self.n_states ** np.arange(3, -1, -1)
        return np.where((patches == UNKNOWN).any(axis=2), self.n_ids, ids).astype(np.int16)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Frames in which equal neighbourhoods are followed by equal cells, everywhere.

        Exact for automata with any rule; which of these rules four hidden units can compute is not
        asked. Returns: bool [B].
        """
        ids = to_rows(ids_BT)
        good = self.accepts_any_order(ids)
        if good.any():
            good[good] = self._deduce(self.to_cells(ids[good]))
        return good

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Planes of any cells: which of them have an order is not decided. Returns: bool [B]."""
        ids = to_rows(ids_BT)
        known = (ids >= 0) & (ids < self.pad_id)
        return np.array(known.all(axis=1) & self.makes(ids.shape[1]))

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """Every token, or those of the last frame; nothing in lengths that cannot be.

        Returns: bool [B, T].
        """
        ids = to_rows(ids_BT)
        makes = self.makes(ids.shape[1])
        maskable = np.full(ids.shape, makes)
        if makes and self.hidden == "last_frame":
            maskable[:, : -math.prod(self.frame_of(ids.shape[1]))] = False
        return maskable

    def solve(self, visible_BT: ArrayLike) -> Ids:
        """Fills in the tokens whose cells' neighbourhoods are seen elsewhere in the sequence.

        The mask id stays on all others: a predictor that knows how networks are drawn may guess
        some of them.
        """
        visible = to_rows(visible_BT)
        cells = self.to_cells(visible)
        self._deduce(cells)
        return np.where(visible == self.n_ids, self.to_ids(cells), visible).astype(np.int16)

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Counts what `solve` fills in, and guesses the rest from the frames before and after."""
        hidden, size = visible_BT == self.n_ids, math.prod(self.frame_of(ids_BT.shape[1]))
        solved = self.solve(visible_BT)
        before, after = np.roll(solved, size, axis=1), np.roll(solved, -size, axis=1)
        for other, frame in ((before, np.s_[:, size:]), (after, np.s_[:, :-size])):
            part = solved[frame]
            part[...] = np.where(part == self.n_ids, other[frame], part)
        share = float((solved == ids_BT)[hidden].sum() / max(hidden.sum(), 1))
        method = "bounds: what `solve` fills in, else the same place a frame before or after; all"
        return Ceiling(share, 1.0, method)

    def _deduce(self, cells: NDArray[np.uint8]) -> Bools:
        fits = np.zeros(len(cells), dtype=np.bool_)
        size = _power_above(2 * math.prod(cells.shape[1:]))
        scratch = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.uint8)
        deduce(cells, self.n_states, fits, *scratch)
        return fits


def _power_above(n: int) -> int:
    return 1 << n.bit_length()

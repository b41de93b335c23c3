"""Copy (WW): words followed by their exact copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.rules.base import MOST_TOKENS, Bools, Ids, Rows, Rule, to_rows
from vitwarm.rules.draws import GAMMA, below, compiled, mixed, stream, write_symbols


@dataclass(frozen=True, kw_only=True)
class Copy(Rule):
    """A word w and its copy: one pair fills the sequence, or pairs are packed until it is full.

    One half of every pair may be hidden, so that the other half tells it. Ids: the symbols, then
    the pad. Packed pairs have no separator: their borders have to be found.
    """

    name: ClassVar[str] = "copy"
    aliases: ClassVar[tuple[str, ...]] = ("ww",)

    n_symbols: int = 98
    """Symbols that words are made of, from 2 on."""
    pairs: Literal["one", "packed"] = "one"
    """`one` pair, or pairs `packed` one behind the other."""
    min_length: int = 3
    """Packed: least length of w."""
    max_length: int = 32
    """Packed: largest length of w."""
    hidden: Literal["first", "second"] = "first"
    """The half of every pair that may be hidden."""

    def __post_init__(self) -> None:
        self.check("n_symbols", self.n_symbols >= 2, "needs at least 2 symbols")
        if self.pairs == "one":
            for field in ("min_length", "max_length"):
                self.check_acts(field, where="pairs=packed")
        low, high = self.min_length, MOST_TOKENS
        self.check_range("min_length", 1, high, f"takes a length from 1 to {high:,}")
        self.check_range("max_length", low, high, f"takes min_length, {low}, to {high:,}")
        self.check_ids()

    @property
    def n_ids(self) -> int:
        return self.n_symbols + 1

    @property
    def determined(self) -> bool:
        """True for one pair; the borders of packed pairs may stay unclear."""
        return self.pairs == "one"

    def fit_length(self, n_tokens: int) -> int:
        """Returns the largest even length up to `n_tokens` that pairs can fill."""
        self.check_tokens(n_tokens, at_least=2 * self.min_length if self.pairs == "packed" else 2)
        if self.pairs == "one":
            return n_tokens - n_tokens % 2
        return 2 * int(np.flatnonzero(self._fillable(n_tokens // 2)).max())

    def _fillable(self, n_half: int) -> NDArray[np.bool_]:
        """Says of every half length up to `n_half` whether lengths of w can add up to it."""
        lengths = np.arange(n_half + 1)
        most = lengths // self.min_length  # as many words as possible leave the least to stretch
        return most * self.max_length >= lengths

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        n_half = out_BT.shape[1] // 2
        shortest, longest = self.min_length, self.max_length
        fillable = self._fillable(n_half)
        if self.pairs == "one":
            shortest = longest = n_half
        _fill(out_BT, self.key(seed), rows_B, self.n_symbols, shortest, longest, fillable)

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Sequences that can be cut into pairs ww of allowed lengths. Returns: bool [B]."""
        ids = to_rows(ids_BT)
        return self.has_ids(ids) & self._cut(ids)[0]

    def _cut(self, ids: Ids) -> tuple[Bools, Bools]:
        """Cuts rows into pairs: (possible, first halves). Of several ways it is always the same."""
        n_half = ids.shape[1] // 2
        span = (n_half, n_half) if self.pairs == "one" else (self.min_length, self.max_length)
        first = np.zeros(ids.shape, dtype=np.bool_)
        possible = np.zeros(len(ids), dtype=np.bool_)
        if self.makes(ids.shape[1]):
            came_by = np.zeros(ids.shape[1] + 1, dtype=np.int64)
            _cut(ids, span[0], span[1], possible, first, came_by)
        return possible, first

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """One half of every pair; nothing in sequences that are no words. Returns: bool [B, T]."""
        possible, first = self._cut(to_rows(ids_BT))
        return first if self.hidden == "first" else ~first & possible[:, None]

    def maskable_in_any_order(self, ids_BT: ArrayLike) -> Bools:
        """As many places as in a word: one half of the sequence. Returns: bool [B, T]."""
        ids = to_rows(ids_BT)
        first = np.tile(np.arange(ids.shape[1]) < ids.shape[1] // 2, (len(ids), 1))
        return first if self.hidden == "first" else ~first

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Every symbol an even number of times, in a length that pairs can fill."""
        ids = to_rows(ids_BT)
        fine = self.has_ids(ids) & self.makes(ids.shape[1])
        for row in np.flatnonzero(fine):
            fine[row] = not (np.bincount(ids[row]) % 2).any()
        return fine

    def solve(self, visible_BT: ArrayLike) -> Ids:
        """Copies hidden tokens from the other half of their pair.

        Packed: a token is filled in where all ways of cutting the sequence agree on it.
        """
        solved = to_rows(visible_BT).copy()
        if self.pairs == "one":
            half = solved.shape[1] // 2
            first, second = solved[:, :half], solved[:, half : 2 * half]
            first[:], second[:] = (
                np.where(first == self.n_ids, second, first),
                np.where(second == self.n_ids, first, second),
            )
            return solved
        for row in solved:
            told = self._told(row)
            row[:] = np.where((row == self.n_ids) & (told >= 0), told, row)
        return solved

    def _told(self, row_T: Ids) -> Ids:
        """Returns what all ways of cutting a packed row say of each hidden token; else below 0."""
        n, hides_first = len(row_T), self.hidden == "first"
        lengths = np.arange(self.min_length, min(self.max_length, n // 2) + 1)
        fits = np.zeros((n + 1, len(lengths)), dtype=np.bool_)  # a pair may begin there
        for number, length in enumerate(lengths):
            left, right = row_T[:-length], row_T[length:]
            shown, other = (right, left) if hides_first else (left, right)
            same = (shown != self.n_ids) & ((other == shown) | (other == self.n_ids))
            n_same = np.concatenate([[0], same.cumsum()])
            fits[: n - 2 * length + 1, number] = n_same[length:] - n_same[:-length] == length
        ends = np.minimum(np.arange(n + 1)[:, None] + 2 * lengths, n)
        to_end, reached = np.arange(n + 1) == n, np.arange(n + 1) == 0
        for begin in range(n - 1, -1, -1):
            fits[begin] &= to_end[ends[begin]]
            to_end[begin] = fits[begin].any()
        told = np.full(n, -1, dtype=np.int16)  # -2: ways differ
        for begin in range(n):
            for length in lengths[fits[begin] & reached[begin]]:
                middle, end = begin + length, begin + 2 * length
                reached[end] = True
                first, second = slice(begin, middle), slice(middle, end)
                here, there = (first, second) if hides_first else (second, first)
                agrees = (told[here] == -1) | (told[here] == row_T[there])
                told[here] = np.where(agrees, row_T[there], -2)
        return told


@compiled
def _fill(
    out: Ids, key: np.uint64, rows: Rows, n_symbols: int, shortest: int, longest: int,
    fillable: Bools,
) -> None:  # fmt: skip
    n_rows, n_tokens = out.shape
    n = np.uint64(n_symbols)
    for b in range(n_rows):
        row = out[b]
        state = stream(key, rows[b])
        begin = 0
        while begin < n_tokens:
            left = (n_tokens - begin) // 2
            length = left
            if shortest < longest or longest < left:  # uniform over what leaves a fillable rest
                n_choices = 0
                for candidate in range(shortest, min(longest, left) + 1):
                    n_choices += 1 if fillable[left - candidate] else 0
                state += GAMMA
                skip = np.int64(below(mixed(state), np.uint64(n_choices)))
                for candidate in range(shortest, min(longest, left) + 1):
                    if fillable[left - candidate]:
                        if skip == 0:
                            length = candidate
                            break
                        skip -= 1
            state = write_symbols(row[begin : begin + length], 0, n, state)
            for i in range(begin, begin + length):
                row[i + length] = row[i]
            begin += 2 * length


@compiled
def _cut(
    ids: Ids, shortest: int, longest: int, possible: Bools, first: Bools, came_by: NDArray[np.int64]
) -> None:
    # came_by[t]: length of w in the pair that ends before t; 0: none does.
    n_rows, n_tokens = ids.shape
    for b in range(n_rows):
        row = ids[b]
        came_by[0] = -1
        for t in range(1, n_tokens + 1):
            came_by[t] = 0
        for begin in range(0, n_tokens, 2):
            if came_by[begin] == 0:
                continue
            for length in range(shortest, min(longest, (n_tokens - begin) // 2) + 1):
                end = begin + 2 * length
                if row[begin] != row[begin + length] or came_by[end] != 0:
                    continue
                same = True
                for i in range(begin + 1, begin + length):
                    if row[i] != row[i + length]:
                        same = False
                        break
                if same:
                    came_by[end] = length
        possible[b] = came_by[n_tokens] > 0
        end = n_tokens if possible[b] else 0
        while end > 0:
            word = int(came_by[end])
            end -= 2 * word
            for i in range(end, end + word):
                first[b, i] = True

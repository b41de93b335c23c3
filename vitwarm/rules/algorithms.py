"""Algorithms as sequences: a question, a separator, its answer, which is hidden, and pads.

Source: "Procedural Pretraining" (arXiv 2601.21725), where they are next-token tasks of 64 tokens
over a vocabulary of 100. Here x is as long as the sequence allows unless `length` says otherwise,
and pads fill the rest: they stay visible and never count.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.rules.base import MOST_TOKENS, Bools, Ids, Rows, Rule, to_rows
from vitwarm.rules.draws import GAMMA, below, compiled, mixed, stream, write_symbols

#: The mark of a pop in `stack`; reserved everywhere, so that all seven share their ids.
POP = 0

#: What `_fill` makes of x, by the rules' names; `stack` has a generator of its own.
_TASKS = ("identity", "reverse", "sort", "set", "union", "delete")
_IDENTITY, _REVERSE, _SORT, _SET, _UNION, _DELETE = range(len(_TASKS))


@dataclass(frozen=True, kw_only=True)
class Algorithm(Rule):
    """What the seven share. Ids: 0 is reserved (pop), 1..n_symbols, the separator, the pad."""

    n_separators: ClassVar[int] = 1
    least_length: ClassVar[int] = 1
    """Tokens that x needs."""
    pops: ClassVar[bool] = False
    """Whether a question may hold pops."""

    n_symbols: int = 99
    """Symbols that x is made of, from 2 on."""
    length: int | None = None
    """Tokens of x (of both parts for union, operations for stack); none: as many as fit."""

    def __post_init__(self) -> None:
        self.check("n_symbols", self.n_symbols >= 2, "needs at least 2 symbols")
        self.check_ids()
        allowed = f"takes a length from {self.least_length} to {MOST_TOKENS:,}, or none"
        self.check_range("length", self.least_length, MOST_TOKENS, allowed)

    hide_share = 1.0  # the whole answer
    determined = True  # the question is visible and has one answer

    @property
    def n_ids(self) -> int:
        return self.n_symbols + 3

    @property
    def separator_id(self) -> int:
        """Stands between the question's parts and before the answer."""
        return self.n_symbols + 1

    @property
    def separator_ids(self) -> tuple[int, ...]:
        return (self.separator_id, *super().separator_ids)

    def n_needed(self, length: int) -> int:
        """Returns the tokens that x of this length, its separators and longest answer take."""
        return 2 * length + self.n_separators

    def part_lengths(self, length: int) -> list[int]:
        """Returns the lengths of the question's parts."""
        return [length]

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """Returns the answer by its definition; None where the question is none.

        Args: question: its parts, between separators.  length: the tokens that x must have.
        """
        fine = list(map(len, question)) == self.part_lengths(length)
        fine &= self.pops or not any(POP in part for part in question)
        return self.compute(question) if fine else None

    @abstractmethod
    def compute(self, question: list[list[int]]) -> list[int] | None:
        """Returns the answer to parts of the right lengths; None where they are no question."""

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Says whether tokens of these counts have an order that is a word: here all in pairs."""
        return n_answer == length and POP not in counts and not any(n % 2 for n in counts.values())

    def question_length(self, n_tokens: int) -> int:
        """Returns the length of x in sequences of `n_tokens`; too short a sequence gives 0."""
        longest = (n_tokens + 1) // 2  # a word has twice as many tokens, less one, or more
        lengths = range(self.least_length, longest + 1) if self.length is None else [self.length]
        return max((n for n in lengths if self.n_needed(n) <= n_tokens), default=0)

    def fit_length(self, n_tokens: int) -> int:
        """Returns `n_tokens`: pads take what the rule cannot use."""
        self.check_tokens(n_tokens, at_least=self.n_needed(self.length or self.least_length))
        return n_tokens

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        length, task = self.question_length(out_BT.shape[1]), _TASKS.index(self.name)
        found = np.zeros(self.n_symbols + 1, dtype=np.int64)
        _fill(out_BT, self.key(seed), rows_B, length, self.n_symbols, task, found)

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """The answer: what stands behind the last separator and is no pad. Returns: bool [B, T]."""
        ids = to_rows(ids_BT)
        answers = np.cumsum(ids == self.separator_id, axis=1, dtype=np.int16) == self.n_separators
        return np.array(answers & (ids <= self.n_symbols))

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Questions of the right length with their answer, then nothing but pads."""
        ids = to_rows(ids_BT)
        length = self.question_length(ids.shape[1])
        rows = map(self._split, ids.tolist())
        fine = [p is not None and self.answer(p[:-1], length) == p[-1] for p in rows]
        return np.array(fine, dtype=np.bool_) & (length > 0)

    def _split(self, row: list[int]) -> list[list[int]] | None:
        """Cuts a row at its separators, pads taken off; None where the row has no such form."""
        parts: list[list[int]] = [[]]
        while row and row[-1] == self.pad_id:
            row = row[:-1]
        for token in row:
            if token == self.separator_id:
                parts.append([])
            elif POP <= token <= self.n_symbols:
                parts[-1].append(token)
            else:
                return None
        return parts if len(parts) == self.n_separators + 1 else None

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Rows that are a word in some order; separators and pads stay where they are."""
        ids = to_rows(ids_BT)
        length = self.question_length(ids.shape[1])
        fine = np.zeros(len(ids), dtype=np.bool_)
        for row, parts in enumerate(map(self._split, ids.tolist())):
            if length and parts and list(map(len, parts[:-1])) == self.part_lengths(length):
                counts = Counter(token for part in parts for token in part)
                fine[row] = self.has_order(counts, len(parts[-1]), length)
        return fine

    def solve(self, visible_BT: ArrayLike) -> Ids:
        """Computes the hidden answers from their questions. Returns: int16 [B, T]."""
        solved = to_rows(visible_BT).copy()
        for row in solved:
            ends = np.flatnonzero(row == self.separator_id)
            if len(ends) != self.n_separators:
                continue
            parts = [part[part != self.separator_id].tolist() for part in np.split(row, ends)]
            answer = self.answer(parts[:-1], self.question_length(len(row)))
            if answer is not None:
                place = slice(ends[-1] + 1, ends[-1] + 1 + len(answer))
                row[place] = np.where(row[place] == self.n_ids, answer, row[place])
        return solved


@dataclass(frozen=True, kw_only=True)
class Identity(Algorithm):
    """x | x."""

    name: ClassVar[str] = "identity"

    def compute(self, question: list[list[int]]) -> list[int]:
        return question[0]


@dataclass(frozen=True, kw_only=True)
class Reverse(Algorithm):
    """x | x from its end."""

    name: ClassVar[str] = "reverse"

    def compute(self, question: list[list[int]]) -> list[int]:
        return question[0][::-1]


@dataclass(frozen=True, kw_only=True)
class Sort(Algorithm):
    """x | x in ascending order."""

    name: ClassVar[str] = "sort"

    def compute(self, question: list[list[int]]) -> list[int]:
        return sorted(question[0])


@dataclass(frozen=True, kw_only=True)
class Set(Algorithm):
    """x | the tokens of x, each once, in the order in which they first come."""

    name: ClassVar[str] = "set"

    def compute(self, question: list[list[int]]) -> list[int]:
        return list(dict.fromkeys(token for part in question for token in part))

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Every symbol comes in the question and once in the answer."""
        return POP not in counts and n_answer == len(counts) and min(counts.values()) >= 2


@dataclass(frozen=True, kw_only=True)
class Union(Set):
    """x1 | x2 | the tokens of both, each once, in the order in which they first come."""

    name: ClassVar[str] = "union"
    n_separators: ClassVar[int] = 2
    least_length: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("length", not (self.length or 0) % 2, "takes an even length: two equal halves")

    def question_length(self, n_tokens: int) -> int:
        """Returns the length of both halves together, an even number."""
        return super().question_length(n_tokens) // 2 * 2

    def part_lengths(self, length: int) -> list[int]:
        return [length // 2, length // 2]


@dataclass(frozen=True, kw_only=True)
class Delete(Algorithm):
    """x | d | x without the first d; d is any symbol, so often none of x."""

    name: ClassVar[str] = "delete"
    n_separators: ClassVar[int] = 2

    def n_needed(self, length: int) -> int:
        return 2 * length + 3  # x, d between two separators, and at most x again

    def part_lengths(self, length: int) -> list[int]:
        return [length, 1]

    def compute(self, question: list[list[int]]) -> list[int]:
        x, (d,) = question
        place = x.index(d) if d in x else len(x)
        return x[:place] + x[place + 1 :]

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """d is in x: all come in pairs. d is not: it comes once, the others in pairs."""
        odd = [n for n in counts.values() if n % 2]
        return POP not in counts and (
            (n_answer == length - 1 and not odd) or (n_answer == length and odd == [1])
        )


@compiled
def _fill(
    out: Ids, key: np.uint64, rows: Rows, length: int, n_symbols: int, task: int,
    found: NDArray[np.int64],
) -> None:  # fmt: skip
    # Question, separator, answer, pads; one draw gives two symbols. found: [n_symbols + 1] zeros.
    separator = n_symbols + 1
    for b in range(len(rows)):
        row = out[b]
        state = write_symbols(row[:length], 1, np.uint64(n_symbols), stream(key, rows[b]))
        begin = length + 1  # of the answer
        if task == _UNION:
            for i in range(length, length // 2, -1):
                row[i] = row[i - 1]
            row[length // 2] = separator
            begin += 1
        elif task == _DELETE:
            row[length] = separator
            row[length + 1] = 1 + np.int16(below(mixed(state + GAMMA), np.uint64(n_symbols)))
            begin += 2
        row[begin - 1] = separator
        end = begin + length
        if task == _IDENTITY:
            for i in range(length):
                row[begin + i] = row[i]
        elif task == _REVERSE:
            for i in range(length):
                row[begin + i] = row[length - 1 - i]
        elif task == _SORT:  # found: how often each symbol comes
            for symbol in range(separator):
                found[symbol] = 0
            for i in range(length):
                found[row[i]] += 1
            place = begin
            for symbol in range(1, separator):
                for _ in range(found[symbol]):
                    row[place] = symbol
                    place += 1
        elif task == _DELETE:
            end, d = begin, row[begin - 2]
            for i in range(length):
                if row[i] == d:
                    d = np.int16(0)  # the first one is left out, and no other
                else:
                    row[end] = row[i]
                    end += 1
        else:  # found: the last row that had the symbol, counted from 1
            end = begin
            for i in range(begin - 1):
                if row[i] != separator and found[row[i]] != b + 1:
                    found[row[i]] = b + 1
                    row[end] = row[i]
                    end += 1
        for i in range(end, len(row)):
            row[i] = n_symbols + 2

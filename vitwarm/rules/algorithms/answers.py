"""What the seven algorithms share: a question, separators, an answer that is hidden, and pads."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from vitwarm.rules.base import MOST_TOKENS, Bools, Ids, Rows, Rule, to_rows

#: The mark of a pop in `stack`; reserved everywhere, so that all seven share their ids.
POP = 0


@dataclass(frozen=True, kw_only=True)
class Algorithm(Rule):
    """What the seven share. Ids: 0 is reserved (pop), 1..n_symbols, the separator, the pad."""

    n_separators: ClassVar[int] = 1
    least_length: ClassVar[int] = 1
    """Tokens that x needs."""

    n_symbols: int = 99
    """Symbols that x is made of, from 2 on."""
    length: int | None = None
    """Tokens of x (of both parts for union, operations for stack); none: as many as fit."""

    def __post_init__(self) -> None:
        self.check("n_symbols", self.n_symbols >= 2, "needs at least 2 symbols")
        self.check_ids()
        fine = self.length is None or self.least_length <= self.length <= MOST_TOKENS
        allowed = f"takes a length from {self.least_length} to {MOST_TOKENS:,}, or none"
        self.check("length", fine, allowed)

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
    def pad_id(self) -> int:
        return self.n_symbols + 2

    @property
    def separator_ids(self) -> tuple[int, ...]:
        return (self.separator_id, self.pad_id)

    def n_needed(self, length: int) -> int:
        """Returns the tokens that x of this length, its separators and longest answer take."""
        return 2 * length + self.n_separators

    @abstractmethod
    def write(self, out_BT: Ids, key: np.uint64, rows_B: Rows, length: int) -> None:
        """Writes rows whose x has this length."""

    @abstractmethod
    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """Returns the answer by its definition; None where the question is none.

        Args: question: its parts, between separators.  length: the tokens that x must have.
        """

    @abstractmethod
    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Says whether tokens of these counts can be put into an order that is a word."""

    def part_lengths(self, length: int) -> list[int]:
        """Returns the lengths of the question's parts."""
        return [length]

    def question_length(self, n_tokens: int) -> int:
        """Returns the length of x in sequences of `n_tokens`; too short a sequence gives 0."""
        if self.length is not None:
            return self.length if self.n_needed(self.length) <= n_tokens else 0
        length = n_tokens  # n_needed grows by one to four tokens per token of x
        while length >= self.least_length and self.n_needed(length) > n_tokens:
            length -= 1
        return length if length >= self.least_length else 0

    def fit_length(self, n_tokens: int) -> int:
        """Returns `n_tokens`: pads take what the rule cannot use.

        Raises: RuleError: the question and its longest answer do not fit.
        """
        self.check_tokens(n_tokens, at_least=self.n_needed(self.length or self.least_length))
        return n_tokens

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        self.write(out_BT, self.key(seed), rows_B, self.question_length(out_BT.shape[1]))

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """The answer: what stands behind the last separator and is no pad. Returns: bool [B, T]."""
        ids = to_rows(ids_BT)
        answers = np.cumsum(ids == self.separator_id, axis=1, dtype=np.int16) == self.n_separators
        return np.array(answers & (ids <= self.n_symbols))

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Questions of the right length with their answer, then nothing but pads."""
        ids = to_rows(ids_BT)
        length = self.question_length(ids.shape[1])
        rows = [self._split(row) for row in ids.tolist()] if length else [None] * len(ids)
        return np.array(
            [p is not None and self.answer(p[:-1], length) == p[-1] for p in rows], dtype=bool
        )

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
        form = self.part_lengths(length)
        for row, tokens in enumerate(ids.tolist()):
            parts = self._split(tokens)
            if length and parts is not None and [len(part) for part in parts[:-1]] == form:
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

    def is_plain(self, x: list[int], length: int) -> bool:
        """Says whether x is made of symbols alone and has its length."""
        return len(x) == length and POP not in x

"""Seven algorithms as sequences: a question, a separator, its answer; the answer is hidden.

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
from numpy.typing import ArrayLike

from vitwarm.rules.algorithm_kernels import fill_delete, fill_mirrored, fill_stack, fill_unique
from vitwarm.rules.base import Bools, Ids, Rows, Rule, to_rows

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
        if self.n_symbols < 2:
            raise self.refuse("n_symbols", self.n_symbols, "needs at least 2 symbols")
        self.check_ids()
        if self.length is not None and self.length < self.least_length:
            raise self.refuse("length", self.length, f"takes a length from {self.least_length} on")

    @property
    def n_ids(self) -> int:
        """The pop, the symbols, the separator and the pad."""
        return self.n_symbols + 3

    @property
    def separator_id(self) -> int:
        """Stands between the question's parts and before the answer."""
        return self.n_symbols + 1

    @property
    def pad_id(self) -> int:
        """The last id."""
        return self.n_symbols + 2

    @property
    def separator_ids(self) -> tuple[int, ...]:
        """The separator and the pad."""
        return (self.separator_id, self.pad_id)

    @property
    def hide_share(self) -> float:
        """1: the whole answer."""
        return 1.0

    @property
    def determined(self) -> bool:
        """True: the question is visible and has one answer."""
        return True

    @abstractmethod
    def n_needed(self, length: int) -> int:
        """Returns the tokens that x of this length, its separators and longest answer take."""

    @abstractmethod
    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """Returns the answer by its definition; None where the question is none.

        Args: question: its parts, between separators.  length: the tokens that x must have.
        """

    @abstractmethod
    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Says whether tokens of these counts can be put into an order that is a word."""

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

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """The answer: what stands behind the last separator and is no pad. Returns: bool [B, T]."""
        ids = to_rows(ids_BT)
        answers = np.cumsum(ids == self.separator_id, axis=1, dtype=np.int16) == self.n_separators
        return np.array(answers & (ids <= self.n_symbols))

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Questions of the right length with their answer, then nothing but pads."""
        ids = to_rows(ids_BT)
        length = self.question_length(ids.shape[1])
        return np.array([self._is_word(row, length) for row in ids.tolist()], dtype=bool)

    def _is_word(self, row: list[int], length: int) -> bool:
        parts = self._split(row)
        if parts is None or not length:
            return False
        return self.answer(parts[:-1], length) == parts[-1]

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
        form = self.example_parts(length)
        for row, tokens in enumerate(ids.tolist()):
            parts = self._split(tokens)
            if length and parts is not None and [len(part) for part in parts[:-1]] == form:
                counts = Counter(token for part in parts for token in part)
                fine[row] = self.has_order(counts, len(parts[-1]), length)
        return fine

    def example_parts(self, length: int) -> list[int]:
        """Returns the lengths of the question's parts."""
        return [length]

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

    def _fill_unique(self, out_BT: Ids, seed: int, rows_B: Rows, *, halves: bool) -> None:
        length = self.question_length(out_BT.shape[1])
        last_row = np.full(self.n_symbols + 1, -1, dtype=np.int64)
        x = np.empty(length, dtype=np.int16)
        key, n_symbols = self.key(seed), self.n_symbols
        fill_unique(out_BT, key, rows_B, length, n_symbols, halves, last_row, x)

    def _is_plain(self, x: list[int], length: int) -> bool:
        """Says whether x is made of symbols alone and has its length."""
        return len(x) == length and POP not in x


@dataclass(frozen=True, kw_only=True)
class _Mirrored(Algorithm):
    """x, the separator, and the tokens of x in an order of their own."""

    _how: ClassVar[int]

    def n_needed(self, length: int) -> int:
        """x, the separator, and as many tokens again."""
        return 2 * length + 1

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        """Writes the sequences of these rows."""
        length = self.question_length(out_BT.shape[1])
        counts = np.zeros(self.n_symbols + 1, dtype=np.int64)
        fill_mirrored(out_BT, self.key(seed), rows_B, length, self.n_symbols, self._how, counts)

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Every symbol comes twice, or a multiple of it."""
        return n_answer == length and POP not in counts and not any(n % 2 for n in counts.values())


@dataclass(frozen=True, kw_only=True)
class Identity(_Mirrored):
    """x | x."""

    name: ClassVar[str] = "identity"
    _how: ClassVar[int] = 0

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """x itself."""
        return question[0] if self._is_plain(question[0], length) else None


@dataclass(frozen=True, kw_only=True)
class Reverse(_Mirrored):
    """x | x from its end."""

    name: ClassVar[str] = "reverse"
    _how: ClassVar[int] = 1

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """x from its end."""
        return question[0][::-1] if self._is_plain(question[0], length) else None


@dataclass(frozen=True, kw_only=True)
class Sort(_Mirrored):
    """x | x in ascending order."""

    name: ClassVar[str] = "sort"
    _how: ClassVar[int] = 2

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """x in ascending order."""
        return sorted(question[0]) if self._is_plain(question[0], length) else None


@dataclass(frozen=True, kw_only=True)
class Set(Algorithm):
    """x | the tokens of x, each once, in the order in which they first come."""

    name: ClassVar[str] = "set"

    def n_needed(self, length: int) -> int:
        """x, the separator, and at most as many tokens again."""
        return 2 * length + 1

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        """Writes the sequences of these rows."""
        self._fill_unique(out_BT, seed, rows_B, halves=False)

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """Every token of x once."""
        return list(dict.fromkeys(question[0])) if self._is_plain(question[0], length) else None

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Every symbol comes in x and once in the answer."""
        return POP not in counts and n_answer == len(counts) and min(counts.values()) >= 2


@dataclass(frozen=True, kw_only=True)
class Union(Algorithm):
    """x1 | x2 | the tokens of both, each once, in the order in which they first come."""

    name: ClassVar[str] = "union"
    n_separators: ClassVar[int] = 2
    least_length: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None and self.length % 2:
            raise self.refuse("length", self.length, "takes an even length: two equal halves")

    def n_needed(self, length: int) -> int:
        """Both halves, two separators, and at most as many tokens again."""
        return 2 * length + 2

    def question_length(self, n_tokens: int) -> int:
        """Returns the length of both halves together, an even number."""
        return super().question_length(n_tokens) // 2 * 2

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        """Writes the sequences of these rows."""
        self._fill_unique(out_BT, seed, rows_B, halves=True)

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """Every token of both halves once."""
        if not all(self._is_plain(half, length // 2) for half in question):
            return None
        return list(dict.fromkeys(question[0] + question[1]))

    def example_parts(self, length: int) -> list[int]:
        """Two halves."""
        return [length // 2, length // 2]

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Every symbol comes in a half and once in the answer."""
        return POP not in counts and n_answer == len(counts) and min(counts.values()) >= 2


@dataclass(frozen=True, kw_only=True)
class Delete(Algorithm):
    """x | d | x without the first d; d is any symbol, so often none of x."""

    name: ClassVar[str] = "delete"
    n_separators: ClassVar[int] = 2

    def n_needed(self, length: int) -> int:
        """x, d between two separators, and at most as many tokens as x again."""
        return 2 * length + 3

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        """Writes the sequences of these rows."""
        length = self.question_length(out_BT.shape[1])
        fill_delete(out_BT, self.key(seed), rows_B, length, self.n_symbols)

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """x without the first d."""
        x, d = question
        if not self._is_plain(x, length) or not self._is_plain(d, 1):
            return None
        place = x.index(d[0]) if d[0] in x else length
        return x[:place] + x[place + 1 :]

    def example_parts(self, length: int) -> list[int]:
        """x and d."""
        return [length, 1]

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """d is in x: all come in pairs. d is not: it comes once, the others in pairs."""
        odd = [n for n in counts.values() if n % 2]
        return POP not in counts and (
            (n_answer == length - 1 and not odd) or (n_answer == length and odd == [1])
        )


@dataclass(frozen=True, kw_only=True)
class Stack(Algorithm):
    """Operations (a symbol: push it; 0: pop) | the stack that they leave, its top first.

    With one token or none on the stack only a push is possible, a symbol that lies on it is not
    pushed again, and the last operation pops if it can. Two thirds of the way three in four
    operations push, then one in four.
    """

    name: ClassVar[str] = "stack"

    def n_needed(self, length: int) -> int:
        """The operations, the separator, and a stack of at most two tokens less."""
        return 2 * length + (1 if length <= 2 else -1)

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        """Writes the sequences of these rows."""
        length = self.question_length(out_BT.shape[1])
        symbols = np.empty(self.n_symbols, dtype=np.int16)
        fill_stack(out_BT, self.key(seed), rows_B, length, self.n_symbols, symbols)

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        """What lies on the stack in the end, the top first."""
        operations = question[0]
        if len(operations) != length:
            return None
        stack: list[int] = []
        for place, operation in enumerate(operations):
            can_pop = len(stack) > 1
            is_last = place == length - 1
            if operation == POP and can_pop:
                stack.pop()
            elif operation == POP or operation in stack or (is_last and can_pop):
                return None
            else:
                stack.append(operation)
        return stack[::-1]

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """As many are left as pushed and not popped, and each of these comes twice."""
        n_pops = counts.pop(POP, 0)
        pairs = sum(n >= 2 for n in counts.values())
        return 1 <= n_answer == length - 2 * n_pops and pairs >= n_answer

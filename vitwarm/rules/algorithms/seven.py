"""Seven algorithms as sequences: a question, a separator, its answer; the answer is hidden.

Source: "Procedural Pretraining" (arXiv 2601.21725), where they are next-token tasks of 64 tokens
over a vocabulary of 100. Here x is as long as the sequence allows unless `length` says otherwise,
and pads fill the rest: they stay visible and never count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitwarm.rules.algorithms.answers import POP, Algorithm
from vitwarm.rules.algorithms.kernels import fill_delete, fill_mirrored, fill_stack, fill_unique
from vitwarm.rules.base import Ids, Rows


@dataclass(frozen=True, kw_only=True)
class _Mirrored(Algorithm):
    """x, the separator, and the tokens of x in an order of their own."""

    _how: ClassVar[int]

    def write(self, out_BT: Ids, key: np.uint64, rows_B: Rows, length: int) -> None:
        counts = np.zeros(self.n_symbols + 1, dtype=np.int64)
        fill_mirrored(out_BT, key, rows_B, length, self.n_symbols, self._how, counts)

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Every symbol comes twice, or a multiple of it."""
        return n_answer == length and POP not in counts and not any(n % 2 for n in counts.values())


@dataclass(frozen=True, kw_only=True)
class Identity(_Mirrored):
    """x | x."""

    name: ClassVar[str] = "identity"
    _how: ClassVar[int] = 0

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        return question[0] if self.is_plain(question[0], length) else None


@dataclass(frozen=True, kw_only=True)
class Reverse(_Mirrored):
    """x | x from its end."""

    name: ClassVar[str] = "reverse"
    _how: ClassVar[int] = 1

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        return question[0][::-1] if self.is_plain(question[0], length) else None


@dataclass(frozen=True, kw_only=True)
class Sort(_Mirrored):
    """x | x in ascending order."""

    name: ClassVar[str] = "sort"
    _how: ClassVar[int] = 2

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        return sorted(question[0]) if self.is_plain(question[0], length) else None


@dataclass(frozen=True, kw_only=True)
class _Unique(Algorithm):
    """A question, and its tokens once, in the order in which they first come."""

    _halves: ClassVar[bool]

    def write(self, out_BT: Ids, key: np.uint64, rows_B: Rows, length: int) -> None:
        last_row = np.full(self.n_symbols + 1, -1, dtype=np.int64)
        x = np.empty(length, dtype=np.int16)
        fill_unique(out_BT, key, rows_B, length, self.n_symbols, self._halves, last_row, x)

    def has_order(self, counts: Counter[int], n_answer: int, length: int) -> bool:
        """Every symbol comes in the question and once in the answer."""
        return POP not in counts and n_answer == len(counts) and min(counts.values()) >= 2


@dataclass(frozen=True, kw_only=True)
class Set(_Unique):
    """x | the tokens of x, each once, in the order in which they first come."""

    name: ClassVar[str] = "set"
    _halves: ClassVar[bool] = False

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        return list(dict.fromkeys(question[0])) if self.is_plain(question[0], length) else None


@dataclass(frozen=True, kw_only=True)
class Union(_Unique):
    """x1 | x2 | the tokens of both, each once, in the order in which they first come."""

    name: ClassVar[str] = "union"
    _halves: ClassVar[bool] = True
    n_separators: ClassVar[int] = 2
    least_length: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("length", not (self.length or 0) % 2, "takes an even length: two equal halves")

    def question_length(self, n_tokens: int) -> int:
        """Returns the length of both halves together, an even number."""
        return super().question_length(n_tokens) // 2 * 2

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        if not all(self.is_plain(half, length // 2) for half in question):
            return None
        return list(dict.fromkeys(question[0] + question[1]))

    def part_lengths(self, length: int) -> list[int]:
        return [length // 2, length // 2]


@dataclass(frozen=True, kw_only=True)
class Delete(Algorithm):
    """x | d | x without the first d; d is any symbol, so often none of x."""

    name: ClassVar[str] = "delete"
    n_separators: ClassVar[int] = 2

    def n_needed(self, length: int) -> int:
        return 2 * length + 3  # x, d between two separators, and at most x again

    def write(self, out_BT: Ids, key: np.uint64, rows_B: Rows, length: int) -> None:
        fill_delete(out_BT, key, rows_B, length, self.n_symbols)

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
        x, d = question
        if not self.is_plain(x, length) or not self.is_plain(d, 1):
            return None
        place = x.index(d[0]) if d[0] in x else length
        return x[:place] + x[place + 1 :]

    def part_lengths(self, length: int) -> list[int]:
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

    def write(self, out_BT: Ids, key: np.uint64, rows_B: Rows, length: int) -> None:
        symbols = np.empty(self.n_symbols, dtype=np.int16)
        fill_stack(out_BT, key, rows_B, length, self.n_symbols, symbols)

    def answer(self, question: list[list[int]], length: int) -> list[int] | None:
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
        """As many are left as pushed and not popped, and each of these comes twice.

        One of them lies at the bottom: it is pushed once and never popped, so it comes just twice.
        The last operation pops a symbol that is not left, or pushes the second and last one.
        """
        symbols = [n for symbol, n in counts.items() if symbol != POP]
        is_left = 1 <= n_answer == length - 2 * counts[POP]
        can_be_left = sum(n >= 2 for n in symbols) >= n_answer and 2 in symbols
        can_end = length == 1 or n_answer == 2 or len(symbols) > n_answer
        return is_left and can_be_left and can_end

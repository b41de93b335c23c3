"""Stack: operations, a separator, and what they leave on the stack."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitwarm.rules.algorithms import POP, Algorithm
from vitwarm.rules.base import Ids, Rows
from vitwarm.rules.draws import GAMMA, LOW, below, compiled, mixed, stream


@dataclass(frozen=True, kw_only=True)
class Stack(Algorithm):
    """Operations (a symbol: push it; 0: pop) | the stack that they leave, its top first.

    With one token or none on the stack only a push is possible, a symbol that lies on it is not
    pushed again, and the last operation pops if it can. Two thirds of the way three in four
    operations push, then one in four.
    """

    name: ClassVar[str] = "stack"
    pops: ClassVar[bool] = True

    def n_needed(self, length: int) -> int:
        """The operations, the separator, and a stack of at most two tokens less."""
        return 2 * length + (1 if length <= 2 else -1)

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        length, symbols = self.question_length(out_BT.shape[1]), np.empty(self.n_symbols, np.int16)
        _fill_stack(out_BT, self.key(seed), rows_B, length, self.n_symbols, symbols)

    def compute(self, question: list[list[int]]) -> list[int] | None:
        stack: list[int] = []
        for place, operation in enumerate(question[0]):
            can_pop = len(stack) > 1
            is_last = place == len(question[0]) - 1
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


@compiled
def _fill_stack(
    out: Ids, key: np.uint64, rows: Rows, length: int, n_symbols: int, symbols: Ids
) -> None:
    # symbols[:n_free] do not lie on the stack, in any order; the rest does, its top first: so the
    # top is symbols[n_free].
    one_in_four = LOW >> np.uint64(2)
    three_in_four = LOW - one_in_four
    for b in range(len(rows)):
        row = out[b]
        for i in range(n_symbols):
            symbols[i] = i + 1
        n_free = n_symbols
        state = stream(key, rows[b])
        for t in range(length):
            state += GAMMA
            bits = mixed(state)
            size = n_symbols - n_free
            pushes = (bits & LOW) <= (three_in_four if 3 * t < 2 * length else one_in_four)
            if size <= 1 or (pushes and n_free > 0 and t < length - 1):
                choice = np.int64(below(bits, np.uint64(n_free)))
                n_free -= 1
                symbol = symbols[choice]
                symbols[choice] = symbols[n_free]
                symbols[n_free] = symbol
                row[t] = symbol
            else:
                row[t] = 0
                n_free += 1
        row[length] = n_symbols + 1
        end = length + 1
        for i in range(n_free, n_symbols):
            row[end] = symbols[i]
            end += 1
        for i in range(end, len(row)):
            row[i] = n_symbols + 2

"""The compiled generators of the seven algorithms.

All write rows of: question, separator (n_symbols + 1), answer, pads (n_symbols + 2). One draw of 64
bits gives two symbols.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitwarm.rules.base import Ids, Rows
from vitwarm.rules.draws import GAMMA, LOW, below, compiled, mixed, stream, write_symbols

Counts = NDArray[np.int64]


@compiled
def _write_pads(row: Ids, end: int, n_symbols: int) -> None:
    for i in range(end, len(row)):
        row[i] = n_symbols + 2


@compiled
def fill_mirrored(
    out: Ids, key: np.uint64, rows: Rows, length: int, n_symbols: int, how: int, counts: Counts
) -> None:
    """Writes x | x (how = 0), x | reversed x (1), x | sorted x (2). counts: [n_symbols + 1]."""
    for b in range(len(rows)):
        row = out[b]
        write_symbols(row[:length], 1, np.uint64(n_symbols), stream(key, rows[b]))
        row[length] = n_symbols + 1
        end = length + 1
        if how == 0:
            for i in range(length):
                row[end + i] = row[i]
        elif how == 1:
            for i in range(length):
                row[end + i] = row[length - 1 - i]
        else:
            for symbol in range(n_symbols + 1):
                counts[symbol] = 0
            for i in range(length):
                counts[row[i]] += 1
            for symbol in range(1, n_symbols + 1):
                for _ in range(counts[symbol]):
                    row[end] = symbol
                    end += 1
        _write_pads(row, 2 * length + 1, n_symbols)


@compiled
def fill_unique(
    out: Ids, key: np.uint64, rows: Rows, length: int, n_symbols: int, halves: bool,
    last_row: Counts, x: Ids,
) -> None:  # fmt: skip
    """Writes x | its tokens once, or with halves x1 | x2 | the tokens of both once.

    last_row: [n_symbols + 1] of -1, the row in which a symbol was last seen. x: [length].
    """
    for b in range(len(rows)):
        row = out[b]
        write_symbols(x, 1, np.uint64(n_symbols), stream(key, rows[b]))
        end = 0
        for i in range(length):
            if halves and i == length // 2:
                row[end] = n_symbols + 1
                end += 1
            row[end] = x[i]
            end += 1
        row[end] = n_symbols + 1
        end += 1
        for i in range(length):
            if last_row[x[i]] != b:
                last_row[x[i]] = b
                row[end] = x[i]
                end += 1
        _write_pads(row, end, n_symbols)


@compiled
def fill_delete(out: Ids, key: np.uint64, rows: Rows, length: int, n_symbols: int) -> None:
    """Writes x | d | x without the first d."""
    for b in range(len(rows)):
        row = out[b]
        state = write_symbols(row[:length], 1, np.uint64(n_symbols), stream(key, rows[b])) + GAMMA
        d = 1 + np.int16(below(mixed(state), np.uint64(n_symbols)))
        row[length] = n_symbols + 1
        row[length + 1] = d
        row[length + 2] = n_symbols + 1
        end = length + 3
        found = False
        for i in range(length):
            if row[i] == d and not found:
                found = True
            else:
                row[end] = row[i]
                end += 1
        _write_pads(row, end, n_symbols)


@compiled
def fill_stack(
    out: Ids, key: np.uint64, rows: Rows, length: int, n_symbols: int, symbols: Ids
) -> None:
    """Writes operations | the stack that they leave, top first. symbols: [n_symbols]."""
    # symbols[:n_free] do not lie on the stack, in any order; the rest does, its top first: so the
    # top is symbols[n_free].
    three_in_four = LOW - (LOW >> np.uint64(2))
    one_in_four = LOW >> np.uint64(2)
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
        _write_pads(row, end, n_symbols)

"""Counter-based random numbers inside compiled code: one stream per sequence, no shared state.

A row's stream starts at a hash of (key, row), and the key is a hash of the seed and of what is
drawn, so that neighbouring seeds, rows, rules, and the tokens and hidden positions of one row never
share a stream.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


@njit(inline="always", cache=True)
def scramble(z: np.uint64) -> np.uint64:
    """Returns splitmix64's finaliser of 64 bits (Steele, Lea, Flood 2014; Stafford's mix 13)."""
    z = (z ^ (z >> np.uint64(30))) * _M1
    z = (z ^ (z >> np.uint64(27))) * _M2
    return z ^ (z >> np.uint64(31))


@njit(inline="always", cache=True)
def row_state(key: np.uint64, row: int) -> np.uint64:
    """Returns the first state of a row's stream."""
    return scramble(scramble(np.uint64(row) * GOLDEN + key) + key)


@njit(inline="always", cache=True)
def below(bits: np.uint64, n: int) -> int:
    """Maps 64 random bits to [0, n) by a multiplication (bias below n / 2**32)."""
    return int(((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


def threshold(share: float) -> np.uint64:
    """Returns t such that a uniform 64-bit number lies below t with probability `share`."""
    return np.uint64(min(int(share * 2.0**64), 2**64 - 1))


@njit(nogil=True, cache=True)
def hide_rows(
    maskable: np.ndarray, key: np.uint64, start: int, limit: np.uint64, out: np.ndarray
) -> None:
    """Draws, for each maskable token on its own, whether it is hidden.

    Args:
        maskable: bool [B, T].
        key: of this draw.
        start: number of the first row.
        limit: `threshold` of the share.
        out: bool [B, T], filled.
    """
    everything = limit == np.uint64(0xFFFFFFFFFFFFFFFF)
    for b in range(maskable.shape[0]):
        state = row_state(key, start + b)
        for t in range(maskable.shape[1]):
            state += GOLDEN
            out[b, t] = maskable[b, t] and (everything or scramble(state) < limit)

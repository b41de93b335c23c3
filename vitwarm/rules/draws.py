"""Random numbers inside compiled code: a pure function of (key, row, how many were drawn before).

Every row (sequence) has its own splitmix64 stream, whose start is a hash of the key and the row's
number; the key is a hash of the seed and a path of names. So a row is the same in any batch, on
any thread or machine, and only integers take part in its making.
Source: Steele, Lea, Flood 2014 (splitmix64), constants of Stafford's mix 13.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

GAMMA = np.uint64(0x9E3779B97F4A7C15)
LOW = np.uint64(0xFFFFFFFF)
_A = np.uint64(0xBF58476D1CE4E5B9)
_B = np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)

Function = TypeVar("Function", bound=Callable[..., Any])

# numba's cache notices a change of the file that holds a function, not of the files that it calls
# into. This file's digest in every function's name makes a changed stream a new cache entry.
_DIGEST = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6).hexdigest()


def compiled(function: Function) -> Function:
    """Compiles a function on its first call, without the GIL, and keeps the machine code on disk.

    Where neither the package nor the user's cache folder can be written, each process compiles.
    Compiled functions get their scratch arrays from outside and fill them element by element:
    allocations and array expressions inside them take most of a second each to compile.
    """
    function.__qualname__ = f"{function.__qualname__}_{_DIGEST}"
    try:
        return cast(Function, njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # numba: no folder to cache in
        return cast(Function, njit(nogil=True, error_model="numpy")(function))


@njit(nogil=True, error_model="numpy")
def mixed(z: np.uint64) -> np.uint64:
    """Returns a hash of 64 bits; neighbouring values give unrelated ones."""
    z = (z ^ (z >> _30)) * _A
    z = (z ^ (z >> _27)) * _B
    return z ^ (z >> _31)


@njit(nogil=True, error_model="numpy")
def stream(key: np.uint64, row: np.uint64) -> np.uint64:
    """Returns where a row's stream starts. Draw j, from 1 on, is `mixed(start + j * GAMMA)`."""
    return mixed(mixed(key + row * GAMMA) ^ key)


@njit(nogil=True, error_model="numpy")
def below(bits: np.uint64, n: np.uint64) -> np.uint64:
    """Returns an integer uniform over [0, n) from the upper half of a draw; n < 2**32."""
    return ((bits >> _32) * n) >> _32


@njit(nogil=True, error_model="numpy")
def below_low(bits: np.uint64, n: np.uint64) -> np.uint64:
    """Returns an integer uniform over [0, n) from the lower half of a draw; n < 2**32."""
    return ((bits & LOW) * n) >> _32


@njit(nogil=True, error_model="numpy")
def happens(bits: np.uint64, threshold: np.uint64) -> np.bool_:
    """Returns true with the probability that `to_threshold` got, from a draw's lower half."""
    return (bits & LOW) < threshold


@njit(nogil=True, error_model="numpy")
def write_symbols(out: NDArray[np.int16], first: int, n: np.uint64, state: np.uint64) -> np.uint64:
    """Writes ids uniform over [first, first + n), two from a draw; returns the new state."""
    pairs = len(out) // 2
    for i in range(pairs):
        state += GAMMA
        bits = mixed(state)
        out[2 * i] = first + np.int16(below(bits, n))
        out[2 * i + 1] = first + np.int16(below_low(bits, n))
    if len(out) % 2:
        state += GAMMA
        out[len(out) - 1] = first + np.int16(below(mixed(state), n))
    return state


def to_threshold(probability: float) -> np.uint64:
    """Returns the number in [0, 2**32] that half a draw stays below with this probability."""
    return np.uint64(math.floor(probability * 2**32))

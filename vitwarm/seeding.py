"""One seed and a path of names give independent generators, the same on every machine.

Nothing here touches global state. A path such as `("fraction", 3)` is hashed together with the
seed, so neighbouring seeds, stages, epochs and rows never share a stream, and no arithmetic on
seeds (seed + epoch + row) can make two of them collide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

Name = str | int


def hash_bits(seed: int, *path: Name, n_bytes: int = 8) -> int:
    """Returns an unsigned integer of `n_bytes` bytes that depends on the seed and the whole path.

    Args:
        seed: any integer.
        path: names and numbers; `("a", "b")` differs from `("ab",)` and `("1",)` from `(1,)`.
        n_bytes: 1 to 64.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(p).__name__}:{p}" for p in path)])
    digest = hashlib.blake2b(text.encode(), digest_size=n_bytes).digest()
    return int.from_bytes(digest, "little")


def seed_of(seed: int, *path: Name) -> int:
    """Returns a seed in [0, 2**63) for a generator that takes one integer."""
    return hash_bits(seed, *path) >> 1


def numpy_rng(seed: int, *path: Name) -> np.random.Generator:
    """Returns a counter-based numpy generator (Philox) of this seed and path."""
    return np.random.Generator(np.random.Philox(key=hash_bits(seed, *path, n_bytes=16)))


def mix_u64(values: np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Hashes an array of integers to uint64, each on its own (splitmix64's finaliser, twice keyed).

    Args:
        values: integers of any shape.
        key: a 64-bit integer, as `hash_bits` returns, or several as uint64.
    Returns: uint64 of the shape that both broadcast to, uniform over all 64 bits.
    Source: Steele, Lea, Flood 2014 (splitmix64), constants of Stafford's mix 13.
    """
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) + np.uint64(key)
    return z


def shuffled(values: np.ndarray, seed: int, *path: Name) -> np.ndarray:
    """Returns a random order of different integers that depends on each alone, int64 [n]."""
    return np.argsort(mix_u64(values, hash_bits(seed, *path)), kind="stable")


@contextmanager
def torch_seeded(seed: int, *path: Name) -> Iterator[None]:
    """Runs a block under torch's CPU generator seeded by this path, and restores its state after.

    For code that draws from torch's global generator and takes no other (timm's initialisers).
    """
    import torch  # rules and reports import this module and must stay free of torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, *path))
        yield

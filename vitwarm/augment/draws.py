"""Random numbers that belong to a sample, not to a batch: hashes of (seed, epoch, row, name).

The same sample gets the same numbers in any batch, on any rank, before and after a resume. All of
a batch's numbers come from a few numpy calls on the host, so that no device waits for them.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np

from vitwarm.seeding import hash_bits, mix_u64


class Draws:
    """Uniform and normal numbers of a batch of samples, by name."""

    def __init__(self, seed: int, purpose: str, *keys: np.ndarray) -> None:
        """Remembers who draws: integers [b] name each sample, such as its epoch and its row.

        Two purposes never share a stream.
        """
        self.seed, self.purpose = seed, purpose
        state = np.zeros(len(keys[0]), np.uint64)
        for place, key in enumerate(keys):
            state = mix_u64(state + key.astype(np.uint64), _key(seed, purpose, place))
        self._state = state

    def __len__(self) -> int:
        return len(self._state)

    def take(self, index: np.ndarray) -> Draws:
        """Returns the same streams for some of the samples only."""
        part = copy.copy(self)
        part._state = self._state[index]
        return part

    def uniform(self, *names: str) -> np.ndarray:
        """Returns float64 [len(names), b] in [0, 1), 53 random bits each."""
        keys = np.array([_key(self.seed, self.purpose, n) for n in names], np.uint64)
        bits = mix_u64(self._state[None] + keys[:, None], _key(self.seed, self.purpose, "draw"))
        shares: np.ndarray = (bits >> np.uint64(11)) * 2.0**-53
        return shares

    def normal(self, name: str) -> np.ndarray:
        """Returns standard normal numbers, float64 [b] (Box and Muller)."""
        radius, angle = self.uniform(f"{name}/radius", f"{name}/angle")
        normal: np.ndarray = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        return normal

    def integers(self, name: str, n: int | np.ndarray) -> np.ndarray:
        """Returns int64 [b], uniform in [0, n)."""
        below: np.ndarray = np.floor(self.uniform(name)[0] * n).astype(np.int64)
        return below


@lru_cache(maxsize=4096)
def _key(seed: int, purpose: str, name: str | int) -> int:
    return hash_bits(seed, "augment", purpose, name)


def symmetric_beta(uniform: np.ndarray, alpha: float) -> np.ndarray:
    """Turns uniform numbers into Beta(alpha, alpha) ones through the distribution's quantiles.

    Args:
        uniform: in [0, 1), any shape.
        alpha: above 0.
    """
    shares, quantiles = _beta_quantiles(alpha)
    lower: np.ndarray = np.interp(np.minimum(uniform, 1 - uniform), shares, quantiles)
    return np.where(uniform < 0.5, lower, 1 - lower)


@lru_cache(maxsize=16)
def _beta_quantiles(alpha: float, n: int = 8193) -> tuple[np.ndarray, np.ndarray]:
    """The lower half's distribution function on a grid on which its density has no pole.

    With x = t**(1 / alpha) the density x**(alpha-1) (1-x)**(alpha-1) dx is (1-x)**(alpha-1) dt.
    """
    t = np.linspace(0, 0.5**alpha, n)
    x = t ** (1 / alpha)
    density = (1 - x) ** (alpha - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return 0.5 * mass / mass[-1], x

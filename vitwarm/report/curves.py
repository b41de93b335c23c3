"""The report's numbers: intervals, paired differences, and what a curve says.

Three rules hold everywhere: an interval needs three seeds (Student t; a bootstrap over three values
is just their range and covers 75 %), a quantity read off a curve gets a bootstrap interval from six
seeds on, and a curve is read only inside what was measured; outside it there is a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]
from scipy.special import stdtrit  # type: ignore[import-untyped]

#: Seeds below which a mean gets no interval, and a curve's reading no bootstrap.
MIN_SEEDS_INTERVAL = 3
MIN_SEEDS_BOOTSTRAP = 6
#: Coverage of every interval, and draws of a bootstrap.
LEVEL = 0.95
N_DRAWS = 4000

Bound = Literal["=", "<", ">", "?"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds; no standard deviation below two of them, no interval below three."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool | None:
        """Whether zero lies outside the interval; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Reading:
    """The number of images at which a curve reaches an accuracy, or a bound at its measured end."""

    images: float | None
    """The number, or for a bound the end of the measured range; None where undetermined."""
    bound: Bound
    """`=` inside the measured range; `<` fewer than its smallest; `>` more than its largest; `?`
    undetermined: the curve falls, and its monotone fit contradicts what was measured."""
    fitted: bool
    """The curve was not monotone and was replaced by its isotonic (least squares) fit."""


@dataclass(frozen=True)
class EqualAccuracy:
    """Images an arm needs for the accuracy that another reaches with `reference_images`."""

    estimate: Reading
    """Read off the mean curves of the seeds that both arms completed."""
    per_seed: dict[str, Reading]
    """Read off each seed's own two curves."""
    low: Reading | None
    high: Reading | None
    """Ends of the bootstrap interval over seeds; None below six seeds."""


def t_quantile(p: float, df: float) -> float:
    """Returns the quantile of Student's t with `df` degrees of freedom: t with P(T <= t) = p."""
    return float(stdtrit(df, p))


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of values, one per seed, with its Student-t interval.

    Raises: ValueError: no values, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n == 0 or not np.isfinite(data).all():
        raise ValueError(f"mean_interval needs finite values and at least one, not {values!r}")
    mean = float(data.mean())
    sd = float(data.std(ddof=1)) if n > 1 else None
    if n < MIN_SEEDS_INTERVAL or sd is None:
        return Interval(n, mean, sd, None, None)
    half = t_quantile(0.5 + LEVEL / 2, n - 1) * sd / math.sqrt(n)
    return Interval(n, mean, sd, mean - half, mean + half)


def paired_differences(
    arm: Mapping[str, float], reference: Mapping[str, float]
) -> tuple[dict[str, float], list[str]]:
    """Returns arm minus reference for each shared pair, and the pairs that only one of them has."""
    shared = {pair: arm[pair] - reference[pair] for pair in sorted(arm.keys() & reference.keys())}
    return shared, sorted(arm.keys() ^ reference.keys())


def isotonic(y_SN: np.ndarray) -> np.ndarray:
    """Returns the non-decreasing curves nearest in least squares, each row on its own."""
    return np.reshape([isotonic_regression(row).x for row in y_SN], y_SN.shape)


def read_curves(
    images_N: np.ndarray, accuracy_SN: np.ndarray, target_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images at which each curve first reaches its target.

    Piecewise linear in log(images); a curve that is not monotone is replaced by its isotonic fit.

    Args:
        images_N: ascending, above 0.
        accuracy_SN: one curve per row.
        target_S: one accuracy per row.
    Returns: images float64 [S], -inf where the curve lies above the target everywhere, +inf where
        it never reaches it, nan where the isotonic fit says so and the measured points do not; and
        bool [S], whether the isotonic fit was needed.
    """
    log_N = np.log(images_N)
    fitted_S = np.any(np.diff(accuracy_SN, axis=1) < 0, axis=1)
    curve_SN = np.array(accuracy_SN, dtype=np.float64)
    curve_SN[fitted_S] = isotonic(curve_SN[fitted_S])
    # Averaging rounds in the last digits; a curve must still reach its own points.
    reached_SN = curve_SN >= target_S[:, None] - 1e-9
    first_S = reached_SN.argmax(axis=1)
    rows = np.arange(len(target_S))
    before_S = np.maximum(first_S - 1, 0)
    y0, y1 = curve_SN[rows, before_S], curve_SN[rows, first_S]
    rise = np.where(y1 > y0, y1 - y0, 1.0)
    share = np.clip(np.where(y1 > y0, (target_S - y0) / rise, 1.0), 0.0, 1.0)
    read_S = np.exp(log_N[before_S] + share * (log_N[first_S] - log_N[before_S]))
    below = (first_S == 0) & (curve_SN[:, 0] > target_S + 1e-9)
    read_S = np.where(below, -np.inf, read_S)
    read_S = np.where(np.any(reached_SN, axis=1), read_S, np.inf)
    above_SN = accuracy_SN >= target_S[:, None] - 1e-9
    torn_S = (np.isposinf(read_S) & np.any(above_SN, axis=1)) | (
        np.isneginf(read_S) & ~np.all(above_SN, axis=1)
    )
    return np.where(torn_S, np.nan, read_S), fitted_S


def equal_accuracy(
    images: Sequence[float],
    arm: Mapping[str, Sequence[float]],
    reference_at: Mapping[str, float],
) -> EqualAccuracy | None:
    """Returns how many images an arm needs for the accuracy that a reference reaches.

    Args:
        images: the sizes at which the arm was measured, ascending, at least two.
        arm: pair -> accuracy at each size, for the pairs that have them all.
        reference_at: pair -> the reference's accuracy at the size in question.
    Returns: None where no pair has both.
    """
    pairs = sorted(arm.keys() & reference_at.keys())
    if not pairs or len(images) < 2:
        return None
    sizes = np.asarray(images, dtype=np.float64)
    curves_SN = np.array([arm[pair] for pair in pairs], dtype=np.float64)
    targets_S = np.array([reference_at[pair] for pair in pairs], dtype=np.float64)
    single, fitted = read_curves(sizes, curves_SN, targets_S)
    mean, mean_fitted = read_curves(
        sizes, curves_SN.mean(axis=0, keepdims=True), targets_S.mean(keepdims=True)
    )
    low = high = None
    if len(pairs) >= MIN_SEEDS_BOOTSTRAP:
        draws = np.random.default_rng(0).integers(len(pairs), size=(N_DRAWS, len(pairs)))
        read, _ = read_curves(sizes, curves_SN[draws].mean(axis=1), targets_S[draws].mean(axis=1))
        # Draws outside the measured range are infinite; ends are taken outward, never interpolated
        # between a number and an infinity. An undetermined draw could lie anywhere: it widens both.
        lows, highs = (np.sort(np.where(np.isnan(read), end, read)) for end in (-np.inf, np.inf))
        low = _to_reading(lows[math.floor((1 - LEVEL) / 2 * (N_DRAWS - 1))], sizes)
        high = _to_reading(highs[math.ceil((1 + LEVEL) / 2 * (N_DRAWS - 1))], sizes)
    each = zip(pairs, single, fitted, strict=True)
    return EqualAccuracy(
        estimate=_to_reading(mean[0], sizes, mean_fitted[0]),
        per_seed={pair: _to_reading(value, sizes, fit) for pair, value, fit in each},
        low=low,
        high=high,
    )


def _to_reading(value: float, sizes: np.ndarray, fitted: bool = False) -> Reading:
    if np.isnan(value):
        return Reading(None, "?", bool(fitted))
    if value == -np.inf:
        return Reading(float(sizes[0]), "<", bool(fitted))
    if value == np.inf:
        return Reading(float(sizes[-1]), ">", bool(fitted))
    return Reading(float(value), "=", bool(fitted))

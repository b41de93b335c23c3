"""The report's numbers: quantiles, coverage, isotonic fits, and a known saving given back."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitwarm.report.curves import (
    MIN_SEEDS_BOOTSTRAP,
    equal_accuracy,
    isotonic,
    mean_interval,
    paired_differences,
    read_curves,
    t_quantile,
)


@pytest.mark.parametrize(
    ("p", "df", "expected"),  # printed tables (NIST/SEMATECH e-Handbook, 1.3.6.7.2), more digits
    [
        (0.975, 1, 12.706204736),
        (0.975, 2, 4.302652730),
        (0.975, 4, 2.776445105),
        (0.975, 9, 2.262157163),
        (0.975, 30, 2.042272456),
        (0.995, 2, 9.924843201),
        (0.95, 5, 2.015048373),
        (0.9, 100, 1.290074761),
        (0.975, 1e7, 1.959964),
    ],
)
def test_t_quantile_agrees_with_the_tables(p: float, df: float, expected: float) -> None:
    assert t_quantile(p, df) == pytest.approx(expected, rel=1e-6)
    assert t_quantile(1 - p, df) == pytest.approx(-expected, rel=1e-6)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_t_intervals_cover(n: int) -> None:
    """4,000 samples of n: the share of 95 % intervals holding the true mean is 95 %."""
    draws = np.random.default_rng(n).normal(70.0, 0.7, size=(4000, n))
    inside = 0
    for row in draws:
        interval = mean_interval(row.tolist())
        assert interval.low is not None
        assert interval.high is not None
        inside += interval.low <= 70.0 <= interval.high
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)  # three standard errors are 0.010


def test_no_interval_below_three_seeds() -> None:
    one, two = mean_interval([50.0]), mean_interval([50.0, 52.0])
    assert (one.sd, one.low, one.excludes_zero) == (None, None, None)
    assert two.sd == pytest.approx(math.sqrt(2))
    assert two.low is None
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.nan])


def test_paired_differences_take_shared_pairs_only() -> None:
    shared, alone = paired_differences({"a": 2.0, "b": 5.0}, {"a": 1.5, "c": 9.0})
    assert shared == {"a": 0.5}
    assert alone == ["b", "c"]


curves = st.lists(st.floats(-100, 100), min_size=1, max_size=7)


@given(curves)
def test_isotonic_is_the_nearest_monotone_curve(values: list[float]) -> None:
    y = np.array([values])
    fit = isotonic(y)[0]
    assert (np.diff(fit) >= -1e-9).all()
    assert fit.sum() == pytest.approx(y.sum(), abs=1e-6)  # blocks are replaced by their means
    assert np.allclose(isotonic(fit[None])[0], fit)
    best = ((fit - y[0]) ** 2).sum()
    rng = np.random.default_rng(0)
    for _ in range(20):  # no monotone curve nearby is nearer
        other = np.sort(fit + rng.normal(0, 1, len(fit)))
        assert ((other - y[0]) ** 2).sum() >= best - 1e-6


@given(curves.filter(lambda v: len(v) > 1), st.floats(-120, 120))
def test_readings_lie_inside_the_measured_range(values: list[float], target: float) -> None:
    sizes = 10.0 * 2.0 ** np.arange(len(values))
    read, fitted = read_curves(sizes, np.array([values]), np.array([target]))
    if np.isnan(read[0]):  # the fit and the points contradict each other
        assert fitted[0]
        assert min(values) < target <= max(values) + 1e-9
    if np.isposinf(read[0]):
        assert max(values) < target
    if np.isneginf(read[0]):
        assert min(values) >= target - 1e-9
    if np.isfinite(read[0]):
        assert sizes[0] * 0.999999 <= read[0] <= sizes[-1] * 1.000001
    assert fitted[0] == (np.diff(values) < 0).any()


def test_interpolation_is_linear_in_log_images() -> None:
    sizes = np.array([10.0, 1000.0])
    read, _ = read_curves(sizes, np.array([[50.0, 70.0]]), np.array([60.0]))
    assert read[0] == pytest.approx(100.0)


def test_outside_the_measured_range_there_is_a_bound() -> None:
    arm = {"0": [50.0, 60.0], "1": [52.0, 62.0]}
    above = equal_accuracy([10, 100], arm, {"0": 61.0, "1": 63.0})
    below = equal_accuracy([10, 100], arm, {"0": 40.0, "1": 40.0})
    assert above is not None
    assert below is not None
    assert (above.estimate.bound, above.estimate.images) == (">", 100)
    assert (below.estimate.bound, below.estimate.images) == ("<", 10)
    assert {r.bound for r in above.per_seed.values()} == {">"}
    # What an arm reaches with its own images needs exactly these images, at both ends.
    for column, size in ((0, 10), (1, 100)):
        own = equal_accuracy([10, 100], arm, {p: a[column] for p, a in arm.items()})
        assert own is not None
        assert own.estimate.bound == "="
        assert own.estimate.images == pytest.approx(size)


def test_a_curve_that_is_not_monotone_says_so() -> None:
    arm = {"0": [50.0, 62.0, 60.0, 70.0]}
    read = equal_accuracy([10, 100, 1000, 10_000], arm, {"0": 61.0})
    assert read is not None
    assert read.estimate.fitted
    assert read.estimate.images == pytest.approx(100.0)  # 62 and 60 pool to 61


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("saving", [0.28, -0.2, 0.6])
def test_a_synthetic_power_law_gives_back_its_known_saving(saving: float, noise: float) -> None:
    """err = 8 + 90 n^-0.35, and an arm to which every image counts as 1 / (1 - saving) images."""
    rng = np.random.default_rng(7)
    sizes = np.geomspace(200, 51_200, 17)

    def accuracy(n: np.ndarray) -> np.ndarray:
        return 100 - (8 + 90 * n**-0.35)

    shared = rng.normal(0, 1.0, size=8)  # what paired seeds have in common cancels
    arm, reference = {}, {}
    at = 10  # with 12.8 times as many images above as below it
    for seed in range(8):
        own = accuracy(sizes / (1 - saving)) + shared[seed] + rng.normal(0, noise, len(sizes))
        arm[str(seed)] = own.tolist()
        reference[str(seed)] = float(accuracy(sizes[at]) + shared[seed] + rng.normal(0, noise))
    read = equal_accuracy(sizes.tolist(), arm, reference)
    assert read is not None
    found = 1 - read.estimate.images / sizes[at]
    assert found == pytest.approx(saving, abs=0.01 if noise == 0 else 0.08)
    assert read.low is not None
    assert read.high is not None
    if noise:
        true_images = sizes[at] * (1 - saving)
        assert read.low.images <= true_images <= read.high.images


def test_bootstrap_only_from_six_seeds() -> None:
    def read(n: int):
        arm = {str(s): [50.0 + s, 60.0 + s] for s in range(n)}
        return equal_accuracy([10, 100], arm, {str(s): 55.0 for s in range(n)})

    few, enough = read(MIN_SEEDS_BOOTSTRAP - 1), read(MIN_SEEDS_BOOTSTRAP)
    assert few is not None
    assert enough is not None
    assert few.low is None
    assert enough.low is not None


def test_bootstrap_ends_may_be_bounds() -> None:
    arm = {str(s): [50.0, 60.0] for s in range(6)}
    target = {str(s): v for s, v in enumerate([40.0, 45.0, 55.0, 58.0, 64.0, 66.0])}
    read = equal_accuracy([10, 100], arm, target)
    assert read is not None
    assert read.low is not None
    assert read.high is not None
    assert (read.low.bound, read.high.bound) == ("<", ">")
    assert read.estimate.bound == "="


def test_a_falling_curve_is_called_undetermined() -> None:
    """25.7 then 16.7 pools to 21.2, below 21.9: neither `more than` nor `fewer than` is true."""
    arm = {"0": [25.7, 16.7]}
    read = equal_accuracy([130, 1297], arm, {"0": 21.9})
    assert read is not None
    assert (read.estimate.bound, read.estimate.images) == ("?", None)


def test_undetermined_draws_widen_the_interval() -> None:
    arm = {str(s): [60.0, 50.0] if s < 3 else [40.0, 70.0] for s in range(6)}
    read = equal_accuracy([10, 100], arm, {str(s): 55.5 for s in range(6)})
    assert read is not None
    assert read.low is not None
    assert read.high is not None
    assert (read.low.bound, read.high.bound) == ("<", ">")

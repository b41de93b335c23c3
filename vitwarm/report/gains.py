"""Which figure of a warm-up goes with its gain: arms compared by what their warm-ups reached."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitwarm.report.facts import Difference, Gain, RankCorrelation, Warmup

#: Arms with warm-ups that differ below which ranks say nothing: four arms have 24 orders.
MIN_ARMS = 4
_N_ORDERS = 50_000


def _beyond(line: Warmup) -> float | None:
    accuracy, blind = line.fact("hidden_accuracy_percent"), line.fact("order_blind_percent")
    return None if accuracy is None or blind is None else float(accuracy - blind)


def _steps_to_half(line: Warmup) -> float | None:
    """Infinite where a training curve never gets to 50 %: such an arm ranks last."""
    steps = zip(line.curve_steps, line.curve_percent, strict=True)
    reached = (float(step) for step, percent in steps if percent >= 50)
    return next(reached, float("inf")) if line.curve_steps else None


BEYOND = "held-out accuracy − order-blind baseline"
#: Figures of a warm-up that could go with a gain.
FIGURES: dict[str, Callable[[Warmup], float | None]] = {
    "held-out accuracy": lambda line: line.fact("hidden_accuracy_percent"),
    "order-blind baseline": lambda line: line.fact("order_blind_percent"),
    BEYOND: _beyond,
    "steps to 50 % of the hidden tokens": _steps_to_half,
}


def list_gains(differences: Sequence[Difference], warmups: Sequence[Warmup]) -> list[Gain]:
    """Returns the arms with a warm-up at each size where `MIN_ARMS` of them differ in it.

    Arms of one warm-up cannot tell which of its figures matters.
    """
    gains = []
    for one in differences:
        lines = [line for line in warmups if one.arm in line.arms]
        values = {name: [read(line) for line in lines] for name, read in FIGURES.items()}
        means = {
            name: float(np.mean([value for value in each if value is not None]))
            for name, each in values.items()
            if lines and None not in each
        }
        figures = {name: mean if math.isfinite(mean) else None for name, mean in means.items()}
        if BEYOND in figures:
            gain = Gain(arm=one.arm, n_images=one.n_images, gain=one.difference, figures=figures)
            gains.append(gain)
    differ = Counter(size for size, _ in {(g.n_images, g.figures[BEYOND]) for g in gains})
    return [gain for gain in gains if differ[gain.n_images] >= MIN_ARMS]


def rank_correlations(gains: Sequence[Gain]) -> Iterator[RankCorrelation]:
    """Yields, for each size and each figure, how the arms' ranks by it and by mean gain agree."""
    if not gains:
        return
    from scipy import stats  # type: ignore[import-untyped]  # slow to import; few reports need it

    sizes = sorted({gain.n_images for gain in gains})
    for n_images, name in itertools.product(sizes, FIGURES):
        arms = [g for g in gains if g.n_images == n_images and name in g.figures]
        never = (math.inf if arm.figures[name] is None else arm.figures[name] for arm in arms)
        x = stats.rankdata(list(never))
        y = stats.rankdata([arm.gain.mean for arm in arms])
        if len(arms) < MIN_ARMS or np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        x, y = stats.zscore(x), stats.zscore(y)
        found = stats.permutation_test(
            (x,), lambda x, axis, y=y: (x * y).mean(axis), vectorized=True,
            permutation_type="pairings", n_resamples=_N_ORDERS, random_state=0,
        )  # fmt: skip
        yield RankCorrelation(
            figure=name, n_images=n_images, n_arms=len(arms), rho=float(found.statistic),
            p_value=float(found.pvalue),
        )  # fmt: skip

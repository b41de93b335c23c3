"""The report's sentences and number formats, the same on the page, in tables and on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from vitwarm.report.curves import (
    LEVEL,
    MIN_SEEDS_BOOTSTRAP,
    MIN_SEEDS_INTERVAL,
    EqualAccuracy,
    Interval,
    Reading,
)
from vitwarm.report.facts import Analysis, Arm, Cell, Difference, Saving
from vitwarm.units import count_of, format_seconds

#: Arms above which the findings name only those that differ significantly.
MANY_ARMS = 6
#: Seeds above which a cell of a table shows their range instead of each.
MANY_SEEDS = 5
T = TypeVar("T")
_LEVEL = f"{100 * LEVEL:.0f} %"
_MATCH = {
    "steps": "Matched steps: every fraction trains for the same number of updates, so a smaller "
    "fraction repeats its images more often. The axis counts distinct images.",
    "epochs": "Matched epochs: every fraction passes over its images equally often, so a smaller "
    "fraction also trains for fewer updates. The axis counts distinct images.",
    "": "These runs belong to no sweep, so whether steps or epochs were matched is not known. The "
    "axis counts distinct images.",
}
_WARMUP_SEEDS = {
    "shared": "Warm-up seeds: shared. All seeds of an arm start from one trunk, so the intervals "
    "leave out the variation between warm-ups.",
    "paired": "Warm-up seeds: paired. Every seed starts from its own warm-up.",
}


def signed(value: float, digits: int = 1) -> str:
    """Returns `+0.4`, `−0.6` or `0.0`, with a true minus sign."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def number(value: float | None, digits: int = 1) -> str:
    """Returns `1,095.2`, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def count(value: float | None) -> str:
    """Returns a whole number, or a dash."""
    return number(value, 0)


def duration(seconds: float | None) -> str:
    """Returns a time with its unit, or a dash."""
    return "–" if seconds is None else format_seconds(seconds)


def share(fraction: float | None) -> str:
    """Returns a fraction as `10 %`, or an empty string."""
    return "" if fraction is None else f"{100 * fraction:.3g} %"


def interval(value: Interval) -> str:
    """Returns `+0.4 (−0.2 to +1.0)`, or the mean alone below three seeds."""
    if value.low is None or value.high is None:
        return signed(value.mean)
    return f"{signed(value.mean)} ({signed(value.low)} to {signed(value.high)})"


def plus_minus(value: Interval | None) -> str:
    """Returns `95.2 ± 0.6`: the mean and half its interval, or the mean alone."""
    if value is None:
        return "–"
    half = "" if value.high is None else f" ± {number(value.high - value.mean)}"
    return number(value.mean) + half


def reading(value: Reading, *, short: bool = False) -> str:
    """Returns `1,012`, `more than 1,297`, `fewer than 32` or `undetermined`.

    Args:
        short: `1,012`, `>1,297`, `<32` or `?` instead.
    """
    if value.images is None:
        return "?" if short else "undetermined"
    words = {"=": "", ">": "more than ", "<": "fewer than "}
    bound = value.bound.replace("=", "") if short else words[value.bound]
    return f"{bound}{value.images:,.0f}"


def in_order(needs: EqualAccuracy) -> list[Reading]:
    """Returns every seed's reading, from the fewest images to the most."""
    return sorted(needs.per_seed.values(), key=lambda r: ("<=>?".index(r.bound), r.images or 0))


def each(values: Sequence[T], show: Callable[[T], str]) -> str:
    """Returns every seed's value while they fit; then the first and the last (the CSV has all)."""
    if len(values) <= MANY_SEEDS:
        return ", ".join(map(show, values))
    return f"{show(values[0])} to {show(values[-1])}"


def saved(found: Saving) -> str:
    """Returns what a reading means: `22 % fewer images`, `as many images`, or a bound in words.

    Without a significant difference in accuracy no saving is claimed.
    """
    value = found.needs.estimate
    if not found.told:
        return "no significant difference" if found.told is False else "too few seeds"
    if value.images is None:
        return "undetermined: the curve falls"
    if value.bound == ">":
        return "not reached"
    fewer = 100 * (1 - value.images / found.n_images)
    if value.bound == "<":
        return f"at least {fewer:.0f} % fewer images" if fewer > 0 else "fewer images (a bound)"
    if round(fewer) == 0:
        return "as many images"
    return f"{abs(round(fewer))} % {'fewer' if fewer > 0 else 'more'} images"


def seeds_at(analysis: Analysis) -> str:
    """Returns `n = 3 seeds`, or the range where cells differ."""
    low, *more = sorted({len(cell.points) for cell in analysis.cells})
    return f"n = {low} to {more[-1]} seeds" if more else f"n = {count_of(low, 'seed')}"


def headlines(analysis: Analysis) -> list[str]:
    """Returns the section's findings in sentences; the first is the headline.

    The arm spoken of is the first warmed arm of the recipe (else the first of another start), never
    the best one: choosing the best of several would favour chance.
    """
    if not analysis.arms and any(run.state == "finished" for run in analysis.runs):
        return [
            f"{len(analysis.runs)} image trainings, each with settings of its own: there is "
            "nothing to compare."
        ]
    if not any(cell.points for cell in analysis.cells):
        return ["No image training has finished yet."]
    others = [arm for kind in ("warm", "init") for arm in analysis.arms if arm.kind == kind]
    arm = next((arm for arm in others if arm.label != analysis.reference), None)
    if arm is None or analysis.reference is None:
        largest = [c for c in analysis.cells if c.n_images == analysis.sizes[-1] and c.top1]
        texts = [f"{c.arm} {plus_minus(c.top1)} %" for c in largest]
        return [
            f"With {count(analysis.sizes[-1])} images: {', '.join(texts)} top-1. "
            "No other arm to compare with."
        ]
    own = [d for d in analysis.matched_images if d.arm == arm.label]
    ends = [own[-1], own[0]] if len(own) > 1 else own
    found = [_difference_sentence(analysis, difference) for difference in ends]
    if len({d.arm for d in analysis.matched_images}) > 1:
        found.append(_all_arms_sentence(analysis))
    savings = [s for s in analysis.savings if s.arm == arm.label]
    if savings:
        found.append(_saving_sentence(savings[-1]))
    total = [d for d in analysis.matched_total if d.arm == arm.label]
    if total:
        widest = _difference_sentence(analysis, max(total, key=lambda d: d.n_images))
        said = "At equal total samples (images seen plus warm-up sequences), "
        found.append(said + widest.replace("With", "with", 1))
    return found or [
        f"{arm.label} and {analysis.reference} have no finished pair of seeds to compare yet."
    ]


def method_notes(analysis: Analysis) -> list[str]:
    """Returns how the numbers came about: what a reader needs to trust or doubt them."""
    notes = [_MATCH.get(analysis.match or "", _MATCH[""])]
    if analysis.warmup_seeds in _WARMUP_SEEDS:
        notes.append(_WARMUP_SEEDS[analysis.warmup_seeds])
    weights = " and ".join(analysis.weights) or "not recorded"
    n_val = f" on {count(analysis.n_val_images)} validation images" if analysis.n_val_images else ""
    notes.append(
        f"Accuracy is top-1 after the last step{n_val}, without checkpoint selection. "
        f"Weights: {weights}."
    )
    if analysis.n_val_images:
        error = 100 * (0.25 / analysis.n_val_images) ** 0.5
        notes.append(
            f"The validation set of {count(analysis.n_val_images)} images adds a standard error of "
            f"up to {error:.2f} points, which more seeds do not reduce."
        )
    notes.append(
        f"Intervals are {_LEVEL} confidence intervals (CI): Student's t for means and paired "
        f"differences, from {MIN_SEEDS_INTERVAL} seeds on; a bootstrap over seeds for numbers of "
        f"images, from {MIN_SEEDS_BOOTSTRAP} seeds on. With fewer seeds each seed's value is shown."
    )
    notes.append(
        "Significant means that the interval excludes zero. Numbers of images are interpolated "
        "linearly in log(images) and never extrapolated; a curve that is not monotone is replaced "
        "by its isotonic fit, and marked."
    )
    n_tests = len(analysis.matched_images) + len(analysis.matched_total)
    if n_tests > 1:
        notes.append(
            f"{n_tests} differences are shown, without correction for multiple comparisons: if all "
            "were truly zero, about one interval in twenty would still exclude it."
        )
    if analysis.matched_total:
        notes.append(
            "Total samples count a warm-up sequence as one image: each is one pass through the "
            "trunk. With another number of tokens per sequence the compute differs in proportion."
        )
    return notes


def caveats(analysis: Analysis) -> list[str]:
    """Returns what is missing or went wrong in a section, beside its problems."""
    found = []
    missing = [run.state for run in analysis.runs if run.state not in ("finished", "left out")]
    if missing:
        states = ", ".join(f"{n} {state}" for state, n in Counter(missing).items())
        found.append(
            f"No result from {len(missing)} of {len(analysis.runs)} image trainings ({states}). "
            "Means are over the seeds that finished; the table of runs names the others."
        )
    controls = ("shuffled", "random")  # learning nothing is what they are for
    bad = [
        line
        for line in analysis.warmups
        if line.verdict == "not learned" and not line.rule.startswith(controls)
    ]
    if bad:
        arms = sorted({arm for line in bad for arm in line.arms})
        found.append(
            f"Warm-ups that did not learn: {', '.join(arms) or len(bad)}. The effect of such a "
            "trunk says nothing about its rule."
        )
    return found


def arm_note(arm: Arm) -> str:
    """Returns what to know about an arm: its extra samples, and the verdict on its warm-up."""
    parts = []
    if arm.longer_than:
        parts.append(f"trained longer by the samples of {arm.longer_than}'s warm-up")
    if arm.kind == "warm" and arm.warmup_samples:
        parts.append(f"warmed on {arm.warmup_samples:,} sequences")
    verdicts = sorted(arm.verdicts, key=lambda verdict: verdict == "saturated early")
    return "; ".join([*parts, *(f"warm-up {verdict}" for verdict in verdicts)])


def cell_note(cell: Cell) -> str:
    """Returns `2 of 3 seeds` where some are missing, else an empty string."""
    n = len(cell.points)
    return f"{n} of {n + len(cell.missing)} seeds" if cell.missing else ""


def _difference_sentence(analysis: Analysis, found: Difference) -> str:
    cells = [cell for cell in analysis.cells if cell.n_images == found.n_images]
    mine, theirs = map(number, found.means)
    is_whole = any(cell.fraction == 1 for cell in cells if cell.arm == found.arm)
    value = found.difference
    text = (
        f"With {'all ' if is_whole else ''}{count(found.n_images)} images {found.arm} reaches "
        f"{mine} % and {found.reference} {theirs} %: "
        f"{signed(value.mean)} points"
    )
    paired = f"n = {count_of(value.n, 'paired seed')}"
    if value.low is None or value.high is None:
        return f"{text} ({paired}). Too few seeds for a confidence interval."
    verdict = "" if value.excludes_zero else ", not significant"
    ends = f"{_LEVEL} CI {signed(value.low)} to {signed(value.high)}"
    return f"{text}{verdict} ({ends}, {paired})."


def _all_arms_sentence(analysis: Analysis) -> str:
    """Every arm's difference at the largest size that has any, in the recipe's order.

    Of many arms only the significant ones are named, beside the number of all.
    """
    size = max(d.n_images for d in analysis.matched_images)
    found = [d for d in analysis.matched_images if d.n_images == size]
    level = f" ({_LEVEL} CI)" if any(d.difference.low is not None for d in found) else ""
    where = f"{analysis.reference} with {count(size)} images"
    start = f"Differences from {where}, in points{level}"
    if len(found) > MANY_ARMS:
        n_all, found = len(found), [d for d in found if d.difference.excludes_zero]
        differ = "differs" if len(found) == 1 else "differ"
        start = (
            f"{len(found)} of {n_all} arms {differ} significantly from {where}, in points{level}"
        )
        if not found:
            return f"None of the {n_all} arms differs significantly from {where}."
    named = "; ".join(f"{d.arm} {interval(d.difference)}" for d in found)
    return f"{start}: {named}."


def _saving_sentence(found: Saving) -> str:
    estimate, needs = found.needs.estimate, found.needs
    n = len(needs.per_seed)
    goal = (
        f"the {number(found.accuracy)} % of {found.reference} with {count(found.n_images)} images "
        f"(n = {count_of(n, 'seed')} that {'have' if n != 1 else 'has'} every size)"
    )
    if not found.told:
        why = (
            "the difference in accuracy there is not significant"
            if found.told is False
            else "there are too few seeds"
        )
        return f"No saving of images is claimed for {found.arm} at {goal}: {why}."
    if estimate.bound == ">":
        return (
            f"{found.arm} does not reach {goal}: it would need more than the "
            f"{count(estimate.images)} measured."
        )
    if estimate.bound == "?":
        return (
            f"How many images {found.arm} needs to match {goal} is undetermined: its accuracy "
            "falls as images are added."
        )
    text = f"To match {goal}, {found.arm} needs {reading(estimate)}: {saved(found)}"
    if needs.low is not None and needs.high is not None:
        return f"{text} ({_LEVEL} CI {reading(needs.low)} to {reading(needs.high)})."
    alone = ", ".join(map(reading, in_order(needs)))
    return f"{text} (per seed: {alone}; no CI below {MIN_SEEDS_BOOTSTRAP} seeds)."

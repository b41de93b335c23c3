"""The report's sentences and number formats, the same on the page, in tables and on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from vitwarm.report.curves import LEVEL, MIN_SEEDS_BOOTSTRAP, MIN_SEEDS_INTERVAL, Interval, Reading
from vitwarm.report.facts import Analysis, Arm, Cell, Difference, Saving

_LEVEL = f"{100 * LEVEL:.0f} %"


def signed(value: float, digits: int = 1) -> str:
    """Returns `+0.4`, `−0.6` or `0.0`, with a true minus sign."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def count(value: float | None) -> str:
    """Returns a whole number with thousands separated, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Returns `95.2`, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def share(fraction: float | None) -> str:
    """Returns a fraction as `10 %`, or an empty string."""
    return "" if fraction is None else f"{100 * fraction:.3g} %"


def interval(value: Interval, *, sign: bool = False) -> str:
    """Returns `95.2 (94.6 to 95.8)`, or the mean alone below three seeds."""
    show = signed if sign else percent
    text = show(value.mean)
    if value.low is None or value.high is None:
        return text
    return f"{text} ({show(value.low)} to {show(value.high)})"


def plus_minus(value: Interval | None) -> str:
    """Returns `95.2 ± 0.6`: the mean and half its interval, or the mean alone."""
    if value is None:
        return "–"
    if value.high is None:
        return percent(value.mean)
    return f"{percent(value.mean)} ± {percent(value.high - value.mean)}"


def reading(value: Reading) -> str:
    """Returns `1,012`, `more than 1,297`, `fewer than 32` or `undetermined`."""
    if value.images is None:
        return "undetermined"
    words = {"=": "", ">": "more than ", "<": "fewer than "}
    return f"{words[value.bound]}{value.images:,.0f}"


def short_reading(value: Reading) -> str:
    """Returns `1,012`, `>1,297`, `<32` or `?`."""
    if value.images is None:
        return "?"
    return f"{value.bound.replace('=', '')}{value.images:,.0f}"


def saved(value: Reading, reference_images: int, *, told: bool | None) -> str:
    """Returns what a reading means: `22 % fewer images`, `no fewer`, or a bound in words.

    Args:
        told: as `Saving` has it; without it no saving is claimed.
    """
    if not told:
        return "not told from as many" if told is False else "too few seeds to tell"
    if value.images is None:
        return "the curve falls"
    ratio = value.images / reference_images
    if value.bound == ">":
        return "not reached"
    if value.bound == "<":
        least = f"at least {100 * (1 - ratio):.0f} % fewer images"
        return least if ratio < 1 else "fewer images (a bound)"
    change = round(100 * (1 - ratio))
    if change == 0:
        return "as many images"
    return f"{change} % fewer images" if change > 0 else f"{-change} % more images"


def seeds_at(analysis: Analysis) -> str:
    """Returns `n = 3 seeds`, or the range where cells differ."""
    counts = sorted({len(cell.points) for cell in analysis.cells}) or [0]
    if len(counts) == 1:
        return f"n = {counts[0]} seed{'s' if counts[0] != 1 else ''}"
    return f"n = {counts[0]} to {counts[-1]} seeds"


def headlines(analysis: Analysis) -> list[str]:
    """Returns the section's findings in sentences; the first is the headline.

    The arm spoken of is the first warmed arm of the recipe, never the best one: choosing the best
    of several would favour chance.
    """
    if not any(cell.points for cell in analysis.cells):
        return ["No image training has finished yet."]
    arm = _spoken_arm(analysis)
    if arm is None or analysis.reference is None:
        largest = [c for c in analysis.cells if c.n_images == analysis.sizes[-1] and c.top1]
        texts = [f"{c.arm} {plus_minus(c.top1)} %" for c in largest]
        return [
            f"With {count(analysis.sizes[-1])} images: {', '.join(texts)} top-1. "
            "There is no arm to compare with another."
        ]
    found: list[str] = []
    own = [d for d in analysis.matched_images if d.arm == arm.label]
    if own:
        found.append(_difference_sentence(analysis, max(own, key=lambda d: d.n_images)))
        smallest = min(own, key=lambda d: d.n_images)
        if smallest.n_images != max(own, key=lambda d: d.n_images).n_images:
            found.append(_difference_sentence(analysis, smallest))
    if len({d.arm for d in analysis.matched_images}) > 1:
        found.append(_all_arms_sentence(analysis))
    savings = [s for s in analysis.savings if s.arm == arm.label]
    if savings:
        found.append(_saving_sentence(max(savings, key=lambda s: s.n_images)))
    total = [d for d in analysis.matched_total if d.arm == arm.label]
    if total:
        widest = max(total, key=lambda d: d.n_images)
        found.append(
            "At equal total samples, the warm-up counted: "
            + _difference_sentence(analysis, widest).replace("With", "with", 1)
        )
    return found or [
        f"{arm.label} and {analysis.reference} share no finished pair of seeds yet; nothing can be "
        "compared."
    ]


def method_notes(analysis: Analysis) -> list[str]:
    """Returns how the numbers came about: what a reader needs to trust or doubt them."""
    notes = []
    if analysis.match == "steps":
        notes.append(
            "Matched steps: every fraction trains for the same number of updates, so a smaller "
            "fraction repeats its images more often. The axis counts distinct images."
        )
    elif analysis.match == "epochs":
        notes.append(
            "Matched epochs: every fraction passes over its images equally often, so a smaller "
            "fraction also trains for fewer updates. The axis counts distinct images."
        )
    else:
        notes.append(
            "These runs belong to no sweep: whether steps or epochs were held equal is not stored. "
            "The axis counts distinct images."
        )
    if analysis.warmup_seeds == "shared":
        notes.append(
            "Warm-up seeds: shared. All seeds of an arm start from one trunk, so the spread does "
            "not hold what another warm-up would have given."
        )
    elif analysis.warmup_seeds == "paired":
        notes.append("Warm-up seeds: paired. Every seed starts from a warm-up of its own.")
    weights = " and ".join(analysis.weights) or "not stored"
    n_val = f" on {count(analysis.n_val_images)} validation images" if analysis.n_val_images else ""
    notes.append(
        f"Accuracy is top-1 after the last step{n_val}; no checkpoint was selected. "
        f"Weights: {weights}."
    )
    if analysis.n_val_images:
        error = 100 * (0.25 / analysis.n_val_images) ** 0.5
        notes.append(
            f"{count(analysis.n_val_images)} validation images leave a sampling error of at most "
            f"{error:.2f} points (one standard error) that no number of seeds removes."
        )
    notes.append(
        f"Means and paired differences have Student-t intervals ({_LEVEL}) from "
        f"{MIN_SEEDS_INTERVAL} seeds on; images read off a curve have bootstrap intervals over "
        f"seeds from {MIN_SEEDS_BOOTSTRAP} on. Below that, every seed's value is shown alone."
    )
    notes.append(
        "Curves are read piecewise linearly in log(images), only inside the measured range. "
        "A curve that is not monotone is replaced by its isotonic fit, and marked."
    )
    n_tests = len(analysis.matched_images) + len(analysis.matched_total)
    if n_tests > 1:
        notes.append(
            f"{n_tests} differences are shown. Were all of them truly zero, about one in twenty "
            "intervals would still exclude it."
        )
    if analysis.matched_total:
        notes.append(
            "Total samples count a warm-up sequence like an image: both are one pass through the "
            "trunk. With another number of tokens per sequence the compute differs in proportion."
        )
    return notes


def arm_note(arm: Arm) -> str:
    """Returns what to know about an arm: its extra samples, and the verdict on its warm-up."""
    parts = []
    if arm.longer_than:
        parts.append(f"trained longer by the samples of {arm.longer_than}'s warm-up")
    if arm.kind == "warm" and arm.warmup_samples:
        parts.append(f"warmed on {arm.warmup_samples:,} sequences")
    parts += [
        f"warm-up {verdict}" for verdict in arm.verdicts if verdict in ("not learned", "learned")
    ]
    parts += ["warm-up saturated early" for verdict in arm.verdicts if verdict == "saturated early"]
    return "; ".join(parts)


def cell_note(cell: Cell) -> str:
    """Returns `2 of 3 seeds` where some are missing, else an empty string."""
    total = len(cell.points) + len(cell.missing)
    return f"{len(cell.points)} of {total} seeds" if cell.missing else ""


def join(words: Iterable[str]) -> str:
    """Returns `a, b and c`."""
    listed = list(words)
    return listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + f" and {listed[-1]}"


def _spoken_arm(analysis: Analysis) -> Arm | None:
    others = [arm for arm in analysis.arms if arm.label != analysis.reference]
    for kind in ("warm", "init"):
        for arm in others:
            if arm.kind == kind:
                return arm
    return None


def _difference_sentence(analysis: Analysis, found: Difference) -> str:
    mine = analysis.cell(found.arm, found.n_images)
    other = analysis.cell(found.reference, found.n_images)
    all_of = "all " if mine and mine.fraction == 1 else ""
    reached = ""
    if mine and other and mine.top1 and other.top1:
        reached = (
            f"{found.arm} reaches {percent(mine.top1.mean)} % and {found.reference} "
            f"{percent(other.top1.mean)} %: "
        )
    value = found.difference
    text = (
        f"With {all_of}{count(found.n_images)} images {reached}{signed(value.mean)} points "
        f"({_interval_words(value)})."
    )
    if value.excludes_zero is None:
        return f"{text} Too few seeds to tell a difference from noise."
    return text if value.excludes_zero else f"{text} That does not tell a difference from zero."


def _all_arms_sentence(analysis: Analysis) -> str:
    """Every arm's difference at the largest size that has any, in the recipe's order."""
    size = max(d.n_images for d in analysis.matched_images)
    told = [
        f"{d.arm} {interval(d.difference, sign=True)}"
        for d in analysis.matched_images
        if d.n_images == size
    ]
    return (
        f"All arms with {count(size)} images, points above {analysis.reference}: {'; '.join(told)}."
    )


def _interval_words(value: Interval) -> str:
    paired = f"n = {value.n} paired seed{'s' if value.n != 1 else ''}"
    if value.low is None or value.high is None:
        return paired
    return f"{_LEVEL} interval {signed(value.low)} to {signed(value.high)}, {paired}"


def _saving_sentence(found: Saving) -> str:
    estimate, needs = found.needs.estimate, found.needs
    goal = (
        f"the {percent(found.accuracy)} % that {found.reference} has with {count(found.n_images)}"
    )
    if not found.told:
        why = (
            "their difference there is not told from zero"
            if found.told is False
            else "there are too few seeds"
        )
        return f"For {goal} images no saving of images by {found.arm} is claimed: {why}."
    if estimate.bound == ">":
        return (
            f"{found.arm} does not reach {goal} images: it would need more than the "
            f"{count(estimate.images)} measured."
        )
    if estimate.bound == "?":
        return (
            f"How many images {found.arm} needs for {goal} is undetermined: its accuracy falls "
            "where images are added."
        )
    text = (
        f"For {goal} images {found.arm} needs {reading(estimate)}: "
        f"{saved(estimate, found.n_images, told=found.told)}"
    )
    if needs.low is not None and needs.high is not None:
        return f"{text} ({_LEVEL} interval {reading(needs.low)} to {reading(needs.high)})."
    values = sorted(needs.per_seed.values(), key=lambda r: ("<=>?".index(r.bound), r.images or 0))
    alone = ", ".join(reading(value) for value in values)
    return f"{text} (per seed: {alone}; no interval below {MIN_SEEDS_BOOTSTRAP} seeds)."

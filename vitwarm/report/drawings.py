"""The report's pictures, drawn once from an analysis: for the page, for phones, and as files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

from vitwarm.report.curves import Interval, Reading
from vitwarm.report.facts import Analysis, Arm, Point, Saving
from vitwarm.report.gains import BEYOND, FIGURES
from vitwarm.report.panel import XY, Panel, Scale, Text, ratio_ticks, spread, tick_text, ticks
from vitwarm.report.words import count, interval, number, plus_minus, reading, signed

WIDE, HALF, NARROW = 1040, 520, 360
#: Pixels between neighbouring arms at one size, so that their intervals stand side by side.
DODGE = 6.0
_SIZES = "training images (distinct, log scale)"
#: Pixels from the upper edge to the axes, and from the axes to the lower edge.
_TOP, _BOTTOM = 28, 44
_WAYS: dict[str, Literal["", "left", "right"]] = {"<": "left", ">": "right"}


class Spot(NamedTuple):
    """What a picture shows of an arm at one place of its x axis."""

    arm: str
    at: float
    mean: Interval
    points: list[Point]
    name: str
    """What is shown, and where."""
    said: str
    """Of the mean."""


def draw_all(analysis: Analysis) -> Iterator[tuple[str, int, Callable[[int], Panel]]]:
    """Yields every picture that a section has: its name, its width, and what draws it."""
    if any(cell.points for cell in analysis.cells):
        yield "accuracy", WIDE, partial(draw_accuracy, analysis)
    if analysis.matched_images:
        yield "differences", HALF, partial(draw_differences, analysis, matched="images seen")
    if any(saving.told is not False for saving in analysis.savings):
        yield "equal_accuracy", HALF, partial(draw_savings, analysis)
    if analysis.matched_total:
        yield "matched_total", HALF, partial(draw_differences, analysis, matched="total samples")
    for size in sorted({curve.n_images for curve in analysis.convergence if curve.n_images}):
        yield f"convergence_{size}", NARROW, partial(draw_convergence, analysis, size)
    for size in sorted({gain.n_images for gain in analysis.gains}):
        yield f"gains_{size}", HALF, partial(draw_gains, analysis, size)
    if any(line.curve_steps for line in analysis.warmups):
        yield "warmups", HALF, partial(draw_warmups, analysis)


def draw_accuracy(analysis: Analysis, width: int) -> Panel:
    """Draws top-1 against images: every seed, mean and interval, one line per arm."""
    labelled = width > 600
    longest = max(len(_short(arm.label)) for arm in analysis.arms)
    right = width - (34 + 7.6 * longest if labelled else 14)
    spots = [
        Spot(
            c.arm, c.n_images, c.top1, c.points, f"{c.arm} · {count(c.n_images)} images",
            f"{plus_minus(c.top1)} %",
        )
        for c in analysis.cells
        if c.top1
    ]  # fmt: skip
    y = value_scale(shown_by(spots), 460 if labelled else 330, limits=(0, 100))
    panel = over_places(
        analysis.sizes, analysis.arms, width, right, y, "Accuracy against training images"
    )
    panel.y_axis(ticks(y.low, y.high, 7 if labelled else 5), "top-1 accuracy, %")
    panel.x_axis([(size, count(size)) for size in analysis.sizes], _SIZES)
    ends = draw_spots(panel, analysis.arms, spots, lambda value: f"{number(value, 2)} %")
    if labelled:
        places = spread([y_end for _, (_, y_end) in ends], gap=16, low=y.end, high=y.start)
        for (arm, (at, y_end)), place_y in zip(ends, places, strict=True):
            panel.line_at(at + 7, y_end, right + 12, place_y, "lead-line", arm.color)
            label = _short(arm.label)
            panel.marks.append(Text(right + 16, place_y + 4, label, "label", arm=arm.color))
    panel.words = "; ".join(f"{s.arm} with {count(int(s.at))} images {s.said}" for s in spots)
    panel.heads = "arm", "images", "seed", "top1_percent"
    panel.numbers = [(s.arm, s.at, p.seed, p.value) for s in spots for p in s.points]
    return panel


def draw_differences(analysis: Analysis, width: int, matched: str) -> Panel:
    """Draws paired differences against images: every pair, mean and interval, zero marked.

    Args:
        matched: `images seen` or `total samples`.
    """
    found = analysis.matched[matched]
    spots = [
        Spot(
            d.arm, d.n_images, d.difference, d.points,
            f"{d.arm} − {d.reference} · {count(d.n_images)} images",
            f"{interval(d.difference)} points",
        )
        for d in found
    ]  # fmt: skip
    y = value_scale([*shown_by(spots), 0.0], 320 if width > 400 else 270)
    title = f"Paired differences at matched {matched}"
    panel = over_places(analysis.sizes, analysis.arms, width, width - 14.0, y, title)
    panel.y_axis(ticks(y.low, y.high, 5), "difference in top-1, points")
    panel.line_at(panel.left, y(0), panel.right, y(0), "zero")
    panel.x_axis([(size, count(size)) for size in analysis.sizes], _SIZES)
    draw_spots(panel, analysis.arms, spots, lambda value: signed(value, 2), "curve thin")
    panel.words = "; ".join(
        f"{s.arm} at {count(int(s.at))} images {interval(s.mean)}" for s in spots
    )
    panel.heads = "arm", "reference", "images", "seed", "difference_points"
    panel.numbers = [
        (d.arm, d.reference, d.n_images, p.seed, p.value) for d in found for p in d.points
    ]
    return panel


def over_places(
    places: Sequence[float], arms: Sequence[Arm], width: int, right: float, y: Scale, title: str,
    is_log: bool = True,
) -> Panel:  # fmt: skip
    """A picture over these places of x, ascending, with room for arms side by side at each."""
    left, room = 46.0, 10 + DODGE * len(arms) / 2
    low, high = places[0], places[-1]
    x = Scale(low, high, left + room, right - room, is_log=is_log)
    if low == high:
        x = Scale(low / 2, low * 2, left, right, is_log=True)
    return Panel(width, round(y.start) + _BOTTOM, x, y, left, right, title)


def draw_spots(
    panel: Panel, arms: Sequence[Arm], spots: list[Spot], show: Callable[[float], str],
    css: str = "curve",
) -> list[tuple[Arm, XY]]:  # fmt: skip
    """Draws seeds, means, intervals and lines of all arms; returns where each line ends."""
    n, room = len(arms), panel.right - panel.left
    # Arms at the only place, whose axis leaves no room aside, share all of it.
    step = DODGE if panel.x.start > panel.left else min(90.0, 0.8 * room / n)
    ends = []
    for place, arm in enumerate(arms):
        own = [spot for spot in spots if spot.arm == arm.label]
        aside = (place - (n - 1) / 2) * step
        line = [(panel.x(s.at) + aside, panel.y(s.mean.mean)) for s in own]
        panel.curve(arm.color, line, css)
        for (at, _), spot in zip(line, own, strict=True):
            for p in spot.points:
                tip = f"{spot.name} · seed {p.seed}: {show(p.value)}"
                panel.marker(arm.color, at, panel.y(p.value), tip=tip)
            _draw_mean(panel, arm.color, at, spot.mean, f"{spot.name}: {spot.said}")
        ends += [(arm, line[-1])] if line else []
    return ends


def _draw_mean(panel: Panel, arm: int, at: float, mean: Interval, tip: str) -> None:
    if mean.low is not None and mean.high is not None:
        panel.whisker(arm, at, mean.low, mean.high)
    panel.marker(arm, at, panel.y(mean.mean), tip=tip, is_mean=True)


def draw_savings(analysis: Analysis, width: int) -> Panel:
    """Draws the images an arm needs, as a multiple of the reference's, one row per comparison.

    Comparisons without a significant difference are left out: there the curves cross by chance.
    """
    found = [saving for saving in analysis.savings if saving.told is not False]
    top, row, left = 30, 24, 170 if width > 400 else 126
    letters = 16 if width > 400 else 10
    height = top + row * len(found) + 44
    ratios = [r.images / s.n_images for s in found for r in _readings(s) if r.images is not None]
    low, high = min([*ratios, 0.8]) / 1.12, max([*ratios, 1.25]) * 1.12
    x = Scale(low, high, left, width - 16, is_log=True)
    y = Scale(0, 1, height - 44, top)
    panel = Panel(width, height, x, y, x.start, x.end, "Images needed for equal accuracy")
    panel.marks.append(Text(0, 12, "arm, and the reference's images", "name"))
    shown = ratio_ticks(low, high)
    for value in shown:
        panel.line_at(x(value), top - 6, x(value), height - 44, "zero" if value == 1 else "grid")
    panel.x_axis([(v, f"×{v:g}") for v in shown], "images needed ÷ the reference's images")
    for place, saving in enumerate(found):
        arm, y_row = analysis.colors[saving.arm], top + row * (place + 0.5)
        where = f"{saving.arm} for {count(saving.n_images)} of {saving.reference}"
        label = f"{_short(saving.arm, letters)} · {count(saving.n_images)}"
        panel.marks.append(Text(left - 8, y_row + 4, label, anchor="end", arm=arm))
        for seed, read in saving.needs.per_seed.items():
            _read_mark(panel, arm, y_row, read, saving, f"{where} · seed {seed}")
        ends = [end.images for end in (saving.needs.low, saving.needs.high) if end]
        known = [x(end / saving.n_images) for end in ends if end is not None]
        if len(known) == 2:
            panel.line_at(known[0], y_row, known[1], y_row, "whisker", arm)
        _read_mark(panel, arm, y_row, saving.needs.estimate, saving, where, is_mean=True)
    panel.words = "; ".join(
        f"{s.arm} needs {reading(s.needs.estimate)} for the {number(s.accuracy)} % of "
        f"{s.reference} with {count(s.n_images)}" for s in found
    )  # fmt: skip
    panel.heads = "arm", "reference", "images_of_reference", "seed", "bound", "images_needed"
    panel.numbers = [
        (s.arm, s.reference, s.n_images, seed, read.bound, read.images)
        for s in found
        for seed, read in s.needs.per_seed.items()
    ]
    return panel


def draw_convergence(analysis: Analysis, n_images: int, width: int) -> Panel:
    """Draws accuracy while training at one size: thin lines are seeds, thick ones their mean."""
    height = 260
    curves = [curve for curve in analysis.convergence if curve.n_images == n_images]
    x = Scale(0, max(c.images_seen[-1] for c in curves), 46, width - 12)
    y = value_scale([v for c in curves for v in c.top1], height, limits=(0, 100))
    title = f"Convergence with {count(n_images)} images"
    panel = Panel(width, height, x, y, x.start, x.end, title)
    panel.y_axis(ticks(y.low, y.high, 4), f"top-1 with {count(n_images)} images, %")
    at = ticks(0, x.high, 4)
    panel.x_axis([(v, _compact(v, at)) for v in at], "images seen")
    for arm in analysis.arms:
        own = [c for c in curves if c.arm == arm.label]
        for c in own:
            points = [(x(s), y(v)) for s, v in zip(c.images_seen, c.top1, strict=True)]
            panel.curve(arm.color, points, "trace")
        if len({tuple(c.images_seen) for c in own}) == 1:
            means = [sum(v) / len(own) for v in zip(*(c.top1 for c in own), strict=True)]
            line = [(x(s), y(v)) for s, v in zip(own[0].images_seen, means, strict=True)]
            panel.curve(arm.color, line)
    panel.words = ", ".join(
        f"{arm.label} ends at {plus_minus(cell.top1)} %"
        for arm in analysis.arms
        if (cell := analysis.cell(arm.label, n_images)) and cell.top1
    )
    panel.heads = "arm", "seed", "images_seen", "top1_percent"
    panel.numbers = [
        (c.arm, c.seed, seen, value)
        for c in curves
        for seen, value in zip(c.images_seen, c.top1, strict=True)
    ]
    return panel


def draw_warmups(analysis: Analysis, width: int) -> Panel:
    """Draws the accuracy on hidden tokens while warming up, and chance as a dotted line."""
    height = 300 if width > 400 else 260
    lines = [line for line in analysis.warmups if line.curve_steps]
    x = Scale(0, max(line.curve_steps[-1] for line in lines), 46, width - 14)
    y = Scale(0, 100, height - 44, 28)
    title = "Accuracy on hidden tokens during the warm-ups"
    panel = Panel(width, height, x, y, x.start, x.end, title)
    panel.y_axis(ticks(0, 100, 5), "accuracy on hidden tokens, %")
    at = ticks(0, x.high, 5)
    panel.x_axis([(v, _compact(v, at)) for v in at], "warm-up steps")
    for line in lines:
        arm = next((analysis.colors[label] for label in line.arms if label in analysis.colors), 0)
        points = zip(line.curve_steps, line.curve_percent, strict=True)
        panel.curve(arm, [(x(step), y(value)) for step, value in points])
        chance = line.fact("chance_percent")
        if chance is not None:
            panel.line_at(x.start, y(chance), x.end, y(chance), "chance", arm)
    panel.words = "; ".join(
        f"{' and '.join(line.arms) or line.rule} seed {line.seed} ends at "
        f"{number(line.fact('hidden_accuracy_percent'))} %, "
        f"chance {number(line.fact('chance_percent'))} %"
        for line in lines
    )
    panel.heads = "rule", "seed", "step", "accuracy_percent"
    panel.numbers = [
        (line.rule, line.seed, step, value)
        for line in lines
        for step, value in zip(line.curve_steps, line.curve_percent, strict=True)
    ]
    return panel


def draw_gains(analysis: Analysis, n_images: int, width: int) -> Panel:
    """Draws each arm's gain at one size against what its warm-up learned of the order."""
    height = 320 if width > 400 else 300
    gains = [gain for gain in analysis.gains if gain.n_images == n_images]
    beyond = {gain.arm: gain.figures[BEYOND] or 0.0 for gain in gains}
    low, high = min(*beyond.values(), 0.0), max(beyond.values())
    room = (high - low) * 0.06
    x = Scale(low - room, high + room, 46, width - 14)
    y = value_scale([0.0, *(end for gain in gains for end in _ends(gain.gain))], height)
    title = f"Gain with {count(n_images)} images against what the warm-up learned of the order"
    panel = Panel(width, height, x, y, x.start, x.end, title)
    panel.y_axis(ticks(y.low, y.high, 5), f"gain with {count(n_images)} images, points of top-1")
    panel.line_at(x.start, y(0), x.end, y(0), "zero")
    at = ticks(x.low, x.high, 5)
    panel.x_axis([(v, tick_text(v, at[1] - at[0])) for v in at], f"{BEYOND}, points")
    for gain in gains:
        tip = f"{gain.arm}: {interval(gain.gain)} points, {signed(beyond[gain.arm])}"
        where = f"{tip} beyond the order-blind baseline"
        _draw_mean(panel, analysis.colors[gain.arm], x(beyond[gain.arm]), gain.gain, where)
    panel.words = "; ".join(
        f"{g.arm} {interval(g.gain)} at {signed(beyond[g.arm])} points" for g in gains
    )
    panel.heads = "arm", *FIGURES, "gain_points", "low", "high"
    panel.numbers = [
        (g.arm, *map(g.figures.get, FIGURES), g.gain.mean, g.gain.low, g.gain.high) for g in gains
    ]
    return panel


def value_scale(
    values: Sequence[float], height: int, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Scale:
    """The y axis that holds these values, with a little room around them."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.06, 0.5)
    return Scale(max(low - room, limits[0]), min(high + room, limits[1]), height - _BOTTOM, _TOP)


def shown_by(spots: list[Spot]) -> list[float]:
    """All that the axis must hold."""
    ends = [end for spot in spots for end in _ends(spot.mean)]
    return [p.value for spot in spots for p in spot.points] + ends


def _ends(value: Interval) -> list[float]:
    return [end for end in (value.low, value.mean, value.high) if end is not None]


def _readings(saving: Saving) -> list[Reading]:
    ends = [saving.needs.low, saving.needs.high]
    return [saving.needs.estimate, *saving.needs.per_seed.values(), *(e for e in ends if e)]


def _read_mark(
    panel: Panel, arm: int, y: float, read: Reading, saving: Saving, where: str, *,
    is_mean: bool = False,
) -> None:  # fmt: skip
    """A marker for a number, an arrow outward for a bound, nothing where it is undetermined."""
    if read.images is None:
        return
    x, tip = panel.x(read.images / saving.n_images), f"{where}: {reading(read)}"
    panel.marker(arm, x, y, tip=tip, is_mean=is_mean, way=_WAYS.get(read.bound, ""))


def _short(text: str, n: int = 22) -> str:
    """Cut in the middle: arms of a sweep differ at their ends."""
    return text if len(text) <= n else f"{text[: n // 3]}…{text[n // 3 + 1 - n :]}"


def _compact(value: float, at: Sequence[float]) -> str:
    """`2.5k`, `1.2M`: axis numbers that fit a phone."""
    step = at[1] - at[0] if len(at) > 1 else 1.0
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if at[-1] >= size * 2:
            return tick_text(value / size, step / size) + (letter if value else "")
    return tick_text(value, step)

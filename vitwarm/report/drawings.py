"""The report's pictures, drawn once from an analysis: for the page, for phones, and as files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from vitwarm.report.curves import Interval, Reading
from vitwarm.report.facts import Analysis, Difference, Saving
from vitwarm.report.gains import BEYOND
from vitwarm.report.panel import Panel, Scale, ratio_ticks, spread, tick_text, ticks
from vitwarm.report.words import count, interval, percent, plus_minus, reading, signed

WIDE, HALF, NARROW = 1040, 520, 360
#: Pixels between neighbouring arms at one size, so that their intervals stand side by side.
DODGE = 6.0
_SIZES = "training images (distinct, log scale)"


def draw_all(analysis: Analysis) -> Iterator[tuple[str, int, Callable[[int], Panel]]]:
    """Yields every picture that a section has: its name, its width, and what draws it."""
    if any(cell.points for cell in analysis.cells):
        yield "accuracy", WIDE, lambda width: draw_accuracy(analysis, width)
    if analysis.matched_images:
        yield "differences", HALF, lambda width: draw_differences(analysis, width)
    if any(saving.told is not False for saving in analysis.savings):
        yield "equal_accuracy", HALF, lambda width: draw_savings(analysis, width)
    if analysis.matched_total:
        yield "matched_total", HALF, lambda width: draw_differences(analysis, width, total=True)
    for size in sorted({c.n_images for c in analysis.convergence if c.n_images and c.images_seen}):
        yield f"convergence_{size}", NARROW, lambda _, n=size: draw_convergence(analysis, n)  # type: ignore[misc]
    for size in sorted({gain.n_images for gain in analysis.gains}):
        yield f"gains_{size}", HALF, lambda width, n=size: draw_gains(analysis, n, width)  # type: ignore[misc]
    if any(line.curve_steps for line in analysis.warmups):
        yield "warmups", HALF, lambda width: draw_warmups(analysis, width)


def draw_accuracy(analysis: Analysis, width: int) -> Panel:
    """Draws top-1 against images: every seed, mean and interval, one line per arm."""
    height = 460 if width > 600 else 330
    labelled = width > 600
    longest = max(len(_short(arm.label)) for arm in analysis.arms)
    left, right = 46.0, width - (34 + 7.6 * longest if labelled else 14)
    x = _size_scale(analysis, left, right)
    values = [p.value for cell in analysis.cells for p in cell.points]
    values += _ends(cell.top1 for cell in analysis.cells)
    y = _value_scale(values, height, low_limit=0, high_limit=100)
    panel = Panel(width, height, x, y, left, right, "Accuracy against training images")
    panel.y_axis(ticks(y.low, y.high, 7 if labelled else 5), "top-1 accuracy, %")
    panel.x_axis(_size_ticks(analysis), _SIZES)
    ends = []
    for place, arm in enumerate(analysis.arms):
        cells = [(c, c.top1) for c in analysis.cells if c.arm == arm.label and c.top1]
        ats = [x(c.n_images) + _dodge(place, analysis, right - left) for c, _ in cells]
        panel.curve(arm.color, [(at, y(m.mean)) for at, (_, m) in zip(ats, cells, strict=True)])
        for at, (cell, mean) in zip(ats, cells, strict=True):
            where = f"{arm.label} · {count(cell.n_images)} images"
            for p in cell.points:
                tip = f"{where} · seed {p.seed}: {percent(p.value, 2)} %"
                panel.marker(arm.color, at, y(p.value), tip=tip)
            _mean(panel, arm.color, at, mean, f"{where}: {plus_minus(mean)} %")
        if cells:
            ends.append((arm, ats[-1], y(cells[-1][1].mean)))
    if labelled:
        places = spread([end[2] for end in ends], gap=16, low=y.end, high=y.start)
        for (arm, at, y_end), place_y in zip(ends, places, strict=True):
            panel.line_at(at + 7, y_end, right + 12, place_y, "lead-line", arm.color)
            label = _short(arm.label)
            panel.text(right + 16, place_y + 4, label, css="label", arm=arm.color)
    panel.words = "; ".join(
        f"{cell.arm} with {count(cell.n_images)} images {plus_minus(cell.top1)} %"
        for cell in analysis.cells
        if cell.top1
    )
    return panel


def draw_differences(analysis: Analysis, width: int, *, total: bool = False) -> Panel:
    """Draws paired differences against images: every pair, mean and interval, zero marked.

    Args:
        total: those at matched total samples, instead of matched images seen.
    """
    found = analysis.matched_total if total else analysis.matched_images
    height = 320 if width > 400 else 270
    left, right = 46.0, width - 14.0
    x = _size_scale(analysis, left, right)
    values = [p.value for d in found for p in d.points] + [0.0]
    values += _ends(d.difference for d in found)
    y = _value_scale(values, height)
    matched = "total samples" if total else "images seen"
    panel = Panel(width, height, x, y, left, right, f"Paired differences at matched {matched}")
    panel.y_axis(ticks(y.low, y.high, 5), "difference in top-1, points")
    panel.line_at(left, y(0), right, y(0), "zero")
    panel.x_axis(_size_ticks(analysis), _SIZES)
    for place, arm in enumerate(analysis.arms):
        own = [d for d in found if d.arm == arm.label]
        ats = [x(d.n_images) + _dodge(place, analysis, right - left) for d in own]
        line = [(at, y(d.difference.mean)) for at, d in zip(ats, own, strict=True)]
        panel.curve(arm.color, line, "curve thin")
        for at, one in zip(ats, own, strict=True):
            where = f"{_difference_name(one)} · {count(one.n_images)} images"
            for p in one.points:
                tip = f"{where} · seed {p.seed}: {signed(p.value, 2)}"
                panel.marker(arm.color, at, y(p.value), tip=tip)
            tip = f"{where}: {interval(one.difference, sign=True)} points"
            _mean(panel, arm.color, at, one.difference, tip)
    panel.words = "; ".join(
        f"{d.arm} at {count(d.n_images)} images {interval(d.difference, sign=True)}" for d in found
    )
    return panel


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
    panel.text(0, 12, "arm, and the reference's images", css="name")
    shown = ratio_ticks(low, high)
    for value in shown:
        panel.line_at(x(value), top - 6, x(value), height - 44, "zero" if value == 1 else "grid")
    panel.x_axis([(v, f"×{v:g}") for v in shown], "images needed ÷ the reference's images")
    colors = {arm.label: arm.color for arm in analysis.arms}
    for place, saving in enumerate(found):
        arm, y_row = colors[saving.arm], top + row * (place + 0.5)
        where = f"{saving.arm} for {count(saving.n_images)} of {saving.reference}"
        label = f"{_short(saving.arm, letters)} · {count(saving.n_images)}"
        panel.text(left - 8, y_row + 4, label, anchor="end", arm=arm)
        for seed, read in saving.needs.per_seed.items():
            _read_mark(panel, arm, y_row, read, saving, f"{where} · seed {seed}")
        ends = [end.images for end in (saving.needs.low, saving.needs.high) if end]
        known = [x(end / saving.n_images) for end in ends if end is not None]
        if len(known) == 2:
            panel.line_at(known[0], y_row, known[1], y_row, "whisker", arm)
        _read_mark(panel, arm, y_row, saving.needs.estimate, saving, where, is_mean=True)
    panel.words = "; ".join(
        f"{s.arm} needs {reading(s.needs.estimate)} for the {percent(s.accuracy)} % of "
        f"{s.reference} with {count(s.n_images)}" for s in found
    )  # fmt: skip
    return panel


def draw_convergence(analysis: Analysis, n_images: int) -> Panel:
    """Draws accuracy while training at one size: thin lines are seeds, thick ones their mean."""
    width, height = 360, 260
    curves = [c for c in analysis.convergence if c.n_images == n_images and c.images_seen]
    x = Scale(0, max(c.images_seen[-1] for c in curves), 46, width - 12)
    y = _value_scale([v for c in curves for v in c.top1], height, low_limit=0, high_limit=100)
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
    colors = {arm.label: arm.color for arm in analysis.arms}
    for line in lines:
        arm = next((colors[label] for label in line.arms if label in colors), 0)
        points = zip(line.curve_steps, line.curve_percent, strict=True)
        panel.curve(arm, [(x(step), y(value)) for step, value in points])
        if line.chance_percent is not None:
            chance = y(line.chance_percent)
            panel.line_at(x.start, chance, x.end, chance, "chance", arm)
    panel.words = "; ".join(
        f"{' and '.join(line.arms) or line.rule} seed {line.seed} ends at "
        f"{percent(line.hidden_accuracy_percent)} %, chance {percent(line.chance_percent)} %"
        for line in lines
    )
    return panel


def draw_gains(analysis: Analysis, n_images: int, width: int) -> Panel:
    """Draws each arm's gain at one size against what its warm-up learned of the order."""
    height = 320 if width > 400 else 300
    gains = [gain for gain in analysis.gains if gain.n_images == n_images]
    beyond = {gain.arm: gain.figures[BEYOND] or 0.0 for gain in gains}
    low, high = min(*beyond.values(), 0.0), max(beyond.values())
    room = (high - low) * 0.06
    x = Scale(low - room, high + room, 46, width - 14)
    y = _value_scale([0.0, *(g.gain.mean for g in gains), *_ends(g.gain for g in gains)], height)
    title = f"Gain with {count(n_images)} images against what the warm-up learned of the order"
    panel = Panel(width, height, x, y, x.start, x.end, title)
    panel.y_axis(ticks(y.low, y.high, 5), f"gain with {count(n_images)} images, points of top-1")
    panel.line_at(x.start, y(0), x.end, y(0), "zero")
    at = ticks(x.low, x.high, 5)
    panel.x_axis([(v, tick_text(v, at[1] - at[0])) for v in at], f"{BEYOND}, points")
    colors = {arm.label: arm.color for arm in analysis.arms}
    for gain in gains:
        tip = f"{gain.arm}: {interval(gain.gain, sign=True)} points, {signed(beyond[gain.arm])}"
        where = f"{tip} beyond the order-blind baseline"
        _mean(panel, colors[gain.arm], x(beyond[gain.arm]), gain.gain, where)
    panel.words = "; ".join(
        f"{g.arm} {interval(g.gain, sign=True)} at {signed(beyond[g.arm])} points" for g in gains
    )
    return panel


def _difference_name(found: Difference) -> str:
    return f"{found.arm} − {found.reference}"


def _size_scale(analysis: Analysis, left: float, right: float) -> Scale:
    """Log scale of images between the axes' ends, with room for arms side by side."""
    room = 10 + DODGE * len(analysis.arms) / 2
    low, high = analysis.sizes[0], analysis.sizes[-1]
    if low == high:
        return Scale(low / 2, low * 2, left, right, is_log=True)
    return Scale(low, high, left + room, right - room, is_log=True)


def _size_ticks(analysis: Analysis) -> list[tuple[float, str]]:
    return [(size, count(size)) for size in analysis.sizes]


def _value_scale(
    values: Sequence[float],
    height: int,
    *,
    low_limit: float = float("-inf"),
    high_limit: float = float("inf"),
) -> Scale:
    low, high = min(values), max(values)
    room = max((high - low) * 0.06, 0.5)
    return Scale(
        max(low - room, low_limit), min(high + room, high_limit), start=height - 44, end=28
    )


def _ends(intervals: Iterable[Interval | None]) -> list[float]:
    """Ends of the intervals, which the axis must hold as well."""
    pairs = [(i.low, i.high) for i in intervals if i is not None]
    return [end for pair in pairs for end in pair if end is not None]


def _dodge(place: int, analysis: Analysis, room: float) -> float:
    """Pixels by which an arm stands beside its size; arms at the only size share all the room."""
    n = len(analysis.arms)
    step = DODGE if len(analysis.sizes) > 1 else min(90.0, 0.8 * room / n)
    return (place - (n - 1) / 2) * step


def _mean(panel: Panel, arm: int, at: float, value: Interval, tip: str) -> None:
    if value.low is not None and value.high is not None:
        panel.whisker(arm, at, value.low, value.high)
    panel.marker(arm, at, panel.y(value.mean), tip=tip, is_mean=True)


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
    ways: dict[str, Literal["", "left", "right"]] = {"<": "left", ">": "right"}
    x, tip = panel.x(read.images / saving.n_images), f"{where}: {reading(read)}"
    panel.marker(arm, x, y, tip=tip, is_mean=is_mean, way=ways.get(read.bound, ""))


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

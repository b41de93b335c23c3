"""The page's pictures, drawn from an analysis: inline SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from vitwarm.report.curves import Interval, Reading
from vitwarm.report.facts import Analysis, Difference, Saving
from vitwarm.report.svg import (
    Panel,
    Scale,
    marker,
    path,
    ratio_ticks,
    spread,
    tick_text,
    ticks,
    whisker,
)
from vitwarm.report.words import count, interval, percent, plus_minus, reading, signed

WIDE, HALF, NARROW = 1040, 520, 360
#: Pixels between neighbouring arms at one size, so that their intervals stand side by side.
DODGE = 6.0


def draw_accuracy(analysis: Analysis, width: int) -> str:
    """Draws top-1 against images: every seed, mean and interval, one line per arm."""
    height = 460 if width > 600 else 330
    labelled = width > 600
    longest = max(len(_short(arm.label)) for arm in analysis.arms)
    left, right = 46.0, width - (34 + 7.6 * longest if labelled else 14)
    x = _size_scale(analysis, left, right)
    y = _value_scale(_all_values(analysis), height, low_limit=0, high_limit=100)
    panel = Panel(width, height, x, y, left, right)
    panel.y_axis(ticks(y.low, y.high, 7 if labelled else 5), "top-1 accuracy, %")
    panel.x_axis(_size_ticks(analysis), "training images (distinct, log scale)")
    ends = []
    for index, arm in enumerate(analysis.arms):
        content, line = [], []
        for cell in (c for c in analysis.cells if c.arm == arm.label and c.top1):
            at = x(cell.n_images) + _dodge(index, len(analysis.arms))
            assert cell.top1 is not None
            line.append((at, y(cell.top1.mean)))
            where = f"{arm.label} · {count(cell.n_images)} images"
            content += [
                marker(index, at, y(p.value), size=3, css="seed",
                       tip=f"{where} · seed {p.seed}: {percent(p.value, 2)} %")
                for p in cell.points
            ]  # fmt: skip
            content.append(
                _interval(index, at, y, cell.top1, f"{where}: {plus_minus(cell.top1)} %")
            )
        panel.arm(index, path(line, index) + "".join(content))
        if line:
            ends.append((index, arm.label, *line[-1]))
    if labelled:
        places = spread([end[3] for end in ends], gap=16, low=y.end, high=y.start)
        for (index, label, at, y_end), place in zip(ends, places, strict=True):
            panel.arm(
                index,
                f'<path class="lead-line" d="M{at + 7:.1f} {y_end:.1f}L{right + 12:.1f} '
                f'{place:.1f}"/><text class="label" x="{right + 16:.1f}" y="{place + 4:.1f}">'
                f"{_short(label)}</text>",
            )
    return panel.render("Accuracy against training images", _accuracy_words(analysis))


def draw_differences(
    analysis: Analysis, found: Sequence[Difference], title: str, width: int
) -> str:
    """Draws paired differences against images: every pair, mean and interval, zero marked."""
    height = 320 if width > 400 else 270
    left, right = 46.0, width - 14.0
    x = _size_scale(analysis, left, right)
    values = [p.value for d in found for p in d.points] + [0.0]
    values += _ends(d.difference for d in found)
    y = _value_scale(values, height)
    panel = Panel(width, height, x, y, left, right)
    panel.y_axis(ticks(y.low, y.high, 5), "difference in top-1, points")
    panel.line_at(left, y(0), right, y(0), "zero")
    panel.x_axis(_size_ticks(analysis), "training images (distinct, log scale)")
    labels = [arm.label for arm in analysis.arms]
    for label in dict.fromkeys(d.arm for d in found):
        index, content, line = labels.index(label), [], []
        for one in (d for d in found if d.arm == label):
            at = x(one.n_images) + _dodge(index, len(labels))
            where = f"{one.arm} − {one.reference} · {count(one.n_images)} images"
            line.append((at, y(one.difference.mean)))
            content += [
                marker(index, at, y(p.value), size=3, css="seed",
                       tip=f"{where} · seed {p.seed}: {signed(p.value, 2)}")
                for p in one.points
            ]  # fmt: skip
            tip = f"{where}: {interval(one.difference, sign=True)} points"
            content.append(_interval(index, at, y, one.difference, tip))
        panel.arm(index, path(line, index, css="curve thin") + "".join(content))
    words = "; ".join(
        f"{d.arm} at {count(d.n_images)} images {interval(d.difference, sign=True)}" for d in found
    )
    return panel.render(title, words)


def draw_savings(analysis: Analysis, found: Sequence[Saving], width: int) -> str:
    """Draws the images an arm needs, as a multiple of the reference's, one row per comparison."""
    top, row, left = 30, 24, 170 if width > 400 else 126
    letters = 16 if width > 400 else 10
    height = top + row * len(found) + 44
    ratios = [r.images / s.n_images for s in found for r in _readings(s) if r.images is not None]
    low, high = min([*ratios, 0.8]) / 1.12, max([*ratios, 1.25]) * 1.12
    x = Scale(low, high, left, width - 16, is_log=True)
    panel = Panel(width, height, x, Scale(0, 1, height - 44, top), x.start, x.end)
    panel.text(0, 12, "arm, and the reference's images", css="name")
    shown = ratio_ticks(low, high)
    for value in shown:
        panel.line_at(x(value), top - 6, x(value), height - 44, "zero" if value == 1 else "grid")
    panel.x_axis([(v, f"×{v:g}") for v in shown], "images needed ÷ the reference's images")
    labels = [arm.label for arm in analysis.arms]
    for place, saving in enumerate(found):
        index, y = labels.index(saving.arm), top + row * (place + 0.5)
        where = f"{saving.arm} for {count(saving.n_images)} of {saving.reference}"
        content = [
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_short(saving.arm, letters)} · {count(saving.n_images)}</text>"
        ]
        content += [
            _read_mark(panel, index, y, read, saving, 2.6, "seed", f"{where} · seed {seed}")
            for seed, read in saving.needs.per_seed.items()
        ]
        ends = [end.images for end in (saving.needs.low, saving.needs.high) if end]
        known = [x(end / saving.n_images) for end in ends if end is not None]
        if len(known) == 2:
            content.append(f'<path class="whisker" d="M{known[0]:.1f} {y:.1f}H{known[1]:.1f}"/>')
        content.append(
            _read_mark(panel, index, y, saving.needs.estimate, saving, 4.6, "mean", where)
        )
        panel.arm(index, "".join(content))
    words = "; ".join(
        f"{s.arm} needs {reading(s.needs.estimate)} for the {percent(s.accuracy)} % of "
        f"{s.reference} with {count(s.n_images)}" for s in found
    )  # fmt: skip
    return panel.render("Images needed for equal accuracy", words)


def draw_convergence(analysis: Analysis, n_images: int) -> str:
    """Draws accuracy while training at one size: thin lines are seeds, thick ones their mean."""
    width, height = 360, 260
    curves = [c for c in analysis.convergence if c.n_images == n_images and c.images_seen]
    x = Scale(0, max(c.images_seen[-1] for c in curves), 46, width - 12)
    y = _value_scale([v for c in curves for v in c.top1], height, low_limit=0, high_limit=100)
    panel = Panel(width, height, x, y, x.start, x.end)
    panel.y_axis(ticks(y.low, y.high, 4), f"top-1 with {count(n_images)} images, %")
    at = ticks(0, x.high, 4)
    panel.x_axis([(v, _compact(v, at)) for v in at], "images seen")
    for index, arm in enumerate(analysis.arms):
        own = [c for c in curves if c.arm == arm.label]
        content = [
            path([(x(s), y(v)) for s, v in zip(c.images_seen, c.top1, strict=True)], index, "trace")
            for c in own
        ]
        if len(own) > 1 and len({tuple(c.images_seen) for c in own}) == 1:
            means = [sum(v) / len(own) for v in zip(*(c.top1 for c in own), strict=True)]
            line = [(x(s), y(v)) for s, v in zip(own[0].images_seen, means, strict=True)]
            content.append(path(line, index))
        if own:
            panel.arm(index, "".join(content))
    last = ", ".join(
        f"{arm.label} ends at {plus_minus(cell.top1)} %"
        for arm in analysis.arms
        if (cell := analysis.cell(arm.label, n_images)) and cell.top1
    )
    return panel.render(f"Convergence with {count(n_images)} images", last)


def draw_warmups(analysis: Analysis, width: int) -> str:
    """Draws the accuracy on hidden tokens while warming up, and chance as a dotted line."""
    height = 300 if width > 400 else 260
    lines = [line for line in analysis.warmups if line.curve_steps]
    x = Scale(0, max(line.curve_steps[-1] for line in lines), 46, width - 14)
    y = Scale(0, 100, height - 44, 28)
    panel = Panel(width, height, x, y, x.start, x.end)
    panel.y_axis(ticks(0, 100, 5), "hidden tokens right, %")
    at = ticks(0, x.high, 5)
    panel.x_axis([(v, _compact(v, at)) for v in at], "warm-up steps")
    labels = [arm.label for arm in analysis.arms]
    for line in lines:
        index = next((labels.index(arm) for arm in line.arms if arm in labels), 0)
        points = zip(line.curve_steps, line.curve_percent, strict=True)
        content = path([(x(step), y(value)) for step, value in points], index)
        if line.chance_percent is not None:
            chance = y(line.chance_percent)
            content += f'<path class="chance" d="M{x.start:.1f} {chance:.1f}H{x.end:.1f}"/>'
        panel.arm(index, content)
    words = "; ".join(
        f"{' and '.join(line.arms) or line.rule} seed {line.seed} ends at "
        f"{percent(line.hidden_accuracy_percent)} %, chance {percent(line.chance_percent)} %"
        for line in lines
    )
    return panel.render("Accuracy on hidden tokens during the warm-ups", words)


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


def _all_values(analysis: Analysis) -> list[float]:
    values = [p.value for cell in analysis.cells for p in cell.points]
    return values + _ends(cell.top1 for cell in analysis.cells)


def _ends(intervals: Iterable[Interval | None]) -> list[float]:
    """Ends of the intervals, which the axis must hold as well."""
    pairs = [(i.low, i.high) for i in intervals if i is not None]
    return [end for pair in pairs for end in pair if end is not None]


def _dodge(index: int, n: int) -> float:
    return (index - (n - 1) / 2) * DODGE


def _interval(index: int, at: float, y: Scale, value: Interval, tip: str) -> str:
    drawn = ""
    if value.low is not None and value.high is not None:
        low, high = max(value.low, y.low), min(value.high, y.high)
        drawn = whisker(at, y(low), y(high))
    return drawn + marker(index, at, y(value.mean), size=4.6, css="mean", tip=tip)


def _readings(saving: Saving) -> list[Reading]:
    ends = [saving.needs.low, saving.needs.high]
    return [saving.needs.estimate, *saving.needs.per_seed.values(), *(e for e in ends if e)]


def _read_mark(
    panel: Panel, index: int, y: float, read: Reading, saving: Saving, size: float, css: str,
    where: str,
) -> str:  # fmt: skip
    """A marker for a number, an arrow outward for a bound, nothing where it is undetermined."""
    if read.images is None:
        return ""
    x, tip = panel.x(read.images / saving.n_images), f"{where}: {reading(read)}"
    if read.bound == "=":
        return marker(index, x, y, size=size, css=css, tip=tip)
    way = 1.6 * size if read.bound == ">" else -1.6 * size
    return (
        f'<path class="arrow {css}" data-tip="{escape(tip)}" d="M{x:.1f} {y - size:.1f}'
        f'l{way:.1f} {size:.1f}l{-way:.1f} {size:.1f}z"/>'
    )


def _short(text: str, n: int = 22) -> str:
    return escape(text if len(text) <= n else text[: n - 1] + "…")


def _compact(value: float, at: Sequence[float]) -> str:
    """`2.5k`, `1.2M`: axis numbers that fit a phone."""
    step = at[1] - at[0] if len(at) > 1 else 1.0
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if at[-1] >= size * 2:
            return tick_text(value / size, step / size) + (letter if value else "")
    return tick_text(value, step)


def _accuracy_words(analysis: Analysis) -> str:
    return "; ".join(
        f"{cell.arm} with {count(cell.n_images)} images {plus_minus(cell.top1)} %"
        for cell in analysis.cells
        if cell.top1
    )

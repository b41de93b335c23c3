"""The same pictures for papers: matplotlib, PNG and SVG, drawn from an analysis alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from vitwarm.files import replacing
from vitwarm.report.curves import Interval
from vitwarm.report.facts import Analysis, Difference
from vitwarm.report.svg import ratio_ticks
from vitwarm.report.words import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The page's colours on white, in the order of arms.
COLORS = (
    "#5a626e", "#0b62c4", "#c4500b", "#0b7d57", "#9a2bb0", "#8f7300", "#0b7a8c", "#b81d4f",
    "#587a10",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "P")
DASHES = ("-", "--", ":", "-.")
_STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e3dc", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "vitwarm", "figure.dpi": 100, "savefig.dpi": 200,
}  # fmt: skip


def write_figures(analyses: list[Analysis], folder: Path) -> list[Path]:
    """Writes every section's pictures as PNG and SVG and returns their paths."""
    matplotlib.use("Agg", force=False)
    paths: list[Path] = []
    for analysis in analyses:
        name = f"{analysis.slug}-" if len(analyses) > 1 else ""
        with matplotlib.rc_context(_STYLE):
            if any(cell.points for cell in analysis.cells):
                with _figure(folder / f"{name}accuracy", paths, width=6.4) as axes:
                    _draw_accuracy(axes, analysis)
            for found, words in (
                (analysis.matched_images, "differences"),
                (analysis.matched_total, "matched_total"),
            ):
                if found:
                    with _figure(folder / f"{name}{words}", paths) as axes:
                        _draw_differences(axes, analysis, found)
            if analysis.savings:
                height = 1.0 + 0.26 * len(analysis.savings)
                with _figure(folder / f"{name}equal_accuracy", paths, height=height) as axes:
                    _draw_savings(axes, analysis)
            for size in sorted({c.n_images for c in analysis.convergence if c.n_images}):
                with _figure(folder / f"{name}convergence_{size}", paths) as axes:
                    _draw_convergence(axes, analysis, size)
            if any(line.curve_steps for line in analysis.warmups):
                with _figure(folder / f"{name}warmups", paths) as axes:
                    _draw_warmups(axes, analysis)
    return paths


@contextmanager
def _figure(
    stem: Path, paths: list[Path], *, width: float = 4.8, height: float = 3.4
) -> Iterator[Axes]:
    # Not pyplot: it keeps every figure alive and wants a display's backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.add_subplot()
    for kind in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{kind}")
        with replacing(path) as temporary:
            # No date in the file: the same numbers give the same bytes.
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {})
        paths.append(path)


def _draw_accuracy(axes: Axes, analysis: Analysis) -> None:
    for index, arm in enumerate(analysis.arms):
        cells = [c for c in analysis.cells if c.arm == arm.label and c.top1]
        xs = [_dodge(c.n_images, index, analysis) for c in cells]
        for x, cell in zip(xs, cells, strict=True):
            axes.plot([x] * len(cell.points), [p.value for p in cell.points], MARKERS[index % 5],
                      color=_color(index), ms=2.5, alpha=0.45, mew=0)  # fmt: skip
        _line(axes, index, xs, [c.top1 for c in cells if c.top1], arm.label)
    _size_axis(axes, analysis)
    axes.set_ylabel("top-1 accuracy, %")
    axes.legend(fontsize=8)


def _draw_differences(axes: Axes, analysis: Analysis, found: list[Difference]) -> None:
    labels = [arm.label for arm in analysis.arms]
    for label in dict.fromkeys(d.arm for d in found):
        index = labels.index(label)
        own = [d for d in found if d.arm == label]
        xs = [_dodge(d.n_images, index, analysis) for d in own]
        for x, one in zip(xs, own, strict=True):
            axes.plot([x] * len(one.points), [p.value for p in one.points], MARKERS[index % 5],
                      color=_color(index), ms=2.5, alpha=0.45, mew=0)  # fmt: skip
        _line(axes, index, xs, [d.difference for d in own], f"{label} − {own[0].reference}")
    axes.axhline(0, color="#5a626e", lw=0.9, ls="--")
    _size_axis(axes, analysis)
    axes.set_ylabel("paired difference in top-1, points")
    axes.legend(fontsize=8)


def _draw_savings(axes: Axes, analysis: Analysis) -> None:
    labels = [arm.label for arm in analysis.arms]
    pointers = {"=": "o", ">": ">", "<": "<"}
    for row, saving in enumerate(analysis.savings):
        color = _color(labels.index(saving.arm))
        marks = [(read, 3.0, 0.45) for read in saving.needs.per_seed.values()]
        for read, size, alpha in [*marks, (saving.needs.estimate, 6.0, 1.0)]:
            if read.images is not None:
                axes.plot(read.images / saving.n_images, row, pointers[read.bound], color=color,
                          ms=size, alpha=alpha, mew=0)  # fmt: skip
        ends = [end.images for end in (saving.needs.low, saving.needs.high) if end]
        known = [end / saving.n_images for end in ends if end is not None]
        if len(known) == 2:
            axes.plot(known, [row, row], color=color, lw=1.2)
    axes.axvline(1, color="#5a626e", lw=0.9, ls="--")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    shown = ratio_ticks(min(low, 0.9), max(high, 1.1))
    axes.set_xticks(shown, [f"×{value:g}" for value in shown])
    axes.minorticks_off()
    axes.set_yticks(
        range(len(analysis.savings)),
        [f"{s.arm} · {count(s.n_images)}" for s in analysis.savings],
    )
    axes.invert_yaxis()
    axes.set_xlabel(f"images needed ÷ {analysis.reference}'s images, at equal accuracy")


def _draw_convergence(axes: Axes, analysis: Analysis, size: int) -> None:
    for index, arm in enumerate(analysis.arms):
        own = [c for c in analysis.convergence if (c.arm, c.n_images) == (arm.label, size)]
        for place, curve in enumerate(own):
            axes.plot(curve.images_seen, curve.top1, color=_color(index), lw=0.9, alpha=0.6,
                      ls=_dash(index), label=arm.label if place == 0 else None)  # fmt: skip
    axes.set_xlabel("images seen")
    axes.set_ylabel(f"top-1 with {count(size)} images, %")
    axes.legend(fontsize=8)


def _draw_warmups(axes: Axes, analysis: Analysis) -> None:
    labels = [arm.label for arm in analysis.arms]
    for line in analysis.warmups:
        index = next((labels.index(arm) for arm in line.arms if arm in labels), 0)
        name = f"{' and '.join(line.arms) or line.rule}, seed {line.seed}"
        axes.plot(line.curve_steps, line.curve_percent, color=_color(index), lw=1.2,
                  ls=_dash(index), label=name)  # fmt: skip
        if line.chance_percent is not None:
            axes.axhline(line.chance_percent, color=_color(index), lw=0.8, ls=":")
    axes.set_xlabel("warm-up steps")
    axes.set_ylabel("hidden tokens right, %")
    axes.set_ylim(0, 100)
    if len(analysis.warmups) <= 12:
        axes.legend(fontsize=7)


def _line(axes: Axes, index: int, xs: list[float], values: list[Interval], label: str) -> None:
    means = [value.mean for value in values]
    axes.plot(xs, means, color=_color(index), marker=MARKERS[index % 5], ms=4.5, lw=1.4,
              ls=_dash(index), label=label)  # fmt: skip
    for x, value in zip(xs, values, strict=True):
        if value.low is not None and value.high is not None:
            axes.errorbar([x], [value.mean], yerr=[[value.mean - value.low]] * 2,
                          color=_color(index), capsize=2.5, lw=1.1)  # fmt: skip


def _size_axis(axes: Axes, analysis: Analysis) -> None:
    axes.set_xscale("log")
    axes.set_xticks(analysis.sizes, [count(size) for size in analysis.sizes])
    axes.minorticks_off()
    axes.set_xlabel("training images (distinct)")


def _dodge(n_images: int, index: int, analysis: Analysis) -> float:
    """Sets arms side by side: by 1.2 % of the axis' log range each."""
    ratio = analysis.sizes[-1] / analysis.sizes[0] if len(analysis.sizes) > 1 else 4.0
    return float(n_images * ratio ** (0.012 * (index - (len(analysis.arms) - 1) / 2)))


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _dash(index: int) -> str:
    return DASHES[index // len(COLORS) % len(DASHES)]

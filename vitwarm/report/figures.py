"""The page's pictures as files for papers: SVG from the same marks, PNG through matplotlib."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from vitwarm.files import replacing, write_text
from vitwarm.report.drawings import draw_all
from vitwarm.report.facts import Analysis, Arm
from vitwarm.report.panel import PAD, Line, Mark, Panel, Shape, Text
from vitwarm.report.settings import draw_varied, find_varied

#: Points per pixel: a picture of 520 pixels is 13.8 cm wide.
_PT = 0.75
#: Line width, opacity and dashes of what is drawn, as picture.css has them.
_LINES: dict[str, tuple[float, float, tuple[int, ...]]] = {
    "axis": (1, 1, ()), "grid": (1, 1, ()), "zero": (1.2, 1, (4, 3)), "lead-line": (1, 0.5, ()),
    "curve": (2, 1, ()), "curve thin": (1, 0.55, ()), "trace": (1, 0.32, ()),
    "chance": (1, 1, (2, 4)), "whisker": (1.4, 0.6, ()),
}  # fmt: skip


def write_figures(analyses: list[Analysis], folder: Path) -> list[Path]:
    """Writes every section's pictures as PNG and SVG and returns their paths."""
    style = _style()
    paths: list[Path] = []
    for name, panel in _panels(analyses):
        path = folder / f"{name}.svg"
        write_text(path, panel.svg(style))
        paths += [path, path.with_suffix(".png")]
        with replacing(paths[-1]) as temporary:
            _to_figure(panel, style).savefig(temporary, format="png", dpi=200)
    return paths


def make_figures(analyses: list[Analysis]) -> dict[str, Figure]:
    """Returns every section's pictures, by the names that `write_figures` gives their files."""
    style = _style()
    return {name: _to_figure(panel, style) for name, panel in _panels(analyses)}


def _style() -> str:
    return resources.files("vitwarm.report").joinpath("picture.css").read_text(encoding="utf-8")


def _panels(analyses: list[Analysis]) -> Iterator[tuple[str, Panel]]:
    for analysis in analyses:
        prefix = f"{analysis.slug}-" if len(analyses) > 1 else ""
        for name, width, draw in draw_all(analysis):
            panel = draw(width)
            if name not in ("accuracy", "equal_accuracy"):  # these name their arms
                _add_legend(panel, analysis.arms)
            yield f"{prefix}{name}", panel
    for varied in find_varied(analyses):
        panel = draw_varied(varied)
        _add_legend(panel, varied.arms)
        yield varied.slug, panel


def _add_legend(panel: Panel, arms: Iterable[Arm]) -> None:
    """Names the arms that a picture shows, in rows below it."""
    drawn = {mark.arm for mark in panel.marks}
    x = panel.left
    y = panel.height + 14.0
    for arm in (arm for arm in arms if arm.color in drawn):
        room = 44 + 7.0 * len(arm.label)
        if x > panel.left and x + room > panel.width:
            x, y = panel.left, y + 20
        panel.marks.append(Line("curve", [[(x, y), (x + 26, y)]], arm.color))
        panel.marks.append(Shape("mean", x + 13, y, 4, arm.color))
        panel.marks.append(Text(x + 32, y + 4, arm.label, arm=arm.color))
        x += room
    panel.height = round(y) + 14


def _to_figure(panel: Panel, style: str) -> Figure:
    """A picture with matplotlib, in the colours of a style sheet."""
    # Not pyplot: it keeps every figure alive and wants a display's backend.
    colors = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", style))
    figure = Figure(figsize=((panel.width + 2 * PAD) / 96, (panel.height + 2 * PAD) / 96))
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (0, 0, 1, 1), xlim=(-PAD, panel.width + PAD), ylim=(panel.height + PAD, -PAD)
    )
    axes.set_axis_off()
    for order, mark in enumerate(panel.marks):
        for artist in _artists(mark, colors):
            artist.set_zorder(order)
            axes.add_artist(artist)
    return figure


def _artists(mark: Mark, colors: dict[str, str]) -> list[matplotlib.artist.Artist]:
    own = colors["ink-2"] if mark.arm is None else colors[f"c{mark.arm % 9}"]
    if isinstance(mark, Text):
        bold, named = mark.css == "label", mark.css == "name"
        color = own if bold else colors["ink" if named else "ink-2"]
        align = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
        return [
            matplotlib.text.Text(
                mark.x, mark.y, mark.text.replace("$", r"\$"), color=color, ha=align, va="baseline",
                fontsize=_PT * (13 if bold else 12), fontweight="bold" if bold else "normal",
            )
        ]  # fmt: skip
    if isinstance(mark, Line):
        width, alpha, dashes = _LINES[mark.css]
        style = dashes or mark.dashes
        dash = (0, tuple(d / width for d in style)) if style else "-"
        color = colors["grid"] if mark.css == "grid" else own
        return [
            Line2D(*zip(*stroke, strict=True), color=color, lw=width * _PT, alpha=alpha, ls=dash)
            for stroke in mark.strokes
        ]
    width, alpha = (1.2, 1.0) if mark.css == "mean" else (0.6, 0.7)
    return [Polygon(mark.corners, fc=own, ec=colors["card"], lw=width * _PT, alpha=alpha)]

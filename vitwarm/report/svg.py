"""Pictures as SVG: inline, in the page's own colours, or as a file that stands alone.

Everything that belongs to an arm carries `data-arm`, so that the page's legend can hide it.
"""

from __future__ import annotations

import itertools
from html import escape

from vitwarm.report.panel import N_COLORS, XY, Line, Mark, Panel, Shape, Text

#: Pixels around a picture that stands in a file of its own.
PAD = 8


def to_svg(panel: Panel, style: str = "") -> str:
    """Returns a picture with its alternative text.

    Args:
        style: a style sheet, for a file of its own; the page has it already.
    """
    body = ""
    for arm, marks in itertools.groupby(panel.marks, key=lambda mark: mark.arm):
        drawn = "".join(map(_draw, marks))
        group = "" if arm is None else f'<g class="arm c{arm % N_COLORS}" data-arm="{arm}">'
        body += f"{group}{drawn}</g>" if group else drawn
    alone = ' xmlns="http://www.w3.org/2000/svg"' if style else ""
    pad = PAD if style else 0
    box = f"{-pad} {-pad} {panel.width + 2 * pad} {panel.height + 2 * pad}"
    says = escape(f"{panel.title}. {panel.words}")
    return (
        f'<svg{alone} viewBox="{box}" role="img" aria-label="{says}">'
        f"{f'<style>{style}</style>' if style else ''}{body}</svg>"
    )


def swatch(arm: int) -> str:
    """Returns the small picture of an arm in a legend."""
    line, mark = Line("curve", [[(1, 7), (27, 7)]], arm), Shape("mean", 14, 7, 4, arm)
    return (
        f'<svg class="swatch c{arm % N_COLORS}" viewBox="0 0 28 14" aria-hidden="true">'
        f"{_draw(line)}{_draw(mark)}</svg>"
    )


def _draw(mark: Mark) -> str:
    css = f' class="{mark.css}"' if mark.css else ""
    if isinstance(mark, Text):
        where = "" if mark.anchor == "start" else f' text-anchor="{mark.anchor}"'
        return f'<text{css} x="{mark.x:.1f}" y="{mark.y:.1f}"{where}>{escape(mark.text)}</text>'
    if isinstance(mark, Line):
        dash = f' stroke-dasharray="{" ".join(map(str, mark.dashes))}"' if mark.dashes else ""
        strokes = "".join(f"M{_join(stroke, 'L')}" for stroke in mark.strokes)
        return f'<path{css} d="{strokes}"{dash}/>'
    says = f' data-tip="{escape(mark.tip)}"' if mark.tip else ""
    if mark.kind == "circle":
        return f'<circle{css}{says} cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{mark.size:.1f}"/>'
    return f'<polygon{css}{says} points="{_join(mark.corners, " ")}"/>'


def _join(points: list[XY], between: str) -> str:
    return between.join(f"{x:.1f} {y:.1f}" for x, y in points)

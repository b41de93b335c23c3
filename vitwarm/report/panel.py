"""A picture as marks in pixels, and as SVG: inline, in the page's colours, or a file of its own.

Arms are told apart by colour, marker and, past nine of them, dashes. Everything that belongs to an
arm carries `data-arm`, so that the page's legend can hide it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np

from vitwarm.report.curves import isotonic

#: Pixels around a picture that stands in a file of its own.
PAD = 8
N_COLORS = 9
_DASHES: tuple[tuple[int, ...], ...] = ((), (6, 4), (2, 3), (9, 3, 2, 3))
_CIRCLE = tuple((math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 33))
#: Corners around the origin, for a size of one; a circle is drawn as one where a format has it.
_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": _CIRCLE,
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.25), (1.15, 0.85), (-1.15, 0.85)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "cross": (
        (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
        (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
    ),
    "left": ((0, -1), (-1.6, 0), (0, 1)),
    "right": ((0, -1), (1.6, 0), (0, 1)),
}  # fmt: skip
_MARKERS = ("circle", "square", "triangle", "diamond", "cross")
XY = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Strokes through pixels; `css` names its style."""

    css: str
    strokes: list[list[XY]]
    arm: int | None = None

    @property
    def dashes(self) -> tuple[int, ...]:
        """Pixels on and off along the curve of an arm past the colours; empty: solid."""
        is_curve = self.arm is not None and self.css.startswith(("curve", "trace"))
        return _DASHES[(self.arm or 0) // N_COLORS % len(_DASHES)] if is_curve else ()

    @property
    def svg(self) -> str:
        """Its element."""
        dash = f' stroke-dasharray="{" ".join(map(str, self.dashes))}"' if self.dashes else ""
        strokes = "".join(f"M{_join(stroke, 'L')}" for stroke in self.strokes)
        return f'<path class="{self.css}" d="{strokes}"{dash}/>'


@dataclass(frozen=True)
class Shape:
    """A filled marker around a pixel; `tip` is what the page shows on hovering."""

    css: str
    x: float
    y: float
    size: float
    arm: int
    tip: str = ""
    way: Literal["", "left", "right"] = ""
    """An arrow instead of the arm's marker."""

    @property
    def kind(self) -> str:
        """Name of the form."""
        return self.way or _MARKERS[self.arm % len(_MARKERS)]

    @property
    def corners(self) -> list[XY]:
        """In pixels."""
        around = _SHAPES[self.kind]
        return [(self.x + dx * self.size, self.y + dy * self.size) for dx, dy in around]

    @property
    def svg(self) -> str:
        """Its element."""
        says = f' data-tip="{escape(self.tip)}"' if self.tip else ""
        form = f'polygon class="{self.css}"{says} points="{_join(self.corners, " ")}"'
        if self.kind == "circle":
            place = f'cx="{self.x:.1f}" cy="{self.y:.1f}" r="{self.size:.1f}"'
            form = f'circle class="{self.css}"{says} {place}'
        return f"<{form}/>"


@dataclass(frozen=True)
class Text:
    """A word at a pixel, on its baseline."""

    x: float
    y: float
    text: str
    css: str = ""
    anchor: Literal["start", "middle", "end"] = "start"
    arm: int | None = None

    @property
    def svg(self) -> str:
        """Its element."""
        css = f' class="{self.css}"' if self.css else ""
        where = "" if self.anchor == "start" else f' text-anchor="{self.anchor}"'
        return f'<text{css} x="{self.x:.1f}" y="{self.y:.1f}"{where}>{escape(self.text)}</text>'


Mark = Line | Shape | Text


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, linearly or in the logarithm."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Returns about `n` round numbers inside [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / max(n, 1)
    magnitude: float = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def ratio_ticks(low: float, high: float) -> list[float]:
    """Returns round multiples inside a range, always with 1."""
    if high / low > 5:
        return [2.0**k for k in range(-8, 9) if low <= 2.0**k <= high]
    step = 0.25 if high / low > 2.2 else 0.1
    return [round(i * step, 2) for i in range(1, 100) if low <= i * step <= high]


def tick_text(value: float, step: float) -> str:
    """Returns a tick's number with as many digits as its step needs, and a true minus sign."""
    digits = 0
    while digits < 6 and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    text = f"{value:,.{digits}f}".replace("-", "−")
    return text.removeprefix("−") if not value else text


def spread(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Moves positions apart as little as possible (least squares), inside [low, high].

    Neighbours end `gap` apart: positions minus the room they need, in order, may only rise.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    room = gap * np.arange(len(values))
    slack = isotonic(np.array([[values[i] for i in order]]) - room)[0]
    last = max(high - gap * (len(values) - 1), low)
    placed = np.clip(slack, low, last) + room
    return [float(placed[order.index(i)]) for i in range(len(values))]


@dataclass
class Panel:
    """One drawing with two axes; marks are added in drawing order."""

    width: int
    height: int
    x: Scale
    y: Scale
    left: float
    """Where the axes begin; the scale of x may begin further in."""
    right: float
    title: str
    words: str = ""
    """What it shows, for those who cannot see it."""
    heads: tuple[str, ...] = ()
    numbers: list[tuple[object, ...]] = field(default_factory=list)
    """Every seed's values, under their headings."""
    marks: list[Mark] = field(default_factory=list)

    def x_axis(self, at: Sequence[tuple[float, str]], label: str) -> None:
        """Draws ticks and the axis' name; labels that would touch are left out, ticks are not."""
        base, taken = self.y.start, -math.inf
        self.line_at(self.left, base, self.right, base, "axis")
        for value, text in at:
            x = self.x(value)
            self.line_at(x, base, x, base + 4, "axis")
            half = 3.4 * len(text)
            if x - half > taken + 4:
                self.marks.append(Text(x, base + 17, text, anchor="middle"))
                taken = x + half
        middle = (self.left + self.right) / 2
        self.marks.append(Text(middle, base + 35, label, "name", "middle"))

    def y_axis(self, at: Sequence[float], label: str) -> None:
        """Draws grid lines, their numbers, and the axis' name above them."""
        step = at[1] - at[0] if len(at) > 1 else 1.0
        for value in at:
            y = self.y(value)
            self.line_at(self.left, y, self.right, y, "grid")
            self.marks.append(Text(self.left - 7, y + 4, tick_text(value, step), anchor="end"))
        self.marks.append(Text(0, 12, label, "name"))

    def line_at(
        self, x0: float, y0: float, x1: float, y1: float, css: str, arm: int | None = None
    ) -> None:
        """Draws a straight line in pixels."""
        self.marks.append(Line(css, [[(x0, y0), (x1, y1)]], arm))

    def curve(self, arm: int, points: Sequence[XY], css: str = "curve") -> None:
        """Draws an arm's line through pixels; of one point there is none."""
        if len(points) > 1:
            self.marks.append(Line(css, [list(points)], arm))

    def marker(
        self,
        arm: int,
        x: float,
        y: float,
        *,
        tip: str,
        is_mean: bool = False,
        way: Literal["", "left", "right"] = "",
    ) -> None:
        """Draws an arm's marker, small for a seed and large for a mean, or an arrow."""
        css, size = ("mean", 4.6) if is_mean else ("seed", 3.0)
        self.marks.append(Shape(css, x, y, size, arm, tip, way))

    def whisker(self, arm: int, x: float, low: float, high: float) -> None:
        """Draws a vertical interval with caps; its ends are values."""
        y0, y1 = (self.y(min(max(v, self.y.low), self.y.high)) for v in (low, high))
        ends = [[(x - 4, y), (x + 4, y)] for y in (y0, y1)]
        self.marks.append(Line("whisker", [[(x, y0), (x, y1)], *ends], arm))

    def svg(self, style: str = "") -> str:
        """Returns the picture with its alternative text.

        Args:
            style: a style sheet, for a file of its own; the page has it already.
        """
        body = ""
        for arm, marks in itertools.groupby(self.marks, key=lambda mark: mark.arm):
            drawn = "".join(mark.svg for mark in marks)
            group = f'<g class="arm c{(arm or 0) % N_COLORS}" data-arm="{arm}">{drawn}</g>'
            body += drawn if arm is None else group
        alone = ' xmlns="http://www.w3.org/2000/svg"' if style else ""
        pad = PAD if style else 0
        box = f"{-pad} {-pad} {self.width + 2 * pad} {self.height + 2 * pad}"
        says = escape(f"{self.title}. {self.words}")
        return (
            f'<svg{alone} viewBox="{box}" role="img" aria-label="{says}">'
            f"{f'<style>{style}</style>' if style else ''}{body}</svg>"
        )


def swatch(arm: int) -> str:
    """Returns the small picture of an arm in a legend, as SVG."""
    line, mark = Line("curve", [[(1, 7), (27, 7)]], arm), Shape("mean", 14, 7, 4, arm)
    return (
        f'<svg class="swatch c{arm % N_COLORS}" viewBox="0 0 28 14" aria-hidden="true">'
        f"{line.svg}{mark.svg}</svg>"
    )


def _join(points: list[XY], between: str) -> str:
    return between.join(f"{x:.1f} {y:.1f}" for x, y in points)

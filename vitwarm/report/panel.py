"""A picture before it has a format: marks in pixels, which `svg` and `figures` write out.

Arms are told apart by colour, marker and, past nine of them, dashes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vitwarm.report.curves import isotonic

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


@dataclass(frozen=True)
class Text:
    """A word at a pixel, on its baseline."""

    css: str
    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    arm: int | None = None


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
                self.text(x, base + 17, text, anchor="middle")
                taken = x + half
        self.text((self.left + self.right) / 2, base + 35, label, anchor="middle", css="name")

    def y_axis(self, at: Sequence[float], label: str) -> None:
        """Draws grid lines, their numbers, and the axis' name above them."""
        step = at[1] - at[0] if len(at) > 1 else 1.0
        for value in at:
            y = self.y(value)
            self.line_at(self.left, y, self.right, y, "grid")
            self.text(self.left - 7, y + 4, tick_text(value, step), anchor="end")
        self.text(0, 12, label, css="name")

    def line_at(
        self, x0: float, y0: float, x1: float, y1: float, css: str, arm: int | None = None
    ) -> None:
        """Draws a straight line in pixels."""
        self.marks.append(Line(css, [[(x0, y0), (x1, y1)]], arm))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: Literal["start", "middle", "end"] = "start",
        css: str = "",
        arm: int | None = None,
    ) -> None:
        """Writes text at a position in pixels."""
        self.marks.append(Text(css, x, y, text, anchor, arm))

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

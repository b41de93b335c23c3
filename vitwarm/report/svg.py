"""Inline SVG panels that follow the page: colours are CSS variables, text takes the page's font.

Arms are told apart by colour, marker and, past nine of them, dashes; everything that belongs to an
arm carries `data-arm`, so that the page's legend can hide it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from vitwarm.report.curves import isotonic

N_COLORS = 9
_DASHES = ("", "6 4", "2 3", "9 3 2 3")
_MARKERS = ("circle", "square", "triangle", "diamond", "cross")


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
    """One drawing with two axes; parts are added in drawing order."""

    width: int
    height: int
    x: Scale
    y: Scale
    left: float
    """Where the axes begin; the scale of x may begin further in."""
    right: float
    parts: list[str] = field(default_factory=list)

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

    def y_axis(self, at: Sequence[float], label: str, *, grid: bool = True) -> None:
        """Draws grid lines, their numbers, and the axis' name above them."""
        step = at[1] - at[0] if len(at) > 1 else 1.0
        for value in at:
            y = self.y(value)
            if grid:
                self.line_at(self.left, y, self.right, y, "grid")
            self.text(self.left - 7, y + 4, tick_text(value, step), anchor="end")
        self.text(0, 12, label, css="name")

    def line_at(self, x0: float, y0: float, x1: float, y1: float, css: str) -> None:
        """Draws a straight line in pixels."""
        self.parts.append(
            f'<line class="{css}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'
        )

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> None:
        """Writes text at a position in pixels."""
        kind = f' class="{css}"' if css else ""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text{kind} x="{x:.1f}" y="{y:.1f}"{where}>{escape(text)}</text>')

    def arm(self, index: int, content: str) -> None:
        """Adds what belongs to one arm."""
        self.parts.append(f'<g class="arm c{index % N_COLORS}" data-arm="{index}">{content}</g>')

    def render(self, title: str, description: str) -> str:
        """Returns the whole drawing, with its alternative text."""
        body = "".join(self.parts)
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(title)}. {escape(description)}">{body}</svg>'
        )


def path(points: Sequence[tuple[float, float]], index: int, css: str = "curve") -> str:
    """Returns a line through pixels, dashed for the arms past the colours."""
    if len(points) < 2:
        return ""
    dash = _DASHES[index // N_COLORS % len(_DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    where = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{css}" d="{where}"{style}/>'


def marker(index: int, x: float, y: float, *, size: float, css: str, tip: str = "") -> str:
    """Returns an arm's marker around a pixel; `tip` is what the page shows on hovering."""
    says = f' data-tip="{escape(tip)}"' if tip else ""
    kind = _MARKERS[index % len(_MARKERS)]
    start = f'class="{css}"{says}'
    if kind == "circle":
        return f'<circle {start} cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    if kind == "square":
        side = 1.8 * size
        return (
            f'<rect {start} x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" '
            f'width="{side:.1f}" height="{side:.1f}"/>'
        )
    corners = {
        "triangle": [(0, -1.25), (1.15, 0.85), (-1.15, 0.85)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "cross": [
            (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
            (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
        ],
    }[kind]  # fmt: skip
    where = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners)
    return f'<polygon {start} points="{where}"/>'


def whisker(x: float, y_low: float, y_high: float) -> str:
    """Returns a vertical interval with caps."""
    return (
        f'<path class="whisker" d="M{x:.1f} {y_low:.1f}V{y_high:.1f}'
        f'M{x - 4:.1f} {y_low:.1f}h8M{x - 4:.1f} {y_high:.1f}h8"/>'
    )


def swatch(index: int) -> str:
    """Returns the small picture of an arm in a legend."""
    line = path([(1, 7), (27, 7)], index)
    return (
        f'<svg class="swatch c{index % N_COLORS}" viewBox="0 0 28 14" aria-hidden="true">'
        f"{line}{marker(index, 14, 7, size=4, css='mean')}</svg>"
    )

"""The probe's pictures, with the report's own axes, marks and colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vitwarm.probe.figures import FIGURES, Figure
from vitwarm.probe.show import Found, block_values, caption
from vitwarm.report.analyse import choose_colors
from vitwarm.report.panel import Panel, Scale, ticks

WIDTH, HEIGHT = 360, 250
_TOP, _BOTTOM, _LEFT, _RIGHT = 28, 44, 46, 12


def colors_of(founds: Sequence[Found]) -> dict[str, int]:
    """Returns label -> number of its colour, that of an arm with this label in a report."""
    return choose_colors([found["label"] for found in founds])


def draw_all(founds: Sequence[Found]) -> Iterator[tuple[str, Panel]]:
    """Yields a picture of every figure of blocks: its name and what is drawn."""
    for figure in FIGURES:
        if figure.of in ("head", "block"):
            yield figure.name, draw_blocks(figure, founds)
        elif figure.of == "pair" and any(founds[0][figure.name].values()):
            yield figure.name, draw_likeness(figure, founds)


def draw_blocks(figure: Figure, founds: Sequence[Found]) -> Panel:
    """Draws a figure against blocks: a line per model, small markers for its heads."""
    heads = {
        found["label"]: [
            block[figure.name] if figure.of == "head" else [] for block in found["blocks"]
        ]
        for found in founds
    }
    lines = [(found["label"], block_values(found, figure)) for found in founds]
    blind = [f["uniform"][figure.name] for f in founds if figure.name in f["uniform"]]
    shown = [v for _, values in lines for v in values] + blind
    shown += [v for blocks in heads.values() for values in blocks for v in values]
    title = f"{figure.title}{', ' if figure.unit else ''}{figure.unit}"
    panel = _panel(title, max(len(values) for _, values in lines), shown)
    for value in dict.fromkeys(blind):
        panel.line_at(_LEFT, panel.y(value), panel.right, panel.y(value), "zero")
    colors = colors_of(founds)
    for label, values in lines:
        arm = colors[label]
        for number, of_heads in enumerate(heads[label], 1):
            for head, value in enumerate(of_heads, 1):
                tip = f"{label} · block {number} · head {head}: {value:,.3f}"
                panel.marker(arm, panel.x(number), panel.y(value), tip=tip)
        _line(panel, arm, label, values)
    panel.words = f"{caption(figure, founds)}. {_ends(lines)}"
    return panel


def draw_likeness(figure: Figure, founds: Sequence[Found]) -> Panel:
    """Draws the CKA of the other models with the first, block by block."""
    likeness = founds[0][figure.name]
    colors = colors_of(founds)
    known = {f["label"]: values for f in founds if (values := likeness.get(f["label"]))}
    shown = [v for values in known.values() for v in values if v is not None]
    title = f"{figure.title} with {founds[0]['label']}"
    panel = _panel(title, len(founds[0]["blocks"]), [*shown, 0.0, 1.0])
    for label, values in known.items():
        _line(panel, colors[label], label, values)
    panel.words = _ends((label, [v for v in vs if v is not None]) for label, vs in known.items())
    return panel


def draw_spectra(name: str, number: int, founds: Sequence[Found]) -> Panel:
    """Draws the singular values of one block's products, as shares of the head's largest.

    Args:
        name: `qk` or `vo`.
        number: of the block, from 0 on; models that lack it are left out.
    """
    lines, colors = [], colors_of(founds)
    for found in founds:
        if number < len(found["blocks"]):
            spectra = found["blocks"][number][f"{name}_spectrum"]
            shares = [[value / (head[0] or 1.0) for value in head] for head in spectra]
            means = [sum(column) / len(column) for column in zip(*shares, strict=True)]
            lines.append((colors[found["label"]], found["label"], means))
    title = f"{name.upper()} spectrum of block {number + 1}"
    most = max(len(means) for _, _, means in lines)
    panel = _panel(title, most, [0.0, 1.0], across="singular values, largest first")
    for arm, _, means in lines:
        panel.curve(arm, [(panel.x(k), panel.y(value)) for k, value in enumerate(means, 1)])
    panel.words = "; ".join(
        f"{label}: half of the values exceed {means[len(means) // 2]:.2f} of the largest"
        for _, label, means in lines
    )
    return panel


def _panel(title: str, n: int, shown: Sequence[float], across: str = "block") -> Panel:
    low, high = min(shown), max(shown)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    y = Scale(low - room if low < 0 or low - room > 0 else 0.0, high + room, HEIGHT - _BOTTOM, _TOP)
    x = Scale(1, max(n, 2), _LEFT + 12, WIDTH - _RIGHT - 12)
    panel = Panel(WIDTH, HEIGHT, x, y, _LEFT, WIDTH - _RIGHT, title)
    panel.y_axis(ticks(y.low, y.high, 4), title)
    at = [value for value in ticks(1, max(n, 2), 6) if value == round(value)]
    panel.x_axis([(value, f"{value:.0f}") for value in at], across)
    return panel


def _line(panel: Panel, arm: int, label: str, values: Sequence[float | None]) -> None:
    known = [(k, value) for k, value in enumerate(values, 1) if value is not None]
    panel.curve(arm, [(panel.x(k), panel.y(value)) for k, value in known])
    for k, value in known:
        tip = f"{label} · block {k}: {value:,.3f}"
        panel.marker(arm, panel.x(k), panel.y(value), tip=tip, is_mean=True)


def _ends(lines: Iterable[tuple[str, Sequence[float]]]) -> str:
    return "; ".join(
        f"{label} from {values[0]:,.3f} to {values[-1]:,.3f}" for label, values in lines if values
    )

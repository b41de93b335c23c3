"""The probe as one self-contained HTML page, in the report's shell, with its axes and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from vitwarm.probe.figures import FIGURES, Figure
from vitwarm.probe.show import (
    Found,
    block_lines,
    block_values,
    caption,
    model_figures,
    notes,
    shown_blocks,
)
from vitwarm.report.analyse import choose_colors
from vitwarm.report.page import render
from vitwarm.report.page_tables import Table, Td, table
from vitwarm.report.panel import Panel, Scale, ticks
from vitwarm.report.words import number

#: How the JSON file of a model ends, by which a report finds it.
SUFFIX = ".probe.json"
WIDTH, HEIGHT = 360, 250
_TOP, _BOTTOM, _LEFT, _RIGHT = 28, 44, 46, 12


def make_probe_page(founds: Sequence[Found]) -> str:
    """Returns the HTML document of models that were probed side by side."""
    section = make_probe_section(founds, title="Models side by side", slug="probe")
    return render("probe/page.html", title="What it did to the network", section=section)


def make_probe_section(founds: Sequence[Found], *, title: str, slug: str) -> Markup:
    """Returns a section of a page: tables and pictures of models that were probed side by side.

    Raises: KeyError, TypeError, ValueError and their like: an object that `run_probe` did not make.
    """
    depth = min(len(found["blocks"]) for found in founds)
    # A model has the colour of an arm with its label in a report.
    colors = choose_colors([found["label"] for found in founds])
    spectra = [
        (f"{name}_spectrum_{block + 1}", _draw_spectra(name, block, founds, colors))
        for name in ("qk", "vo")
        for block in sorted({0, depth // 2, depth - 1})
    ]
    section = render(
        "probe/section.html",
        title=title,
        slug=slug,
        arms=[(colors[found["label"]], found["label"]) for found in founds],
        models=_model_table(founds, colors),
        blocks=_block_table(founds),
        definitions=_definition_table(),
        notes=notes(founds),
        pictures=[_picture(*drawn) for drawn in _draw_figures(founds, colors)],
        spectra=[_picture(*drawn) for drawn in spectra],
    )
    return Markup(section)


def _model_table(founds: Sequence[Found], colors: dict[str, int]) -> Table:
    return table(
        "Frozen models, one figure each.",
        founds,
        [
            ("model", lambda found: Td(found["label"], "left", arm=colors[found["label"]])),
            *(
                (caption(f, founds), lambda found, f=f: number(found[f.name], f.digits))
                for f in model_figures(founds)
            ),
        ],
    )


def _block_table(founds: Sequence[Found]) -> Table:
    lines = [
        (figure, label, [number(value, figure.digits) for value in values])
        for figure in FIGURES
        if figure.of != "model"
        for label, values in block_lines(founds, figure).items()
    ]
    return table(
        "By block; of figures of heads, the mean over a block's heads.",
        lines,
        [
            ("figure", lambda line: Td(caption(line[0], founds), "left")),
            ("model", lambda line: Td(line[1], "left")),
            *(
                (f"block {k + 1}", lambda line, k=k: line[2][k] if k < len(line[2]) else "")
                for k in shown_blocks(max(len(found["blocks"]) for found in founds))
            ),
        ],
    )


def _definition_table() -> Table:
    return table(
        "What the figures mean, and where they come from.",
        FIGURES,
        [
            ("figure", lambda figure: Td(figure.title, "left")),
            ("unit", lambda figure: Td(figure.unit, "left")),
            ("definition", lambda figure: Td(figure.definition, "wrap")),
            ("source", lambda figure: Td(figure.source, "wrap")),
        ],
    )


def _draw_figures(founds: Sequence[Found], colors: dict[str, int]) -> Iterator[tuple[str, Panel]]:
    """A picture of every figure of blocks: its name and what is drawn."""
    for figure in FIGURES:
        if figure.of in ("head", "block"):
            yield figure.name, _draw_blocks(figure, founds, colors)
        elif figure.of == "pair" and any(founds[0][figure.name].values()):
            yield figure.name, _draw_likeness(figure, founds, colors)


def _draw_blocks(figure: Figure, founds: Sequence[Found], colors: dict[str, int]) -> Panel:
    """A figure against blocks: a line per model, small markers for its heads."""
    lines = {found["label"]: block_values(found, figure) for found in founds}
    heads = {
        (found["label"], number, head): value
        for found in founds
        if figure.of == "head"
        for number, block in enumerate(found["blocks"], 1)
        for head, value in enumerate(block[figure.name], 1)
    }
    blind = [f["uniform"][figure.name] for f in founds if figure.name in f["uniform"]]
    shown = [value for values in lines.values() for value in values]
    title = f"{figure.title}{', ' if figure.unit else ''}{figure.unit}"
    panel = _panel(title, max(map(len, lines.values())), [*shown, *heads.values(), *blind])
    for value in dict.fromkeys(blind):
        panel.line_at(_LEFT, panel.y(value), panel.right, panel.y(value), "zero")
    for label, values in lines.items():
        for (of, block, head), value in heads.items():
            if of == label:
                tip = f"{label} · block {block} · head {head}: {value:,.3f}"
                panel.marker(colors[label], panel.x(block), panel.y(value), tip=tip)
        _line(panel, colors[label], label, values)
    panel.words = f"{caption(figure, founds)}. {_ends(lines)}"
    return panel


def _draw_likeness(figure: Figure, founds: Sequence[Found], colors: dict[str, int]) -> Panel:
    """The CKA of the other models with the first, block by block."""
    likeness = founds[0][figure.name]
    known = {f["label"]: values for f in founds if (values := likeness.get(f["label"]))}
    shown = [v for values in known.values() for v in values if v is not None]
    title = f"{figure.title} with {founds[0]['label']}"
    panel = _panel(title, len(founds[0]["blocks"]), [*shown, 0.0, 1.0])
    for label, values in known.items():
        _line(panel, colors[label], label, values)
    panel.words = _ends({label: [v for v in vs if v is not None] for label, vs in known.items()})
    return panel


def _draw_spectra(name: str, number: int, founds: Sequence[Found], colors: dict[str, int]) -> Panel:
    """The singular values of one block's `qk` or `vo` products, as shares of the head's largest."""
    lines = {}
    for found in founds:
        if number < len(found["blocks"]):
            spectra = found["blocks"][number][f"{name}_spectrum"]
            shares = [[value / (head[0] or 1.0) for value in head] for head in spectra]
            lines[found["label"]] = [sum(k) / len(k) for k in zip(*shares, strict=True)]
    title, n = f"{name.upper()} spectrum of block {number + 1}", max(map(len, lines.values()))
    panel = _panel(title, n, [0.0, 1.0], across="singular values, largest first")
    for label, means in lines.items():
        points = [(panel.x(k), panel.y(value)) for k, value in enumerate(means, 1)]
        panel.curve(colors[label], points)
    panel.words = "; ".join(
        f"{label}: half of the values exceed {means[len(means) // 2]:.2f} of the largest"
        for label, means in lines.items()
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


def _ends(lines: dict[str, list[float]]) -> str:
    return "; ".join(
        f"{label} from {values[0]:,.3f} to {values[-1]:,.3f}"
        for label, values in lines.items()
        if values
    )


def _picture(name: str, panel: Panel) -> dict[str, object]:
    return {"name": name, "desktop": Markup(panel.svg()), "phone": None}

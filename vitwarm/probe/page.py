"""The probe as one self-contained HTML page, in the report's shell and with its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from typing import Any

from markupsafe import Markup

from vitwarm.probe.drawings import draw_all, draw_spectra
from vitwarm.probe.figures import FIGURES, Figure
from vitwarm.probe.show import (
    Found,
    block_lines,
    caption,
    model_figures,
    notes,
    number,
    shown_blocks,
)
from vitwarm.report.page import render
from vitwarm.report.page_tables import Table, Td, table, text
from vitwarm.report.panel import Panel
from vitwarm.report.svg import to_svg

Line = tuple[Figure, str, list[float | None]]
Column = tuple[str, Callable[[Any], Td]]


def make_probe_page(founds: Sequence[Found]) -> str:
    """Returns the HTML document of models that were probed side by side."""
    page = resources.files("vitwarm.probe").joinpath("page.html").read_text(encoding="utf-8")
    depth = min(len(found["blocks"]) for found in founds)
    blocks = sorted({0, depth // 2, depth - 1})
    spectra = [
        _picture(f"{name}_spectrum_{block + 1}", draw_spectra(name, block, founds))
        for name in ("qk", "vo")
        for block in blocks
    ]
    return render(
        page,
        title="What it did to the network",
        arms=list(enumerate(found["label"] for found in founds)),
        models=model_table(founds),
        pictures=[_picture(name, panel) for name, panel in draw_all(founds)],
        spectra=spectra,
        blocks=block_table(founds),
        definitions=definition_table(),
        notes=notes(founds),
    )


def model_table(founds: Sequence[Found]) -> Table:
    """Returns the figures of whole models, a row each."""

    def cell(arm_found: tuple[int, Found], figure: Figure) -> Td:
        return text(number(arm_found[1][figure.name], figure.digits))

    columns: list[Column] = [("model", lambda it: Td(it[1]["label"], "left", arm=it[0]))]
    columns += [
        (caption(figure, founds), partial(cell, figure=figure)) for figure in model_figures(founds)
    ]
    return table("Frozen models, one figure each.", list(enumerate(founds)), columns)


def block_table(founds: Sequence[Found]) -> Table:
    """Returns the figures of blocks, heads averaged: a row per figure and model, or pair."""
    lines: list[Line] = [
        (figure, label, values)
        for figure in FIGURES
        if figure.of != "model"
        for label, values in block_lines(founds, figure).items()
    ]

    def cell(line: Line, k: int) -> Td:
        figure, _, values = line
        return text(number(values[k], figure.digits) if k < len(values) else "")

    columns: list[Column] = [
        ("figure", lambda line: text(caption(line[0], founds), "left")),
        ("model", lambda line: text(line[1], "left")),
    ]
    shown = shown_blocks(max(len(found["blocks"]) for found in founds))
    columns += [(f"block {k + 1}", partial(cell, k=k)) for k in shown]
    return table("By block; of figures of heads, the mean over a block's heads.", lines, columns)


def definition_table() -> Table:
    """Returns what every figure means."""
    columns: list[Column] = [
        ("figure", lambda figure: text(figure.title, "left")),
        ("unit", lambda figure: text(figure.unit, "left")),
        ("definition", lambda figure: text(figure.definition, "wrap")),
        ("source", lambda figure: text(figure.source, "wrap")),
    ]
    return table("What the figures mean, and where they come from.", FIGURES, columns)


def _picture(name: str, panel: Panel) -> dict[str, Any]:
    return {"name": name, "desktop": Markup(to_svg(panel)), "phone": None}

"""The probe as one self-contained HTML page, in the report's shell and with its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from typing import Any

from markupsafe import Markup

from vitwarm.probe.drawings import colors_of, draw_all, draw_spectra
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

#: How the JSON file of a model ends, by which a report finds it.
SUFFIX = ".probe.json"

Line = tuple[Figure, str, list[float | None]]
Column = tuple[str, Callable[[Any], Td]]


def make_probe_page(founds: Sequence[Found]) -> str:
    """Returns the HTML document of models that were probed side by side."""
    section = make_probe_section(founds, title="Models side by side", slug="probe")
    return render(_template("page.html"), title="What it did to the network", section=section)


def make_probe_section(founds: Sequence[Found], *, title: str, slug: str) -> Markup:
    """Returns a section of a page: tables and pictures of models that were probed side by side.

    Raises: KeyError, TypeError, ValueError and their like: an object that `run_probe` did not make.
    """
    depth = min(len(found["blocks"]) for found in founds)
    blocks = sorted({0, depth // 2, depth - 1})
    colors = colors_of(founds)
    spectra = [
        _picture(f"{name}_spectrum_{block + 1}", draw_spectra(name, block, founds))
        for name in ("qk", "vo")
        for block in blocks
    ]
    section = render(
        _template("section.html"),
        title=title,
        slug=slug,
        arms=[(colors[found["label"]], found["label"]) for found in founds],
        models=model_table(founds),
        pictures=[_picture(name, panel) for name, panel in draw_all(founds)],
        spectra=spectra,
        blocks=block_table(founds),
        definitions=definition_table(),
        notes=notes(founds),
    )
    return Markup(section)


def model_table(founds: Sequence[Found]) -> Table:
    """Returns the figures of whole models, a row each."""

    def cell(found: Found, figure: Figure) -> Td:
        return text(number(found[figure.name], figure.digits))

    colors = colors_of(founds)
    columns: list[Column] = [
        ("model", lambda found: Td(found["label"], "left", arm=colors[found["label"]]))
    ]
    columns += [
        (caption(figure, founds), partial(cell, figure=figure)) for figure in model_figures(founds)
    ]
    return table("Frozen models, one figure each.", founds, columns)


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


def _template(name: str) -> str:
    return resources.files("vitwarm.probe").joinpath(name).read_text(encoding="utf-8")

"""One self-contained HTML page: no network, light and dark, readable on a phone and without script.

`page.html` is its template, in the shell that other pages share. Every picture has its numbers in a
table below it; the findings and notes come from `words`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from vitwarm.records import code_version
from vitwarm.report import page_tables, words
from vitwarm.report.drawings import HALF, NARROW, draw_all
from vitwarm.report.facts import Analysis
from vitwarm.report.panel import Panel, swatch
from vitwarm.report.settings import Varied, draw_varied
from vitwarm.report.tables import picture_csv

#: Groups of `hidden_accuracy_by` and what they count.
_DIFFICULTIES = {
    "match_distance": "tokens back to the bracket that the hidden one closes",
    "depth": "brackets open before the hidden one closes",
    "equal_id_distance": "tokens to the nearest visible one with the same id",
}


class PageSection(NamedTuple):
    """A section that another room drew."""

    slug: str
    title: str
    html: Markup


def render(template: str, *, title: str, **values: Any) -> str:
    """Returns one HTML document, or a part of one.

    Args:
        template: its path in the package. It may extend `report/shell.html`; `report/parts.html`
            has what draws tables and pictures.
        values: what it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitwarm", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"prose": _prose, "note": words.arm_note, "count": words.count}
    environment.globals["swatch"] = lambda arm: Markup(swatch(arm))
    return environment.get_template(template).render(
        title=title, made=time.strftime("%Y-%m-%d %H:%M"), version=code_version(), **values
    )


def to_section(analysis: Analysis) -> dict[str, Any]:
    """Returns what `page.html` shows of an analysis, beside what it takes from it (`of`)."""
    pictures: dict[str, Any] = dict.fromkeys(("accuracy", "equal_accuracy", "warmups"))
    for name, width, draw in draw_all(analysis):
        pictures[name] = _picture(name, width, draw)
    tables = {
        "accuracy": page_tables.accuracy_table(analysis),
        "differences": page_tables.difference_table(
            analysis.matched_images, "Matched images seen: arm − reference."
        ),
        "savings": page_tables.saving_table(analysis.savings) if analysis.savings else None,
        "totals": page_tables.difference_table(
            analysis.matched_total, "Matched total samples: arm − the arm that trained longer."
        ),
        "warmups": page_tables.warmup_table(analysis),
        "gains": page_tables.gain_table(analysis),
        "ranks": page_tables.rank_table(analysis),
        "runs": page_tables.run_table(analysis),
    }
    hard = (page_tables.difficulty_table(analysis, *group) for group in _DIFFICULTIES.items())
    return {
        "of": analysis,
        "facts": _facts(analysis),
        "headlines": words.headlines(analysis),
        "caveats": [*analysis.problems, *words.caveats(analysis)],
        "notes": words.method_notes(analysis) if analysis.arms else [],
        "n_finished": sum(run.state == "finished" for run in analysis.runs),
        "pictures": pictures,
        "gains": [p for name, p in pictures.items() if name.startswith("gains_")],
        "convergence": [p for name, p in pictures.items() if name.startswith("convergence")],
        "tables": tables,
        "difficulties": [table for table in hard if table.rows],
    }


def to_overview(varied: Varied) -> dict[str, Any]:
    """Returns what `page.html` shows of sections that differ in one number."""
    picture = _picture(varied.slug, HALF, partial(draw_varied, varied))
    return {"of": varied, "picture": picture}


def _picture(name: str, width: int, draw: Callable[[int], Panel]) -> dict[str, Any]:
    panel = draw(width)
    phone = Markup(draw(NARROW).svg()) if width > NARROW else None
    shown = {"desktop": Markup(panel.svg()), "phone": phone, "csv": picture_csv(panel)}
    return {"name": name, **shown}


def _facts(analysis: Analysis) -> list[tuple[str, Any]]:
    n_val = analysis.n_val_images
    facts = [
        ("matched", analysis.match),
        ("warm-up seeds", analysis.warmup_seeds),
        ("seeds", words.seeds_at(analysis) if analysis.cells else None),
        ("model", analysis.model),
        ("classes", analysis.n_classes),
        ("validation images", words.count(n_val) if n_val else None),
        ("weights", " and ".join(analysis.weights) or None),
        *analysis.setting.items(),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _prose(text: str) -> Markup:
    """Escaped text whose numbers stay on one line with their units."""
    joined = str(escape(text)).replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
    return Markup(joined)

"""From records to a data-efficiency report: one page, pictures, CSV and JSON.

The command is `vitwarm.commands.report`. Nothing here loads torch: a report can be made on a laptop
from copied records.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vitwarm.files import write_text
from vitwarm.report.analyse import analyse
from vitwarm.report.facts import Analysis
from vitwarm.report.gather import gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitwarm.report.page import PageSection


@dataclass(frozen=True)
class Report:
    """What `vitwarm.report(...)` returns."""

    analyses: list[Analysis]
    """One per section."""
    figures: dict[str, Figure]
    """The pictures by their names: `accuracy`, `differences`, ..."""
    paths: ReportPaths | None
    """What was written, where a folder was named."""


@dataclass(frozen=True)
class ReportPaths:
    """What a report left on disk."""

    page: Path
    """index.html: self-contained."""
    json: Path
    """report.json: every number."""
    csvs: list[Path]
    figures: list[Path]
    """PNG and SVG, for papers."""
    analyses: list[Analysis]
    """One per section."""
    latex: Path
    """tables.tex: accuracy and differences, for papers (needs booktabs)."""
    changes: str
    """In one line what differs from an earlier report; empty where none is compared with."""


def run_report(
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    title: str | None = None,
    figures: bool = False,
    against: str | Path | None = None,
    more: Sequence[PageSection] = (),
) -> ReportPaths:
    """Writes the report on every run at or below the roots.

    Args:
        roots: folders of runs, run folders, or folders of sweeps.
        out: folder to write to; made if there is none.
        title: of the page.
        figures: also write PNG and SVG pictures.
        against: folder of an earlier report, to compare with.
        more: sections that the page shows behind those of the runs.
    Raises: RunError: a root that does not exist, or `out` cannot be written.
        ReportError: nothing there to report on, or nothing to compare with.
    """
    from vitwarm.report.compare import compare
    from vitwarm.report.page import render, to_overview, to_section
    from vitwarm.report.settings import find_varied
    from vitwarm.report.tables import write_csvs, write_json, write_latex

    folder, analyses = Path(out), _analyse_all(roots)
    page, json, latex = (folder / name for name in ("index.html", "report.json", "tables.tex"))
    changes = None if against is None else compare(analyses, Path(against))
    write_json(analyses, json)
    csvs = write_csvs(analyses, folder)
    write_latex(analyses, latex)
    pictures: list[Path] = []
    if figures:
        from vitwarm.report.figures import write_figures

        pictures = write_figures(analyses, folder / "figures")
    html = render(
        "report/page.html",
        title=title or "Data-efficiency report",
        overviews=[to_overview(varied) for varied in find_varied(analyses)],
        sections=[to_section(analysis) for analysis in analyses],
        changes=changes,
        more=more,
    )
    write_text(page, html)
    said = changes.summary if changes else ""
    return ReportPaths(page, json, csvs, pictures, analyses, latex, said)


def make_report(*runs: str | Path, out: str | Path | None = None, **how: Any) -> Report:
    """Analyses runs and draws them; `vitwarm.report(...)` is this.

    Args:
        runs: folders of runs, run folders, or a sweep's folder.
        out: a folder to write the page and its tables to as well.
        how: arguments of `run_report`.
    Raises: RunError, ReportError: as `run_report`.
    """
    from vitwarm.report.figures import make_figures

    paths = None if out is None else run_report(runs, out, **how)
    analyses = paths.analyses if paths else _analyse_all(runs)
    return Report(analyses, make_figures(analyses), paths)


def _analyse_all(roots: Sequence[str | Path]) -> list[Analysis]:
    """Sections of one name are numbered: their anchors and pictures must not be shared."""
    seen: Counter[str] = Counter()
    told = []
    for one in map(analyse, gather(roots)):
        seen[one.slug] += 1
        n = seen[one.slug]
        if n > 1:
            one = dataclasses.replace(one, slug=f"{one.slug}-{n}", title=f"{one.title} ({n})")
        told.append(one)
    return told


class _Callable(ModuleType):
    """Lets `vitwarm.report(...)` be a call although it is this package's name too."""

    def __call__(self, *runs: str | Path, **how: Any) -> Report:
        return make_report(*runs, **how)


sys.modules[__name__].__class__ = _Callable

__all__ = ["Analysis", "Report", "ReportPaths", "make_report", "run_report"]

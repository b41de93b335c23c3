"""From records to a data-efficiency report: one page, pictures, CSV and JSON.

    vitwarm report runs --out report
    vitwarm report runs/sweeps/quickstart --out report --open
    vitwarm report runs --out report-2 --against report

Give folders of runs, or a sweep's own folder for that sweep alone. Nothing here loads torch: a
report can be made on a laptop from copied records.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import webbrowser
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


def run_report(
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    title: str | None = None,
    figures: bool = False,
    against: str | Path | None = None,
) -> ReportPaths:
    """Writes the report on every run at or below the roots.

    Args:
        roots: folders of runs, run folders, or folders of sweeps.
        out: folder to write to; made if there is none.
        title: of the page.
        figures: also write PNG and SVG pictures.
        against: folder of an earlier report, to compare with.
    Raises: RunError: a root that does not exist, or `out` cannot be written.
        ReportError: nothing there to report on, or nothing to compare with.
    """
    from vitwarm.report.compare import compare
    from vitwarm.report.page import make_page
    from vitwarm.report.tables import write_csvs, write_json, write_latex

    analyses = _tell_apart([analyse(section) for section in gather(roots)])
    changes = None if against is None else compare(analyses, Path(against))
    folder = Path(out)
    write_json(analyses, folder / "report.json")
    csvs = write_csvs(analyses, folder)
    write_latex(analyses, folder / "tables.tex")
    pictures: list[Path] = []
    if figures:
        from vitwarm.report.figures import write_figures

        pictures = write_figures(analyses, folder / "figures")
    page = folder / "index.html"
    write_text(page, make_page(analyses, title or "Data-efficiency report", changes))
    json = folder / "report.json"
    return ReportPaths(page, json, csvs, pictures, analyses, folder / "tables.tex")


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
    analyses = paths.analyses if paths else _tell_apart([analyse(one) for one in gather(runs)])
    return Report(analyses, make_figures(analyses), paths)


def _tell_apart(analyses: list[Analysis]) -> list[Analysis]:
    """Numbers sections of one name: their anchors and pictures must not be shared."""
    seen: Counter[str] = Counter()
    told = []
    for one in analyses:
        seen[one.slug] += 1
        n = seen[one.slug]
        if n > 1:
            one = dataclasses.replace(one, slug=f"{one.slug}-{n}", title=f"{one.title} ({n})")
        told.append(one)
    return told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `vitwarm report`."""
    parser.add_argument("runs", nargs="+", help="folders of runs, run folders, or a sweep's folder")
    parser.add_argument("--out", required=True, help="folder for the page, pictures and tables")
    parser.add_argument("--title", help="title of the page")
    parser.add_argument(
        "--figures",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also write every picture as PNG and SVG (about a second each)",
    )
    parser.add_argument("--against", metavar="FOLDER", help="an earlier report to compare with")
    parser.add_argument("--open", action="store_true", help="show the page in the web browser")


def run(args: argparse.Namespace) -> int:
    """Makes the report, prints a short table, and the path of the page last."""
    from vitwarm.report.tables import terminal_table

    paths = run_report(
        args.runs, args.out, title=args.title, figures=args.figures, against=args.against
    )
    encoding = sys.stdout.encoding or "utf-8"
    print(terminal_table(paths.analyses).encode(encoding, "replace").decode(encoding), end="\n\n")
    if args.open and not webbrowser.open(paths.page.resolve().as_uri()):
        print("There is no web browser to open the page with.", file=sys.stderr)
    print(paths.page)
    return 0


class _Callable(ModuleType):
    """Lets `vitwarm.report(...)` be a call although it is this package's name too."""

    def __call__(self, *runs: str | Path, **how: Any) -> Report:
        return make_report(*runs, **how)


sys.modules[__name__].__class__ = _Callable

__all__ = [
    "Analysis", "Report", "ReportPaths", "add_arguments", "make_report", "run", "run_report",
]  # fmt: skip

"""From records to a data-efficiency report: one page, pictures, CSV and JSON.

    vitwarm report runs --out report
    vitwarm report runs/sweeps/quickstart --out report

Give folders of runs, or a sweep's own folder for that sweep alone. Nothing here loads torch: a
report can be made on a laptop from copied records.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitwarm.files import write_text
from vitwarm.report.analyse import analyse
from vitwarm.report.facts import Analysis
from vitwarm.report.gather import gather


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


def run_report(
    roots: Sequence[str | Path], out: str | Path, *, title: str | None = None, figures: bool = True
) -> ReportPaths:
    """Writes the report on every run at or below the roots.

    Args:
        roots: folders of runs, run folders, or folders of sweeps.
        out: folder to write to; made if there is none.
        title: of the page.
        figures: also write PNG and SVG pictures.
    Raises: RunError: a root that does not exist, or `out` cannot be written.
        ReportError: nothing there to report on.
    """
    from vitwarm.report.page import make_page
    from vitwarm.report.tables import write_csvs, write_json

    analyses = _tell_apart([analyse(section) for section in gather(roots)])
    folder = Path(out)
    write_json(analyses, folder / "report.json")
    csvs = write_csvs(analyses, folder)
    pictures: list[Path] = []
    if figures:
        from vitwarm.report.figures import write_figures

        pictures = write_figures(analyses, folder / "figures")
    page = folder / "index.html"
    write_text(page, make_page(analyses, title or "Data-efficiency report"))
    return ReportPaths(page, folder / "report.json", csvs, pictures, analyses)


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
    parser.add_argument("--no-figures", action="store_true", help="leave out PNG and SVG pictures")


def run(args: argparse.Namespace) -> int:
    """Makes the report, prints a short table, and the path of the page last."""
    from vitwarm.report.tables import terminal_table

    paths = run_report(args.runs, args.out, title=args.title, figures=not args.no_figures)
    encoding = sys.stdout.encoding or "utf-8"
    print(terminal_table(paths.analyses).encode(encoding, "replace").decode(encoding), end="\n\n")
    print(paths.page)
    return 0


__all__ = ["Analysis", "ReportPaths", "add_arguments", "run", "run_report"]

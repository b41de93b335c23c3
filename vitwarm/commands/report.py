"""From records to a data-efficiency report: one page, pictures, CSV and JSON.

    vitwarm report runs --out report
    vitwarm report runs/sweeps/quickstart --out report --open
    vitwarm report runs probe --out report-2 --against report

Give folders of runs, or a sweep's own folder for that sweep alone. Folders that `vitwarm probe`
wrote, inside them or given beside them, become sections of their own. Nothing here loads torch: a
report can be made on a laptop from copied records.
"""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitwarm.probe.show import Found
    from vitwarm.report.page import PageSection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `vitwarm report`."""
    add = parser.add_argument
    add("runs", nargs="+", help="folders of runs or of probes, or a sweep's folder")
    add("--out", required=True, help="folder for the page, pictures and tables")
    add("--title", help="title of the page")
    figures = "also write every picture as PNG and SVG (about a second each)"
    add("--figures", action=argparse.BooleanOptionalAction, default=False, help=figures)
    add("--against", metavar="FOLDER", help="an earlier report to compare with")
    add("--open", action="store_true", help="show the page in the web browser")


def run(args: argparse.Namespace) -> int:
    """Makes the report, prints a short table, and the path of the page last."""
    from vitwarm.report import run_report
    from vitwarm.report.tables import terminal_table

    paths = run_report(
        args.runs, args.out, title=args.title, figures=args.figures, against=args.against,
        more=find_probes(args.runs),
    )  # fmt: skip
    encoding = sys.stdout.encoding or "utf-8"
    print(terminal_table(paths.analyses).encode(encoding, "replace").decode(encoding), end="\n\n")
    if paths.changes:
        print(f"{paths.changes.encode(encoding, 'replace').decode(encoding)}\n")
    if args.open and not webbrowser.open(paths.page.resolve().as_uri()):
        print("There is no web browser to open the page with.", file=sys.stderr)
    print(paths.page)
    return 0


def find_probes(roots: Iterable[str | Path]) -> list[PageSection]:
    """Draws what `vitwarm probe` found: a section for each folder of its and choice of images.

    Folders lie at or below the roots. A file that is damaged, or not of this version, is named on
    stderr and left out.
    """
    from vitwarm.probe.page import SUFFIX, make_probe_section
    from vitwarm.report.gather import NOT_OURS
    from vitwarm.report.page import PageSection

    groups: dict[tuple[Path, int, str], list[Found]] = defaultdict(list)
    paths = {path for root in roots for path in Path(root).resolve().rglob(f"*{SUFFIX}")}
    for path in sorted(paths):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            make_probe_section([found], title="", slug="")
            images = found["images"]
            groups[path.parent, images["n"], images["subset_sha256"]].append(found)
        except NOT_OURS as error:
            why = f"not written by this version's probe ({type(error).__name__})"
            print(f"{path} is left out: {why}.", file=sys.stderr)
    n_groups = Counter(folder for folder, _, _ in groups)
    sections = []
    for number, ((folder, n, _), founds) in enumerate(groups.items(), 1):
        among = f", {n:,} images" if n_groups[folder] > 1 else ""
        slug, title = f"probe-{number}", f"What it did to the network: {folder.name}{among}"
        sections.append(
            PageSection(slug, title, make_probe_section(founds, title=title, slug=slug))
        )
    return sections

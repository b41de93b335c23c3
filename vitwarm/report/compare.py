"""Two reports side by side: what a cell's accuracy was then, what it is now."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitwarm.errors import ReportError
from vitwarm.report.curves import Interval
from vitwarm.report.facts import Analysis
from vitwarm.report.page_tables import Table, Td, table
from vitwarm.report.words import count, plus_minus, signed

#: Section, arm and number of images -> mean accuracy.
Means = dict[tuple[str, str, int], Interval]


def compare(analyses: Sequence[Analysis], earlier: Path) -> Table:
    """Returns how every cell's mean accuracy differs from that in an earlier report's folder.

    Cells are the same where section, arm and number of images are; no test is made, since the two
    reports may share runs. The summary says how many they are, and the largest change of a mean.

    Raises: ReportError: the folder holds no report that can be read.
    """
    before = _read(earlier / "report.json")
    now = {
        (one.title, cell.arm, cell.n_images): cell.top1
        for one in analyses
        for cell in one.cells
        if cell.top1
    }
    changes = {key: now[key].mean - before[key].mean for key in now if key in before}
    summary = f"Against {earlier}: {len(changes)} of {len(now)} accuracies are in both reports"
    if changes:
        section, arm, size = largest = max(changes, key=lambda key: abs(changes[key]))
        summary += (
            f"; the largest change is {signed(changes[largest], 2)} points, {arm} with "
            f"{count(size)} images ({section})"
        )
    found = table(
        f"Against the report in {earlier}: mean ± half the width of the 95 % CI.",
        list(dict.fromkeys([*changes, *now, *before])),
        [
            ("section", lambda key: Td(key[0], "left")),
            ("arm", lambda key: Td(key[1], "left")),
            ("images", lambda key: count(key[2])),
            ("top-1 before, %", lambda key: plus_minus(before.get(key))),
            ("n before", lambda key: before[key].n if key in before else 0),
            ("top-1 now, %", lambda key: plus_minus(now.get(key))),
            ("n now", lambda key: now[key].n if key in now else 0),
            ("change, points", lambda key: signed(changes[key], 2) if key in changes else ""),
        ],
        sortable=True,
    )
    return dataclasses.replace(found, summary=f"{summary}.")


def _read(path: Path) -> Means:
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
        return {
            (str(section["title"]), str(cell["arm"]), int(cell["n_images"])): Interval(
                int(cell["top1"]["n"]),
                float(cell["top1"]["mean"]),
                *(
                    None if (x := cell["top1"][k]) is None else float(x)
                    for k in ("sd", "low", "high")
                ),
            )
            for section in plain["sections"]
            for cell in section["cells"]
            if cell["top1"]
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ReportError(
            f"{path} cannot be compared with ({type(error).__name__}: {error}). Give the folder of "
            "an earlier report: --against FOLDER."
        ) from error

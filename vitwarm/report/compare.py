"""Two reports side by side: what a cell's accuracy was then, what it is now."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitwarm.errors import ReportError
from vitwarm.report.curves import Interval
from vitwarm.report.facts import Analysis
from vitwarm.report.page_tables import Table, Td, table, text
from vitwarm.report.words import count, plus_minus, signed

#: Section, arm, number of images.
Key = tuple[str, str, int]


def compare(analyses: Sequence[Analysis], earlier: Path) -> Table:
    """Returns how every cell's mean accuracy differs from that in an earlier report's folder.

    Cells are the same where section, arm and number of images are; no test is made, since the two
    reports may share runs.

    Raises: ReportError: the folder holds no report that can be read.
    """
    before, now = _read(earlier / "report.json"), _means(analyses)
    keys = [key for key in now if key in before]
    keys = list(dict.fromkeys([*keys, *now, *before]))

    def change(key: Key) -> Td:
        both = key in before and key in now
        return text(signed(now[key].mean - before[key].mean, 2) if both else "")

    columns: list[tuple[str, Callable[[Key], Td]]] = [
        ("section", lambda key: text(key[0], "left")),
        ("arm", lambda key: text(key[1], "left")),
        ("images", lambda key: text(count(key[2]))),
        ("top-1 before, %", lambda key: text(plus_minus(before.get(key)))),
        ("n before", lambda key: text(before[key].n if key in before else 0)),
        ("top-1 now, %", lambda key: text(plus_minus(now.get(key)))),
        ("n now", lambda key: text(now[key].n if key in now else 0)),
        ("change, points", change),
    ]
    caption = f"Against the report in {earlier}: mean ± half the width of the 95 % CI."
    return table(caption, keys, columns, sortable=True)


def describe_changes(analyses: Sequence[Analysis], earlier: Path) -> str:
    """Returns one line: how many cells are in both reports, and the largest change of a mean.

    Raises: ReportError: as `compare`.
    """
    before, now = _read(earlier / "report.json"), _means(analyses)
    both = [key for key in now if key in before]
    line = f"Against {earlier}: {len(both)} of {len(now)} accuracies are in both reports"
    if not both:
        return f"{line}."
    change, key = max(
        ((now[key].mean - before[key].mean, key) for key in both), key=lambda one: abs(one[0])
    )
    return (
        f"{line}; the largest change is {signed(change, 2)} points, {key[1]} with {count(key[2])} "
        f"images ({key[0]})."
    )


def _means(analyses: Sequence[Analysis]) -> dict[Key, Interval]:
    return {
        (one.title, cell.arm, cell.n_images): cell.top1
        for one in analyses
        for cell in one.cells
        if cell.top1
    }


def _read(path: Path) -> dict[Key, Interval]:
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

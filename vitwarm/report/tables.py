"""The report's numbers as text: report.json, CSV of tables and pictures, LaTeX, the terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitwarm.files import write_text
from vitwarm.records import code_version
from vitwarm.report.curves import Interval
from vitwarm.report.facts import Analysis, Cell, Difference, Saving
from vitwarm.report.page_tables import Table, accuracy_table, difference_table
from vitwarm.report.panel import Panel
from vitwarm.report.words import headlines, method_notes

#: Version of report.json's layout; a reader may rely on the fields of the version it knows.
FORMAT = 1
#: What report.json and the CSV files say of a run, of it or of its record.
_OF_A_TRAINING = (
    "arm", "fraction", "n_images", "seed", "state", "reason", "top1_percent", "top5_percent",
    "best_top1_percent", "top1_weights", "val_loss", "steps", "images_seen", "warmup_samples",
    "wall_seconds", "images_per_second", "subset_sha256", "trunk_sha256", "verdict",
    "code_version", "folder",
)  # fmt: skip
_OF_A_WARMUP = (
    "arms", "rule", "seed", "state", "reason", "samples", "steps", "hidden_accuracy_percent",
    "chance_percent", "order_blind_percent", "ceiling_percent", "hidden_loss",
    "saturated_at_step", "verdict", "wall_seconds", "folder",
)  # fmt: skip
_IN_JSON_ALONE = ("curve_steps", "curve_percent", "hidden_accuracy_by", "probes")
#: What LaTeX would take for a command, and signs that some of its fonts lack.
_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$",
        "–": "--", "×": r"$\times$", "<": "$<$", ">": "$>$",
    }
)  # fmt: skip


def write_json(analyses: list[Analysis], path: Path) -> None:
    """Writes every number of the report as JSON."""
    sections = []
    for analysis in analyses:
        plain = dataclasses.asdict(dataclasses.replace(analysis, runs=[], warmups=[]))
        plain["runs"] = [trial.facts(_OF_A_TRAINING) for trial in analysis.runs]
        names = (*_OF_A_WARMUP, *_IN_JSON_ALONE)
        plain["warmups"] = [warmup.facts(names) for warmup in analysis.warmups]
        said = {"headlines": headlines(analysis), "method": method_notes(analysis)}
        sections.append(said | plain)
    made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    plain = {"format": FORMAT, "made": made, "code_version": code_version(), "sections": sections}
    write_text(path, json.dumps(plain, indent=1) + "\n")


def write_csvs(analyses: list[Analysis], folder: Path) -> list[Path]:
    """Writes one CSV per table that has rows into the folder and returns their paths."""
    tables: dict[str, list[dict[str, Any]]] = {
        "runs": [], "accuracy": [], "differences": [], "equal_accuracy": [], "warmups": [],
        "convergence": [], "gains": [], "rank_correlations": [],
    }  # fmt: skip
    for analysis in analyses:
        where = {"section": analysis.title, "match": analysis.match}
        tables["runs"] += [where | trial.facts(_OF_A_TRAINING) for trial in analysis.runs]
        tables["accuracy"] += [where | _accuracy_row(cell) for cell in analysis.cells]
        for matched, found in analysis.matched.items():
            tables["differences"] += [where | _difference_row(matched, d) for d in found]
        tables["equal_accuracy"] += [where | _saving_row(saving) for saving in analysis.savings]
        ranks = map(dataclasses.asdict, analysis.rank_correlations)
        tables["rank_correlations"] += [where | rank for rank in ranks]
        for gain in analysis.gains:
            which = {"arm": gain.arm, "n_images": gain.n_images}
            tables["gains"].append(where | which | dataclasses.asdict(gain.gain) | gain.figures)
        for warmup in analysis.warmups:
            arms = {"arms": " ".join(warmup.arms)}
            tables["warmups"].append(where | warmup.facts(_OF_A_WARMUP) | arms)
        for curve in analysis.convergence:
            run = {"arm": curve.arm, "n_images": curve.n_images, "seed": curve.seed}
            points = zip(curve.steps, curve.images_seen, curve.top1, strict=True)
            tables["convergence"] += [
                where | run | {"step": step, "images_seen": seen, "top1_percent": top1}
                for step, seen, top1 in points
            ]
    paths = []
    for name, rows in tables.items():
        if rows:
            paths.append(folder / f"{name}.csv")
            write_text(paths[-1], _csv([list(rows[0]), *(row.values() for row in rows)]))
    return paths


def picture_csv(panel: Panel) -> str:
    """Returns what a picture shows: every seed's numbers on a line of their own."""
    rows = [panel.heads, *panel.numbers]
    return _csv([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)


def write_latex(analyses: Iterable[Analysis], path: Path) -> None:
    """Writes the tables of accuracy and of differences for papers; they need booktabs."""
    parts = []
    for analysis in analyses:
        tables = [accuracy_table(analysis)] if analysis.cells else []
        for matched, found in analysis.matched.items():
            caption = f"Paired differences in top-1 at matched {matched}, percentage points."
            tables += [difference_table(found, caption)] if found else []
        parts += [f"% {analysis.title}\n{_latex(table)}" for table in tables]
    write_text(path, "\n".join(parts))


def _latex(table: Table) -> str:
    """A table as a float with booktabs rules."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    rows = [line(f"{td.text} {td.note}".rstrip() for td in row) for row in table.rows]
    columns = "".join("l" if left else "r" for left in table.left)
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{table.caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.heads), r"\midrule", *rows,
            r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def terminal_table(analyses: Iterable[Analysis]) -> str:
    """Returns every section in a few lines: top-1 and half its 95 % interval, arms by images."""
    return "\n\n".join(_terminal_section(analysis) for analysis in analyses)


def _terminal_section(analysis: Analysis) -> str:
    said = [f"  {text}" for text in headlines(analysis)] if analysis.runs else []
    said += [f"  ! {text}" for text in analysis.problems]
    if not analysis.sizes:
        title = analysis.title if said else f"{analysis.title}: no image trainings"
        return "\n".join([title, *said])
    table = accuracy_table(analysis)
    rows = [["top-1 %", *table.heads[1:]]]
    rows += [[f"{td.text} [{td.note}]" if td.note else td.text for td in r] for r in table.rows]
    match = f"matched {analysis.match}" if analysis.match else "no sweep"
    return "\n".join([f"{analysis.title} ({match})", *align(rows, right=False), *said])


def align(rows: list[list[str]], *, right: bool = True) -> list[str]:
    """Returns rows as lines whose columns are as wide as they need, the first from the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *(">" if right else "<" for _ in widths[1:])]
    lines = [[f"{c:{s}{w}}" for c, s, w in zip(r, sides, widths, strict=True)] for r in rows]
    return ["  ".join(line).rstrip() for line in lines]


def _accuracy_row(cell: Cell) -> dict[str, Any]:
    return {
        "arm": cell.arm, "n_images": cell.n_images, "fraction": cell.fraction,
        "images_seen": cell.images_seen, "total_samples": cell.total_samples,
        "n_seeds": len(cell.points), "mean_percent": cell.top1.mean if cell.top1 else None,
        **_ends(cell.top1), "seeds": " ".join(f"{p.seed}:{p.value:.6g}" for p in cell.points),
        "missing": "; ".join(cell.missing),
    }  # fmt: skip


def _difference_row(matched: str, line: Difference) -> dict[str, Any]:
    return {
        "matched": matched, "arm": line.arm, "reference": line.reference,
        "n_images": line.n_images, "n_pairs": line.difference.n,
        "mean_points": line.difference.mean, **_ends(line.difference),
        "seeds": " ".join(f"{p.seed}:{p.value:.6g}" for p in line.points),
        "unpaired": "; ".join(line.unpaired),
    }  # fmt: skip


def _ends(value: Interval | None) -> dict[str, float | None]:
    return {name: getattr(value, name, None) for name in ("sd", "low", "high")}


def _saving_row(line: Saving) -> dict[str, Any]:
    needs, read = line.needs, line.needs.estimate
    per_seed = needs.per_seed.items()
    return {
        "arm": line.arm, "reference": line.reference, "reference_images": line.n_images,
        "accuracy_percent": line.accuracy, "bound": read.bound, "images": read.images,
        "share_of_reference": read.images / line.n_images if read.images else None,
        "isotonic_fit": read.fitted, "difference_significant": line.told,
        "low_bound": needs.low.bound if needs.low else None,
        "low": needs.low.images if needs.low else None,
        "high_bound": needs.high.bound if needs.high else None,
        "high": needs.high.images if needs.high else None,
        "seeds": " ".join(f"{seed}:{r.bound}{r.images or 0:.6g}" for seed, r in per_seed),
    }  # fmt: skip


def _csv(rows: Iterable[Iterable[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()

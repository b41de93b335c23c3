"""The report's numbers as files: report.json, one CSV per table, and the table on a terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitwarm.files import write_text
from vitwarm.records import code_version
from vitwarm.report.facts import Analysis
from vitwarm.report.page_tables import Table, accuracy_table, difference_table
from vitwarm.report.words import headlines, method_notes

#: Version of report.json's layout; a reader may rely on the fields of the version it knows.
FORMAT = 1
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
    plain = {
        "format": FORMAT,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code_version": code_version(),
        "sections": [
            {
                "headlines": headlines(analysis),
                "method": method_notes(analysis),
                **dataclasses.asdict(analysis),
            }
            for analysis in analyses
        ],
    }
    write_text(path, json.dumps(plain, indent=1) + "\n")


def write_csvs(analyses: list[Analysis], folder: Path) -> list[Path]:
    """Writes one CSV per table that has rows into the folder and returns their paths."""
    tables: dict[str, list[dict[str, Any]]] = {
        "runs": [], "accuracy": [], "differences": [], "equal_accuracy": [], "warmups": [],
        "convergence": [], "gains": [], "rank_correlations": [],
    }  # fmt: skip
    for analysis in analyses:
        where = {"section": analysis.title, "match": analysis.match}
        tables["runs"] += [where | dataclasses.asdict(line) for line in analysis.runs]
        tables["accuracy"] += [where | row for row in _accuracy_rows(analysis)]
        tables["differences"] += [where | row for row in _difference_rows(analysis)]
        tables["equal_accuracy"] += [where | row for row in _saving_rows(analysis)]
        tables["rank_correlations"] += [
            where | dataclasses.asdict(line) for line in analysis.rank_correlations
        ]
        for gain in analysis.gains:
            which = {"arm": gain.arm, "n_images": gain.n_images}
            tables["gains"].append(where | which | dataclasses.asdict(gain.gain) | gain.figures)
        for line in analysis.warmups:
            facts = dataclasses.asdict(line)
            for nested in ("curve_steps", "curve_percent", "hidden_accuracy_by", "probes"):
                del facts[nested]
            tables["warmups"].append(where | facts | {"arms": " ".join(line.arms)})
        for curve in analysis.convergence:
            for step, seen, top1 in zip(curve.steps, curve.images_seen, curve.top1, strict=True):
                tables["convergence"].append(
                    where | {
                        "arm": curve.arm, "n_images": curve.n_images, "seed": curve.seed,
                        "step": step, "images_seen": seen, "top1_percent": top1,
                    }
                )  # fmt: skip
    paths = []
    for name, rows in tables.items():
        if rows:
            paths.append(folder / f"{name}.csv")
            write_text(paths[-1], _to_csv(rows))
    return paths


def write_latex(analyses: Iterable[Analysis], path: Path) -> None:
    """Writes the tables of accuracy and of differences for papers; they need booktabs."""
    parts = []
    for analysis in analyses:
        tables = [accuracy_table(analysis)] if analysis.cells else []
        for words, found in (
            ("images seen", analysis.matched_images),
            ("total samples", analysis.matched_total),
        ):
            caption = f"Paired differences in top-1 at matched {words}, percentage points."
            tables += [difference_table(found, caption)] if found else []
        parts += [f"% {analysis.title}\n{to_latex(table)}" for table in tables]
    write_text(path, "\n".join(parts))


def to_latex(table: Table) -> str:
    """Returns a table as a LaTeX float with booktabs rules."""

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
    flags = [f"  ! {text}" for text in analysis.problems]
    if not analysis.sizes:
        title = analysis.title if said or flags else f"{analysis.title}: no image trainings"
        return "\n".join([title, *said, *flags])
    table = accuracy_table(analysis)
    rows = [["top-1 %", *table.heads[1:]]]
    rows += [[f"{td.text} [{td.note}]" if td.note else td.text for td in r] for r in table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.heads))]
    lines = ["  ".join(word.ljust(w) for word, w in zip(row, widths, strict=True)) for row in rows]
    match = f"matched {analysis.match}" if analysis.match else "no sweep"
    return "\n".join(
        [f"{analysis.title} ({match})", *(line.rstrip() for line in lines), *said, *flags]
    )


def _accuracy_rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    for cell in analysis.cells:
        top1 = cell.top1
        yield {
            "arm": cell.arm, "n_images": cell.n_images, "fraction": cell.fraction,
            "images_seen": cell.images_seen, "total_samples": cell.total_samples,
            "n_seeds": len(cell.points), "mean_percent": top1.mean if top1 else None,
            "sd": top1.sd if top1 else None, "low": top1.low if top1 else None,
            "high": top1.high if top1 else None,
            "seeds": " ".join(f"{p.seed}:{p.value:.6g}" for p in cell.points),
            "missing": "; ".join(cell.missing),
        }  # fmt: skip


def _difference_rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    for matched, found in (
        ("images seen", analysis.matched_images),
        ("total samples", analysis.matched_total),
    ):
        for line in found:
            yield {
                "matched": matched, "arm": line.arm, "reference": line.reference,
                "n_images": line.n_images, "n_pairs": line.difference.n,
                "mean_points": line.difference.mean, "sd": line.difference.sd,
                "low": line.difference.low, "high": line.difference.high,
                "seeds": " ".join(f"{p.seed}:{p.value:.6g}" for p in line.points),
                "unpaired": "; ".join(line.unpaired),
            }  # fmt: skip


def _saving_rows(analysis: Analysis) -> Iterable[dict[str, Any]]:
    for line in analysis.savings:
        needs = line.needs
        estimate = needs.estimate
        yield {
            "arm": line.arm, "reference": line.reference, "reference_images": line.n_images,
            "accuracy_percent": line.accuracy, "bound": estimate.bound,
            "images": estimate.images,
            "share_of_reference": estimate.images / line.n_images if estimate.images else None,
            "isotonic_fit": estimate.fitted, "difference_significant": line.told,
            "low_bound": needs.low.bound if needs.low else None,
            "low": needs.low.images if needs.low else None,
            "high_bound": needs.high.bound if needs.high else None,
            "high": needs.high.images if needs.high else None,
            "seeds": " ".join(
                f"{seed}:{r.bound}{r.images or 0:.6g}" for seed, r in needs.per_seed.items()
            ),
        }  # fmt: skip


def _to_csv(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()

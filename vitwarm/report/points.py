"""The numbers behind a picture as CSV, every seed's on a line of its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from vitwarm.report.facts import Analysis
from vitwarm.report.gains import FIGURES

Row = tuple[object, ...]


def to_csv(analysis: Analysis, name: str) -> str:
    """Returns what a picture of `draw_all` shows: plain numbers, a heading above them."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    for row in _rows(analysis, name):
        lines.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    return out.getvalue()


def _rows(analysis: Analysis, name: str) -> Iterator[Row]:
    if name == "accuracy":
        yield "arm", "images", "seed", "top1_percent"
        for cell in analysis.cells:
            yield from ((cell.arm, cell.n_images, p.seed, p.value) for p in cell.points)
    elif name in ("differences", "matched_total"):
        yield "arm", "reference", "images", "seed", "difference_points"
        for d in analysis.matched_total if name == "matched_total" else analysis.matched_images:
            yield from ((d.arm, d.reference, d.n_images, p.seed, p.value) for p in d.points)
    elif name == "equal_accuracy":
        yield "arm", "reference", "images_of_reference", "seed", "bound", "images_needed"
        for s in analysis.savings:
            if s.told is not False:  # as the picture
                for seed, read in s.needs.per_seed.items():
                    yield s.arm, s.reference, s.n_images, seed, read.bound, read.images
    elif name.startswith("gains_"):
        found = [gain for gain in analysis.gains if name == f"gains_{gain.n_images}"]
        yield "arm", *FIGURES, "gain_points", "low", "high"
        for g in found:
            yield g.arm, *map(g.figures.get, FIGURES), g.gain.mean, g.gain.low, g.gain.high
    elif name == "warmups":
        yield "rule", "seed", "step", "accuracy_percent"
        for line in analysis.warmups:
            points = zip(line.curve_steps, line.curve_percent, strict=True)
            yield from ((line.rule, line.seed, step, value) for step, value in points)
    else:
        yield "arm", "seed", "images_seen", "top1_percent"
        for curve in analysis.convergence:
            if name == f"convergence_{curve.n_images}" and curve.images_seen:
                points = zip(curve.images_seen, curve.top1, strict=True)
                yield from ((curve.arm, curve.seed, seen, value) for seen, value in points)

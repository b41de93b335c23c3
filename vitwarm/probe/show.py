"""What probes found, as tables for a terminal."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from vitwarm.probe.figures import FIGURES, Figure
from vitwarm.report.tables import align
from vitwarm.report.words import number

Found = dict[str, Any]
"""What `run_probe` returns of a model."""

_MOST_COLUMNS = 12


def block_values(found: Found, figure: Figure) -> list[float]:
    """Returns a figure of each block; of a figure of heads, their mean."""
    if figure.name == "weight_norm":
        return [block["norms"]["total"] for block in found["blocks"]]
    values = [block[figure.name] for block in found["blocks"]]
    return [statistics.fmean(v) if isinstance(v, list) else v for v in values]


def block_lines(founds: Sequence[Found], figure: Figure) -> dict[str, list[float | None]]:
    """Returns a figure's line of blocks for each model, or for each pair of models."""
    if figure.of != "pair":
        return {found["label"]: [*block_values(found, figure)] for found in founds}
    return {
        f"{one['label']} / {other['label']}": one[figure.name][other["label"]]
        for one, other in itertools.combinations(founds, 2)
        if other["label"] in one[figure.name]
    }


def caption(figure: Figure, founds: Sequence[Found]) -> str:
    """Returns a figure's title with its unit and, where it has one, what blind attention gives."""
    unit = f", {figure.unit}" if figure.unit else ""
    blind = sorted(
        {f"{f['uniform'][figure.name]:.2f}" for f in founds if figure.name in f["uniform"]}
    )
    note = f" (uniform attention: {', '.join(blind)})" if blind else ""
    return f"{figure.title}{unit}{note}"


def terminal_tables(founds: Sequence[Found]) -> str:
    """Returns a table per figure of blocks, one of the figures of models, and what to know."""
    parts = []
    for figure in FIGURES:
        lines = {} if figure.of == "model" else block_lines(founds, figure)
        if lines:
            shown = shown_blocks(max(map(len, lines.values())))
            rows = [["block", *(str(k + 1) for k in shown)]]
            for label, values in lines.items():
                known = {k: number(value, figure.digits) for k, value in enumerate(values)}
                rows.append([label, *(known.get(k, "") for k in shown)])
            parts.append("\n".join([caption(figure, founds), *align(rows)]))
    rows = [["", *(found["label"] for found in founds)]]
    for figure in model_figures(founds):
        cells = [number(found[figure.name], figure.digits) for found in founds]
        rows.append([caption(figure, founds), *cells])
    return "\n\n".join([*parts, "\n".join(align(rows)), "\n".join(notes(founds))])


def model_figures(founds: Sequence[Found]) -> list[Figure]:
    """Returns the figures of whole models that any of them has."""
    whole = [figure for figure in FIGURES if figure.of == "model"]
    return [f for f in whole if any(found[f.name] is not None for found in founds)]


def notes(founds: Sequence[Found]) -> list[str]:
    """Returns what a reader needs to trust or doubt the numbers."""
    images, first = founds[0]["images"], founds[0]
    n_test = images["n"] - images["n_fit"]
    said = [
        f"{images['n']:,} images of {images['n_classes']:,} classes from {images['source']}; "
        f"linear probes and k-NN learn from {images['n_fit']:,} and are tested on {n_test:,}, so "
        f"that a top-1 has a standard error of up to {50 / n_test**0.5:.1f} points."
    ]
    if first["n_boxed"]:
        said.append(
            f"{first['n_masked']:,} images have masks, {first['n_masked_test']:,} of them test the "
            f"segmentation; {first['n_boxed']:,} have boxes, stated or around their masks' "
            "regions, and all of them test the localisation, which learns nothing."
        )
    if images["n_unknown"]:
        said.append(
            f"{images['n_unknown']:,} of the tested images are of classes that none to learn from "
            "has: a linear probe or k-NN cannot get them right. Give more images."
        )
    said += [f"{found['label']}: {found['start']}." for found in founds]
    return list(dict.fromkeys([*said, *(note for found in founds for note in found["notes"])]))


def shown_blocks(depth: int) -> list[int]:
    """Returns which blocks a table has room for: spread evenly, with the first and the last."""
    n = min(depth, _MOST_COLUMNS)
    return [round(k * (depth - 1) / max(n - 1, 1)) for k in range(n)]

"""What probes found, as tables for a terminal."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from vitwarm.probe.figures import FIGURES, Figure

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
            parts.append(f"{caption(figure, founds)}\n{_block_table(lines, figure.digits)}")
    cells = {
        caption(figure, founds): [number(found[figure.name], figure.digits) for found in founds]
        for figure in model_figures(founds)
    }
    parts.append(_table(["", *(found["label"] for found in founds)], cells))
    parts.append("\n".join(notes(founds)))
    return "\n\n".join(parts)


def model_figures(founds: Sequence[Found]) -> list[Figure]:
    """Returns the figures of whole models that any of them has."""
    whole = [figure for figure in FIGURES if figure.of == "model"]
    return [f for f in whole if any(found[f.name] is not None for found in founds)]


def notes(founds: Sequence[Found]) -> list[str]:
    """Returns what a reader needs to trust or doubt the numbers."""
    images = founds[0]["images"]
    n_test = images["n"] - images["n_fit"]
    said = [
        f"{images['n']:,} images of {images['n_classes']:,} classes from {images['source']}; "
        f"linear probes and k-NN learn from {images['n_fit']:,} and are tested on {n_test:,}, so "
        f"that a top-1 has a standard error of up to {50 / n_test**0.5:.1f} points.",
        *_spatial_notes(founds[0]),
        *(
            [
                f"{images['n_unknown']:,} of the tested images are of classes that none to learn "
                "from has: a linear probe or k-NN cannot get them right. Give more images."
            ]
            if images["n_unknown"]
            else []
        ),
        *(f"{found['label']}: {found['start']}." for found in founds),
        *(note for found in founds for note in found["notes"]),
    ]
    return list(dict.fromkeys(said))


def _spatial_notes(found: Found) -> list[str]:
    if not found["n_boxed"]:
        return []
    return [
        f"{found['n_masked']:,} images have masks, {found['n_masked_test']:,} of them test the "
        f"segmentation; {found['n_boxed']:,} have boxes, stated or around their masks' regions, "
        "and all of them test the localisation, which learns nothing."
    ]


def number(value: float | None, digits: int) -> str:
    """Returns a number with so many digits, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def shown_blocks(depth: int) -> list[int]:
    """Returns which blocks a table has room for: spread evenly, with the first and the last."""
    n = min(depth, _MOST_COLUMNS)
    return [round(k * (depth - 1) / max(n - 1, 1)) for k in range(n)]


def _block_table(lines: dict[str, list[float | None]], digits: int) -> str:
    shown = shown_blocks(max(map(len, lines.values())))
    cells = {
        label: [number(values[k], digits) if k < len(values) else "" for k in shown]
        for label, values in lines.items()
    }
    return _table(["block", *(str(k + 1) for k in shown)], cells)


def _table(heads: list[str], cells: dict[str, list[str]]) -> str:
    rows = [heads, *([label, *texts] for label, texts in cells.items())]
    left, *wide = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        f"{label:<{left}}" + "".join(f"  {t:>{w}}" for t, w in zip(texts, wide, strict=True))
        for label, *texts in rows
    )

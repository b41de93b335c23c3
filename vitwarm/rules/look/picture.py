"""One picture of a rule: some sequences, depths or ids, distances, and what predictors reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitwarm.errors import RuleError
from vitwarm.files import replacing
from vitwarm.rules.automata import CellularAutomaton
from vitwarm.rules.base import Rule
from vitwarm.rules.controls import Shuffled
from vitwarm.rules.masking import IGNORE, make_batch

FORMATS = (".png", ".svg", ".pdf")

#: Sequences in the picture's first panel, and planes of rules that have one.
ROWS, PLANES = 24, 4


def save_picture(
    rule: Rule, stats: dict[str, Any], path: Path, *, hide_share: float | None = None
) -> None:
    """Draws the numbers of `rule_stats` and some sequences into a file.

    Raises: RuleError: a file ending that is no picture's. RunError: the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise RuleError(f"--picture is {str(path)!r}; it must end in {', '.join(FORMATS)}.")
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    name = stats["preset"] or stats["rule"]["name"]
    figure.suptitle(f"{name}: {stats['n_tokens']} tokens, {stats['ids']['n_ids']} ids")
    _draw_sequences(axes[0, 0], rule, stats, hide_share)
    _draw_places(axes[0, 1], rule, stats)
    _draw_distances(axes[1, 0], stats)
    _draw_predictors(axes[1, 1], stats)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=120)


def _draw_sequences(ax: Axes, rule: Rule, stats: dict[str, Any], hide_share: float | None) -> None:
    seed, start, n_tokens = stats["seed"], stats["start"], stats["n_tokens"]
    inner = rule.of if isinstance(rule, Shuffled) else rule
    is_plane = isinstance(inner, CellularAutomaton)
    n_rows = min(PLANES if is_plane else ROWS, stats["n_sequences"])
    batch = make_batch(
        rule, seed=seed, start=start, n_sequences=n_rows, n_tokens=n_tokens, hide_share=hide_share
    )
    ids, targets = batch.ids, batch.target_ids
    if isinstance(inner, CellularAutomaton):
        rows, columns, _ = inner.plane(n_tokens)
        targets = _side_by_side(targets, rows, columns, IGNORE)
        ids = _side_by_side(ids, rows, columns, -1)
    shown = np.ma.masked_where(targets != IGNORE, ids)
    colours = colormaps["viridis"].with_extremes(bad="black", under="white")
    top = max(1, rule.n_ids - 1 - (rule.pad_id is not None))
    aspect: Literal["equal", "auto"] = "equal" if is_plane else "auto"
    ax.imshow(shown, aspect=aspect, interpolation="nearest", cmap=colours, vmin=0, vmax=top)
    ax.set(title="sequences (hidden: black)", xlabel="token", ylabel="sequence")
    if is_plane:
        ax.set(xlabel="cell", ylabel="time")


def _side_by_side(ids: np.ndarray, rows: int, columns: int, gap: int) -> np.ndarray:
    """Puts planes [B, rows * columns] beside each other, one column of `gap` between them."""
    planes = ids.reshape(len(ids), rows, columns)
    padded = np.pad(planes, ((0, 0), (0, 0), (0, 1)), constant_values=gap)
    return padded.transpose(1, 0, 2).reshape(rows, -1)[:, :-1]


def _draw_places(ax: Axes, rule: Rule, stats: dict[str, Any]) -> None:
    if stats["brackets"]:
        ax.plot(stats["brackets"]["depth_profile"])
        ax.set(title="mean depth", xlabel="token", ylabel="open brackets", ylim=(0, None))
        return
    ids = rule.sample(stats["seed"], stats["start"], stats["n_sequences"], stats["n_tokens"])
    counts = np.bincount(ids.ravel(), minlength=stats["ids"]["n_ids"])
    ax.bar(np.arange(len(counts)), counts / counts.sum(), width=1.0)
    ax.set(title="frequency of each id", xlabel="id", ylabel="share of the tokens")


def _draw_distances(ax: Axes, stats: dict[str, Any]) -> None:
    brackets = stats["brackets"]
    found = brackets["match_distance"] if brackets else stats["equal_id_distance"]
    shares = found["shares"] or {}
    ax.bar(list(shares), list(shares.values()))
    what = "close to its open" if brackets else "hidden token to the nearest equal visible one"
    ax.set(title=f"distance of a {what}", xlabel="tokens", ylabel="share")


def _draw_predictors(ax: Axes, stats: dict[str, Any]) -> None:
    names = list(stats["predictors"])
    bars = ax.barh(names, [100 * stats["predictors"][name] for name in names], color="tab:cyan")
    ax.set_yticks([])
    for bar, name in zip(bars, names, strict=True):
        text = f"{name}: {bar.get_width():.1f} %"
        ax.text(1, bar.get_y() + bar.get_height() / 2, text, va="center")
    ax.axvline(100 * stats["ceiling"]["high"], color="black", linestyle="--")
    ax.axvline(100 * stats["order_blind"], color="black", linestyle=":")
    what = "dashed: the ceiling, dotted: order-blind baseline"
    ax.set(title=f"accuracy on hidden tokens, % ({what})", xlim=(0, 102))
    ax.invert_yaxis()

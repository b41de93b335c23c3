"""The page's tables: every number that a picture shows, and the runs behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

from vitwarm.report.curves import Reading
from vitwarm.report.facts import Analysis, Difference, Saving
from vitwarm.report.svg import swatch
from vitwarm.report.words import (
    cell_note,
    count,
    interval,
    percent,
    plus_minus,
    reading,
    saved,
    share,
    short_reading,
    signed,
)
from vitwarm.units import format_seconds

#: Tables longer than this scroll inside their frame.
TALL_ROWS = 16
#: Seeds above which a cell shows their range instead of each.
MANY_SEEDS = 5
T = TypeVar("T")
_VERDICT_CSS = {"learned": "good", "finished": "good", "saturated early": "warn"}


@dataclass(frozen=True)
class Td:
    """A table cell: ready-made HTML and its class."""

    html: str
    css: str = ""


def text(value: object, css: str = "") -> Td:
    """Returns a cell with escaped text."""
    return Td(escape(str(value)), css)


def code(value: str | None) -> Td:
    """Returns a left-aligned cell in a typewriter face."""
    return Td(f"<code>{escape(value or '–')}</code>", "left")


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Td]],
    *,
    sortable: bool = False,
    drop_empty: bool = False,
) -> str:
    """Returns a table in a frame that scrolls sideways on its own.

    Args:
        drop_empty: leave out columns in which no row has anything.
    """
    keep = [i for i in range(len(heads)) if not drop_empty or any(row[i].html for row in rows)]
    left = {i for i in keep if rows and rows[0][i].css.split(" ")[0] in ("left", "wrap")}
    head = "".join(
        f'<th scope="col"{_css("left" if i in left else "")}>{escape(heads[i])}</th>' for i in keep
    )
    body = "".join(
        "<tr>" + "".join(f"<td{_css(row[i].css)}>{row[i].html}</td>" for i in keep) + "</tr>"
        for row in rows
    )
    frame = "scroll tall" if len(rows) > TALL_ROWS else "scroll"
    return (
        f'<div class="{frame}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table{_css('sortable' if sortable else '')}><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def accuracy_table(analysis: Analysis) -> str:
    """Returns top-1 by arm and number of images."""
    fractions = {cell.n_images: cell.fraction for cell in analysis.cells}
    heads = ["arm"]
    for size in analysis.sizes:
        part = share(fractions.get(size))
        heads.append(f"{count(size)} images" + (f" ({part})" if part else ""))
    rows = []
    for i, arm in enumerate(analysis.arms):
        row = [Td(f"{swatch(i)} {escape(arm.label)}", "left")]
        for size in analysis.sizes:
            cell = analysis.cell(arm.label, size)
            note = f' <span class="warn">{cell_note(cell)}</span>' if cell and cell.missing else ""
            row.append(Td(plus_minus(cell.top1) + note if cell else ""))
        rows.append(row)
    return table("Top-1 accuracy, %: mean ± half of the 95 % interval.", heads, rows)


def difference_table(found: Sequence[Difference], caption: str) -> str:
    """Returns paired differences with their intervals and every pair's value."""
    verdicts = {True: "yes", False: "no", None: "too few seeds"}
    rows = [
        [
            text(f"{line.arm} − {line.reference}", "left"),
            text(count(line.n_images)),
            text(interval(line.difference, sign=True)),
            text(line.difference.n),
            text(verdicts[line.difference.excludes_zero]),
            text(_each(sorted(p.value for p in line.points), signed)),
            text("; ".join(line.unpaired), "wrap"),
        ]
        for line in found
    ]
    heads = [
        "arm − reference", "images", "points (95 % interval)", "pairs", "zero excluded",
        "per seed", "not paired",
    ]  # fmt: skip
    return table(caption, heads, rows, drop_empty=True)


def saving_table(found: Sequence[Saving]) -> str:
    """Returns the images each arm needs for the reference's accuracies."""
    rows = []
    for line in found:
        needs = line.needs
        fit = " (isotonic fit)" if needs.estimate.fitted else ""
        readings = sorted(needs.per_seed.values(), key=_reading_order)
        ends = ""
        if needs.low and needs.high:
            ends = f"{short_reading(needs.low)} to {short_reading(needs.high)}"
        rows.append(
            [
                text(line.arm, "left"),
                text(count(line.n_images)),
                text(percent(line.accuracy)),
                text(reading(needs.estimate)),
                text(saved(needs.estimate, line.n_images, told=line.told) + fit, "left"),
                text(ends),
                text(_each(readings, short_reading)),
            ]
        )
    heads = [
        "arm", f"images of {found[0].reference}", "its top-1, %", "images the arm needs",
        "that is", "95 % interval", "per seed",
    ]  # fmt: skip
    return table("Images needed for equal accuracy.", heads, rows, drop_empty=True)


def warmup_table(analysis: Analysis) -> str:
    """Returns the warm-ups with what they reached, against chance, and their verdicts."""
    rows = []
    for line in analysis.warmups:
        verdict = line.verdict or line.state
        why = f": {line.reason}" if line.reason else ""
        rows.append(
            [
                text(", ".join(line.arms) or "–", "left"),
                text(line.rule or "–", "left"),
                text(line.seed),
                text(count(line.samples)),
                text(percent(line.hidden_accuracy_percent)),
                text(percent(line.chance_percent)),
                text(percent(line.order_blind_percent)),
                text(percent(line.ceiling_percent)),
                text("–" if line.hidden_loss is None else f"{line.hidden_loss:.3f}"),
                text(verdict + why, f"left {_VERDICT_CSS.get(verdict, 'bad')}"),
                text(count(line.saturated_at_step)),
                text(_time(line.wall_seconds)),
                code(line.folder),
            ]
        )
    heads = [
        "arms", "rule", "seed", "sequences", "hidden tokens right", "chance", "without order",
        "ceiling", "loss, nats", "verdict", "solved at step", "time", "run",
    ]  # fmt: skip
    caption = "Accuracy on hidden tokens of held-out sequences, %."
    return table(caption, heads, rows, sortable=True)


def difficulty_table(analysis: Analysis, group: str, what: str) -> str:
    """Returns the warm-ups' accuracy on hidden tokens by how far, or how deep, their match is.

    Args:
        group: a key of `hidden_accuracy_by`.
        what: what its octaves count, for the caption.
    Returns: nothing where no warm-up has the group.
    """
    lines = [line for line in analysis.warmups if line.hidden_accuracy_by.get(group)]
    bins = {name for line in lines for name in line.hidden_accuracy_by[group]}
    heads = sorted(bins, key=lambda name: int(name.split("-")[0]) if name != "none" else 0)
    rows = []
    for line in lines:
        found = line.hidden_accuracy_by[group]
        cells = [
            text(percent(found[name]["accuracy_percent"]) if name in found else "–")
            for name in heads
        ]
        rows.append([text(", ".join(line.arms) or line.rule, "left"), text(line.seed), *cells])
    if not rows:
        return ""
    return table(f"Hidden tokens right, %, by {what}.", ["arms", "seed", *heads], rows)


def run_table(analysis: Analysis) -> str:
    """Returns every image training that should be there, with what is missing."""
    rows = []
    for run in analysis.runs:
        state = run.state + (f": {run.reason}" if run.reason else "")
        rows.append(
            [
                text(run.arm, "left"),
                text(count(run.n_images)),
                text(run.seed),
                text(state, f"{'wrap' if run.reason else 'left'} {_state_css(run.state)}"),
                text(percent(run.top1_percent, 2)),
                text(percent(run.top5_percent, 2)),
                text(percent(run.best_top1_percent, 2)),
                text(count(run.steps)),
                text(count(run.images_seen)),
                text(count(run.warmup_samples)),
                text(run.verdict or "–", f"left {_VERDICT_CSS.get(run.verdict or '', '')}"),
                text(count(run.images_per_second)),
                text(_time(run.wall_seconds)),
                code((run.subset_sha256 or "–")[:8]),
                code((run.trunk_sha256 or "–")[:8]),
                code(run.folder),
            ]
        )
    heads = [
        "arm", "images", "seed", "state", "top-1", "top-5", "best top-1*", "steps", "images seen",
        "warm-up samples", "warm-up", "images/s", "time", "subset", "trunk", "run",
    ]  # fmt: skip
    caption = (
        "*The best evaluation is selected on the validation set; it is shown for diagnosis only."
    )
    return table(caption, heads, rows, sortable=True)


def _reading_order(value: Reading) -> tuple[int, float]:
    return "<=>?".index(value.bound), value.images or 0


def _each(values: Sequence[T], show: Callable[[T], str]) -> str:
    """Every seed's value while they fit; then the first and the last (all are in the CSV)."""
    if len(values) <= MANY_SEEDS:
        return ", ".join(map(show, values))
    return f"{show(values[0])} to {show(values[-1])}"


def _state_css(state: str) -> str:
    return {"finished": "good", "left out": "warn"}.get(state, "bad")


def _css(name: str) -> str:
    return f' class="{name.strip()}"' if name.strip() else ""


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else format_seconds(seconds)

"""The page's tables: every number that a picture shows, and the runs behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from vitwarm.report.curves import Reading
from vitwarm.report.facts import (
    Analysis,
    Arm,
    Difference,
    Gain,
    RankCorrelation,
    RunLine,
    Saving,
    WarmupLine,
)
from vitwarm.report.gains import BEYOND, FIGURES
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
    """A table cell."""

    text: str
    css: str = ""
    note: str = ""
    """Set off behind the text."""
    arm: int | None = None
    """Draws the mark of an arm before the text."""


@dataclass(frozen=True)
class Table:
    """A table: the page, LaTeX and the clipboard show the same one."""

    caption: str
    heads: list[str]
    rows: list[list[Td]]
    sortable: bool = False

    @property
    def left(self) -> list[bool]:
        """For every column, whether it reads from the left."""
        first = self.rows[0] if self.rows else []
        return [cell.css.split(" ")[0] in ("left", "wrap") for cell in first]

    @property
    def is_tall(self) -> bool:
        """Whether it scrolls inside its frame."""
        return len(self.rows) > TALL_ROWS


def text(value: object, css: str = "") -> Td:
    """Returns a cell."""
    return Td(str(value), css)


def code(value: str | None) -> Td:
    """Returns a left-aligned cell in a typewriter face."""
    return Td(value or "–", "left code")


def table(
    caption: str,
    lines: Sequence[T],
    columns: Sequence[tuple[str, Callable[[T], Td]]],
    *,
    sortable: bool = False,
    drop_empty: bool = False,
) -> Table:
    """Returns a table of one row per line.

    Args:
        columns: heading and what makes a line's cell.
        drop_empty: leave out columns in which no row has anything.
    """
    rows = [[cell(line) for _, cell in columns] for line in lines]
    keep = [i for i in range(len(columns)) if not drop_empty or any(row[i].text for row in rows)]
    heads = [columns[i][0] for i in keep]
    return Table(caption, heads, [[row[i] for i in keep] for row in rows], sortable)


def accuracy_table(analysis: Analysis) -> Table:
    """Returns top-1 by arm and number of images."""
    fractions = {cell.n_images: cell.fraction for cell in analysis.cells}

    def cell_at(arm: Arm, size: int) -> Td:
        cell = analysis.cell(arm.label, size)
        return Td(plus_minus(cell.top1), note=cell_note(cell)) if cell else Td("")

    columns: list[tuple[str, Callable[[Arm], Td]]] = [
        ("arm", lambda arm: Td(arm.label, "left", arm=arm.color))
    ]
    for size in analysis.sizes:
        part = f" ({share(fractions.get(size))})" if fractions.get(size) is not None else ""
        columns.append((f"{count(size)} images{part}", partial(cell_at, size=size)))
    caption = "Top-1 accuracy, %: mean ± half the width of the 95 % CI."
    return table(caption, analysis.arms, columns)


def difference_table(found: Sequence[Difference], caption: str) -> Table:
    """Returns paired differences with their intervals and every pair's value."""
    verdicts = {True: "yes", False: "no", None: "too few seeds"}
    columns: list[tuple[str, Callable[[Difference], Td]]] = [
        ("arm − reference", lambda d: text(f"{d.arm} − {d.reference}", "left")),
        ("images", lambda d: text(count(d.n_images))),
        ("points (95 % CI)", lambda d: text(interval(d.difference, sign=True))),
        ("pairs", lambda d: text(d.difference.n)),
        ("significant", lambda d: text(verdicts[d.difference.excludes_zero])),
        ("per seed", lambda d: text(_each(sorted(p.value for p in d.points), signed))),
        ("not paired", lambda d: text("; ".join(d.unpaired), "wrap")),
    ]
    return table(caption, found, columns, drop_empty=True)


def saving_table(found: Sequence[Saving]) -> Table:
    """Returns the images each arm needs for the reference's accuracies."""

    def meaning(saving: Saving) -> Td:
        fit = " (isotonic fit)" if saving.needs.estimate.fitted else ""
        said = saved(saving.needs.estimate, saving.n_images, told=saving.told)
        return text(said + fit, "left")

    def ends(saving: Saving) -> Td:
        low, high = saving.needs.low, saving.needs.high
        return text(f"{short_reading(low)} to {short_reading(high)}" if low and high else "")

    def seeds(saving: Saving) -> Td:
        return text(_each(sorted(saving.needs.per_seed.values(), key=_order), short_reading))

    columns: list[tuple[str, Callable[[Saving], Td]]] = [
        ("arm", lambda saving: text(saving.arm, "left")),
        (f"images of {found[0].reference}", lambda saving: text(count(saving.n_images))),
        ("its top-1, %", lambda saving: text(percent(saving.accuracy))),
        ("images the arm needs", lambda saving: text(reading(saving.needs.estimate))),
        ("that is", meaning),
        ("95 % CI", ends),
        ("seeds", lambda saving: text(len(saving.needs.per_seed))),
        ("per seed", seeds),
    ]
    caption = "Images needed for equal accuracy: seeds that have every size, and their means."
    return table(caption, found, columns, drop_empty=True)


def warmup_table(analysis: Analysis) -> Table:
    """Returns the warm-ups with what they reached, against chance, and their verdicts."""

    def verdict(line: WarmupLine) -> Td:
        said = line.verdict or line.state
        why = f": {line.reason}" if line.reason else ""
        return text(said + why, f"left {_VERDICT_CSS.get(said, 'bad')}")

    columns: list[tuple[str, Callable[[WarmupLine], Td]]] = [
        ("arms", lambda line: text(", ".join(line.arms) or "–", "left")),
        ("verdict", verdict),
        ("rule", lambda line: text(line.rule or "–", "left")),
        ("seed", lambda line: text(line.seed)),
        ("sequences", lambda line: text(count(line.samples))),
        ("held-out accuracy", lambda line: text(percent(line.hidden_accuracy_percent))),
        ("chance", lambda line: text(percent(line.chance_percent))),
        ("order-blind baseline", lambda line: text(percent(line.order_blind_percent))),
        ("ceiling", lambda line: text(percent(line.ceiling_percent))),
        ("loss, nats", lambda line: text(percent(line.hidden_loss, 3))),
        ("solved at step", lambda line: text(count(line.saturated_at_step))),
        ("time", lambda line: text(_time(line.wall_seconds))),
        ("run", lambda line: code(line.folder)),
    ]
    caption = "Accuracy on the hidden tokens of held-out sequences, %."
    return table(caption, analysis.warmups, columns, sortable=True)


def difficulty_table(analysis: Analysis, group: str, what: str) -> Table | None:
    """Returns the warm-ups' accuracy on hidden tokens by how far, or how deep, their match is.

    Args:
        group: a key of `hidden_accuracy_by`.
        what: what its octaves count, for the caption.
    Returns: None where no warm-up has the group.
    """

    def in_bin(line: WarmupLine, name: str) -> Td:
        return text(percent(line.hidden_accuracy_by[group].get(name, {}).get("accuracy_percent")))

    lines = [line for line in analysis.warmups if line.hidden_accuracy_by.get(group)]
    bins = {name for line in lines for name in line.hidden_accuracy_by[group]}
    columns: list[tuple[str, Callable[[WarmupLine], Td]]] = [
        ("arms", lambda line: text(", ".join(line.arms) or line.rule, "left")),
        ("seed", lambda line: text(line.seed)),
    ]
    columns += [(name, partial(in_bin, name=name)) for name in sorted(bins, key=_first_number)]
    caption = f"Held-out accuracy on hidden tokens, %, by {what}."
    return table(caption, lines, columns) if lines else None


def gain_table(analysis: Analysis) -> Table | None:
    """Returns what each arm's warm-ups reached beside what it gained; None without any."""
    colors = {arm.label: arm.color for arm in analysis.arms}

    def figure(gain: Gain, name: str) -> Td:
        value = gain.figures.get(name)
        is_count = name.startswith("steps")
        return text(("never" if value is None else count(value)) if is_count else percent(value))

    columns: list[tuple[str, Callable[[Gain], Td]]] = [
        ("arm", lambda gain: Td(gain.arm, "left", arm=colors[gain.arm])),
        ("images", lambda gain: text(count(gain.n_images))),
        ("gain, points (95 % CI)", lambda gain: text(interval(gain.gain, sign=True))),
        *(
            ("their difference" if name == BEYOND else name, partial(figure, name=name))
            for name in FIGURES
        ),
    ]
    caption = "What each arm's warm-ups reached, and its paired difference to the reference."
    return table(caption, analysis.gains, columns, sortable=True) if analysis.gains else None


def rank_table(analysis: Analysis) -> Table | None:
    """Returns how each figure of the warm-ups goes with the gain, over arms; None without any."""
    columns: list[tuple[str, Callable[[RankCorrelation], Td]]] = [
        ("figure of the warm-up", lambda r: text(r.figure, "left")),
        ("images", lambda r: text(count(r.n_images))),
        ("arms", lambda r: text(r.n_arms)),
        ("Spearman's ρ", lambda r: text(signed(r.rho, 2))),
        ("p", lambda r: text(f"{r.p_value:.2f}" if r.p_value >= 0.005 else f"{r.p_value:.1g}")),
    ]
    found = analysis.rank_correlations
    caption = (
        "Does a figure of the warm-up go with the gain? Ranks over arms; p from permutations, "
        "not corrected for the number of figures."
    )
    return table(caption, found, columns) if found else None


def run_table(analysis: Analysis) -> Table:
    """Returns every image training that should be there, with what is missing."""

    def state(run: RunLine) -> Td:
        css = {"finished": "good", "left out": "warn"}.get(run.state, "bad")
        return (
            text(f"{run.state}: {run.reason}", f"wrap {css}")
            if run.reason
            else text(run.state, f"left {css}")
        )

    def warmup(run: RunLine) -> Td:
        return text(run.verdict or "–", f"left {_VERDICT_CSS.get(run.verdict or '', '')}".strip())

    columns: list[tuple[str, Callable[[RunLine], Td]]] = [
        ("arm", lambda run: text(run.arm, "left")),
        ("images", lambda run: text(count(run.n_images))),
        ("seed", lambda run: text(run.seed)),
        ("state", state),
        ("top-1", lambda run: text(percent(run.top1_percent, 2))),
        ("top-5", lambda run: text(percent(run.top5_percent, 2))),
        ("best top-1*", lambda run: text(percent(run.best_top1_percent, 2))),
        ("steps", lambda run: text(count(run.steps))),
        ("images seen", lambda run: text(count(run.images_seen))),
        ("warm-up samples", lambda run: text(count(run.warmup_samples))),
        ("warm-up", warmup),
        ("images/s", lambda run: text(count(run.images_per_second))),
        ("time", lambda run: text(_time(run.wall_seconds))),
        ("subset", lambda run: code((run.subset_sha256 or "–")[:8])),
        ("trunk", lambda run: code((run.trunk_sha256 or "–")[:8])),
        ("run", lambda run: code(run.folder)),
    ]
    caption = "*The best evaluation was selected on the validation set; use it for diagnosis only."
    return table(caption, analysis.runs, columns, sortable=True)


def _first_number(name: str) -> int:
    """Of `4-7` the 4; bins without a number stand first."""
    head = name.split("-")[0]
    return int(head) if head.isdecimal() else 0


def _order(value: Reading) -> tuple[int, float]:
    return "<=>?".index(value.bound), value.images or 0


def _each(values: Sequence[T], show: Callable[[T], str]) -> str:
    """Every seed's value while they fit; then the first and the last (all are in the CSV)."""
    if len(values) <= MANY_SEEDS:
        return ", ".join(map(show, values))
    return f"{show(values[0])} to {show(values[-1])}"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else format_seconds(seconds)

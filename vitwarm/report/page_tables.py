"""The page's tables: every number that a picture shows, and the runs behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from vitwarm.report import words
from vitwarm.report.facts import Analysis, Arm, Difference, Gain, Saving, Trial, Warmup
from vitwarm.report.gains import BEYOND, FIGURES
from vitwarm.report.words import count, number, signed

#: Tables longer than this scroll inside their frame.
TALL_ROWS = 16
T = TypeVar("T")
_CSS = {"learned": "good", "finished": "good", "saturated early": "warn", "left out": "warn"}


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
    summary: str = ""
    """One line for a terminal."""

    @property
    def left(self) -> list[bool]:
        """For every column, whether it reads from the left."""
        first = self.rows[0] if self.rows else []
        return [cell.css.split(" ")[0] in ("left", "wrap") for cell in first]

    @property
    def is_tall(self) -> bool:
        """Whether it scrolls inside its frame."""
        return len(self.rows) > TALL_ROWS


def table(
    caption: str,
    lines: Sequence[T],
    columns: Sequence[tuple[str, Callable[[T], object]]],
    *,
    sortable: bool = False,
    drop_empty: bool = False,
) -> Table:
    """Returns a table of one row per line.

    Args:
        columns: heading and what makes a line's cell: a `Td`, or what one says.
        drop_empty: leave out columns in which no row has anything.
    """
    made = [[fill(line) for _, fill in columns] for line in lines]
    rows = [[x if isinstance(x, Td) else Td(str(x)) for x in row] for row in made]
    keep = [i for i in range(len(columns)) if not drop_empty or any(row[i].text for row in rows)]
    heads = [columns[i][0] for i in keep]
    return Table(caption, heads, [[row[i] for i in keep] for row in rows], sortable)


def accuracy_table(analysis: Analysis) -> Table:
    """Returns top-1 by arm and number of images."""
    fractions = {cell.n_images: cell.fraction for cell in analysis.cells}

    def cell_at(arm: Arm, size: int) -> Td:
        cell = analysis.cell(arm.label, size)
        return Td(words.plus_minus(cell.top1), note=words.cell_note(cell)) if cell else Td("")

    def head(size: int) -> str:
        part = words.share(fractions.get(size))
        return f"{count(size)} images" + (f" ({part})" if part else "")

    return table(
        "Top-1 accuracy, %: mean ± half the width of the 95 % CI.",
        analysis.arms,
        [
            ("arm", lambda arm: Td(arm.label, "left", arm=arm.color)),
            *((head(size), lambda arm, size=size: cell_at(arm, size)) for size in analysis.sizes),
        ],
    )


def difference_table(found: Sequence[Difference], caption: str) -> Table:
    """Returns paired differences with their intervals and every pair's value."""
    verdicts = {True: "yes", False: "no", None: "too few seeds"}
    return table(
        caption,
        found,
        [
            ("arm − reference", lambda d: Td(f"{d.arm} − {d.reference}", "left")),
            ("images", lambda d: count(d.n_images)),
            ("points (95 % CI)", lambda d: words.interval(d.difference)),
            ("pairs", lambda d: d.difference.n),
            ("significant", lambda d: verdicts[d.difference.excludes_zero]),
            ("per seed", lambda d: words.each(sorted(p.value for p in d.points), signed)),
            ("not paired", lambda d: Td("; ".join(d.unpaired), "wrap")),
        ],
        drop_empty=True,
    )


def saving_table(found: Sequence[Saving]) -> Table:
    """Returns the images each arm needs for the reference's accuracies."""

    short = partial(words.reading, short=True)

    def meaning(saving: Saving) -> Td:
        fit = " (isotonic fit)" if saving.needs.estimate.fitted else ""
        return Td(words.saved(saving) + fit, "left")

    def ends(saving: Saving) -> str:
        low, high = saving.needs.low, saving.needs.high
        return f"{short(low)} to {short(high)}" if low and high else ""

    return table(
        "Images needed for equal accuracy: seeds that have every size, and their means.",
        found,
        [
            ("arm", lambda saving: Td(saving.arm, "left")),
            (f"images of {found[0].reference}", lambda saving: count(saving.n_images)),
            ("its top-1, %", lambda saving: number(saving.accuracy)),
            ("images the arm needs", lambda saving: words.reading(saving.needs.estimate)),
            ("that is", meaning),
            ("95 % CI", ends),
            ("seeds", lambda saving: len(saving.needs.per_seed)),
            ("per seed", lambda s: words.each(words.in_order(s.needs), short)),
        ],
        drop_empty=True,
    )


def warmup_table(analysis: Analysis) -> Table:
    """Returns the warm-ups with what they reached, against chance, and their verdicts."""

    def verdict(line: Warmup) -> Td:
        said = line.verdict or line.state
        why = f": {line.reason}" if line.reason else ""
        return Td(said + why, f"left {_CSS.get(said, 'bad')}")

    return table(
        "Accuracy on the hidden tokens of held-out sequences, %.",
        analysis.warmups,
        [
            ("arms", lambda line: Td(", ".join(line.arms) or "–", "left")),
            ("verdict", verdict),
            ("rule", lambda line: Td(line.rule or "–", "left")),
            ("seed", lambda line: line.seed),
            ("sequences", lambda line: count(line.samples)),
            ("held-out accuracy", lambda line: number(line.fact("hidden_accuracy_percent"))),
            ("chance", lambda line: number(line.fact("chance_percent"))),
            ("order-blind baseline", lambda line: number(line.fact("order_blind_percent"))),
            ("ceiling", lambda line: number(line.ceiling_percent)),
            ("loss, nats", lambda line: number(line.fact("hidden_loss"), 3)),
            ("solved at step", lambda line: count(line.fact("saturated_at_step"))),
            ("time", lambda line: words.duration(line.fact("wall_seconds"))),
            ("run", lambda line: Td(line.folder or "–", "left code")),
        ],
        sortable=True,
    )


def difficulty_table(analysis: Analysis, group: str, what: str) -> Table:
    """Returns the warm-ups' accuracy on hidden tokens by how far, or how deep, their match is.

    Args:
        group: a key of `hidden_accuracy_by`; only warm-ups that have it get a row.
        what: what its octaves count, for the caption.
    """

    def first_number(octave: str) -> int:  # of `4-7` the 4; those without a number stand first
        head = octave.split("-")[0]
        return int(head) if head.isdecimal() else 0

    def cell(line: Warmup, octave: str) -> str:
        found = line.hidden_accuracy_by[group].get(octave, {})
        return number(found.get("accuracy_percent"))

    lines = [line for line in analysis.warmups if line.hidden_accuracy_by.get(group)]
    octaves = {octave for line in lines for octave in line.hidden_accuracy_by[group]}
    return table(
        f"Held-out accuracy on hidden tokens, %, by {what}.",
        lines,
        [
            ("arms", lambda line: Td(", ".join(line.arms) or line.rule, "left")),
            ("seed", lambda line: line.seed),
            *(
                (octave, lambda line, octave=octave: cell(line, octave))
                for octave in sorted(octaves, key=first_number)
            ),
        ],
    )


def gain_table(analysis: Analysis) -> Table:
    """Returns what each arm's warm-ups reached beside what it gained."""

    def figure(gain: Gain, name: str) -> str:
        value = gain.figures.get(name)
        is_count = name.startswith("steps")
        return ("never" if value is None else count(value)) if is_count else number(value)

    return table(
        "What each arm's warm-ups reached, and its paired difference to the reference.",
        analysis.gains,
        [
            ("arm", lambda gain: Td(gain.arm, "left", arm=analysis.colors[gain.arm])),
            ("images", lambda gain: count(gain.n_images)),
            ("gain, points (95 % CI)", lambda gain: words.interval(gain.gain)),
            *(
                (
                    "their difference" if name == BEYOND else name,
                    lambda gain, name=name: figure(gain, name),
                )
                for name in FIGURES
            ),
        ],
        sortable=True,
    )


def rank_table(analysis: Analysis) -> Table | None:
    """Returns how each figure of the warm-ups goes with the gain, over arms; None without any."""
    found = table(
        "Does a figure of the warm-up go with the gain? Ranks over arms; p from permutations, "
        "not corrected for the number of figures.",
        analysis.rank_correlations,
        [
            ("figure of the warm-up", lambda r: Td(r.figure, "left")),
            ("images", lambda r: count(r.n_images)),
            ("arms", lambda r: r.n_arms),
            ("Spearman's ρ", lambda r: signed(r.rho, 2)),
            ("p", lambda r: f"{r.p_value:.2f}" if r.p_value >= 0.005 else f"{r.p_value:.1g}"),
        ],
    )
    return found if found.rows else None


def run_table(analysis: Analysis) -> Table:
    """Returns every image training that should be there, with what is missing."""

    def state(run: Trial) -> Td:
        why, side = (f": {run.reason}", "wrap") if run.reason else ("", "left")
        return Td(run.state + why, f"{side} {_CSS.get(run.state, 'bad')}")

    def verdict(run: Trial) -> Td:
        return Td(run.verdict or "–", f"left {_CSS.get(run.verdict or '', '')}".strip())

    def code(value: str | None) -> Td:
        return Td((value or "–")[:8], "left code")

    return table(
        "*The best evaluation was selected on the validation set; use it for diagnosis only.",
        analysis.runs,
        [
            ("arm", lambda run: Td(run.arm, "left")),
            ("images", lambda run: count(run.n_images)),
            ("seed", lambda run: run.seed),
            ("state", state),
            ("top-1", lambda run: number(run.fact("top1_percent"), 2)),
            ("top-5", lambda run: number(run.fact("top5_percent"), 2)),
            ("best top-1*", lambda run: number(run.fact("best_top1_percent"), 2)),
            ("steps", lambda run: count(run.fact("steps"))),
            ("images seen", lambda run: count(run.fact("images_seen"))),
            ("warm-up samples", lambda run: count(run.fact("warmup_samples"))),
            ("warm-up", verdict),
            ("images/s", lambda run: count(run.fact("images_per_second"))),
            ("time", lambda run: words.duration(run.fact("wall_seconds"))),
            ("subset", lambda run: code(run.fact("subset_sha256"))),
            ("trunk", lambda run: code(run.fact("trunk_sha256"))),
            ("run", lambda run: Td(run.folder or "–", "left code")),
        ],
        sortable=True,
    )

"""What a warm-up was worth: learned, not learned, or solved too soon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Trainer

from vitwarm.loop import Metrics, StepCallback
from vitwarm.records import Record, RunFolder, read_metrics
from vitwarm.units import format_seconds

Verdict = Literal["learned", "not learned", "saturated early"]

#: From this accuracy on hidden tokens on, the rule counts as solved.
SATURATED_PERCENT = 99.0

#: Steps between two looks of `until: saturated`, whatever the log's: they decide when it ends.
SATURATION_STEPS = 50

#: Share of the gap to 100 % that has to be closed to count as learned. Ours: far above what noise
#: closes on 2,048 held-out sequences, far below any warm-up worth a hand-off.
LEARNED_SHARE = 0.05

#: What the groups of `Record.hidden_accuracy_by` are called in a terminal.
GROUP_LABELS = {"match_distance": "distance", "depth": "depth", "equal_id_distance": "same id"}


def find_saturation(run: RunFolder) -> int | None:
    """Returns the first logged step from which on the training accuracy stayed above 99 %."""
    first: int | None = None
    for line in read_metrics(run.path):
        accuracy = line.get("hidden_accuracy_percent")
        if line["kind"] != "train" or accuracy is None:
            continue
        if accuracy < SATURATED_PERCENT:
            first = None
        elif first is None:
            first = int(line["step"])
    return first


def is_solved(run: RunFolder) -> bool:
    """Whether the last two lines of a run's training accuracy are above 99 %.

    Read from the file, not from memory: a resumed run must stop where an uninterrupted one does.
    """
    lines = [line for line in read_metrics(run.path) if line["kind"] == "train"][-2:]
    solved = [line.get("hidden_accuracy_percent") or 0.0 for line in lines]
    return len(solved) == 2 and min(solved) >= SATURATED_PERCENT


@dataclass(eq=False)
class StopWhenSaturated(StepCallback):
    """Ends the training at the second log line in a row above 99 % on hidden tokens."""

    metrics: Metrics
    run: RunFolder

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        if self.metrics.marked_step == module.steps_done and is_solved(self.run):
            trainer.should_stop = True


def judge(
    *,
    accuracy_percent: float,
    chance_percent: float,
    order_blind_percent: float | None = None,
    saturated_at: int | None,
    n_steps: int,
) -> Verdict:
    """Says what a warm-up was worth.

    Args:
        accuracy_percent, chance_percent: on hidden tokens of held-out sequences.
        order_blind_percent: what can be reached there without the order of the tokens, which is
            the ceiling of the rule's shuffled control; None: not known.
        saturated_at: as `find_saturation` returns it.
        n_steps: of the budget, also where the warm-up ended before.
    Returns: `not learned` if less than a twentieth of the gap between chance, or what the tokens
        tell without their order, and 100 % was closed: so a shuffled control that learned all it
        can has not learned either; `saturated early` if the rule was solved in the first half of
        the steps (easy tasks transfer worst, and weight decay erodes what was learned); else
        `learned`.
    """
    floor = max(chance_percent, order_blind_percent or 0.0)
    if accuracy_percent < floor + LEARNED_SHARE * (100 - floor):
        return "not learned"
    if saturated_at is not None and saturated_at < n_steps / 2:
        return "saturated early"
    return "learned"


def describe(record: Record) -> str:
    """Says in a few lines what a finished warm-up reached, and warns where it went wrong."""
    accuracy, chance = record.hidden_accuracy_percent or 0.0, record.chance_percent or 0.0
    text = (
        f"finished  {record.steps or 0:,} steps in {format_seconds(record.wall_seconds or 0)}\n"
        f"reached   held-out accuracy {accuracy:.1f} % on hidden tokens "
        f"(chance {chance:.1f} %, order-blind baseline {record.order_blind_percent or 0:.1f} %, "
        f"ceiling {_ceiling_of(record)}), "
        f"loss {record.hidden_loss or 0:.3f} nats\n"
    )
    for group, bins in record.hidden_accuracy_by.items():
        right = ", ".join(
            f"{name}: {found['accuracy_percent']:.0f}" for name, found in bins.items()
        )
        text += f"{GROUP_LABELS.get(group, group):<9} {right} (accuracy, %)\n"
    text += f"data      waited {record.data_wait_percent or 0:.2f} % of the time for sequences"
    if record.verdict == "not learned":
        text += (
            "\nWARNING   held-out accuracy is hardly above the order-blind baseline: expected of a "
            "control;\n          otherwise a failed warm-up is worse than none. Train longer, or "
            "lower warmup.lr,\n          before the hand-off of this trunk."
        )
    elif record.verdict == "saturated early":
        text += (
            f"\nWARNING   solved from step {record.saturated_at_step or 0:,} on: easy tasks "
            "transfer worst. Use a harder rule or a smaller budget."
        )
    return text


def _ceiling_of(record: Record) -> str:
    found = record.extra.get("ceiling") or {}
    low, high = found.get("low_percent"), found.get("high_percent")
    if low is None or high is None:
        return "unknown"
    return f"{low:.1f} %" if low == high else f"{low:.1f} to {high:.1f} %"

"""What a warm-up was worth: learned, not learned, or solved too soon."""

from __future__ import annotations

from typing import Literal

from vitwarm.records import Record, RunFolder, read_metrics
from vitwarm.units import format_seconds

Verdict = Literal["learned", "not learned", "saturated early"]

#: From this accuracy on hidden tokens on, the rule counts as solved.
SATURATED_PERCENT = 99.0

#: Share of the gap between chance and 100 % that has to be closed to count as learned. Ours: far
#: above what noise closes on 2,048 held-out sequences, far below any warm-up worth a hand-off.
LEARNED_SHARE = 0.05


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


def judge(
    *, accuracy_percent: float, chance_percent: float, saturated_at: int | None, n_steps: int
) -> Verdict:
    """Says what a warm-up was worth.

    Args:
        accuracy_percent, chance_percent: on hidden tokens of held-out sequences.
        saturated_at: as `find_saturation` returns it.
    Returns: `not learned` if less than a twentieth of the gap between chance and 100 % was closed;
        `saturated early` if the rule was solved in the first half of the steps (easy tasks
        transfer worst, and weight decay erodes what was learned); else `learned`.
    """
    if accuracy_percent < chance_percent + LEARNED_SHARE * (100 - chance_percent):
        return "not learned"
    if saturated_at is not None and saturated_at < n_steps / 2:
        return "saturated early"
    return "learned"


def describe(record: Record) -> str:
    """Says in a few lines what a finished warm-up reached, and warns where it went wrong."""
    accuracy, chance = record.hidden_accuracy_percent or 0.0, record.chance_percent or 0.0
    text = (
        f"finished  {record.steps or 0:,} steps in {format_seconds(record.wall_seconds or 0)}\n"
        f"learned   {accuracy:.1f} % of the hidden tokens of held-out sequences right "
        f"(chance {chance:.1f} %), loss {record.hidden_loss or 0:.3f} nats\n"
        f"data      waited {record.data_wait_percent or 0:.2f} % of the time for sequences"
    )
    if record.verdict == "not learned":
        text += (
            "\nWARNING   nothing was learned, and a failed warm-up is worse than none. Train "
            "longer, or lower warmup.lr, before handing this trunk over."
        )
    elif record.verdict == "saturated early":
        text += (
            f"\nWARNING   solved from step {record.saturated_at_step or 0:,} on: easy tasks "
            "transfer worst. Use a harder rule or a smaller budget."
        )
    return text

"""Single runs as a report shows them: convergence, warm-ups, and the table of runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitwarm.records import Record, read_metrics
from vitwarm.report.facts import Convergence, RunLine, WarmupLine
from vitwarm.report.trials import Section, Trial


def converge(trial: Trial) -> Convergence | None:
    """Returns a finished run's accuracy while it trained, or None where it left no evaluations."""
    if trial.folder is None or trial.record is None or trial.state != "finished":
        return None
    lines = [line for line in read_metrics(trial.folder) if line.get("kind") == "eval"]
    lines = [line for line in lines if _percent(line, "top1_percent") is not None]
    steps, seen = trial.record.steps, trial.record.images_seen
    if not lines or not steps or not seen:
        return None
    return Convergence(
        arm=trial.arm,
        n_images=trial.n_images,
        seed=trial.seed,
        steps=[int(line["step"]) for line in lines],
        images_seen=[round(line["step"] * seen / steps) for line in lines],
        top1=[float(line["top1_percent"]) for line in lines],
    )


def describe_warmups(section: Section) -> list[WarmupLine]:
    """Returns a section's warm-ups with what they reached, finished or not."""
    found = []
    for warmup in section.warmups:
        record = warmup.record
        lines = read_metrics(warmup.folder) if warmup.folder else []
        curve = [
            (int(line["step"]), float(line["hidden_accuracy_percent"]))
            for line in lines
            if line.get("kind") == "train" and _percent(line, "hidden_accuracy_percent") is not None
        ]
        facts = {
            name: getattr(record, name, None)
            for name in (
                "steps", "hidden_accuracy_percent", "chance_percent",
                "order_blind_percent", "hidden_loss",
                "saturated_at_step", "verdict", "wall_seconds",
            )
        }  # fmt: skip
        found.append(
            WarmupLine(
                arms=warmup.arms, rule=_rule_text(record), seed=warmup.seed, state=warmup.state,
                reason=warmup.reason, samples=record.warmup_samples if record else None,
                folder=warmup.folder.name if warmup.folder else "",
                curve_steps=[step for step, _ in curve], curve_percent=[y for _, y in curve],
                ceiling_percent=_ceiling(record),
                hidden_accuracy_by=record.hidden_accuracy_by if record else {},
                probes=[line for line in lines if line.get("kind") == "eval"],
                **facts,
            )
        )  # fmt: skip
    return found


def _ceiling(record: Record | None) -> float | None:
    found = record.extra.get("ceiling") if record else None
    return _percent(found, "high_percent") if isinstance(found, dict) else None


def _percent(line: dict[str, Any], name: str) -> float | None:
    """A percentage that a file of lines holds, or None where it holds something else."""
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 100 else None


def _rule_text(record: Record | None) -> str:
    """`dyck`, or `shuffled (dyck)`: names only; the parameters stand in report.json."""
    rule, names = record.rule if record else None, []
    while isinstance(rule, dict) and "name" in rule:
        names.append(str(rule["name"]))
        params = rule.get("params")
        rule = params.get("of") if isinstance(params, dict) else None
    return names[0] + "".join(f" ({name})" for name in names[1:]) if names else ""


def to_line(trial: Trial) -> RunLine:
    """Returns an image training as the table of runs shows it."""
    record = trial.record
    known = {item.name for item in dataclasses.fields(RunLine)}
    facts: dict[str, Any] = {
        item.name: getattr(record, item.name, None)
        for item in dataclasses.fields(Record)
        if item.name in known
    }
    facts |= {
        "arm": trial.arm, "fraction": trial.fraction, "n_images": trial.n_images,
        "seed": trial.seed, "state": trial.state, "reason": trial.reason,
        "folder": trial.folder.name if trial.folder else "", "verdict": trial.verdict,
    }  # fmt: skip
    return RunLine(**facts)

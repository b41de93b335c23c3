"""A sweep's plan in words, before it runs: `--dry-run`."""

from __future__ import annotations

import statistics

from omegaconf import OmegaConf

from vitwarm.config import SweepConfig, TrainRun, to_plain
from vitwarm.errors import VitwarmError
from vitwarm.records import read_records
from vitwarm.sweep.board import Board
from vitwarm.sweep.rows import Plan, Row, count, describe_row
from vitwarm.sweep.stages import Stages
from vitwarm.units import format_seconds


def describe_plan(plan: Plan, config: SweepConfig, stages: Stages) -> str:
    """Returns the resolved config, the rows in a few lines, totals, and an estimate of the time."""
    board = Board(plan, stages, writes=False)
    settled, left = board.settle(plan.rows)
    waiting = {row.key for row in left}
    warmups = [row for row in plan.rows if row.kind == "warmup"]
    trainings = [row for row in plan.rows if row.kind == "train"]
    lines = [
        OmegaConf.to_yaml(OmegaConf.create(to_plain(config))),
        f"sweep     {plan.name} in {plan.home}",
        f"match     {plan.match}; warm-up seeds {plan.warmup_seeds}; "
        f"seeds {', '.join(map(str, config.seeds))}",
        f"rows      {count(len(warmups), 'warm-up')}, {count(len(trainings), 'image training')}; "
        f"{len(plan.rows) - len(left)} have their result",
    ]
    for row in warmups:
        state = "" if row.key in waiting else "  (done)"
        lines.append(
            f"  {describe_row(row)}: {row.steps or 0:,} steps, {row.samples:,} sequences, "
            f"{row.tokens or 0:,} tokens{state}"
        )
    samples = {row.key: row.samples for row in plan.rows}
    lines += _training_lines(trainings, waiting, samples)
    lines += [f"  ! {describe_row(d.row)}: {d.reason}" for d in settled if d.state == "refused"]
    images, sequences = (sum(row.samples for row in rows) for rows in (trainings, warmups))
    lines.append(f"total     {sequences:,} sequences of warm-up, {images:,} images seen")
    lines.append(f"estimate  {_estimate(plan, [row for row in plan.rows if row.key in waiting])}")
    return "\n".join(lines)


def _training_lines(trainings: list[Row], waiting: set[str], samples: dict[str, int]) -> list[str]:
    cells: dict[tuple[str, str, int], list[Row]] = {}
    for row in trainings:
        cells.setdefault((row.arms[0], str(row.setting), row.n_images or 0), []).append(row)
    width = max((len(arm) for arm, _, _ in cells), default=0)
    lines = []
    for (arm, _, n_images), rows in cells.items():
        setting = "".join(f" {name}={value}" for name, value in rows[0].setting.items())
        n_done = sum(row.key not in waiting for row in rows)
        done = f", {n_done} done" if n_done else ""
        steps = rows[0].steps or 0
        lines.append(
            f"  {arm:<{width}} {n_images:>9,} images: {steps:,} steps, {rows[0].samples:,} images "
            f"seen, x {len(rows)} seeds{done}{setting}{_surplus(rows[0], samples)}"
        )
    return lines


def _surplus(row: Row, samples: dict[str, int]) -> str:
    """What an arm that trains longer sees beyond the warm-up's samples, to fill its last step."""
    if row.extra_of is None or not isinstance(row.config, TrainRun):
        return ""
    surplus = -samples[row.extra_of] % row.config.train.batch_size
    return f" ({surplus:,} beyond the warm-up's samples, to fill the last step)" if surplus else ""


def _estimate(plan: Plan, left: list[Row]) -> str:
    """From the speed of earlier trainings of the same model under the same root, if there are."""
    if not left:
        return "nothing is left to run"
    models = {row.config.train.model for row in left if isinstance(row.config, TrainRun)}
    try:
        records = read_records(plan.home.parent.parent)
    except VitwarmError:  # there is no such folder yet
        records = []
    known = [record.images_per_second for record in records if record.model in models]
    speeds = [speed for speed in known if speed]
    if not speeds:
        return "none yet: no run of this model is recorded here; the sweep gives one as it runs"
    speed = statistics.median(speeds)
    seconds = sum(row.samples for row in left) / speed
    return (
        f"{format_seconds(seconds)} of one slot's time for {count(len(left), 'row')} "
        f"({speed:,.0f} samples/s, the median of {len(speeds)} earlier runs, warm-ups alike)"
    )

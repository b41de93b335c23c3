"""What a person sees of a sweep: its plan before it runs, then a bar or a line per finished row."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm.auto import tqdm

from vitwarm.config import SweepConfig, TrainRun, read_yaml, to_plain
from vitwarm.errors import VitwarmError
from vitwarm.informing import in_notebook, informs, shows_bars
from vitwarm.records import Record, environment, read_json, read_runs
from vitwarm.sweep.rows import Done, Plan, Row, describe_row
from vitwarm.units import count_of, format_seconds

#: A model with its arguments and sides, and a device.
Shape = tuple[str, str]


def describe_plan(plan: Plan, config: SweepConfig, settled: list[Done], left: list[Row]) -> str:
    """Returns the resolved config, the rows in a few lines, totals, and an estimate of the time.

    Args:
        settled, left: the rows that have a result or can have none, and the others.
    """
    finished = {done.row.key for done in settled if done.state == "finished"}
    warmups, inits, trainings = (
        [row for row in plan.rows if row.kind == kind] for kind in ("warmup", "init", "train")
    )
    made = f"{count_of(len(inits), 'initialisation')}, " if inits else ""
    lines = [
        OmegaConf.to_yaml(OmegaConf.create(to_plain(config))),
        f"sweep     {plan.name} in {plan.home}",
        f"match     {plan.match}; warm-up seeds {plan.warmup_seeds}; "
        f"seeds {', '.join(map(str, config.seeds))}",
        f"rows      {len(plan.rows)}: {count_of(len(warmups), 'warm-up')}, {made}"
        f"{count_of(len(trainings), 'image training')}; "
        f"{len(finished)} have their result",
    ]
    for row in warmups:
        state = "  (done)" if row.key in finished else ""
        lines.append(
            f"  {describe_row(row)}: {count_of(row.steps or 0, 'step')}, {row.samples:,} sequences"
            f", {row.tokens or 0:,} tokens{state}"
        )
    lines += [f"  {describe_row(r)}{'  (done)' if r.key in finished else ''}" for r in inits]
    lines += _training_lines(plan, trainings, finished)
    lines += [
        f"  ! {describe_row(one.row)} {one.state}: {one.reason}"
        for one in settled
        if one.row.key not in finished
    ]
    images, sequences = (sum(row.samples for row in rows) for rows in (trainings, warmups))
    lines.append(f"total     {sequences:,} sequences of warm-up, {images:,} images seen")
    lines.append(f"estimate  {_estimate(plan, left)}")
    return "\n".join(lines)


def _training_lines(plan: Plan, trainings: list[Row], finished: set[str]) -> list[str]:
    cells: dict[tuple[str, str, int], list[Row]] = {}
    for row in trainings:
        cells.setdefault((row.arms[0], str(row.setting), row.n_images or 0), []).append(row)
    width = max((len(arm) for arm, _, _ in cells), default=0)
    lines = []
    for (arm, _, n_images), rows in cells.items():
        setting = "".join(f" {name}={value}" for name, value in rows[0].setting.items())
        n_done = sum(row.key in finished for row in rows)
        done = f", {n_done} done" if n_done else ""
        each = f"{count_of(rows[0].steps or 0, 'step')}, {rows[0].samples:,} images seen"
        lines.append(
            f"  {arm:<{width}} {n_images:>9,} images: {each}, x {count_of(len(rows), 'seed')}"
            f"{done}{setting}{_surplus(plan, rows[0])}"
        )
    return lines


def _surplus(plan: Plan, row: Row) -> str:
    """What an arm that trains longer sees beyond the warm-up's samples, to fill its last step."""
    if row.extra_of is None or not isinstance(row.config, TrainRun):
        return ""
    surplus = -plan.row(row.extra_of).samples % row.config.train.batch_size
    return f" ({surplus:,} beyond the warm-up's samples, to fill the last step)" if surplus else ""


def _estimate(plan: Plan, left: list[Row]) -> str:
    """From earlier trainings of the same model, shape and device under the same root, if any."""
    if not left:
        return "nothing is left to run"
    known = _known_speeds(plan.home.parent.parent)
    gpus = environment()["gpus"]
    shapes = {row.key: _shape(to_plain(row.config), gpus) for row in left if row.kind == "train"}
    if not shapes or not set(shapes.values()) <= known.keys():
        return (
            "none yet: no run of this model at this size and on this device is recorded here; "
            "the sweep gives one as it runs"
        )
    speeds = [speed for shape in set(shapes.values()) for speed in known[shape]]
    speed, n = statistics.median(speeds), len(speeds)
    own = {key: statistics.median(known[shape]) for key, shape in shapes.items()}
    seconds = sum(row.samples / own.get(row.key, speed) for row in left)
    return (
        f"{format_seconds(seconds)} of one slot's time for the {count_of(len(left), 'row')} left "
        f"({speed:,.0f} samples/s, the median of {count_of(n, 'earlier run')}, warm-ups alike)"
    )


def _known_speeds(root: Path) -> dict[Shape, list[float]]:
    """Images per second of the trainings recorded below a folder, by model, shape and device."""
    known: dict[Shape, list[float]] = {}
    for run in read_runs(root) if root.is_dir() else []:
        speed = run.record.images_per_second if run.record else None
        try:
            config = read_yaml(run.path / "config.yaml") if speed else {}
            gpus = (read_json(run.path / "env.json") or {}).get("gpus", [])
        except VitwarmError:  # a damaged file of another run is no reason to refuse this one
            continue
        if speed and isinstance(config.get("train"), dict):
            known.setdefault(_shape(config, gpus), []).append(speed)
    return known


def _shape(config: dict[str, Any], gpus: list[str]) -> Shape:
    """What a step's time hangs on: the model, its arguments, the image's sides, the device."""
    train, run = config["train"], config.get("run") or {}
    device = "cpu" if run.get("device") == "cpu" or not gpus else gpus[0]
    facts = [train.get(name) for name in ("model", "model_kwargs", "img_size")]
    return json.dumps(facts, sort_keys=True, default=str), device


class SweepProgress:
    """One bar for the whole sweep on a terminal; elsewhere a plain line per finished row."""

    def __init__(self, plan: Plan, say: Callable[[str], None], *, progress: bool) -> None:
        self.n_rows = len(plan.rows)
        self.n_told = self.n_failed = 0
        self.print = say
        self.progress = progress
        self.bar: Any = None
        self.began = time.monotonic()
        self.samples_left = self.samples_done = 0.0
        self.n_finished = 0
        self.n_slots = 1

    @informs
    def begin(self, waiting: list[Row], n_slots: int) -> None:
        """Says what there is to do."""
        self.began = time.monotonic()
        self.n_slots = n_slots
        self.samples_left = float(sum(row.samples for row in waiting))
        before = self.n_rows - len(waiting)
        done = f", {before} {'is' if before == 1 else 'are'} done" if before else ""
        self.say(
            f"{len(waiting)} of {count_of(self.n_rows, 'row')} to run{done}; {n_slots} at a time"
        )
        if self.progress and shows_bars():
            self.bar = tqdm(
                total=self.n_rows, initial=before, unit="run", dynamic_ncols=True,
                bar_format=None if in_notebook()
                else "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} {postfix}",
            )  # fmt: skip

    @informs
    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if not self.progress:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            self.print(text)

    @informs
    def tell(self, done: Done, seconds: float) -> None:
        """Says how a row ended; rows that were done before are only counted."""
        self.n_told += 1
        self.n_failed += done.state in ("failed", "refused")
        self.samples_left = max(0.0, self.samples_left - done.row.samples)
        if done.before:
            return
        text = f"[{self.n_told:>{len(str(self.n_rows))}}/{self.n_rows}] {describe_row(done.row)}"
        if done.state == "finished":
            self.samples_done += done.row.samples
            self.n_finished += 1
            text += f" · {describe_result(done.record)} · {format_seconds(seconds)}"
        else:
            text += f" · {done.state.upper()}: {done.reason}"
        self.say(f"{text}{self._left()}")
        if self.bar is not None:
            self.bar.update(self.n_told - self.bar.n)

    @informs
    def refresh(self, n_running: int) -> None:
        """Brings the bar's words up to date."""
        if self.bar is not None:
            failed = f", {self.n_failed} failed" if self.n_failed else ""
            self.bar.set_postfix_str(f"{n_running} running{failed}{self._left()}")

    @informs
    def end(self) -> None:
        """Ends the bar's line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _left(self) -> str:
        """An estimate from what this call has run so far: samples are what takes time.

        None before every slot has run two rows, which hold the imports; none from initialisers
        alone, which see no samples.
        """
        seconds = time.monotonic() - self.began
        if self.n_finished < 2 * self.n_slots or not self.samples_left or not self.samples_done:
            return ""
        left = self.samples_left * seconds / self.samples_done
        return f" · about {format_seconds(left)} left"


def describe_result(record: Record | None) -> str:
    """Returns what a finished row reached, in a few words; None: an initialiser's file."""
    if record is None:
        return "written"
    if record.stage == "warmup":
        accuracy = record.hidden_accuracy_percent
        right = "" if accuracy is None else f", held-out accuracy {accuracy:.1f} %"
        return f"{record.verdict or 'finished'}{right}"
    return "no top-1" if record.top1_percent is None else f"top-1 {record.top1_percent:.2f} %"

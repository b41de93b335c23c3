"""What has become of every row of a sweep, told from its files, its locks and SLURM's queue.

Nothing is asked of the processes that run it, and no model is built: a look takes a second and can
be taken from any machine that sees the folders.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from vitwarm.errors import ConfigError, VitwarmError
from vitwarm.records import Record, RunFolder, lock_holder, read_json
from vitwarm.sweep.execute import find_result
from vitwarm.sweep.jobs import Queue, read_queue
from vitwarm.sweep.rows import LocalSweep, Row, describe_row, find_sweep, load_plan, read_state
from vitwarm.sweep.show import describe_result
from vitwarm.units import count_of, format_seconds

#: `waiting`: a process or a job will run it; `stopped`: begun, and nobody is at it: the sweep's
#: command goes on with it; `not started`: not begun, and nobody will. In the order of a table.
RowState = Literal[
    "finished", "not started", "waiting", "stopped", "refused", "failed", "running"
]  # fmt: skip

#: The end of a metrics file that is read: some dozens of lines.
_TAIL_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class RowStatus:
    """One row, now."""

    key: str
    what: str
    """In words."""
    state: RowState
    note: str = ""
    """What it reached, why it failed, or why its job waits."""
    node: str | None = None
    """Where it runs."""
    job: str | None = None
    """Its job in SLURM's queue."""
    holder: str | None = None
    """The process that works on it, if that is neither the sweep's nor a job's."""
    step: int | None = None
    """The last step logged of a run in progress; else the step that is saved."""
    steps: int | None = None
    seconds_left: float | None = None
    """Of a run in progress, once it has logged how long a step takes."""
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """A sweep, now."""

    name: str
    home: str
    run_by: list[str]
    """The process, the arrays."""
    rows: list[RowStatus]
    """In the plan's order."""
    seconds_left: float | None
    """None: no row of the kind has finished yet, or nobody works on the sweep."""
    warning: str = ""
    """What could not be asked."""

    @property
    def counts(self) -> Counter[RowState]:
        """Rows by state."""
        return Counter(row.state for row in self.rows)

    @property
    def is_busy(self) -> bool:
        """Whether any row waits or runs."""
        return bool(self.counts["waiting"] + self.counts["running"])


def read_status(home: Path) -> SweepStatus:
    """Looks at a sweep that was started before.

    Raises: ConfigError: there is no plan in its home.
    """
    if not (home / "plan.json").is_file():
        raise ConfigError(
            f"{home} holds no plan: this sweep was not started yet, or with another run.root or "
            "name. Start it without this option, or give the overrides that it was started with."
        )
    plan, queue, sweep = load_plan(home / "plan.json"), read_queue(home), find_sweep(home)
    looks = [_look(row, home, queue, sweep) for row in plan.rows]
    run_by = [str(sweep)] if sweep else []
    run_by += [f"SLURM job {array}" for array in queue.arrays]
    run_by += list(dict.fromkeys(status.holder for status, _ in looks if status.holder))
    warning = f"The queue could not be asked: {queue.silent}" if queue.silent else ""
    return SweepStatus(
        name=plan.name, home=str(home), run_by=run_by, rows=[status for status, _ in looks],
        seconds_left=_time_left(plan.rows, looks), warning=warning,
    )  # fmt: skip


def describe_status(status: SweepStatus) -> list[str]:
    """Returns a line for who runs the sweep, one per row, and one that sums up."""
    head = [f"{status.name} in {status.home}", *(status.run_by or ["nobody works on it"])]
    lines = [", ".join(head)]
    width = max(len(row.what) for row in status.rows)
    for row in sorted(status.rows, key=lambda row: get_args(RowState).index(row.state)):
        lines.append(f"{row.state:<11}  {row.what:<{width}}  {_describe(row)}".rstrip())
    return [*lines, *filter(None, [status.warning]), sum_up(status)]


def sum_up(status: SweepStatus) -> str:
    """Returns the sweep in one line: `19 rows: 5 finished, 12 waiting, 2 running`."""
    counts = status.counts
    words = [f"{counts[state]} {state}" for state in get_args(RowState) if counts[state]]
    left = status.seconds_left
    about = "" if left is None else f"; about {format_seconds(left)} left"
    return f"{count_of(len(status.rows), 'row')}: {', '.join(words)}{about}"


def to_json(status: SweepStatus) -> str:
    """Returns the status as one JSON object."""
    return json.dumps({**dataclasses.asdict(status), "counts": status.counts})


def _describe(row: RowStatus) -> str:
    words = [row.note] if row.note else []
    if row.step is not None and row.state != "finished":
        at = "step" if row.state == "running" else "saved at step"
        words.append(f"{at} {row.step:,}" + (f" of {row.steps:,}" if row.steps else ""))
    if row.seconds_left is not None:
        words.append(f"{format_seconds(row.seconds_left)} left")
    words += [row.node] if row.node else []
    words += [f"job {row.job}"] if row.job else []
    words += [f"by {row.holder}"] if row.holder else []
    return " · ".join(words)


def _look(
    row: Row, home: Path, queue: Queue, sweep: LocalSweep | None
) -> tuple[RowStatus, Record | None]:
    told, job = read_state(home, row.key), queue.jobs.get(row.key)
    folder = Path(os.path.normpath(home / told["folder"])) if told.get("folder") else None
    row = dataclasses.replace(row, folder=folder or row.folder)
    folder = row.folder
    where = str(folder) if folder else None
    status = partial(RowStatus, key=row.key, what=describe_row(row), steps=row.steps, folder=where)
    try:
        found = find_result(row) if folder else None
    except VitwarmError as error:  # a record that cannot be read
        return status(state="failed", note=str(error)), None
    if found is not None:
        return status(state="finished", note=describe_result(found.record)), found.record
    holder = lock_holder(folder) if folder else None
    state = _judge(row, told, folder, holder, queue, sweep)
    status = partial(status, state=state, job=job.id if job else None)
    if state == "running":
        node = (job.nodes if job else None) or (holder or "").rpartition(" on ")[2]
        step, left = _progress(row, folder, float(told.get("time") or 0))
        note = "" if step or row.kind == "init" else "no step logged yet"
        status = partial(status, node=node or told.get("host"), step=step, seconds_left=left)
        return status(note=note, holder=None if job or sweep else holder), None
    note = _failure(folder, told) if state in ("failed", "refused") else ""
    if state == "waiting" and job:
        note = job.reason
        if told.get("job") == job.id and told.get("reason"):
            note += f" · its last start: {told['reason']}"
    saved = RunFolder(folder).saved_step if folder else 0
    return status(step=saved or None, note=note), None


def _judge(
    row: Row, told: dict[str, Any], folder: Path | None, holder: str | None, queue: Queue,
    sweep: LocalSweep | None,
) -> RowState:  # fmt: skip
    """The state of a row without a result. What is told of it may be of an earlier attempt."""
    word, job = told.get("state"), queue.jobs.get(row.key)
    ended: RowState | None = word if word in ("failed", "refused") else None
    if job is not None:
        # A job that waits again was put back, and what it told is of its last start.
        this_start = told.get("job") == job.id and float(told.get("time") or 0) >= job.begun
        return ended if ended and job.runs and this_start else "running" if job.runs else "waiting"
    if holder is not None:
        return "running"
    if sweep is not None and row.key in sweep.rows:
        if float(told.get("time") or 0) < sweep.begun:
            return "waiting"
        if word == "running":
            return "running"
    if ended:
        return ended
    if queue.silent and row.key in queue.submitted:
        return "running" if word == "running" else "waiting"
    if word == "running" and _failed_since(folder, told):
        return "failed"
    begun = word in ("running", "unfinished") or (folder and RunFolder(folder).has_begun)
    return "stopped" if begun else "not started"


def _failed_since(folder: Path | None, told: dict[str, Any]) -> bool:
    """Whether the run wrote that it failed, and whoever had started it was no more to note it."""
    failure = folder / "failure.json" if folder else None
    return bool(failure and failure.exists() and failure.stat().st_mtime > told.get("time", 0.0))


def _failure(folder: Path | None, told: dict[str, Any]) -> str:
    if told.get("reason") or folder is None:
        return str(told.get("reason", ""))
    return str((read_json(folder / "failure.json") or {}).get("message", ""))


def _progress(row: Row, folder: Path | None, begun: float) -> tuple[int | None, float | None]:
    """Returns the step of a run in progress, and the seconds that it takes yet, if it told any."""
    if folder is None or row.kind == "init":
        return None, None
    saved, path = RunFolder(folder).saved_step or None, folder / "metrics.jsonl"
    try:
        written, lines = path.stat().st_mtime, _last_lines(path)
    except OSError:
        return saved, None
    if not lines or written < begun:  # resumed, and nothing logged since
        return saved, None
    step = int(lines[-1]["step"])
    times = [line["step_seconds"] for line in lines if line.get("step_seconds")]
    if not times or row.steps is None:
        return max(step, saved or 0), None
    left = (row.steps - step) * statistics.fmean(times) - (time.time() - written)
    return max(step, saved or 0), max(0.0, left)


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The training's last lines of metrics, in the order in which they were written."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        texts = file.read().decode(errors="replace").splitlines()
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:  # cut short, by us or by a kill
            continue
        if isinstance(line, dict) and line.get("kind") == "train":
            lines.append(line)
    return lines


def _time_left(rows: list[Row], looks: list[tuple[RowStatus, Record | None]]) -> float | None:
    """Seconds, at the pace of the rows that have finished, if as many run at a time as now."""
    seconds, samples = defaultdict[str, float](float), defaultdict[str, int](int)
    for row, (_, record) in zip(rows, looks, strict=True):
        if record is not None and record.wall_seconds:
            seconds[row.kind] += record.wall_seconds
            samples[row.kind] += row.samples
    total, n_running = 0.0, 0
    for row, (status, _) in zip(rows, looks, strict=True):
        if status.state not in ("waiting", "running"):
            continue
        n_running += status.state == "running"
        left = status.seconds_left
        if left is None and row.samples:
            if not samples[row.kind]:
                return None
            share = 1 - (status.step or 0) / (status.steps or 1)
            left = row.samples * share * seconds[row.kind] / samples[row.kind]
        total += left or 0.0
    return total / n_running if n_running else None

"""A sweep in SLURM: its jobs in the queue, what is handed over, and the row of one job.

`jobs.txt` names every array that was submitted, `<stem>.keys` the rows of an array; squeue says
which of the jobs are still there.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from vitwarm.config import SweepConfig
from vitwarm.errors import ConfigError, Stopped
from vitwarm.records import lock_holder
from vitwarm.sweep.execute import Board, SweepResult
from vitwarm.sweep.launch import JOBS_FILE, submit_slurm, write_slurm
from vitwarm.sweep.rows import Done, Plan, Row, read_state, write_state
from vitwarm.sweep.stages import REAL, Stages
from vitwarm.sweep.worker import Outcome
from vitwarm.units import count_of

#: A controller that has not answered by then is down.
PATIENCE_SECONDS = 30

#: Job states in which a job has its nodes; in all others it waits for some.
_ON_NODES = frozenset({"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING"})

#: How long a job that was put back waits for a folder that is held (a dead holder's claim is free
#: after 45 s), how often it looks, and up to which return it goes back into the queue after that.
HELD_SECONDS, LOOK_SECONDS, MOST_RETURNS = 60.0, 0.5, 30
#: How long the other processes of a run that was stopped stay behind rank zero.
LEAVE_SECONDS = 2.0


@dataclass(frozen=True)
class QueuedJob:
    """One row's job."""

    array: str
    task: str
    runs: bool
    """It has its nodes; else it waits."""
    nodes: str
    reason: str
    """Why it waits, in SLURM's word: Dependency, Priority, JobArrayTaskLimit ..."""
    begun: float = 0.0
    """When this start of it began, in seconds since 1970; 0: not known, or it waits."""

    @property
    def id(self) -> str:
        """The job's name to SLURM's commands."""
        return f"{self.array}_{self.task}"


@dataclass(frozen=True)
class Queue:
    """A sweep's jobs that wait or run."""

    jobs: dict[str, QueuedJob] = field(default_factory=dict)
    """By the key of the row."""
    submitted: frozenset[str] = frozenset()
    """Keys of all rows that ever had a job."""
    silent: str = ""
    """Why squeue could not be asked; empty: it answered, or there is nothing to ask."""

    @property
    def arrays(self) -> list[str]:
        """The arrays that the jobs belong to, each once."""
        return list(dict.fromkeys(job.array for job in self.jobs.values()))


def read_queue(home: Path) -> Queue:
    """Asks squeue for the jobs of a sweep that was submitted from this home."""
    rows: dict[tuple[str, str], str] = {}
    jobs_file = home / "slurm" / JOBS_FILE
    if not jobs_file.is_file():
        return Queue()
    for line in jobs_file.read_text(encoding="utf-8").splitlines():
        array, stem = line.split(maxsplit=1)
        keys = (home / "slurm" / f"{stem}.keys").read_text(encoding="utf-8").split()
        rows |= {(array, str(task)): key for task, key in enumerate(keys)}
    arrays = ",".join(dict.fromkeys(array for array, _ in rows))
    known = frozenset(rows.values())
    command = ["squeue", "--noheader", "--array", f"--jobs={arrays}", "--format=%F|%K|%T|%N|%r|%S"]
    try:
        told = ask_slurm(command)
    except ConfigError as error:
        # A single array that has long ended is no job that SLURM knows.
        silent = "" if "Invalid job id" in str(error) else str(error)
        return Queue(submitted=known, silent=silent)
    jobs: dict[str, QueuedJob] = {}
    for line in told.splitlines():
        array, task, state, nodes, reason, begun = (word.strip() for word in line.split("|", 5))
        if key := rows.get((array, task)):
            runs = state in _ON_NODES
            jobs[key] = QueuedJob(array, task, runs, nodes, reason, _to_seconds(begun, runs))
    return Queue(jobs, known)


def _to_seconds(time: str, runs: bool) -> float:
    try:
        return datetime.fromisoformat(time).timestamp() if runs else 0.0
    except ValueError:  # N/A, or a site's own SLURM_TIME_FORMAT
        return 0.0


def ask_slurm(command: list[str]) -> str:
    """Runs one of SLURM's commands and returns what it says.

    Raises: ConfigError: there is no such command here, or it fails, or it does not answer.
    """
    name = command[0]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {name} on this machine. Ask on a node of the cluster."
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{name} did not answer within {PATIENCE_SECONDS} s. Ask again later."
        ) from None
    if done.returncode != 0:
        raise ConfigError(f"{name} says {done.stderr.strip()!r}. Ask again later.")
    return done.stdout


def submit(
    plan: Plan, config: SweepConfig, rows: list[Row], *, stages: Stages, say: Callable[[str], None]
) -> SweepResult:
    """Hands the rows to SLURM that have no result and no job in the queue.

    Returns: what became of the others.
    Raises: ConfigError: SLURM does not answer or refuses.
    """
    queue = read_queue(plan.home)
    if queue.silent:
        raise ConfigError(f"The state of the queue is unknown: {queue.silent}")
    settled, left = Board(plan, stages).settle(rows)
    fresh, early, n_held = _sort(plan, {row.key for row in left}, queue)
    n_queued = sum(row.key in queue.jobs and row not in fresh for row in left)
    if n_queued:
        have = "has its" if n_queued == 1 else "have their"
        say(f"{count_of(n_queued, 'row')} {have} job in the queue already")
    if n_held:
        need = "needs one of those, and is" if n_held == 1 else "need one of those, and are"
        say(
            f"{count_of(n_held, 'row')} {need} not submitted: "
            "run the same command again when they have ended"
        )
    if fresh:
        submission, n_rows = write_slurm(plan, config, fresh), count_of(len(plan.rows), "row")
        say(f"{len(fresh)} of {n_rows} to run; scripts in {plan.home / 'slurm'}")
        say(submit_slurm(submission))
    if early:
        ask_slurm(["scancel", *early])
        say(
            f"cancelled SLURM job {', '.join(early)}: it waited for an earlier job of what it needs"
        )
    n_left = len({row.key for row in [*left, *fresh]})
    return SweepResult(plan.home, settled, n_left=n_left, n_submitted=len(fresh))


def _sort(plan: Plan, missing: set[str], queue: Queue) -> tuple[list[Row], list[str], int]:
    """Says what to submit, and what of the queue would run too early.

    A failed warm-up that is submitted again has a new job; the jobs of its trainings that are in
    the queue still wait for its old one, and would run first.

    Args:
        missing: keys of the rows without a result that are asked for.
    Returns: the rows to submit, the ids of the jobs that come too early, and how many rows have to
        be held back as they need one that is queued.
    """
    fresh: list[Row] = []
    early: list[str] = []
    wanted, queued, held = set[str](), set[str](), set[str]()
    for row in plan.rows:  # what is needed stands before
        job = queue.jobs.get(row.key)
        if job is not None and (job.runs or not wanted & {*row.needs}):
            queued.add(row.key)
        elif job is not None or row.key in missing:
            early += [job.id] if job else []
            if (queued | held) & {*row.needs}:
                held.add(row.key)
            else:
                wanted.add(row.key)
                fresh.append(row)
    return fresh, early, len(held)


def refuse_beside_slurm(home: Path) -> None:
    """Refuses to run a sweep here whose rows are SLURM's now.

    Raises: ConfigError: jobs of this sweep wait or run.
    """
    queue = read_queue(home)
    if queue.jobs:
        n, arrays = len(queue.jobs), ", ".join(queue.arrays)
        have = "has its job" if n == 1 else "have their jobs"
        raise ConfigError(
            f"executor is 'local', but {count_of(n, 'row')} of this sweep {have} in SLURM's queue "
            f"(job {arrays}). Wait for them (--watch), or end them first (--cancel)."
        )


def run_alone(plan: Plan, key: str, stages: Stages = REAL) -> Done:
    """Runs one row in this process, as the jobs of an array do. Its needs must have ended.

    Raises: Stopped and what the row's stage raises, after noting it in the row's state file.
    """
    row = plan.row(key)
    board = Board(plan, stages, writes=os.environ.get("SLURM_PROCID", "0") == "0")
    _look_at_needs(board, row)
    found = board.look(row)
    assert found is not None  # its needs have ended
    if isinstance(found, Done):
        board.add(found)
        return found
    try:
        if board.writes:
            _await_folder(found)
        board.start(found)
        board.stages.run_row(found.config)
    except Stopped as error:
        if not board.writes:  # srun kills the others once one has left: rank zero speaks first
            time.sleep(LEAVE_SECONDS)
        # What another process of the run failed of is why this one stopped.
        elif read_state(plan.home, key).get("state") != "failed":
            board.add(Done(found, "unfinished", str(error)))
        raise
    except Exception as error:  # on any rank: that of rank zero may be killed before it can tell
        write_state(plan, key, "failed", reason=str(error), folder=found.folder)
        raise
    if not board.writes:
        return Done(found, "finished")
    done = board.finish(found, Outcome("finished"), plan.home / "logs")
    board.add(done)
    return done


def _await_folder(row: Row) -> None:
    """Waits for a run's folder in a job that was put back into the queue.

    Where a node's slurmd died, the job's earlier start may live on there. The other processes of
    this run would not wait for so long; with several the queue alone does.

    Raises: Stopped: the folder is still held; the job's script puts the job back once more.
    """
    from vitwarm.world import read_number

    if not 0 < read_number(os.environ, "SLURM_RESTART_COUNT") < MOST_RETURNS:
        return
    alone = os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    end = time.monotonic() + (HELD_SECONDS if alone else 0.0)
    while row.folder and (holder := lock_holder(row.folder)) is not None:
        if time.monotonic() >= end:
            raise Stopped(
                f"{row.folder} is still being worked on by {holder}, as an earlier start of this "
                "job may be. This one goes back into the queue.",
                exit_code=75,
            )
        time.sleep(LOOK_SECONDS)


def _look_at_needs(board: Board, row: Row) -> None:
    """Tells the board what became of all that a row stands on, a graft's own warm-up included."""
    for key in row.needs:
        need = board.plan.row(key)
        _look_at_needs(board, need)
        found = board.look(need)
        if not isinstance(found, Done):
            found = Done(need, "failed", "it has no result")
        board.done[key] = found

"""Steering a sweep that was started: watch it, end it, run what failed, hand rows to SLURM once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vitwarm.config import SweepConfig
from vitwarm.errors import ConfigError, RunError
from vitwarm.sweep.board import Board, SweepResult
from vitwarm.sweep.launch import submit_slurm, write_slurm
from vitwarm.sweep.queue import Queue, ask_slurm, read_queue
from vitwarm.sweep.rows import Plan, Row, find_sweep
from vitwarm.sweep.stages import Stages
from vitwarm.sweep.status import RowStatus, SweepStatus, describe_status, read_status, sum_up
from vitwarm.units import count_of

#: Between two looks of `watch`.
LOOK_SECONDS = 5.0


def watch(home: Path) -> int:
    """Shows a sweep's status, in place on a terminal, until no row waits or runs.

    Returns: 0 if every row has its result, 1 if not, 130 after Ctrl-C.
    """
    shown = ""
    try:
        while True:
            status = read_status(home)
            if sys.stdout.isatty():
                print(f"\x1b[H\x1b[2J{_fit(status)}", flush=True)
            elif str(status.counts) != shown:
                shown = str(status.counts)
                print(sum_up(status), flush=True)
            if not status.is_busy:
                return int(status.counts["finished"] < len(status.rows))
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        return 130


def _fit(status: SweepStatus) -> str:
    """What a terminal has room for: the first line, and the last, where the running rows are."""
    columns, height = shutil.get_terminal_size()
    head, *lines = (line[:columns] for line in describe_status(status))
    room = max(height - 3, 1)
    more = [f"... {count_of(len(lines) - room, 'row')} more"] if len(lines) > room else []
    return "\n".join([head, *more, *lines[-room:]])


def cancel(home: Path, say: Callable[[str], None] = print) -> None:
    """Ends a sweep's process on this machine, its jobs in SLURM's queue, and processes that work on
    one of its rows besides; runs save first.

    Raises: ConfigError: SLURM does not answer. RunError: a process is another machine's, or is not
        the one that holds the lock.
    """
    queue, sweep = read_queue(home), find_sweep(home)
    if queue.silent:
        raise ConfigError(f"The state of the queue is unknown: {queue.silent}")
    arrays = list(dict.fromkeys(job.array for job in queue.jobs.values()))
    if arrays:
        ask_slurm(["scancel", *arrays])
        n_running = sum(job.runs for job in queue.jobs.values())
        words = [f"{len(queue.jobs) - n_running} waited"] if n_running < len(queue.jobs) else []
        saves = "runs and has" if n_running == 1 else "run and have"
        saves = f"{n_running} {saves} SLURM's KillWait (30 s unless the site sets it) to save"
        words += [saves] if n_running else []
        say(f"cancelled SLURM job {', '.join(arrays)}: {', '.join(words)}")
    if sweep is not None:
        where = f"process {sweep.pid} on {sweep.host}"
        if sweep.host != socket.gethostname():
            raise RunError(f"The sweep is run by {where}. Give the same command there.")
        if not _holds(sweep.pid, home / ".lock"):
            raise RunError(
                f"{home / 'sweep.json'} names {where}, which does not hold the sweep's lock. "
                "End the sweep where it was started."
            )
        os.kill(sweep.pid, signal.SIGTERM)
        say(f"sent SIGTERM to {where}: its runs in progress save after their step, and it ends")
    if arrays or sweep is not None:
        return
    held = [row for row in read_status(home).rows if row.holder] if _is_planned(home) else []
    for row in held:
        _end_holder(row, say)
    if not held:
        say("no run of this sweep is waiting or running")


def _is_planned(home: Path) -> bool:
    return (home / "plan.json").is_file()


def _end_holder(row: RowStatus, say: Callable[[str], None]) -> None:
    """Ends a process that works on a row, and that neither the sweep nor SLURM started."""
    found = re.fullmatch(r"process (\d+) on (.+)", str(row.holder))
    here = found is not None and found[2] == socket.gethostname()
    if found is None or not here or not _holds(int(found[1]), Path(str(row.folder)) / ".lock"):
        raise RunError(
            f"{row.what} is worked on by {row.holder}, which is neither a job of this sweep nor a "
            "process that can be ended from here. End it where it runs."
        )
    os.kill(int(found[1]), signal.SIGTERM)
    say(f"sent SIGTERM to {row.holder}, which works on {row.what}: it saves after its step")


def _holds(pid: int, lock: Path) -> bool:
    """Whether a process of this machine, and of this user, has the lock's file open."""
    if not Path("/proc/self/fd").is_dir():  # no Linux: the number was written under the lock
        return True
    try:
        handles = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    return any(handle.exists() and handle.samefile(lock) for handle in handles)


def pick_failed(plan: Plan) -> list[Row]:
    """Returns the rows that failed, and those that they need, in the plan's order."""
    wanted = {row.key for row in read_status(plan.home).rows if row.state == "failed"}
    for row in reversed(plan.rows):  # what is needed stands before
        if row.key in wanted:
            wanted |= {*row.needs}
    return [row for row in plan.rows if row.key in wanted]


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
        submission = write_slurm(plan, config, fresh)
        say(
            f"{len(fresh)} of {count_of(len(plan.rows), 'row')} to run; scripts in "
            f"{plan.home / 'slurm'}"
        )
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
    jobs = read_queue(home).jobs.values()
    if jobs:
        arrays = ", ".join(dict.fromkeys(job.array for job in jobs))
        have = "has its job" if len(jobs) == 1 else "have their jobs"
        raise ConfigError(
            f"executor is 'local', but {count_of(len(jobs), 'row')} of this sweep {have} in "
            f"SLURM's queue (job {arrays}). Wait for them (--watch), or end them first (--cancel)."
        )

"""Steering a sweep that was started: watch it, end it, run what failed, hand rows to SLURM once."""

from __future__ import annotations

import os
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
from vitwarm.sweep.queue import ask_slurm, read_queue
from vitwarm.sweep.rows import Plan, Row, find_sweep
from vitwarm.sweep.stages import Stages
from vitwarm.sweep.status import SweepStatus, describe_status, read_status, sum_up

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
    more = [f"... {len(lines) - room} rows more"] if len(lines) > room else []
    return "\n".join([head, *more, *lines[-room:]])


def cancel(home: Path, say: Callable[[str], None] = print) -> None:
    """Ends a sweep's process on this machine and its jobs in SLURM's queue; runs save first.

    Raises: ConfigError: SLURM does not answer. RunError: the process is another machine's, or is
        not the one that holds the sweep's lock.
    """
    queue, sweep = read_queue(home), find_sweep(home)
    if queue.silent:
        raise ConfigError(f"The state of the queue is unknown: {queue.silent}")
    arrays = list(dict.fromkeys(job.array for job in queue.jobs.values()))
    if arrays:
        ask_slurm(["scancel", *arrays])
        n_running = sum(job.runs for job in queue.jobs.values())
        say(
            f"cancelled SLURM job {', '.join(arrays)}: {len(queue.jobs) - n_running} waited, "
            f"{n_running} run and have SLURM's KillWait (30 s unless the site sets it) to save"
        )
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
    if not arrays and sweep is None:
        say("no run of this sweep is waiting or running")


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
    fresh, held = [], set(queue.jobs)
    for row in left:
        if row.key in held or held & set(row.needs):
            held.add(row.key)
        else:
            fresh.append(row)
    n_queued = sum(row.key in queue.jobs for row in left)
    if n_queued:
        say(f"{n_queued} rows have their job in the queue already")
    if len(left) > len(fresh) + n_queued:
        say(
            f"{len(left) - len(fresh) - n_queued} rows need one of those, and are not submitted: "
            "run the same command again when they have ended"
        )
    if fresh:
        submission = write_slurm(plan, config, fresh)
        say(f"{len(fresh)} of {len(plan.rows)} rows to run; scripts in {plan.home / 'slurm'}")
        say(submit_slurm(submission))
    return SweepResult(plan.home, settled, n_left=len(left))

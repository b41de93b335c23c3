"""Follow a sweep, end it, find what failed."""

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

from vitwarm.errors import ConfigError, RunError
from vitwarm.sweep.jobs import ask_slurm, read_queue
from vitwarm.sweep.rows import Plan, Row, find_sweep
from vitwarm.sweep.status import SweepStatus, describe_status, read_status, sum_up
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
    if queue.arrays:
        ask_slurm(["scancel", *queue.arrays])
        n_running = sum(job.runs for job in queue.jobs.values())
        words = [f"{len(queue.jobs) - n_running} waited"] if n_running < len(queue.jobs) else []
        saves = "runs and has" if n_running == 1 else "run and have"
        saves = f"{n_running} {saves} SLURM's KillWait (30 s unless the site sets it) to save"
        words += [saves] if n_running else []
        say(f"cancelled SLURM job {', '.join(queue.arrays)}: {', '.join(words)}")
    if sweep is not None:
        if sweep.host != socket.gethostname():
            raise RunError(f"The sweep is run by {sweep}. Give the same command there.")
        if not _ended(str(sweep), home):
            raise RunError(
                f"{home / 'sweep.json'} names {sweep}, which does not hold the sweep's lock. "
                "End the sweep where it was started."
            )
        say(f"sent SIGTERM to {sweep}: its runs in progress save after their step, and it ends")
    if queue.arrays or sweep is not None:
        return
    rows = read_status(home).rows if (home / "plan.json").is_file() else []
    held = [row for row in rows if row.holder]
    for row in held:  # neither the sweep nor SLURM started these
        if not _ended(str(row.holder), Path(str(row.folder))):
            raise RunError(
                f"{row.what} is worked on by {row.holder}, which is neither a job of this sweep "
                "nor a process that can be ended from here. End it where it runs."
            )
        say(f"sent SIGTERM to {row.holder}, which works on {row.what}: it saves after its step")
    if not held:
        say("no run of this sweep is waiting or running")


def _ended(holder: str, folder: Path) -> bool:
    """Sends SIGTERM to a folder's holder, if that is a process of this machine."""
    found = re.fullmatch(r"process (\d+) on (.+)", holder)
    if found is None or found[2] != socket.gethostname():
        return False
    if not _holds(int(found[1]), folder / ".lock"):
        return False
    os.kill(int(found[1]), signal.SIGTERM)
    return True


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
    """Returns the rows that failed, and those that they need, in the plan's order.

    Raises: ConfigError: rows failed, and the recipe has none of them any more.
    """
    wanted = {row.key for row in read_status(plan.home).rows if row.state == "failed"}
    if wanted and not wanted & {row.key for row in plan.rows}:
        raise ConfigError(
            f"{count_of(len(wanted), 'row')} failed, and this recipe, with these overrides, has "
            "none of them any more. Run the sweep without --retry-failed: it runs what has no "
            "result."
        )
    for row in reversed(plan.rows):  # what is needed stands before
        if row.key in wanted:
            wanted |= {*row.needs}
    return [row for row in plan.rows if row.key in wanted]

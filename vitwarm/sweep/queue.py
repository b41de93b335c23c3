"""What stands of a sweep in SLURM's queue: its arrays' jobs, by the row that each of them runs.

`jobs.txt` names every array that was submitted, `<stem>.keys` the rows of an array; squeue says
which of the jobs are still there.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from vitwarm.errors import ConfigError
from vitwarm.sweep.launch import JOBS_FILE

#: A controller that has not answered by then is down.
PATIENCE_SECONDS = 30

#: Job states in which a job has its nodes; in all others it waits for some.
_ON_NODES = frozenset({"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING"})


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


def read_queue(home: Path) -> Queue:
    """Asks squeue for the jobs of a sweep that was submitted from this home."""
    rows: dict[tuple[str, str], str] = {}
    try:
        submitted = (home / "slurm" / JOBS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Queue()
    for line in submitted.splitlines():
        array, stem = line.split(maxsplit=1)
        keys = (home / "slurm" / f"{stem}.keys").read_text(encoding="utf-8").split()
        rows |= {(array, str(task)): key for task, key in enumerate(keys)}
    arrays = ",".join(dict.fromkeys(array for array, _ in rows))
    known = frozenset(rows.values())
    command = ["squeue", "--noheader", "--array", f"--jobs={arrays}", "--format=%F|%K|%T|%N|%r|%S"]
    try:
        done = ask_slurm(command)
    except ConfigError as error:
        # A single array that has long ended is no job that SLURM knows.
        silent = "" if "Invalid job id" in str(error) else str(error)
        return Queue(submitted=known, silent=silent)
    jobs: dict[str, QueuedJob] = {}
    for line in done.splitlines():
        array, task, state, nodes, reason, begun = (word.strip() for word in line.split("|", 5))
        key = rows.get((array, task))
        if key is not None:
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

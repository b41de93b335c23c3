"""A slot's process runs one row after the other, so that imports (5 s) are paid once.

It is spawned, never forked: torch and its threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from vitwarm.config import RunConfig, TrainRun, WarmupRun
from vitwarm.errors import Stopped, VitwarmError
from vitwarm.informing import forgive_streams, informs
from vitwarm.interrupts import follow_parent
from vitwarm.records import count_cpus
from vitwarm.sweep.rows import Config

Environment = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One row for a worker."""

    config: Config
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a row ended in a worker."""

    state: Literal["finished", "unfinished", "failed"]
    reason: str = ""
    seconds: float = 0.0


def find_slots(run: RunConfig, slots: int | None) -> list[Environment]:
    """Returns the environment of every slot: its GPU, or its share of the CPU cores.

    Args:
        slots: runs at a time; none: one per GPU, else one per CPU core of this job.
    """
    cores = count_cpus()
    gpus = [] if run.device == "cpu" else _visible_gpus()
    n_slots = slots or len(gpus) or cores
    threads = str(run.threads or max(1, cores // n_slots))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return [
        {
            **dict.fromkeys(names, threads),
            "CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)] if gpus else "",
        }
        for place in range(n_slots)
    ]


def run_row(config: Config) -> None:
    """Runs one row to its end, in this process."""
    if isinstance(config, WarmupRun):
        from vitwarm.warmup import run_warmup

        run_warmup(config)
    elif isinstance(config, TrainRun):
        from vitwarm.training import run_training

        run_training(config)
    else:
        from vitwarm.inits import write_init

        facts = dataclasses.asdict(config)
        name, path, params = facts.pop("name"), facts.pop("path"), facts.pop("params")
        write_init(name, path, **facts, **params)


def serve(connection: Connection, run_row: Callable[[Config], None]) -> None:
    """Runs the jobs that arrive until the other end is closed. The worker's main function."""
    # The parent decides about Ctrl-C; a run in progress listens for SIGTERM by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Where the parent was killed, the same command would find the run's folder in use: it saves.
    follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    forgive_streams()  # a log on a full disk ends no run
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        _log_to(job.log)
        connection.send(_run(job, run_row))


def _run(job: Job, run_row: Callable[[Config], None]) -> Outcome:
    began = time.monotonic()
    outcome = Outcome("finished")
    try:
        run_row(job.config)
    except Stopped as error:
        outcome = Outcome("unfinished", str(error))
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, VitwarmError) else f"{type(error).__name__}: "
        outcome = Outcome("failed", f"{kind}{error}")
    sys.stdout.flush()
    sys.stderr.flush()
    return dataclasses.replace(outcome, seconds=time.monotonic() - began)


@informs
def _log_to(path: Path) -> None:
    """Sends everything this process prints, and its last words on a crash, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target in (1, 2):
        os.dup2(handle, target)
    os.close(handle)
    faulthandler.enable(file=2)


class Worker:
    """One slot's process, as the parent sees it."""

    def __init__(self, environment: Environment, run_row: Callable[[Config], None]) -> None:
        self.environment = environment
        self.is_busy = False
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, run_row), daemon=False)
        with _exported(environment), _interrupts_ignored():
            self.process.start()
        theirs.close()

    def send(self, job: Job) -> None:
        """Gives the worker its next row."""
        self.is_busy = True
        self.connection.send(job)

    def poll(self) -> Outcome | None:
        """Returns the row's outcome if it has ended, also where the process died of it."""
        if not self.is_busy:
            return None
        try:
            if self.connection.poll():
                outcome: Outcome = self.connection.recv()
                self.is_busy = False
                return outcome
        except (EOFError, ConnectionResetError):
            self.process.join()
        if self.process.is_alive():
            return None
        self.is_busy = False
        return Outcome("failed", _last_words(self.process.exitcode))

    def stop(self) -> None:
        """Asks the run in progress to save and end."""
        if self.process.is_alive():
            self.process.terminate()

    def close(self) -> None:
        """Ends the process once its run has ended; an idle one ends by itself."""
        self.connection.close()
        self.process.join()

    def kill(self) -> None:
        """Ends the process at once, whatever it does. Never raises."""
        with contextlib.suppress(Exception):
            self.process.kill()
            self.process.join()
        with contextlib.suppress(Exception):
            self.connection.close()


def _last_words(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory?" if name == "SIGKILL" else ""
        return f"the worker process was ended by {name}{hint}"
    return f"the worker process ended with code {code}"


@contextmanager
def _exported(environment: Environment) -> Iterator[None]:
    """Sets variables for a process that is being started: libraries read them while they load."""
    before = {name: os.environ[name] for name in environment if name in os.environ}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started meanwhile ignores Ctrl-C from its first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _visible_gpus() -> list[str]:
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    n = torch.cuda.device_count()
    names = [name for name in (listed or "").split(",") if name] or [str(i) for i in range(n)]
    return names[:n]

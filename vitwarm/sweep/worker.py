"""A process that runs one row after the other, so that imports (5 s) are paid once per slot.

A worker keeps nothing between rows but its imports. It is spawned, never forked: torch and its
threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
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

from vitwarm.errors import Stopped, VitwarmError
from vitwarm.informing import forgive_streams, informs
from vitwarm.interrupts import follow_parent
from vitwarm.sweep.stages import Config

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
    state: Literal["finished", "unfinished", "failed"] = "finished"
    reason = ""
    try:
        run_row(job.config)
    except Stopped as error:
        state, reason = "unfinished", str(error)
    except VitwarmError as error:
        traceback.print_exc()
        state, reason = "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        state, reason = "failed", f"{type(error).__name__}: {error}"
    sys.stdout.flush()
    sys.stderr.flush()
    return Outcome(state, reason, time.monotonic() - began)


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
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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

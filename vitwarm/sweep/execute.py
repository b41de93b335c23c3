"""Runs what has no record yet, on this machine: a worker process per slot, reused from row to row.

A row that fails is noted and the others go on; rows that need it are named with the reason. The
folders are the memory: the same command again starts what is missing and resumes what was stopped.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from vitwarm.config import RunConfig, TrainRun, WarmupRun
from vitwarm.errors import Stopped
from vitwarm.sweep.board import Board, Done, Ready, SweepResult, find_result
from vitwarm.sweep.progress import SweepProgress
from vitwarm.sweep.rows import Plan, Row, State, save_plan, set_fields
from vitwarm.sweep.stages import Config, Stages
from vitwarm.sweep.worker import Environment, Job, Outcome, Worker

#: How often the parent looks up from waiting: for signals, and to move the clock on its line.
LOOK_SECONDS = 0.5


def find_slots(run: RunConfig, slots: int | None) -> list[Environment]:
    """Returns the environment of every slot: its GPU, or its share of the CPU cores.

    Args:
        slots: runs at a time; none: one per GPU, else one per CPU core of this job.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [] if run.device == "cpu" else _visible_gpus()
    n_slots = slots or len(gpus) or cores or 1
    threads = str(run.threads or max(1, (cores or 1) // n_slots))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return [
        {
            **dict.fromkeys(names, threads),
            "CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)] if gpus else "",
        }
        for place in range(n_slots)
    ]


def run_plan(
    plan: Plan, *, run: RunConfig, slots: int | None = None, stages: Stages | None = None,
    say: Callable[[str], None] = print,
) -> SweepResult:  # fmt: skip
    """Runs every row that has no result yet.

    Args:
        run: device, threads and progress for all rows.
        slots: as in `find_slots`.
        say: takes the lines for people.
    Returns: what became of every row, in the plan's order.
    Raises: Stopped: after a signal, once the runs in progress have saved.
    """
    save_plan(plan)
    return _Executor(plan, run, slots, stages or Stages(), say).run()


def run_alone(plan: Plan, key: str, stages: Stages | None = None) -> Done:
    """Runs one row in this process, as the jobs of an array do. Its needs must have ended.

    Raises: Stopped and what the row's stage raises, after noting it in the row's state file.
    """
    row = plan.row(key)
    board = Board(plan, stages or Stages(), writes=os.environ.get("SLURM_PROCID", "0") == "0")
    for need in row.needs:
        found = board.look(plan.row(need))
        if isinstance(found, Done):
            board.done[need] = found
        else:
            board.done[need] = Done(plan.row(need), "failed", "it has no result")
    found = board.look(row)
    if isinstance(found, Done):
        board.add(found)
        return found
    assert found is not None
    board.start(row, found)
    try:
        board.stages.run_row(found.config)
    except Stopped as error:
        board.add(Done(row, "unfinished", str(error), found.folder))
        raise
    except Exception as error:
        board.add(Done(row, "failed", str(error), found.folder))
        raise
    if not board.writes:
        return Done(row, "finished", "", found.folder)
    outcome = Outcome(key, "finished", "", 0.0)
    done = board.finish(row, outcome, found, plan.home / "logs")
    board.add(done)
    return done


class _Executor:
    """The parent of the workers: hands out rows, gathers outcomes, tells how far it is."""

    def __init__(
        self, plan: Plan, run: RunConfig, slots: int | None, stages: Stages,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.plan = plan
        self.run_config = run
        self.wanted_slots = slots
        self.stages = stages
        self.board = Board(plan, stages)
        self.idle: list[Worker] = []
        self.busy: dict[str, tuple[Worker, Row, Ready]] = {}
        self.free: list[Environment] = []
        self.line = SweepProgress(plan, say, progress=run.progress)

    def run(self) -> SweepResult:
        waiting = self._settle(list(self.plan.rows))
        with _Signals() as signals:
            try:
                if waiting:
                    self.free = find_slots(self.run_config, self.wanted_slots)
                    self.line.begin(waiting, len(self.free))
                while (waiting or self.busy) and not signals.first:
                    waiting = self._start(waiting)
                    self._collect()
                    waiting = self._settle(waiting)
                if signals.first:
                    self._stop(signals)
            finally:
                self._close(kill=bool(signals.first) or sys.exc_info()[0] is not None)
                self.line.end()
        order = [self.board.done[row.key] for row in self.plan.rows if row.key in self.board.done]
        return SweepResult(self.plan.home, order)

    def _settle(self, waiting: list[Row]) -> list[Row]:
        settled, left = self.board.settle(waiting)
        for done in settled:
            self.line.tell(done, 0.0)
        return left

    def _start(self, waiting: list[Row]) -> list[Row]:
        left = []
        for row in waiting:
            if not (self.idle or self.free):
                left.append(row)
                continue
            found = self.board.look(row)
            taken = {ready.folder for _, _, ready in self.busy.values()}
            if not isinstance(found, Ready) or found.folder in taken:
                left.append(row)
                continue
            if not self.idle:
                self.idle.append(Worker(self.free.pop(0), self.stages.run_row))
            worker = self.idle.pop()
            config = _fit(found.config, worker.environment)
            self.board.start(row, found)
            worker.send(Job(row.key, config, self._log(row)))
            self.busy[row.key] = (worker, row, found)
        return left

    def _collect(self) -> None:
        """Waits for a moment, then takes in what has ended; a dead worker frees its slot."""
        workers = [worker for worker, _, _ in self.busy.values()]
        handles: list[Any] = [worker.connection for worker in workers]
        handles += [worker.process.sentinel for worker in workers]
        multiprocessing.connection.wait(handles, timeout=LOOK_SECONDS)
        for worker, row, ready in list(self.busy.values()):
            outcome = worker.poll()
            if outcome is None:
                continue
            del self.busy[row.key]
            done = self.board.finish(row, outcome, ready, self._log(row))
            self.board.add(done)
            self.line.tell(done, outcome.seconds)
            if worker.process.is_alive():
                self.idle.append(worker)
            else:
                worker.close()
                self.free.append(worker.environment)
        self.line.refresh(len(self.busy))

    def _stop(self, signals: _Signals) -> None:
        """Lets the runs in progress save; a second signal does not wait for them."""
        self.line.say(f"Stopping: {len(self.busy)} runs in progress save their state ...")
        for worker, _, _ in self.busy.values():
            worker.stop()
        while self.busy and signals.count < 2:
            for key, (worker, row, ready) in list(self.busy.items()):
                outcome = worker.poll()
                if outcome is not None:
                    del self.busy[key]
                    found = find_result(row, ready.folder)
                    state: State = "finished" if found else "unfinished"
                    self.board.add(Done(row, state, outcome.reason, ready.folder))
                    self.idle.append(worker)
            time.sleep(0.05)
        n_done = sum(one.state == "finished" for one in self.board.done.values())
        raise Stopped(
            f"Stopped by {signal.Signals(signals.first).name}; {n_done} of {len(self.plan.rows)} "
            "rows have their result. Give the same command again: it resumes what was running and "
            "runs nothing twice.",
            exit_code=128 + signals.first,
        )

    def _close(self, *, kill: bool) -> None:
        for worker in [*self.idle, *(worker for worker, _, _ in self.busy.values())]:
            worker.close(kill=kill)

    def _log(self, row: Row) -> Path:
        return self.plan.home / "logs" / f"{row.key}.log"


def _fit(config: Config, environment: Environment) -> Config:
    """Gives a run its slot's threads; loader processes only where there are cores for them."""
    threads = int(environment["OMP_NUM_THREADS"])
    changes: dict[str, Any] = {"run.threads": threads}
    if isinstance(config, WarmupRun):
        return set_fields(config, changes)
    if isinstance(config, TrainRun):
        if config.run.workers is None:
            changes["run.workers"] = threads - 1
        return set_fields(config, changes)
    return config


def _visible_gpus() -> list[str]:
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    n = torch.cuda.device_count()
    names = [name for name in (listed or "").split(",") if name] or [str(i) for i in range(n)]
    return names[:n]


class _Signals:
    """Notes Ctrl-C and SIGTERM instead of breaking off; outside the main thread it notes none."""

    def __init__(self) -> None:
        self.first = 0
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.first = self.first or signum
        self.count += 1

"""Runs what has no record yet, on this machine: a worker process per slot, reused from row to row.

A row that fails is noted and the others go on; rows that need it are named with the reason. The
folders are the memory: the same command again starts what is missing and resumes what was stopped.
"""

from __future__ import annotations

import dataclasses
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitwarm.config import RunConfig, TrainRun, WarmupRun
from vitwarm.errors import Stopped
from vitwarm.interrupts import Interrupts
from vitwarm.records import count_cpus, lock_folder, lock_holder
from vitwarm.sweep.board import Board, Done, Ready, SweepResult, find_result
from vitwarm.sweep.progress import SweepProgress
from vitwarm.sweep.rows import (
    Plan,
    Row,
    State,
    note_sweep,
    read_state,
    save_plan,
    set_fields,
    write_state,
)
from vitwarm.sweep.stages import Config, Stages
from vitwarm.sweep.worker import Environment, Job, Outcome, Worker

#: How often the parent looks up from waiting: for signals, and to move the clock on its line.
LOOK_SECONDS = 0.5

#: How long a job that was put back waits for a folder that is held (a dead holder's claim is free
#: after 45 s), and up to which return it goes back into the queue after that.
HELD_SECONDS, MOST_RETURNS = 60.0, 30
#: How long the other processes of a run that was stopped stay behind rank zero.
LEAVE_SECONDS = 2.0


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


def run_plan(
    plan: Plan, *, run: RunConfig, rows: list[Row] | None = None, slots: int | None = None,
    stages: Stages | None = None, say: Callable[[str], None] = print,
) -> SweepResult:  # fmt: skip
    """Runs every row that has no result yet.

    Args:
        run: device, threads and progress for all rows.
        rows: only these, with all that they need; none: the plan's.
        slots: as in `find_slots`.
        say: takes the lines for people.
    Returns: what became of every row, in the plan's order.
    Raises: Stopped: after a signal, once the runs in progress have saved; RunError: another process
        runs this sweep.
    """
    part = dataclasses.replace(plan, rows=rows or plan.rows)
    with lock_folder(plan.home):
        save_plan(plan)
        note_sweep(plan.home, part.rows)
        return _Executor(part, run, slots, stages or Stages(), say).run()


def run_alone(plan: Plan, key: str, stages: Stages | None = None) -> Done:
    """Runs one row in this process, as the jobs of an array do. Its needs must have ended.

    Raises: Stopped and what the row's stage raises, after noting it in the row's state file.
    """
    row = plan.row(key)
    board = Board(plan, stages or Stages(), writes=os.environ.get("SLURM_PROCID", "0") == "0")
    _look_at_needs(board, row)
    found = board.look(row)
    if isinstance(found, Done):
        board.add(found)
        return found
    assert found is not None
    try:
        if board.writes:
            _await_folder(found.folder)
        board.start(row, found)
        board.stages.run_row(found.config)
    except Stopped as error:
        if not board.writes:  # srun kills the others once one has left: rank zero speaks first
            time.sleep(LEAVE_SECONDS)
        # What another process of the run failed of is why this one stopped.
        elif read_state(plan.home, key).get("state") != "failed":
            board.add(Done(row, "unfinished", str(error), found.folder))
        raise
    except Exception as error:  # on any rank: that of rank zero may be killed before it can tell
        write_state(plan, key, "failed", reason=str(error), folder=found.folder)
        raise
    if not board.writes:
        return Done(row, "finished", "", found.folder)
    done = board.finish(row, Outcome("finished"), found, plan.home / "logs")
    board.add(done)
    return done


def _await_folder(folder: Path) -> None:
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
    while (holder := lock_holder(folder)) is not None:
        if time.monotonic() >= end:
            raise Stopped(
                f"{folder} is still being worked on by {holder}, as an earlier start of this job "
                "may be. This one goes back into the queue.",
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
        self.workers: list[Worker] = []
        """Every process that was started and not closed; `idle` and `busy` are among them."""
        self.idle: list[Worker] = []
        self.busy: dict[str, tuple[Worker, Row, Ready]] = {}
        self.free: list[Environment] = []
        self.line = SweepProgress(plan, say, progress=run.progress)

    def run(self) -> SweepResult:
        """Runs what is missing. Whatever goes wrong in here, no worker outlives it."""
        answer = "{signal}: the runs in progress save after their step; send it again to leave now."
        signums = (signal.SIGINT, signal.SIGTERM)
        with Interrupts(signums, answer=answer, before_leaving=self._kill) as interrupts:
            try:
                waiting = self._settle(list(self.plan.rows))
                if waiting:
                    self.free = find_slots(self.run_config, self.wanted_slots)
                    self.line.begin(waiting, len(self.free))
                while (waiting or self.busy) and not interrupts.first:
                    waiting = self._start(waiting)
                    self._collect()
                    waiting = self._settle(waiting)
                if interrupts.first:
                    self._stop(interrupts.first)
                for worker in self.workers:
                    worker.close()
            except BaseException:
                self._kill()
                raise
            finally:
                self.line.end()
        order = [self.board.done[row.key] for row in self.plan.rows if row.key in self.board.done]
        return SweepResult(self.plan.home, order)

    def _kill(self) -> None:
        """Ends every worker at once; its last checkpoint and the results of others are kept."""
        for worker in self.workers:
            worker.kill()

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
                self.workers.append(self.idle[-1])
            worker = self.idle.pop()
            config = _fit(found.config, worker.environment)
            self.board.start(row, found)
            self.busy[row.key] = (worker, row, found)
            worker.send(Job(config, self._log(row)))
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
                self.workers.remove(worker)
                self.free.append(worker.environment)
        self.line.refresh(len(self.busy))

    def _stop(self, signum: int) -> None:
        """Lets the runs in progress save. Raises: Stopped."""
        for worker, _, _ in self.busy.values():
            worker.stop()
        while self.busy:
            for key, (worker, row, ready) in list(self.busy.items()):
                outcome = worker.poll()
                if outcome is not None:
                    del self.busy[key]
                    found = find_result(row, ready.folder)
                    state: State = "finished" if found else "unfinished"
                    self.board.add(Done(row, state, outcome.reason, ready.folder))
            time.sleep(0.05)
        n_done = sum(one.state == "finished" for one in self.board.done.values())
        raise Stopped(
            f"Stopped by {signal.Signals(signum).name}; {n_done} of {len(self.plan.rows)} "
            "rows have their result. Run the same command again: it resumes what was running and "
            "runs nothing twice.",
            exit_code=128 + signum,
        )

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

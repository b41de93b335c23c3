"""Runs what has no record yet, on this machine: a worker process per slot, reused from row to row.

The run folders are the memory: a row is done when its folder holds a record (or its file exists),
whoever made it. The same command again starts what is missing and resumes what was stopped. A row
that fails is noted and the others go on; rows that need it are named with the reason. A warm-up
that learned nothing is not handed off, unless its arm says that it is a control
(`handoff.allow_failed`).
"""

from __future__ import annotations

import dataclasses
import multiprocessing.connection
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitwarm.config import RunConfig, TrainRun
from vitwarm.errors import Stopped, VitwarmError
from vitwarm.interrupts import Interrupts
from vitwarm.records import Record, RunFolder, lock_folder, lock_holder
from vitwarm.sweep.plan import resolve
from vitwarm.sweep.rows import (
    Config,
    Done,
    InitConfig,
    Plan,
    Row,
    State,
    describe_row,
    note_sweep,
    save_plan,
    write_state,
)  # fmt: skip
from vitwarm.sweep.show import SweepProgress
from vitwarm.sweep.stages import REAL, Stages
from vitwarm.sweep.worker import Environment, Job, Outcome, Worker, find_slots

#: How often the parent looks up from waiting: for signals, and to move the clock on its line.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class SweepResult:
    """What became of every row of a sweep."""

    folder: Path
    """The sweep's own folder, which a report takes."""
    done: list[Done] = field(default_factory=list)
    n_left: int = 0
    """Rows that are SLURM's now or wait for some that are, in addition to `done`."""
    n_submitted: int = 0
    """Of these, what was submitted just now."""

    @property
    def failed(self) -> list[Done]:
        """Rows without a result: failed, refused, or in need of one that is."""
        return [one for one in self.done if one.state in ("failed", "refused")]

    @property
    def exit_code(self) -> int:
        """0 if every row has its result, else 1."""
        return int(any(one.state != "finished" for one in self.done))


def run_plan(
    plan: Plan, *, run: RunConfig, rows: list[Row] | None = None, slots: int | None = None,
    stages: Stages = REAL, say: Callable[[str], None] = print,
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
    line = SweepProgress(part, say, progress=run.progress)
    with lock_folder(plan.home):
        save_plan(plan)
        note_sweep(plan.home, part.rows)
        return _Executor(Board(part, stages), line, run, slots).run()


@dataclass
class Board:
    """Which rows are done, and what a row needs before it can start."""

    plan: Plan
    stages: Stages
    writes: bool = True
    """False on the ranks above zero of one run, which leave no state files."""
    done: dict[str, Done] = field(default_factory=dict)
    ready: dict[str, Row] = field(default_factory=dict)
    """Rows whose needs are met, with what these gave and a folder."""

    def look(self, row: Row) -> Row | Done | None:
        """Returns a row as it can start, what became of it already, or None: it has to wait."""
        needed = [self.done.get(key) for key in row.needs]
        for need in needed:
            if need is not None and need.state != "finished":
                reason = f"{describe_row(need.row)} {need.state}: {need.reason}".rstrip(": ")
                return Done(row, "failed", reason)
        if None in needed:
            return None
        try:
            ready = self.ready.get(row.key) or self._ready(row)
            if isinstance(ready, Done):
                return ready
            self.ready[row.key] = ready
            found = find_result(ready)
        except VitwarmError as error:
            return Done(row, "failed", str(error))
        return dataclasses.replace(found, before=True) if found else ready

    def start(self, row: Row) -> None:
        """Notes that a row is being run."""
        if self.writes:
            write_state(self.plan, row.key, "running", folder=row.folder)

    def add(self, done: Done) -> None:
        """Notes what became of a row, in memory and in its state file."""
        self.done[done.row.key] = done
        if self.writes:
            write_state(self.plan, done.row.key, done.state, reason=done.reason, folder=done.folder)

    def settle(self, waiting: list[Row]) -> tuple[list[Done], list[Row]]:
        """Notes rows that have a result already or can never have one.

        Returns: those, and the rows that are left.
        """
        settled: list[Done] = []
        while True:
            left = []
            for row in waiting:
                found = self.look(row)
                if isinstance(found, Done):
                    self.add(found)
                    settled.append(found)
                else:
                    left.append(row)
            if len(left) == len(waiting):
                return settled, left
            waiting = left

    def finish(self, row: Row, outcome: Outcome, log: Path) -> Done:
        """Judges a row that a worker has ended, by what stands in its folder."""
        found = find_result(row)
        if outcome.state == "finished" and found:
            return found
        state: State = "unfinished" if outcome.state == "unfinished" else "failed"
        reason = outcome.reason or f"it ended without a result in {row.folder}"
        reason = f"{reason} (see {log})" if state == "failed" else reason
        return Done(row, state, reason, found.record if found else None)

    def _ready(self, row: Row) -> Row | Done:
        config, trunk = row.config, None
        needed = [self.done[key].record for key in row.needs]
        if isinstance(config, InitConfig) and row.folder and needed:
            # Named by what it is made of: a warm-up run again makes another trunk.
            stems = [row.folder.stem, *((r.trunk_sha256 or "")[:8] for r in needed if r)]
            path = row.folder.with_stem("-".join(stems))
            config = dataclasses.replace(config, path=str(path))
            return dataclasses.replace(row, config=config, folder=path)
        if not isinstance(config, TrainRun):
            return row
        if row.trunk_of:
            made = self.done[row.trunk_of]
            warmed = [made.record, *(self.done[key].record for key in made.row.needs)]
            if refusal := _refusal(row, config, warmed):
                return Done(row, "refused", refusal)
            trunk = made.folder
            if trunk is not None and made.row.kind == "warmup":
                trunk = trunk / "trunk.safetensors"
        warm = self.done[row.extra_of].record if row.extra_of else None
        config = resolve(config, trunk=trunk, warm=warm)
        return dataclasses.replace(row, config=config, folder=self.stages.find_training(config))


def _refusal(row: Row, config: TrainRun, warmed: list[Record | None]) -> str:
    """Why a trunk is not handed off unasked, if it is not: a failed warm-up is worse than none."""
    failed = [record for record in warmed if record and record.verdict == "not learned"]
    if not failed or config.handoff.allow_failed:
        return ""
    record = failed[0]
    chance = max(record.chance_percent or 0.0, record.order_blind_percent or 0.0)
    return (
        f"its warm-up learned nothing (held-out accuracy {record.hidden_accuracy_percent or 0:.1f} "
        f"%, order-blind baseline {chance:.1f} %) and is not handed off. Warm up longer, or if the "
        f"arm is a control, set arms.{row.arms[0].split(',')[0]}.train.handoff.allow_failed to true"
    )


def find_result(row: Row) -> Done | None:
    """Returns a row that has its result: a record, for a warm-up with its trunk, or a file."""
    assert row.folder is not None
    if row.kind == "init":
        return Done(row, "finished") if row.folder.is_file() else None
    record = RunFolder(row.folder).record
    is_there = record is not None and record.status == "finished"
    if row.kind == "warmup":
        is_there = is_there and (row.folder / "trunk.safetensors").is_file()
    return Done(row, "finished", record=record) if is_there else None


@dataclass
class _Executor:
    """The parent of the workers: hands out rows, gathers outcomes, tells how far it is."""

    board: Board
    line: SweepProgress
    run_config: RunConfig
    wanted_slots: int | None
    workers: list[Worker] = field(default_factory=list)
    """Every process that was started and not closed."""
    busy: dict[str, tuple[Worker, Row]] = field(default_factory=dict)
    free: list[Environment] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    """Rows whose wait for another process was said."""

    def run(self) -> SweepResult:
        """Runs what is missing. Whatever goes wrong in here, no worker outlives it."""
        answer = "{signal}: the runs in progress save after their step; send it again to leave now."
        signums, plan = (signal.SIGINT, signal.SIGTERM), self.board.plan
        with Interrupts(signums, answer=answer, before_leaving=self._kill) as interrupts:
            try:
                waiting = self._settle(plan.rows)
                if waiting:
                    self.free = find_slots(self.run_config, self.wanted_slots)
                    self.line.begin(waiting, len(self.free))
                while (waiting or self.busy) and not interrupts.first:
                    waiting = self._start(waiting)
                    waiting += self._collect()
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
        done = self.board.done
        return SweepResult(plan.home, [done[row.key] for row in plan.rows if row.key in done])

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
            idle = [worker for worker in self.workers if not worker.is_busy]
            found = self.board.look(row) if idle or self.free else None
            taken = {ready.folder for _, ready in self.busy.values()}
            if not isinstance(found, Row) or found.folder in taken or self._is_elsewhere(found):
                left.append(row)
                continue
            if not idle:
                idle = [Worker(self.free.pop(0), self.board.stages.run_row)]
                self.workers += idle
            worker = idle[0]
            config = _fit(found.config, int(worker.environment["OMP_NUM_THREADS"]))
            self.board.start(found)
            self.busy[row.key] = (worker, found)
            worker.send(Job(config, self._log(row)))
        return left

    def _is_elsewhere(self, row: Row) -> bool:
        """Whether another sweep, or a run by itself, is at the row now: its result will do."""
        holder = lock_holder(row.folder) if row.folder and row.kind != "init" else None
        if holder and row.key not in self.told:
            self.told.add(row.key)
            self.line.say(f"waiting  {describe_row(row)}: {holder} works on {row.folder}")
        return holder is not None

    def _collect(self) -> list[Row]:
        """Waits for a moment, then takes in what has ended; a dead worker frees its slot.

        Returns: rows that another process took in the moment between look and start.
        """
        lost = []
        workers = [worker for worker, _ in self.busy.values()]
        handles: list[Any] = [worker.connection for worker in workers]
        handles += [worker.process.sentinel for worker in workers]
        multiprocessing.connection.wait(handles, timeout=LOOK_SECONDS)
        for worker, row in list(self.busy.values()):
            outcome = worker.poll()
            if outcome is None:
                continue
            del self.busy[row.key]
            if outcome.state == "failed" and self._is_elsewhere(row):
                lost.append(self.board.plan.row(row.key))
            else:
                done = self.board.finish(row, outcome, self._log(row))
                self.board.add(done)
                self.line.tell(done, outcome.seconds)
            if not worker.process.is_alive():
                worker.close()
                self.workers.remove(worker)
                self.free.append(worker.environment)
        self.line.refresh(len(self.busy))
        return lost

    def _stop(self, signum: int) -> None:
        """Lets the runs in progress save. Raises: Stopped."""
        for worker, _ in self.busy.values():
            worker.stop()
        while self.busy:
            for worker, row in list(self.busy.values()):
                if (outcome := worker.poll()) is not None:
                    del self.busy[row.key]
                    state: State = "finished" if find_result(row) else "unfinished"
                    self.board.add(Done(row, state, outcome.reason))
            time.sleep(0.05)
        n_done = sum(one.state == "finished" for one in self.board.done.values())
        raise Stopped(
            f"Stopped by {signal.Signals(signum).name}; {n_done} of {len(self.board.plan.rows)} "
            "rows have their result. Run the same command again: it resumes what was running and "
            "runs nothing twice.",
            exit_code=128 + signum,
        )

    def _log(self, row: Row) -> Path:
        return self.board.plan.home / "logs" / f"{row.key}.log"


def _fit(config: Config, threads: int) -> Config:
    """Gives a run its slot's threads; loader processes only where there are cores for them."""
    if isinstance(config, InitConfig):
        return config
    run = dataclasses.replace(config.run, threads=threads)
    if isinstance(config, TrainRun) and run.workers is None:
        run = dataclasses.replace(run, workers=threads - 1)
    return dataclasses.replace(config, run=run)

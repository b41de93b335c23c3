"""Which rows of a sweep have their result, and what the others wait for.

The run folders are the memory: a row is done when its folder holds a record (or its file exists),
whoever made it. A warm-up that learned nothing is not handed off, unless its arm says that it is a
control (`handoff.allow_failed`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitwarm.config import TrainRun
from vitwarm.errors import VitwarmError
from vitwarm.records import Record, RunFolder
from vitwarm.sweep.plan import resolve
from vitwarm.sweep.rows import Plan, Row, State, describe_row, write_state
from vitwarm.sweep.stages import Config, Stages
from vitwarm.sweep.worker import Outcome


class _Refused(VitwarmError):
    """A trunk that must not be handed off."""


@dataclass(frozen=True)
class Done:
    """What became of a row."""

    row: Row
    state: State
    reason: str = ""
    folder: Path | None = None
    record: Record | None = None
    before: bool = False
    """It was finished before this sweep was started."""


@dataclass(frozen=True)
class SweepResult:
    """What became of every row of a sweep."""

    folder: Path
    """The sweep's own folder, which a report takes."""
    done: list[Done] = field(default_factory=list)

    @property
    def failed(self) -> list[Done]:
        """Rows without a result: failed, refused, or in need of one that is."""
        return [one for one in self.done if one.state in ("failed", "refused")]

    @property
    def exit_code(self) -> int:
        """0 if every row has its result, else 1."""
        return 1 if any(one.state != "finished" for one in self.done) else 0


@dataclass(frozen=True)
class Ready:
    """A row whose needs are met."""

    config: Config
    folder: Path


class Board:
    """Which rows are done, and what a row needs before it can start."""

    def __init__(self, plan: Plan, stages: Stages, *, writes: bool = True) -> None:
        """`writes`: False on the ranks above zero of one run, which leave no state files."""
        self.plan = plan
        self.stages = stages
        self.writes = writes
        self.done: dict[str, Done] = {}
        self.ready: dict[str, Ready] = {}

    def look(self, row: Row) -> Ready | Done | None:
        """Returns how a row could start, what became of it already, or None: it has to wait."""
        needed = [self.done.get(key) for key in row.needs]
        for key, need in zip(row.needs, needed, strict=True):
            if need is not None and need.state != "finished":
                what = describe_row(self.plan.row(key))
                return Done(row, "failed", f"{what} {need.state}: {need.reason}".rstrip(": "))
        if None in needed:
            return None
        try:
            if row.key not in self.ready:
                self.ready[row.key] = self._ready(row)
            ready = self.ready[row.key]
            found = find_result(row, ready.folder)
            if found is None:
                return ready
            return Done(row, "finished", "", ready.folder, found.record, before=True)
        except _Refused as error:
            return Done(row, "refused", str(error))
        except VitwarmError as error:
            return Done(row, "failed", str(error))

    def start(self, row: Row, ready: Ready) -> None:
        """Notes that a row is being run."""
        if self.writes:
            write_state(self.plan, row.key, "running", folder=ready.folder)

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

    def finish(self, row: Row, outcome: Outcome, ready: Ready, log: Path) -> Done:
        """Judges a row that a worker has ended, by what stands in its folder."""
        state: State = outcome.state
        reason = outcome.reason
        found = find_result(row, ready.folder)
        if state == "finished" and found is None:
            state, reason = "failed", f"it ended without a result in {ready.folder}"
        if state == "failed":
            reason = f"{reason} (see {log})"
        return Done(row, state, reason, ready.folder, found.record if found else None)

    def _ready(self, row: Row) -> Ready:
        config = row.config
        if not isinstance(config, TrainRun):
            return Ready(config, Path(str(row.folder)))
        self._check_trunk(row, config)
        warm = self.done[row.extra_of].record if row.extra_of else None
        config = resolve(row, config, trunk=self._trunk(row.trunk_of), warm=warm)
        return Ready(config, self.stages.find_training(config))

    def _trunk(self, key: str | None) -> Path | None:
        if key is None:
            return None
        folder = Path(str(self.done[key].folder))
        return folder / "trunk.safetensors" if self.plan.row(key).kind == "warmup" else folder

    def _check_trunk(self, row: Row, config: TrainRun) -> None:
        """A failed warm-up is worse than none: it is not handed off unasked."""
        record = self.done[row.trunk_of].record if row.trunk_of else None
        if record is None or record.verdict != "not learned" or config.handoff.allow_failed:
            return
        accuracy, chance = record.hidden_accuracy_percent or 0.0, record.chance_percent or 0.0
        chance = max(chance, record.order_blind_percent or 0.0)
        label = row.arms[0].split(",")[0]
        raise _Refused(
            f"its warm-up learned nothing ({accuracy:.1f} % of hidden tokens right, {chance:.1f} % "
            "can be had without the order) and is not handed off. Warm up longer, or if the arm is "
            f"a control, set arms.{label}.train.handoff.allow_failed to true"
        )


@dataclass(frozen=True)
class Result:
    """That a row has its result; initialisers leave no record."""

    record: Record | None


def find_result(row: Row, folder: Path) -> Result | None:
    """Returns what a finished row left: a record, for a warm-up with its trunk, or a file."""
    if row.kind == "init":
        return Result(None) if folder.is_file() else None
    record = RunFolder(folder).record
    if record is None or record.status != "finished":
        return None
    if row.kind == "warmup" and not (folder / "trunk.safetensors").is_file():
        return None
    return Result(record)

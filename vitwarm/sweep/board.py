"""Which rows of a sweep have their result, and what the others wait for.

The run folders are the memory: a row is done when its folder holds a record (or its file exists),
whoever made it. A warm-up that learned nothing is not handed off, unless its arm says that it is a
control (`handoff.allow_failed`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
            return replace(found, before=True) if found else ready
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
        found = find_result(row, ready.folder)
        if outcome.state == "finished" and found:
            return found
        state: State = "unfinished" if outcome.state == "unfinished" else "failed"
        reason = outcome.reason or f"it ended without a result in {ready.folder}"
        reason = f"{reason} (see {log})" if state == "failed" else reason
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
            f"its warm-up learned nothing (held-out accuracy {accuracy:.1f} %, order-blind "
            f"baseline {chance:.1f} %) and is not handed off. Warm up longer, or if the arm is a "
            f"control, set arms.{label}.train.handoff.allow_failed to true"
        )


def find_result(row: Row, folder: Path) -> Done | None:
    """Returns a row that has its result: a record, for a warm-up with its trunk, or a file."""
    record = None if row.kind == "init" else RunFolder(folder).record
    if row.kind == "init":
        is_there = folder.is_file()
    else:
        is_there = record is not None and record.status == "finished"
    if row.kind == "warmup":
        is_there = is_there and (folder / "trunk.safetensors").is_file()
    return Done(row, "finished", "", folder, record) if is_there else None

"""Saving and stopping, which Lightning's own callbacks do otherwise than we need.

Lightning's checkpoint holds its loops' progress in micro-batches of one world size, so a run could
not go on with another number of processes. Ours holds weights, optimiser and the number of steps
done; everything else (order, augmentation, learning rate) is a function of the step. On SIGTERM
Lightning exits 0, and broadcasts a flag, with a host sync, on every batch.
"""

from __future__ import annotations

import errno
import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from vitwarm.errors import RunError, Stopped
from vitwarm.files import replacing
from vitwarm.interrupts import Interrupts
from vitwarm.loop.module import Checkpoint, StepCallback
from vitwarm.records import RunFolder

log = logging.getLogger("vitwarm")

#: Ranks agree on stopping about so often, and at least every 16 steps; one rank alone looks every
#: step. A preempted job has 30 s to leave.
AGREE_SECONDS = 2.0
AGREE_EVERY_STEPS = 16

#: The first checkpoint of a start comes no later, whatever the interval: a job that is requeued
#: again and again must come further.
FIRST_SECONDS = 120.0


def file_of(step: int) -> str:
    """Returns the name of the checkpoint after a step."""
    return f"step{step:010d}.pt"


def load_checkpoint(run: RunFolder, digest: str) -> Checkpoint | None:
    """Returns the newest checkpoint of a run that can be read, or None.

    A file that a full disk or a dying node damaged is passed over for the one before it.

    Raises: RunError: a checkpoint of another config.
    """
    for path in sorted(run.checkpoints.glob("step*.pt"), reverse=True):
        try:
            plain = torch.load(path, map_location="cpu", weights_only=True)
            step, stored = int(plain["step"]), str(plain["config_hash"])
        except Exception as error:  # torch raises a dozen kinds here; all mean: not readable
            log.warning("%s cannot be read (%s); falling back to the previous one.", path, error)
            continue
        if stored != digest:
            raise RunError(
                f"{path} belongs to another config ({stored[:16]}, this one is {digest[:16]}). "
                "Move the run folder away, or start over with --fresh."
            )
        return Checkpoint(path=path, step=step, state=plain["state"], facts=plain["facts"])
    return None


@dataclass(eq=False)
class TimedCheckpoint(StepCallback):
    """Saves every so many minutes and once within the first two, atomically.

    Keeps what it wrote last and what that followed: its own file before, or the one resumed from.
    """

    run: RunFolder
    digest: str
    _: KW_ONLY
    minutes: float
    last = -math.inf
    saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        wait = 60 * self.minutes
        if self.saved_step < 0:
            wait = min(wait, FIRST_SECONDS)
        if trainer.is_global_zero and time.monotonic() - self.last > wait:
            self.save(module)

    def save(self, module: Any) -> None:
        """Writes a checkpoint of the module's present step; on rank zero only.

        Raises: RunError: it cannot be written; the older checkpoints are untouched.
            TrainingFailed: the loss stopped being finite since the last look.
        """
        self.last = time.monotonic()
        step = module.steps_done
        if step == self.saved_step:
            return
        module.check_finite()
        plain = {
            "step": step,
            "config_hash": self.digest,
            "state": module.checkpoint_state(),
            "facts": module.checkpoint_facts(),
        }
        with replacing(self.run.checkpoints / file_of(step)) as temporary:
            try:
                torch.save(plain, temporary)
            except RuntimeError as error:  # what torch's writer makes of a short write
                raise OSError(errno.EIO, f"torch could not write all of it ({error})") from error
        before = max(self.saved_step, module.start_step)
        self.saved_step = step
        # Not the two of the highest steps: these may be damaged ones that the start passed over.
        for path in self.run.checkpoints.glob("step*.pt"):
            if path.name not in {file_of(step), file_of(before)}:
                path.unlink(missing_ok=True)


@dataclass(eq=False)
class StopRequest(StepCallback):
    """Leaves on Ctrl-C, SIGTERM, SIGUSR1 or a time limit: saves, says how to go on.

    A second signal ends the process at once; the last checkpoint is whole, as all are. Raises
    Stopped. All ranks leave after the same step. Long work between steps (an evaluation) calls
    `check`.
    """

    checkpoint: TimedCheckpoint
    _: KW_ONLY
    time_limit_minutes: float | None
    on_stop: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        self.look_at_step = 0
        self.looked_at: tuple[int, float] | None = None
        limit = self.time_limit_minutes
        self.deadline = math.inf if limit is None else time.monotonic() + 60 * limit
        names = ("SIGINT", "SIGTERM", "SIGUSR1")
        self.interrupts = Interrupts(
            [getattr(signal, name) for name in names if hasattr(signal, name)],
            answer="{signal}: saving after this step; send it again to leave now.",
        )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        # Here and not earlier: Lightning installs its own handlers after on_fit_start.
        self.interrupts.__enter__()

    def on_end(self) -> None:
        self.interrupts.__exit__()

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.world_size == 1:
            self.check(trainer, module)
        elif module.steps_done >= self.look_at_step:
            step, now = module.steps_done, time.monotonic()
            before, at = self.looked_at or (step, now)
            self.looked_at = step, now
            pace = self.check(trainer, module, pace=(now - at) / max(1, step - before))
            self.look_at_step = step + max(1, min(AGREE_EVERY_STEPS, int(AGREE_SECONDS / pace)))

    def check(self, trainer: Trainer, module: Any, *, pace: float = 0.0) -> float:
        """Raises Stopped, after saving, if any rank was asked to stop.

        With several processes a collective: every rank has to call it at the same point.

        Args:
            pace: seconds per step, as this rank finds it.
        Returns: the same for all ranks: the pace of the slowest, or a first guess of 1 s.
        """
        code = 75 if time.monotonic() > self.deadline else 0
        code = 128 + self.interrupts.first if self.interrupts.first else code
        if trainer.world_size > 1:
            told = torch.tensor([code, pace], dtype=torch.float32, device=module.device)
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
            code, pace = int(told[0]), float(told[1])
        if not code:
            return pace or 1.0
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                self.checkpoint.save(module)
                if self.on_stop:
                    self.on_stop(module)
            except Exception as error:
                failure = error
        # Launchers kill the others as soon as one rank has left, rank zero in its saving: all wait.
        failed = torch.tensor(float(failure is not None), device=module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(failed, op=torch.distributed.ReduceOp.MAX)
        if failure is not None:
            raise failure
        if failed:
            raise RunError("Process 0 could not save before leaving; its message says why.")
        why = "the time limit" if code == 75 else signal.Signals(code - 128).name
        raise Stopped(
            f"Stopped by {why} after step {module.steps_done:,} of {module.n_steps:,}; everything "
            f"is saved in {self.checkpoint.run.path}. Run the same command again to resume.",
            exit_code=code,
        )

"""What Lightning's own callbacks do wrong for us, and nothing else.

Saving: Lightning's checkpoint holds its loops' progress in micro-batches of one world size, so a
run could not go on with another number of processes. Ours holds weights, optimiser and the number
of steps done; everything else (order, augmentation, learning rate) is a function of the step.
Stopping: Lightning exits 0 on SIGTERM and broadcasts a flag, with a host sync, on every batch.
Logging: its bars and meters call `.item()` on every batch.

`module` and `pl_module` are a `loop.SteppedModule` throughout.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from vitwarm.errors import RunError, Stopped, TrainingFailed
from vitwarm.files import replacing
from vitwarm.records import RunFolder
from vitwarm.units import format_seconds

log = logging.getLogger("vitwarm")

#: Steps between two rounds in which ranks agree on stopping; one rank alone looks every step.
AGREE_EVERY_STEPS = 16


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimiser steps."""

    path: Path
    step: int
    state: dict[str, Any]
    """`model`, `optimizer`, and what the stage added."""
    facts: dict[str, Any]
    """Plain values: choices made by measuring, counters, seconds spent so far."""


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
            log.warning("%s cannot be read (%s); going back to the one before.", path, error)
            continue
        if stored != digest:
            raise RunError(
                f"{path} belongs to another config ({stored[:16]}, this one is {digest[:16]}). "
                "Move the run folder away, or start over with --fresh."
            )
        return Checkpoint(path=path, step=step, state=plain["state"], facts=plain["facts"])
    return None


class TimedCheckpoint(Callback):
    """Saves every few minutes by the clock, atomically, and keeps the last two."""

    def __init__(self, run: RunFolder, digest: str, *, minutes: float) -> None:
        self.run = run
        self.digest = digest
        self.seconds = minutes * 60
        self.last = time.monotonic()
        self.saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = time.monotonic() - self.last > self.seconds
        if trainer.is_global_zero and due and pl_module.at_step_end(batch_idx):
            self.save(pl_module)

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
        with replacing(self.run.checkpoints / f"step{step:010d}.pt") as temporary:
            try:
                torch.save(plain, temporary)
            except RuntimeError as error:  # what torch's writer makes of a short write
                raise OSError(errno.EIO, f"torch could not write all of it ({error})") from error
        self.saved_step = step
        for old in sorted(self.run.checkpoints.glob("step*.pt"))[:-2]:
            old.unlink(missing_ok=True)


class StopRequest(Callback):
    """Leaves on Ctrl-C, SIGTERM, SIGUSR1 or a time limit: saves, says how to go on.

    Raises Stopped. All ranks leave after the same step. Long work between steps (an evaluation)
    calls `check`.
    """

    def __init__(
        self,
        checkpoint: TimedCheckpoint,
        *,
        time_limit_minutes: float | None,
        on_stop: Callable[[Any], None] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.deadline = math.inf
        if time_limit_minutes is not None:
            self.deadline = time.monotonic() + time_limit_minutes * 60
        self.on_stop = on_stop
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here and not earlier: Lightning installs its own handlers after on_fit_start.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[signum] = signal.signal(signum, self._remember)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.at_step_end(batch_idx):
            step = pl_module.steps_done
            if trainer.world_size == 1 or step % AGREE_EVERY_STEPS == 0:
                self.check(trainer, pl_module)

    def check(self, trainer: Trainer, module: Any) -> None:
        """Raises Stopped, after saving, if any rank was asked to stop.

        With several processes a collective: every rank has to call it at the same point.
        """
        reason = self.signum or (-1 if time.monotonic() > self.deadline else 0)
        if trainer.world_size > 1:
            flag = torch.tensor([abs(reason)], device=module.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            reason = reason or int(flag.item())
        if not reason:
            return
        if trainer.is_global_zero:
            self.checkpoint.save(module)
            if self.on_stop:
                self.on_stop(module)
        why = "the time limit" if reason < 0 else signal.Signals(reason).name
        raise Stopped(
            f"Stopped by {why} after step {module.steps_done:,} of {module.n_steps:,}; everything "
            f"is saved in {self.checkpoint.run.path}. Give the same command again to go on.",
            exit_code=75 if reason < 0 else 128 + reason,
        )

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: the user does not want to wait
        self.signum = signum

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}


class Metrics(Callback):
    """Reads the module's meters every N steps (the only host sync), logs them, drives the bar."""

    def __init__(
        self,
        run: RunFolder | None,
        waits: WaitMeter,
        *,
        every_steps: int,
        progress: bool,
        label: str,
        samples_per_step: int,
        unit: str,
    ) -> None:
        self.run = run
        self.waits = waits
        self.every_steps = every_steps
        self.samples_per_step = samples_per_step
        self.unit = unit
        self.label = label
        self.progress = progress
        self.bar: Progress | None = None
        self.started = self.marked = time.perf_counter()
        self.marked_step = 0
        self.first_values: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.marked = self.started = time.perf_counter()
        self.marked_step = pl_module.steps_done
        self.waits.take()
        if self.progress and trainer.is_global_zero:
            self.bar = Progress(self.label, total=pl_module.n_steps, done=pl_module.steps_done)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.at_step_end(batch_idx):
            return
        step = pl_module.steps_done
        values: dict[str, float] = {}
        if step % self.every_steps == 0 or step == pl_module.n_steps:
            values = self._interval(pl_module, step)
            if self.run is not None and trainer.is_global_zero:
                self.run.append_metrics(kind="train", step=step, **values)
        if self.bar:
            self.bar.advance(step, values)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _interval(self, module: Any, step: int) -> dict[str, float]:
        module.check_finite()
        values: dict[str, float] = module.read_meters()
        now = time.perf_counter()
        seconds = max(now - self.marked, 1e-9)
        steps = max(step - self.marked_step, 1)
        values["lr"] = module.lr_at(step - 1)
        values[f"{self.unit}_per_second"] = steps * self.samples_per_step / seconds
        values["wait_seconds_per_step"] = self.waits.take() / steps
        values["step_seconds"] = seconds / steps
        self.marked, self.marked_step = now, step
        return values

    def _close(self) -> None:
        if self.bar:
            self.bar.close()
            self.bar = None


class WaitMeter:
    """Wraps a loader and adds up the seconds that the training loop waited for it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.seconds = 0.0
        self.total = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - before
            yield batch

    def take(self) -> float:
        """Returns the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        self.total += seconds
        return seconds


class Progress:
    """A bar on a terminal; elsewhere a plain line at most every 30 seconds."""

    QUIET_SECONDS = 30.0

    def __init__(self, label: str, *, total: int, done: int = 0) -> None:
        self.label = label
        self.total = total
        self.first = done
        self.began = time.monotonic()
        self.spoke = self.began
        self.text = ""
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=total, initial=done, desc=label, dynamic_ncols=True, mininterval=0.2,
                bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} "
                "[{elapsed}<{remaining}] {postfix}",
            )  # fmt: skip

    def advance(self, done: int, values: dict[str, float]) -> None:
        """Moves to `done` and, if there are any, shows new values."""
        if values:
            self.text = " ".join(
                f"{name} {value:.4g}"
                for name, value in values.items()
                if name in ("loss", "hidden_accuracy_percent", "top1_percent")
                or name.endswith("_per_second")
            )
        if self.bar is not None:
            if values:
                self.bar.set_postfix_str(self.text, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.spoke >= self.QUIET_SECONDS:
            self.spoke = now
            rate = (done - self.first) / (now - self.began)
            left = format_seconds((self.total - done) / rate) if rate > 0 else "unknown"
            print(f"{self.label} {done:,}/{self.total:,} {self.text}, {left} left", flush=True)

    def close(self) -> None:
        """Ends the bar's line."""
        if self.bar is not None:
            self.bar.close()


def raise_non_finite(step: int, where: str) -> None:
    """Raises TrainingFailed for a loss that stopped being a number after `step` steps."""
    raise TrainingFailed(
        f"The loss stopped being a finite number at step {step:,} ({where}). The last good "
        "checkpoint is kept; lower the learning rate, clip gradients, or use precision=fp32."
    )


def is_slurm() -> bool:
    """Whether this process was started by SLURM's srun, which then sets rank and world size."""
    return "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ

"""A LightningModule counted in optimiser steps.

Every quantity of a step (its samples, learning rate, random numbers) is a function of the step's
number, so that a resumed run is the uninterrupted one, with any number of processes and any
accumulation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from vitwarm.errors import TrainingFailed
from vitwarm.hardware import Numbers
from vitwarm.loop.plan import Cut, Schedule, Updates
from vitwarm.seeding import seed_of
from vitwarm.world import World, check_world

#: Optimisers of torch that have a fused implementation.
_FUSED = {"adam", "adamw", "sgd", "momentum", "nesterov", "adagrad"}


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimiser steps."""

    path: Path
    step: int
    state: dict[str, Any]
    """`model`, `optimizer`, and what the stage added."""
    facts: dict[str, Any]
    """Plain values: choices made by measuring, counters, seconds spent so far."""


class SteppedModule(LightningModule):
    """A LightningModule counted in optimiser steps over all resumptions.

    A stage overrides `training_step`, `make_optimizer`, `read_meters`, and what its checkpoint
    holds beyond model, optimiser, and time.
    """

    def __init__(self, schedule: Schedule, cut: Cut, world: World, updates: Updates) -> None:
        super().__init__()
        self.schedule = schedule
        self.n_steps = schedule.n_steps
        self.accumulate = cut.accumulate
        self.world = world
        self.updates = updates
        self.compiled = False
        self.numbers: Numbers | None = None
        self.seconds_before = 0.0
        self.start_step = 0
        self.micro_batches = 0
        self._started: float | None = None
        self._restored: dict[str, Any] | None = None
        self._bad_step: Tensor | None = None

    # -- what a stage gives ------------------------------------------------------------------

    def make_optimizer(self) -> Optimizer:
        """Returns the optimiser over the trainable parameters, which are on their device."""
        raise NotImplementedError(f"{type(self).__name__} must say what optimises it")

    def read_meters(self) -> dict[str, float]:
        """Returns the means since the last call and starts anew. Synchronises with the device."""
        raise NotImplementedError(f"{type(self).__name__} must have meters")

    def checkpoint_state(self) -> dict[str, Any]:
        """Returns tensors to save; a stage may add to it."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return {"model": self.state_dict(), "optimizer": optimizer.state_dict()}

    def checkpoint_facts(self) -> dict[str, Any]:
        """Returns plain values to save: choices of the first start, counters; a stage may add."""
        return {
            "compiled": self.compiled,
            "precision": self.numbers.precision if self.numbers else None,
            "seconds": self.seconds,
        }

    def describe_batch(self, step: int) -> str:
        """Returns words that find the samples of a step again, for messages."""
        return f"the samples of step {step:,}"

    # -- counting ---------------------------------------------------------------

    @property
    def fused(self) -> dict[str, Any]:
        """The argument that asks the optimiser for torch's fused kernel, where it has one."""
        return {"fused": True} if self.updates.opt in _FUSED else {}

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumptions."""
        began = self._started
        return self.seconds_before + (0.0 if began is None else time.monotonic() - began)

    @property
    def steps_done(self) -> int:
        """Optimiser steps since the beginning of the run, resumptions included."""
        return self.start_step + self.micro_batches // self.accumulate

    def at_step_end(self, batch_idx: int) -> bool:
        """Whether this micro-batch was the last of its optimiser step."""
        return (batch_idx + 1) % self.accumulate == 0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over a checkpoint's weights now and its optimiser state when there is one."""
        self.start_step = checkpoint.step
        self.seconds_before = float(checkpoint.facts["seconds"])
        self.load_state_dict(checkpoint.state["model"])
        self._restored = checkpoint.state["optimizer"]

    # -- Lightning ---------------------------------------------------------------------------

    def on_train_start(self) -> None:
        check_world(self.world, rank=self.trainer.global_rank, size=self.trainer.world_size)
        self._started = time.monotonic()

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.make_optimizer()
        for group in optimizer.param_groups:
            group.setdefault("lr_scale", 1.0)
        if self._restored is not None:
            optimizer.load_state_dict(self._restored)
            self._restored = None
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step = self.steps_done
        if batch_idx % self.accumulate == 0:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, Optimizer)
            lr = self.schedule.lr_at(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
        # Dropout of any kind, and optimisers that draw: the same after a resume as without it.
        part = batch_idx % self.accumulate
        torch.manual_seed(seed_of(self.updates.seed, "step", step, part, self.world.rank))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self._watch(loss.detach())
        loss.backward()
        self.micro_batches += 1

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by torch's own function: Lightning's refuses fused optimisers under bf16."""
        if self.updates.clip_grad is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.updates.clip_grad, foreach=True)

    # -- finite losses, without a host sync per step -------------------------------------------

    def _watch(self, loss: Tensor) -> None:
        """Remembers on the device the first step whose loss was no finite number."""
        if self._bad_step is None or self._bad_step.device != loss.device:
            self._bad_step = torch.full((), -1, dtype=torch.int64, device=loss.device)
        bad = ~torch.isfinite(loss) & (self._bad_step < 0)
        self._bad_step = torch.where(bad, self.steps_done, self._bad_step)

    def check_finite(self) -> None:
        """Raises TrainingFailed if a loss was not finite since the start. Synchronises."""
        if self._bad_step is not None:
            step = int(self._bad_step.item())
            if step >= 0:
                raise TrainingFailed(
                    f"The loss stopped being a finite number at step {step:,} "
                    f"({self.describe_batch(step)}). The last good checkpoint is kept. Start "
                    "another run with a lower learning rate, clipped gradients, or precision=fp32."
                )


class StepCallback(Callback):
    """A callback that acts after optimiser steps, not after micro-batches.

    `module` and `pl_module` are a `SteppedModule`.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.at_step_end(batch_idx):
            self.on_step_end(trainer, pl_module)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        """Called when a `SteppedModule` has done an optimiser step."""
        raise NotImplementedError(f"{type(self).__name__} must say what it does after a step")

    def on_end(self) -> None:
        """Called when the training ends, however it does."""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.on_end()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_end()

"""What any stage's config comes to: how its steps are counted and its batches cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from vitwarm.config import TrainConfig, TrainRun, WarmupConfig, WarmupRun
from vitwarm.errors import ConfigError
from vitwarm.hardware import Numbers
from vitwarm.units import count_of
from vitwarm.world import World


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The optimiser steps of a run and their learning rates: a linear ramp, then a cosine."""

    n_steps: int
    ramp_steps: int
    lr: float
    """Of step `ramp_steps`: the peak."""
    min_lr: float = 0.0
    """The last step comes within one step's width of it."""
    warmup_lr: float = 0.0
    """Of step 0, if there is a ramp."""

    def lr_at(self, step: int) -> float:
        """Returns the learning rate of step `step`, counted from 0."""
        if step < self.ramp_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.ramp_steps
        share = (step - self.ramp_steps) / max(1, self.n_steps - self.ramp_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return self.min_lr + (self.lr - self.min_lr) * cosine


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut among processes and forward passes."""

    batch_size: int
    micro_batch_size: int
    accumulate: int


def cut_batch(batch_size: int, micro_batch_size: int | None, world: World, *, field: str) -> Cut:
    """Cuts a global batch into equal micro-batches.

    Args:
        field: dotted section for messages, `warmup` or `train`.
    Raises: ConfigError: a batch that does not divide by processes x micro-batch.
    """
    if batch_size % world.size:
        raise ConfigError(
            f"{field}.batch_size is {batch_size}, which {world.size} processes cannot share "
            f"equally. Use {max(1, batch_size // world.size) * world.size}."
        )
    local = batch_size // world.size
    micro = min(micro_batch_size or local, local)
    if local % micro:
        raise ConfigError(
            f"{field}.micro_batch_size is {micro}; a process's {local} samples per step do not "
            f"divide by it. Use {max(n for n in range(1, micro) if local % n == 0)}."
        )
    return Cut(batch_size=batch_size, micro_batch_size=micro, accumulate=local // micro)


def evaluation_steps(n_steps: int, evaluations: int) -> set[int]:
    """Returns the steps after which to evaluate: evenly spaced, the last one at the end."""
    return {max(1, round(k * n_steps / evaluations)) for k in range(1, evaluations + 1)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the plans of warm-up and training have in common."""

    config: WarmupRun | TrainRun
    digest: str
    """The config's hash."""
    schedule: Schedule
    cut: Cut
    world: World
    device: torch.device
    numbers: Numbers

    @property
    def stage(self) -> WarmupConfig | TrainConfig:
        """The config's own section."""
        return self.config.warmup if isinstance(self.config, WarmupRun) else self.config.train

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.schedule.n_steps

    @property
    def folder(self) -> Path:
        return Path(self.config.run.root) / f"{self.config.name}-{self.digest[:8]}"

    def __str__(self) -> str:
        stage, schedule, cut = self.stage, self.schedule, self.cut
        return "\n".join(
            [
                f"schedule  {stage.opt}, lr {stage.lr:g}, {schedule.ramp_steps:,} ramp steps, "
                f"cosine to {stage.min_lr:g}, weight decay {stage.weight_decay:g}",
                f"batch     {cut.batch_size} = {count_of(self.world.size, 'process', 'es')} x "
                f"{cut.micro_batch_size} x {cut.accumulate} accumulated"
                + (", blocks computed again backwards" if stage.grad_checkpointing else ""),
                f"precision {self.numbers}",
                f"folder    {self.folder}",
            ]
        )

"""What any stage's config comes to: its steps, how batches are cut, what optimises."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from vitwarm.config import TrainConfig, TrainRun, WarmupConfig, WarmupRun
from vitwarm.errors import ConfigError, nearest
from vitwarm.hardware import Numbers, choose_device, choose_numbers
from vitwarm.loggers import check_loggers
from vitwarm.units import count_of
from vitwarm.world import World, find_world


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


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What a step does to the weights: the config's fields of these names."""

    opt: str = "adamw"
    weight_decay: float = 0.05
    clip_grad: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut among processes and forward passes."""

    batch_size: int
    micro_batch_size: int
    accumulate: int


def cut_batch(
    batch_size: int, micro_batch_size: int | None, world: World, *, field: str, even: bool = False
) -> Cut:
    """Cuts a global batch into equal micro-batches.

    Args:
        field: dotted section for messages, `warmup` or `train`.
        even: micro-batches hold pairs, as mixup and cutmix want them.
    Raises: ConfigError: a batch that does not divide by processes x micro-batch, with numbers that
        do.
    """
    unit = world.size * (2 if even else 1)
    if batch_size % unit:
        why = f"{world.size} processes cannot share it equally"
        if not batch_size % world.size:
            why = "mixup and cutmix mix pairs of images, so each process's share must be even"
        raise ConfigError(
            f"{field}.batch_size is {batch_size}; {why}. Use {max(1, batch_size // unit) * unit}."
        )
    local = batch_size // world.size
    micro = min(micro_batch_size or local, local)
    fitting = [n for n in range(1, local + 1) if local % n == 0 and not (even and n % 2)]
    if micro not in fitting:
        why = f"a process's {local} samples per step do not divide by it"
        if not local % micro:
            why = "mixup and cutmix mix pairs of images, so it must be even"
        raise ConfigError(
            f"{field}.micro_batch_size is {micro}; {why}. "
            f"Use {max((n for n in fitting if n < micro), default=fitting[0])}."
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
    n_steps: int
    """Optimiser steps of the whole run."""
    ramp_steps: int
    cut: Cut
    world: World
    device: torch.device
    numbers: Numbers

    @property
    def stage(self) -> WarmupConfig | TrainConfig:
        """The config's own section."""
        return self.config.warmup if isinstance(self.config, WarmupRun) else self.config.train

    @property
    def schedule(self) -> Schedule:
        """The learning rates of the steps."""
        stage = self.stage
        rates = {"lr": stage.lr, "min_lr": stage.min_lr, "warmup_lr": stage.warmup_lr}
        return Schedule(n_steps=self.n_steps, ramp_steps=self.ramp_steps, **rates)

    @cached_property
    def eval_steps(self) -> set[int]:
        """The steps after which to evaluate."""
        return evaluation_steps(self.n_steps, self.stage.evaluations)

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


def plan_machine(config: WarmupRun | TrainRun) -> dict[str, Any]:
    """Returns the fields of a plan that the machine has a say in: device, world, cut, numbers.

    Raises: ConfigError: what is not there, or an optimiser or a batch that it cannot do.
    """
    section = "warmup" if isinstance(config, WarmupRun) else "train"
    stage = getattr(config, section)
    device = choose_device(config.run)
    check_loggers(config.run.logger)
    check_optimizer(f"{section}.opt", stage.opt, device, getattr(stage, "opt_betas", None))
    world = find_world(config.run)
    even = bool(getattr(stage, "mixup", 0) or getattr(stage, "cutmix", 0))
    cut = cut_batch(stage.batch_size, stage.micro_batch_size, world, field=section, even=even)
    numbers = choose_numbers(stage.precision, device)
    return {"device": device, "world": world, "cut": cut, "numbers": numbers}


def check_optimizer(
    field: str, name: str, device: torch.device, betas: Sequence[float] | None = None
) -> None:
    """Refuses an optimiser that timm does not have, or that cannot take a step here.

    Args:
        betas: of `<section>.opt_betas`.
    Raises: ConfigError: with the nearest names, what the optimiser says, or how many betas it has.
    """
    known = [str(known) for known in list_optimizers()]
    if name not in known:
        raise ConfigError(
            f"{field} is {name!r}; timm has no optimiser of that name.{nearest(name, known)} "
            "Give a name from timm.optim.list_optimizers()."
        )
    why = _fault_of(name, device.type)
    if why is not None:  # CUDA or APEX is missing, or it wants more than one gradient (AdaHessian)
        raise ConfigError(
            f"{field} is {name!r}, which cannot take a step here ({why}). "
            "Use adamw, sgd, lamb, lion, muon or another that needs nothing but the gradient."
        )
    info = get_optimizer_info(name)
    n_betas = info.num_betas if info.has_betas else 0
    if betas is not None and len(betas) != n_betas:
        raise ConfigError(
            f"{field}_betas is {list(betas)}, but {name!r} has {n_betas or 'no'} betas. "
            "Give as many, or leave the field out."
        )


@cache
def _fault_of(name: str, device: str) -> str | None:
    """What goes wrong in one step of two weights; None: nothing.

    Only what fails on the CPU is tried on the GPU, so that a plan does not occupy one.
    """
    fault = None
    for place in dict.fromkeys(("cpu", device)):
        with torch.random.fork_rng(devices=[]):
            model = nn.Linear(2, 2).to(place)
        try:
            # Kron compiles its step, which takes 40 s and is not what is asked here.
            with warnings.catch_warnings(action="ignore"), torch.compiler.set_stance("force_eager"):
                optimizer = create_optimizer_v2(model, opt=name, lr=1e-3)
                model(torch.ones(1, 2, device=place)).sum().backward()
                optimizer.step()
            return None
        except Exception as error:  # whatever it is, the training would end with it
            fault = fault or str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return fault

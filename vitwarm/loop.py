"""The training loop that warm-up and image training share: Lightning, counted in optimiser steps.

A run is one Lightning epoch over a loader that holds exactly the steps still to do. Every quantity
of a step (its samples, learning rate, random numbers) is a function of the step's number, so that a
resumed run is the uninterrupted one, with any number of processes and any accumulation.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from timm.optim import list_optimizers
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from vitwarm.callbacks import Checkpoint, is_slurm, raise_non_finite
from vitwarm.config import RunConfig, TrainRun, WarmupRun
from vitwarm.errors import ConfigError, VitwarmError, nearest
from vitwarm.records import Record, RunFolder, open_run
from vitwarm.seeding import seed_of
from vitwarm.trunk import blocks_of

#: Optimisers of torch that have a fused implementation.
_FUSED = {"adam", "adamw", "sgd", "momentum", "nesterov", "adagrad"}

#: Up to this length unfused attention is the faster one on a CPU in bf16.
_UNFUSED_TOKENS = 512


#: Says something to the user.
Say = Callable[[str], None]


@dataclass(frozen=True)
class World:
    """This process among the processes of the run, known before Lightning starts them."""

    rank: int
    size: int

    @property
    def is_zero(self) -> bool:
        return self.rank == 0


def find_world(run: RunConfig) -> World:
    """Reads rank and world size from the environment of torchrun, srun or Lightning."""
    size = run.devices * run.nodes
    if is_slurm() and size > 1:
        return World(rank=int(os.environ["SLURM_PROCID"]), size=size)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun
        world = int(os.environ["WORLD_SIZE"])
        if world != size:
            raise ConfigError(
                f"run.devices x run.nodes is {size}, but the launcher started {world} processes. "
                f"Give run.devices and run.nodes whose product is {world}."
            )
        return World(rank=int(os.environ["RANK"]), size=size)
    node, local = int(os.environ.get("NODE_RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    return World(rank=node * run.devices + local if size > 1 else 0, size=size)


def choose_device(run: RunConfig) -> torch.device:
    """Returns the device that `run.device` means here. Raises: ConfigError: CUDA without a GPU."""
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "run.device is 'cuda', but torch sees no GPU here. Use run.device=cpu or auto."
        )
    use_cuda = run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


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
            f"divide by it. Use {math.gcd(local, micro)}."
        )
    return Cut(batch_size=batch_size, micro_batch_size=micro, accumulate=local // micro)


def cosine_lr(
    step: int, *, n_steps: int, ramp: int, start: float, peak: float, end: float
) -> float:
    """Returns the learning rate of step `step` (0-based): linear ramp, then cosine.

    Step 0 has `start` (if there is a ramp), step `ramp` has `peak`, the last step comes within one
    step's width of `end`.
    """
    if step < ramp:
        return start + (peak - start) * step / ramp
    share = (step - ramp) / max(1, n_steps - ramp)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def evaluation_steps(n_steps: int, evaluations: int) -> set[int]:
    """Returns the steps after which to evaluate: evenly spaced, the last one at the end."""
    return {max(1, round(k * n_steps / evaluations)) for k in range(1, evaluations + 1)}


class SteppedModule(LightningModule):
    """A LightningModule counted in optimiser steps over all resumptions.

    A stage overrides `training_step`, `make_optimizer`, `read_meters`, and what its checkpoint
    holds beyond model, optimiser, and time.
    """

    def __init__(
        self,
        *,
        n_steps: int,
        ramp_steps: int,
        accumulate: int,
        world_size: int,
        rank: int,
        opt: str,
        lr: float,
        min_lr: float,
        warmup_lr: float,
        weight_decay: float,
        clip_grad: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.ramp_steps = ramp_steps
        self.accumulate = accumulate
        self.world_size = world_size
        self.rank = rank
        self.opt = opt
        self.peak, self.end, self.begin = lr, min_lr, warmup_lr
        self.weight_decay = weight_decay
        self.clip_grad = clip_grad
        self.seed = seed
        self.compiled = False
        self.seconds_before = 0.0
        self.start_step = 0
        self.micro_batches = 0
        self._started: float | None = None
        self._restored: dict[str, Any] | None = None
        self._draws: bool | None = None
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
        """Returns plain values to save: choices made by measuring, counters; a stage may add."""
        return {"compiled": self.compiled, "seconds": self.seconds}

    def describe_batch(self, step: int) -> str:
        """Returns words that find the samples of a step again, for messages."""
        return f"the samples of step {step:,}"

    # -- schedule and counting ---------------------------------------------------------------

    def lr_at(self, step: int) -> float:
        """Returns the learning rate of step `step`, counted from 0."""
        return cosine_lr(
            step,
            n_steps=self.n_steps,
            ramp=self.ramp_steps,
            start=self.begin,
            peak=self.peak,
            end=self.end,
        )

    @property
    def fused(self) -> dict[str, Any]:
        """The argument that asks the optimiser for torch's fused kernel, where it has one."""
        return {"fused": True} if self.opt in _FUSED else {}

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

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Takes over a checkpoint's weights now and its optimiser state when there is one."""
        if checkpoint is not None:
            self.start_step = checkpoint.step
            self.seconds_before = float(checkpoint.facts["seconds"])
            self.load_state_dict(checkpoint.state["model"])
            self._restored = checkpoint.state["optimizer"]

    # -- Lightning ---------------------------------------------------------------------------

    def on_train_start(self) -> None:
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
            lr = self.lr_at(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
        if self._draws is None:
            self._draws = _draws_random_numbers(self)
        if self._draws:
            # Drop path and dropout: the same masks after a resume as without it.
            part = batch_idx % self.accumulate
            torch.manual_seed(seed_of(self.seed, "step", step, part, self.rank))

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
        if self.clip_grad is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_grad, foreach=True)

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
                raise_non_finite(step, self.describe_batch(step))


def choose_attention(model: nn.Module, *, device: torch.device, bf16: bool, n_tokens: int) -> None:
    """Takes timm's own unfused attention where the fused kernel is the slower one.

    That is in bf16 on a CPU without AMX: there torch 2.15's fused kernel, forward and backward,
    needs 2 to 6 times as long at 65 to 197 tokens and as long at 1,370, where the scores would also
    fill the memory (measured on an AMD Zen 4). Unfused scores are rounded to bf16.
    """
    amx = torch.cpu._is_amx_tile_supported()
    if device.type != "cpu" or not bf16 or amx or n_tokens > _UNFUSED_TOKENS:
        return
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # type: ignore[assignment]


def run_once(
    config: WarmupRun | TrainRun,
    digest: str,
    world: World,
    *,
    fresh: bool,
    say: Say,
    plan: str,
    work: Callable[[RunFolder], Record],
) -> Record:
    """Does a run's work in its folder, unless a record says that it is done.

    Args:
        digest: the config's hash, which names the folder.
        fresh: throw away what an earlier execution left, and start anew.
        plan: what is about to happen, said before it does.
        work: does it and returns the record; a failure of it is written into the folder.
    Raises: VitwarmError: from `open_run` and `work`.
    """
    root, writer = config.run.root, world.is_zero
    with open_run(root, config.name, config, digest, fresh=fresh, writer=writer) as run:
        record = run.record
        if record is not None and record.status == "finished":
            say(f"{run.path} is finished already; --fresh runs it again.")
            return record
        say(plan)
        try:
            return work(run)
        except VitwarmError as error:
            if writer and error.exit_code == 1:
                run.write_failure(error)
            elif writer and error.exit_code == 2 and not run.has_begun:
                run.remove()  # refused before anything was done: nothing half-written stays
            raise


def make_speaker(run: RunConfig, world: World) -> Say:
    """Returns what prints for the user: on rank zero, above a bar, and unless told to be quiet."""

    def say(text: str) -> None:
        if world.is_zero and run.progress:
            tqdm.write(text)

    return say


def compile_blocks(model: nn.Module) -> None:
    """Compiles each block of a timm model in place: state-dict keys stay, equal blocks share code.

    Source: engineering practice of regional compilation; a whole-model compile takes a block's time
    as many times as there are blocks, and a sweep pays that for every run.
    """
    for block in blocks_of(model).values():
        block.compile()


def make_trainer(
    run: RunConfig, *, precision: str, accumulate: int, callbacks: Sequence[Callback]
) -> Trainer:
    """Returns the one kind of Trainer of this project: one epoch, no loggers, no own checkpoints.

    Args:
        precision: `bf16` or `fp32`.
        accumulate: micro-batches per optimiser step.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # torch 2.15 renames the argument; its new name is not in the older torch that we allow.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6, torch 2.15
    device = choose_device(run)
    world_size = run.devices * run.nodes
    strategy: Strategy | str = "auto"
    if world_size > 1:
        strategy = DDPStrategy(
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            process_group_backend="nccl" if device.type == "cuda" else "gloo",
        )
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=run.devices,
        num_nodes=run.nodes,
        strategy=strategy,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        plugins=[SLURMEnvironment(auto_requeue=False)] if is_slurm() and world_size > 1 else None,
    )
    epoch_loop = trainer.fit_loop.epoch_loop
    if hasattr(epoch_loop, "_broadcast_sigterm_tensor"):
        # A broadcast and a host sync on every batch (Lightning#21487); StopRequest does this work.
        epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _draws_random_numbers(module: nn.Module) -> bool:
    """Whether a forward pass draws: any dropout or drop path above zero."""
    return any(
        float(getattr(part, name, 0.0) or 0.0) > 0
        for part in module.modules()
        for name in ("p", "drop_prob")
        if isinstance(getattr(part, name, 0.0), float)
    )


def check_optimizer(field: str, name: str) -> None:
    """Refuses an optimiser that timm does not have. Raises: ConfigError: with the nearest names."""
    known = [str(known) for known in list_optimizers()]
    if name not in known:
        raise ConfigError(
            f"{field} is {name!r}; timm has no optimiser of that name.{nearest(name, known)} "
            "Give a name from timm.optim.list_optimizers()."
        )

"""Starting a run: once, from its last checkpoint, with the one Trainer that all stages share.

A run is one Lightning epoch over a loader that holds exactly the steps still to do.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitwarm.config import RunConfig, to_plain
from vitwarm.errors import Stopped, TrainingFailed, VitwarmError
from vitwarm.hardware import Numbers, choose_device
from vitwarm.informing import informs
from vitwarm.interrupts import last_words
from vitwarm.loop.memory import memory_in_words
from vitwarm.loop.meters import Metrics, WaitMeter
from vitwarm.loop.module import Checkpoint, SteppedModule
from vitwarm.loop.plan import Plan
from vitwarm.loop.saving import StopRequest, TimedCheckpoint, load_checkpoint
from vitwarm.records import Record, RunFolder, code_version, open_run, read_json
from vitwarm.trunk import blocks_of
from vitwarm.units import format_seconds
from vitwarm.world import choose_strategy, read_number

#: Up to this length unfused attention is the faster one on a CPU in bf16.
_UNFUSED_TOKENS = 512

#: Starts of one SLURM job at the same step after which it is not worth another one.
STANDSTILL_STARTS = 3

#: What gloo, NCCL and torch's store say where the process at the other end is gone.
_GONE = re.compile(
    r"(clos\w+|reset) by (remote )?peer|Broken pipe|remote process exited|Timed out waiting|"
    r"No route to host",
    re.IGNORECASE,
)

#: Says something to the user: on rank zero, and unless told to be quiet.
Say = Callable[[str], None]

APlan = TypeVar("APlan", bound=Plan)


def run_once(plan: Plan, work: Callable[[RunFolder, Say], Record], *, fresh: bool) -> Record:
    """Does a run's work in its folder, unless a record says that it is done.

    Args:
        work: does it and returns the record; a failure of it is written into the folder.
        fresh: throw away what an earlier execution left.
    Raises: VitwarmError: from `open_run` and `work`.
    """
    config, writer = plan.config, plan.world.is_zero
    root = config.run.root

    @informs
    def say(text: str) -> None:
        if writer and config.run.progress:
            tqdm.write(text)  # above a bar

    with (
        last_words(),
        open_run(root, config.name, config, plan.digest, fresh=fresh, writer=writer) as run,
    ):
        record = run.record
        if record is not None and record.status == "finished":
            say(f"{run.path} is finished already; --fresh runs it again.")
            return record
        say(str(plan))
        try:
            if writer:
                refuse_standstill(run)
            with memory_in_words(plan):
                return work(run, say)
        except VitwarmError as error:
            if writer and error.exit_code == 1:
                run.write_failure(error)
            elif writer and error.exit_code == 2 and not run.has_begun:
                run.remove()  # refused before anything was done: nothing half-written stays
            raise
        except RuntimeError as error:
            loss = find_loss(error) if plan.world.size > 1 else None
            if loss is None:
                raise
            raise Stopped(
                f"Another process of this run has ended ({loss}); its own output says why. Run the "
                f"same command again: it resumes after step {run.saved_step:,}.",
                exit_code=75,
            ) from error


def refuse_standstill(run: RunFolder) -> None:
    """Ends a SLURM job that was put back into the queue twice and came no step further.

    Notes in `starts.json` at which step each start of the job began; a new job begins a new list.

    Raises: TrainingFailed: at its third start at the same step.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None or read_number(os.environ, "SLURM_RESTART_COUNT") == 0:
        (run.path / "starts.json").unlink(missing_ok=True)
    if job is None:
        return
    step = run.saved_step
    starts = [*(read_json(run.path / "starts.json") or {}).get("steps", []), step]
    run.write_json("starts.json", {"job": job, "steps": starts})
    if starts[-STANDSTILL_STARTS:] == [step] * STANDSTILL_STARTS:
        raise TrainingFailed(
            f"This SLURM job was put back into the queue {STANDSTILL_STARTS - 1} times and made "
            f"no progress past step {step:,}. Raise its time limit (sbatch.time in a sweep), or "
            "save more often (checkpoint_minutes); then start it again; it resumes from there."
        )


def find_loss(error: RuntimeError) -> str | None:
    """Returns what the process group said of another process that is gone; None: nothing such."""
    text = str(error).partition("\n")[0]
    is_its = isinstance(error, torch.distributed.DistError) or re.search("gloo|nccl", text, re.I)
    if not is_its or not _GONE.search(text):
        return None
    return re.sub(r"^\[[^]]*\]\s*", "", text).partition(". ")[0]


def find_checkpoint(plan: APlan, run: RunFolder) -> tuple[APlan, Checkpoint | None]:
    """Returns a run's newest checkpoint, and the plan in the precision that it was begun in."""
    checkpoint = load_checkpoint(run, plan.digest)
    if checkpoint is None:
        return plan, None
    numbers = plan.numbers.kept_from(checkpoint.facts)
    return dataclasses.replace(plan, numbers=numbers), checkpoint


def take_up(
    module: SteppedModule, model: nn.Module, plan: Plan, checkpoint: Checkpoint | None, say: Say
) -> None:
    """Restores a checkpoint, if there is one, and compiles the blocks of the module's timm model.

    What the first start chose is kept on resume: compiled kernels round differently.
    """
    module.numbers, wanted = plan.numbers, plan.stage.compile
    module.compiled = wanted == "on" or (wanted == "auto" and _pays(plan.device))
    if checkpoint is not None:
        module.restore(checkpoint)
        module.compiled = bool(checkpoint.facts["compiled"])
        say(f"resuming after step {checkpoint.step:,} of {module.n_steps:,} ({checkpoint.path})")
    if module.compiled:
        compile_blocks(model)


def _pays(device: torch.device) -> bool:
    """Whether to compile where nothing is said: on a CPU it takes longer than most runs there."""
    return device.type == "cuda"


@dataclass(eq=False)
class Fit:
    """One training by Lightning, with what every stage shows, saves and listens for."""

    plan: Plan
    folder: RunFolder
    waits: WaitMeter
    _: KW_ONLY
    label: str
    """What the bar calls the run."""
    unit: str
    """What the bar calls its samples."""
    every_steps: int | None = None
    """Between two lines of the log; None: as the config says."""
    on_stop: Callable[[SteppedModule], None] | None = None
    """Called when the run is asked to stop, after everything is saved."""

    def __post_init__(self) -> None:
        plan, config = self.plan, self.plan.config.run
        minutes, limit = plan.stage.checkpoint_minutes, config.time_limit_minutes
        self.saver = TimedCheckpoint(self.folder, plan.digest, minutes=minutes)
        self.stop = StopRequest(self.saver, time_limit_minutes=limit, on_stop=self.on_stop)
        self.metrics = Metrics(
            self.folder,
            self.waits,
            every_steps=self.every_steps or config.log_every_steps,
            progress=config.progress,
            label=self.label,
            samples_per_step=plan.cut.batch_size,
            unit=self.unit,
        )

    def run(self, module: SteppedModule, loader: Any, callbacks: Sequence[Callback]) -> None:
        """Does the steps that are left. Raises: TrainingFailed: a loss that is no finite number."""
        plan = self.plan
        trainer = make_trainer(
            plan.config.run,
            numbers=plan.numbers,
            accumulate=plan.cut.accumulate,
            callbacks=[self.metrics, *callbacks, self.saver, self.stop],
        )
        trainer.fit(module, loader)
        module.check_finite()


def facts_of_run(plan: Plan, module: SteppedModule, waits: WaitMeter) -> dict[str, Any]:
    """Returns the fields of a finished run's record that every stage has."""
    waits.take()
    spent = max(module.seconds - module.seconds_before, 1e-9)
    return {
        "name": plan.config.name,
        "seed": plan.config.seed,
        "config_hash": plan.digest,
        "code_version": code_version(),
        "model": plan.stage.model,
        "steps": module.steps_done,
        "wall_seconds": module.seconds,
        "data_wait_percent": 100 * waits.total / spent,
    }


def time_step(plan: Plan, forward: Callable[[], Tensor], *, n_samples: int) -> float:
    """Returns the seconds of an optimiser step: the fastest of three passes, scaled to a batch.

    Args:
        forward: computes the loss of `n_samples` samples.
    Raises: TrainingFailed: as `memory_in_words`.
    """
    device, times = plan.device, []
    for _ in range(3):
        began = time.perf_counter()
        with memory_in_words(plan, n_samples):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=plan.numbers.bf16):
                loss = forward()
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times) * plan.cut.batch_size / n_samples / plan.world.size


def show(plan: Plan, facts: str, *, step_seconds: float, without: str) -> str:
    """Returns the resolved config, the plan, and the time it would take."""
    took = format_seconds(plan.schedule.n_steps * step_seconds)
    estimate = f"estimate  {took} on this machine's {plan.device.type}, from three passes"
    rows: dict[str, str] = {}
    for line in f"{plan}\n{facts}\n{estimate} without {without}".splitlines():
        name, _, fact = line.partition(" ")
        rows.setdefault(name, fact.strip())  # what the plan says, the facts need not say again
    width = max(map(len, rows))
    config = OmegaConf.to_yaml(OmegaConf.create(to_plain(plan.config)))
    return "\n".join([config, *(f"{name:<{width}}  {fact}" for name, fact in rows.items())])


def choose_attention(model: nn.Module, *, device: torch.device, bf16: bool, n_tokens: int) -> None:
    """Takes timm's own unfused attention where the fused kernel is slower: bf16 on a CPU, no AMX.

    There torch 2.15's fused one, both ways, takes 2 to 6 times as long at 65 to 197 tokens, as long
    at 1,370, where the scores would also fill the memory (AMD Zen 4). Unfused scores are bf16.
    """
    amx = torch.cpu._is_amx_tile_supported()
    if device.type != "cpu" or not bf16 or amx or n_tokens > _UNFUSED_TOKENS:
        return
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # type: ignore[assignment]


def compile_blocks(model: nn.Module) -> None:
    """Compiles each block of a timm model in place: state-dict keys stay, equal blocks share code.

    Source: engineering practice of regional compilation; a whole-model compile takes a block's time
    as many times as there are blocks, and a sweep pays that for every run.
    """
    for block in blocks_of(model).values():
        block.compile()


def make_trainer(
    run: RunConfig, *, numbers: Numbers, accumulate: int, callbacks: Sequence[Callback]
) -> Trainer:
    """Returns the one kind of Trainer of this project: one epoch, no loggers, no own checkpoints.

    Args:
        numbers: what forward and backward multiply in.
        accumulate: micro-batches per optimiser step.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # torch 2.15 renames the argument; its new name is not in the older torch that we allow.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6, torch 2.15
    # Lightning looks for SLURM once more in `fit`, although it was told who starts the processes.
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    device = choose_device(run)
    strategy, plugin = choose_strategy(run, device)
    trainer = Trainer(
        accelerator=device.type,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy=strategy,
        precision="bf16-mixed" if numbers.bf16 else "32-true",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        plugins=plugin,
    )
    epoch_loop = trainer.fit_loop.epoch_loop
    if hasattr(epoch_loop, "_broadcast_sigterm_tensor"):
        # A broadcast and a host sync on every batch (Lightning#21487); StopRequest does this work.
        epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer

"""Running a plan: fit, measure on held-out sequences, save the trunk, record."""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning.pytorch import Callback

from vitwarm.config import WarmupRun
from vitwarm.loggers import mirrored
from vitwarm.loop.meters import Estimate, WaitMeter
from vitwarm.loop.module import SteppedModule
from vitwarm.loop.plan import Cut
from vitwarm.loop.start import Fit, Say, find_checkpoint, run_once, show, take_up, time_step
from vitwarm.records import Record, RunFolder
from vitwarm.trunk import TokenModel, load_trunk, save_trunk
from vitwarm.warmup import learned
from vitwarm.warmup.outcome import make_record, trunk_metadata
from vitwarm.warmup.plan import WarmupPlan, make_loader, make_module, make_token_model, plan_warmup
from vitwarm.warmup.sequences import WarmupBatch
from vitwarm.world import World


def run_warmup(config: WarmupRun, *, fresh: bool = False) -> Record:
    """Warms up a trunk and leaves `trunk.safetensors` and `record.json` in the run folder.

    A finished run is returned as it is; an interrupted one goes on from its last checkpoint, unless
    `fresh` throws away what an earlier execution left.

    Raises: VitwarmError: see the subclasses; Stopped after a signal or the time limit, saved.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    tokens = make_token_model(config)
    plan = plan_warmup(config, n_tokens=tokens.n_tokens)
    return run_once(plan, lambda run, say: _train(plan, tokens, run, say), fresh=fresh)


def show_plan(config: WarmupRun) -> str:
    """Returns the resolved config, the plan, and the time it would take, from a few sequences."""
    tokens = make_token_model(config)
    plan = plan_warmup(config, n_tokens=tokens.n_tokens)
    module = make_module(plan, tokens).to(plan.device)
    few = min(8, 1 + 2**11 // plan.n_tokens) if plan.device.type == "cpu" else 256
    n_probe = min(few, plan.cut.micro_batch_size)
    probe = replace(plan, cut=Cut(n_probe, n_probe, 1), world=World(rank=0, size=1))
    batch = next(make_loader(probe, start_step=0).step(0))
    batch = WarmupBatch(*(tensor.to(plan.device) for tensor in batch))
    seconds = time_step(plan, lambda: module.training_step(batch, 0), n_samples=n_probe)
    facts = "\n".join(f"{name:<9} {fact}" for name, fact in tokens.facts.items())
    return show(plan, facts, step_seconds=seconds, without="compilation")


def _train(plan: WarmupPlan, tokens: TokenModel, run: RunFolder, say: Say) -> Record:
    for name, fact in tokens.facts.items():
        say(f"{name:<9} {fact}")
    plan, checkpoint = find_checkpoint(plan, run)
    module = make_module(plan, tokens)
    take_up(module, tokens.model, plan, checkpoint, say)
    loader = WaitMeter(make_loader(plan, start_step=module.start_step))
    path, writer = run.path / "trunk.safetensors", plan.world.is_zero

    def leave_trunk(stopped: SteppedModule) -> None:
        save_trunk(path, tokens, trunk_metadata(plan, tokens, stopped.steps_done, "unfinished"))

    until_solved = plan.config.warmup.until == "saturated"
    every = learned.SATURATION_STEPS if until_solved else None
    fit = Fit(
        plan, run, loader, label="warm-up", unit="sequences", every_steps=every,
        on_stop=leave_trunk,
    )  # fmt: skip
    callbacks: list[Callback] = [learned.Probe(plan, run), Estimate(say)]
    if until_solved:
        callbacks.insert(0, learned.StopWhenSaturated(fit.metrics, run))
    ended = until_solved and learned.is_solved(run)  # and was stopped before its record was written
    if module.start_step < plan.n_steps and not ended:
        with mirrored(run, plan.config, start_step=module.start_step, writer=writer):
            fit.run(module, loader, callbacks)
        if writer:
            fit.saver.save(module)
    if not writer:
        return make_record(plan, module, {}, loader, "")
    facts = learned.reached(plan, run, module)
    metadata = trunk_metadata(plan, tokens, module.steps_done, "finished", **facts)
    sha = load_trunk(save_trunk(path, tokens, metadata)).sha256
    record = make_record(plan, module, facts, loader, sha)
    run.write_record(record)
    say(learned.describe(record))
    say(f"trunk     {path}")
    return record

"""Running a plan: fit, measure on held-out sequences, save the trunk, record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback

from vitwarm.config import WarmupRun
from vitwarm.loggers import mirrored
from vitwarm.loop.meters import Estimate, WaitMeter
from vitwarm.loop.module import SteppedModule
from vitwarm.loop.plan import Cut, Updates
from vitwarm.loop.start import (
    Fit,
    Say,
    choose_attention,
    facts_of_run,
    find_checkpoint,
    run_once,
    show,
    take_up,
    time_step,
)
from vitwarm.records import Record, RunFolder, code_version
from vitwarm.rules import find_preset
from vitwarm.trunk import TokenModel, load_trunk, save_trunk
from vitwarm.warmup.learned import (
    SATURATION_STEPS,
    Probe,
    StopWhenSaturated,
    block_norms,
    describe,
    find_ceiling,
    is_solved,
    reached,
)
from vitwarm.warmup.module import WarmupModule
from vitwarm.warmup.plan import WarmupPlan, make_loader, make_token_model, plan_warmup
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


def make_module(plan: WarmupPlan, tokens: TokenModel) -> WarmupModule:
    """Wires a plan's numbers into the module that Lightning trains."""
    warm = plan.config.warmup
    choose_attention(
        tokens.model, device=plan.device, bf16=plan.numbers.bf16, n_tokens=plan.n_tokens
    )
    updates = Updates(
        opt=warm.opt,
        weight_decay=warm.weight_decay,
        clip_grad=warm.clip_grad,
        seed=plan.config.seed,
    )
    return WarmupModule(tokens, plan.schedule, plan.cut, plan.world, updates, n_ids=plan.rule.n_ids)


def _train(plan: WarmupPlan, tokens: TokenModel, run: RunFolder, say: Say) -> Record:
    for name, fact in tokens.facts.items():
        say(f"{name:<9} {fact}")
    plan, checkpoint = find_checkpoint(plan, run)
    module = make_module(plan, tokens)
    take_up(module, tokens.model, plan, checkpoint, say)
    loader = WaitMeter(make_loader(plan, start_step=module.start_step))
    path, writer = run.path / "trunk.safetensors", plan.world.is_zero

    def leave_trunk(stopped: SteppedModule) -> None:
        save_trunk(path, tokens, _trunk_metadata(plan, tokens, stopped.steps_done, "unfinished"))

    until_solved = plan.config.warmup.until == "saturated"
    fit = Fit(
        plan,
        run,
        loader,
        label="warm-up",
        unit="sequences",
        every_steps=SATURATION_STEPS if until_solved else None,
        on_stop=leave_trunk,
    )
    callbacks: list[Callback] = [Probe(plan, run), Estimate(say)]
    if until_solved:
        callbacks.insert(0, StopWhenSaturated(fit.metrics, run))
    ended = until_solved and is_solved(run)  # and was stopped before its record was written
    if module.start_step < plan.n_steps and not ended:
        with mirrored(run, plan.config, start_step=module.start_step, writer=writer):
            fit.run(module, loader, callbacks)
        if writer:
            fit.saver.save(module)
    if not writer:
        return _record(plan, module, {}, loader, "")
    facts = reached(plan, run, module)
    metadata = _trunk_metadata(plan, tokens, module.steps_done, "finished", **facts)
    sha = load_trunk(save_trunk(path, tokens, metadata)).sha256
    record = _record(plan, module, facts, loader, sha)
    run.write_record(record)
    say(describe(record))
    say(f"trunk     {path}")
    return record


def _record(
    plan: WarmupPlan,
    module: WarmupModule,
    facts: dict[str, Any],
    loader: WaitMeter,
    trunk_sha256: str,
) -> Record:
    config = plan.config
    samples = module.steps_done * plan.cut.batch_size
    return Record(
        stage="warmup",
        **facts_of_run(plan, module, loader),
        trunk_sha256=trunk_sha256,
        rule=plan.rule_facts,
        warmup_samples=samples,
        warmup_tokens=samples * plan.n_tokens,
        warmup_seed=config.seed,
        extra={
            "sequences_per_second": samples / max(module.seconds, 1e-9),
            "hide_share": plan.hide_share or plan.rule.hide_share,
            "preset": find_preset(plan.rule),
            "ceiling": find_ceiling(plan) if facts else None,
            "block_norms": block_norms(module.tokens.model),
            "n_tokens": plan.n_tokens,
            "model_kwargs": config.warmup.model_kwargs,
            "visible_pads": plan.n_tokens - plan.n_words,
            "compiled": module.compiled,
            "grad_checkpointing": config.warmup.grad_checkpointing,
            "precision": plan.numbers.precision,
            "budget_share": plan.budget.share,
            "embedding": dict(module.tokens.facts),
        },
        **facts,
    )


def _trunk_metadata(
    plan: WarmupPlan, tokens: TokenModel, steps: int, status: str, **facts: Any
) -> dict[str, str]:
    config = plan.config
    samples = steps * plan.cut.batch_size
    plain: dict[str, Any] = {
        "source": "warm-up",
        "status": status,
        "timm_model": config.warmup.model,
        "model_kwargs": config.warmup.model_kwargs,
        "rule": plan.rule_facts,
        "seed": config.seed,
        "steps": steps,
        "samples": samples,
        "tokens": samples * plan.n_tokens,
        "n_tokens": plan.n_tokens,
        "hide_share": plan.hide_share or plan.rule.hide_share,
        "preset": find_preset(plan.rule) or "none",
        "code_version": code_version(),
        "config_hash": plan.digest,
        **tokens.facts,
        **facts,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in plain.items()
    }

"""Running a plan: fit, measure on held-out sequences, save the trunk, record."""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from vitwarm.callbacks import (
    Checkpoint,
    Metrics,
    StopRequest,
    TimedCheckpoint,
    WaitMeter,
    load_checkpoint,
)
from vitwarm.config import WarmupRun, to_plain
from vitwarm.loop import (
    Say,
    SteppedModule,
    choose_attention,
    choose_device,
    compile_blocks,
    make_speaker,
    make_trainer,
    run_once,
)
from vitwarm.records import Record, RunFolder, code_version
from vitwarm.rules import find_preset
from vitwarm.sequences import SequenceLoader, WarmupBatch
from vitwarm.trunk import (
    TokenModel,
    load_trunk,
    save_trunk,
)
from vitwarm.units import format_seconds
from vitwarm.verdict import describe, find_saturation, is_solved, judge
from vitwarm.warmup.module import WarmupModule
from vitwarm.warmup.plan import WarmupPlan, make_loader, make_token_model, plan_warmup
from vitwarm.warmup.probe import Probe, block_norms, evaluate, find_ceiling, find_order_blind
from vitwarm.warmup.watch import SATURATION_STEPS, Estimate, StopWhenSaturated


def run_warmup(config: WarmupRun, *, fresh: bool = False) -> Record:
    """Warms up a trunk and leaves `trunk.safetensors` and `record.json` in the run folder.

    A finished run is returned as it is; an interrupted one goes on from its last checkpoint.

    Args:
        fresh: throw away what an earlier execution left, and start anew.
    Returns: the run's record.
    Raises: VitwarmError: see the subclasses; Stopped after a signal or the time limit, saved.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    tokens = make_token_model(config)
    plan = plan_warmup(config, n_tokens=tokens.n_tokens)
    say = make_speaker(config.run, plan.world)
    return run_once(
        config, plan.digest, plan.world, fresh=fresh, say=say, plan=str(plan),
        work=lambda run: _train(plan, tokens, run, say),
    )  # fmt: skip


def show_plan(config: WarmupRun) -> str:
    """Returns the resolved config, the plan, and the time it would take, from a few sequences."""
    tokens = make_token_model(config)
    plan = plan_warmup(config, n_tokens=tokens.n_tokens)
    seconds = plan.budget.steps * _time_step(plan, tokens)
    facts = "\n".join(f"{name:<9} {fact}" for name, fact in tokens.facts.items())
    device = choose_device(config.run)
    return (
        f"{OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))}\n{plan}\n{facts}\n"
        f"estimate  {format_seconds(seconds)} on this machine's {device.type}, from three passes "
        "without compilation"
    )


def _time_step(plan: WarmupPlan, tokens: TokenModel) -> float:
    """Seconds per optimiser step: forward and backward of a few sequences, scaled to a batch."""
    device = choose_device(plan.config.run)
    module = make_module(plan, tokens).to(device)
    n_probe = min(8 if device.type == "cpu" else 256, plan.cut.micro_batch_size)
    loader = SequenceLoader(
        plan.rule,
        seed=plan.config.seed,
        n_tokens=plan.n_tokens,
        batch_size=n_probe,
        micro_batch_size=n_probe,
        start_step=0,
        n_steps=3,
        hide_share=plan.hide_share,
    )
    times = []
    for batch in loader:
        began = time.perf_counter()
        on_device = WarmupBatch(*(tensor.to(device) for tensor in batch))
        bf16 = plan.config.warmup.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            module.training_step(on_device, 0).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times) * plan.cut.batch_size / n_probe / plan.world.size


def make_module(plan: WarmupPlan, tokens: TokenModel) -> WarmupModule:
    """Wires a plan's numbers into the module that Lightning trains."""
    warm = plan.config.warmup
    choose_attention(
        tokens.model,
        device=choose_device(plan.config.run),
        bf16=warm.precision == "bf16",
        n_tokens=plan.n_tokens,
    )
    return WarmupModule(
        tokens,
        n_ids=plan.rule.n_ids,
        n_steps=plan.budget.steps,
        ramp_steps=plan.ramp_steps,
        accumulate=plan.cut.accumulate,
        world_size=plan.world.size,
        rank=plan.world.rank,
        opt=warm.opt,
        lr=warm.lr,
        min_lr=warm.min_lr,
        warmup_lr=warm.warmup_lr,
        weight_decay=warm.weight_decay,
        clip_grad=warm.clip_grad,
        seed=plan.config.seed,
    )


def _train(plan: WarmupPlan, tokens: TokenModel, run: RunFolder, say: Say) -> Record:
    config, warm = plan.config, plan.config.warmup
    for name, fact in tokens.facts.items():
        say(f"{name:<9} {fact}")
    module = make_module(plan, tokens)
    checkpoint = load_checkpoint(run, plan.digest)
    _restore(module, checkpoint, say)
    if _shall_compile(config, checkpoint):
        compile_blocks(tokens.model)
        module.compiled = True
    loader = WaitMeter(make_loader(plan, start_step=module.start_step))

    def leave_trunk(stopped: SteppedModule) -> None:
        save_trunk(
            run.path / "trunk.safetensors",
            tokens,
            _trunk_metadata(plan, tokens, steps=stopped.steps_done, status="unfinished"),
        )

    until_solved = warm.until == "saturated"
    saver = TimedCheckpoint(run, plan.digest, minutes=warm.checkpoint_minutes)
    metrics = Metrics(
        run,
        loader,
        every_steps=SATURATION_STEPS if until_solved else config.run.log_every_steps,
        progress=config.run.progress,
        label="warm-up",
        samples_per_step=warm.batch_size,
        unit="sequences",
    )
    callbacks: list[Callback] = [metrics, Probe(plan, run), Estimate(say), saver]
    callbacks.append(
        StopRequest(saver, time_limit_minutes=config.run.time_limit_minutes, on_stop=leave_trunk)
    )
    if until_solved:
        callbacks.insert(1, StopWhenSaturated(metrics, run))
    trainer = make_trainer(
        config.run, precision=warm.precision, accumulate=plan.cut.accumulate, callbacks=callbacks
    )
    ended = until_solved and is_solved(run)  # and was stopped before its record was written
    if module.start_step < plan.budget.steps and not ended:
        trainer.fit(module, loader)
        module.check_finite()
    if not plan.world.is_zero:
        return _record(plan, module, {}, loader, "")
    saver.save(module) if trainer.optimizers else None
    facts = _judge(plan, run, module)
    metadata = _trunk_metadata(plan, tokens, steps=module.steps_done, status="finished", **facts)
    trunk = save_trunk(run.path / "trunk.safetensors", tokens, metadata)
    sha = load_trunk(trunk).sha256
    record = _record(plan, module, facts, loader, sha)
    run.write_record(record)
    say(describe(record))
    say(f"trunk     {trunk}")
    return record


def _restore(module: WarmupModule, checkpoint: Checkpoint | None, say: Say) -> None:
    module.restore(checkpoint)
    if checkpoint is not None:
        say(f"resuming after step {checkpoint.step:,} of {module.n_steps:,} ({checkpoint.path})")


def _shall_compile(config: WarmupRun, checkpoint: Checkpoint | None) -> bool:
    """What the first start chose is kept on resume: compiled kernels round differently."""
    if checkpoint is not None:
        return bool(checkpoint.facts["compiled"])
    wanted = config.warmup.compile
    return wanted == "on" or (wanted == "auto" and choose_device(config.run).type == "cuda")


def _judge(plan: WarmupPlan, run: RunFolder, module: WarmupModule) -> dict[str, Any]:
    """What a finished warm-up reached and what that is worth, as fields of its record."""
    warm = plan.config.warmup
    device = choose_device(plan.config.run)
    found = evaluate(module, plan, device=device, n_sequences=warm.eval_sequences)
    found["order_blind_percent"] = find_order_blind(plan)
    found["saturated_at_step"] = find_saturation(run)
    found["verdict"] = judge(
        accuracy_percent=found["hidden_accuracy_percent"],
        chance_percent=found["chance_percent"],
        order_blind_percent=found["order_blind_percent"],
        saturated_at=found["saturated_at_step"],
        n_steps=plan.budget.steps,
    )
    return found


def _record(
    plan: WarmupPlan,
    module: WarmupModule,
    facts: dict[str, Any],
    loader: WaitMeter,
    trunk_sha256: str,
) -> Record:
    config = plan.config
    loader.take()
    samples = module.steps_done * plan.cut.batch_size
    return Record(
        stage="warmup",
        name=config.name,
        seed=config.seed,
        config_hash=plan.digest,
        code_version=code_version(),
        model=config.warmup.model,
        steps=module.steps_done,
        wall_seconds=module.seconds,
        data_wait_percent=100 * loader.total / max(module.seconds - module.seconds_before, 1e-9),
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
            "budget_share": plan.budget.share,
            "embedding": dict(module.tokens.facts),
        },
        **facts,
    )


def _trunk_metadata(
    plan: WarmupPlan, tokens: TokenModel, *, steps: int, status: str, **facts: Any
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

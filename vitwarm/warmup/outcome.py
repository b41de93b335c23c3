"""What a warm-up leaves: the facts in its trunk file, and the record."""

from __future__ import annotations

import json
from typing import Any

from vitwarm.loop.meters import WaitMeter
from vitwarm.loop.start import facts_of_run
from vitwarm.records import Record, code_version
from vitwarm.rules import find_preset
from vitwarm.trunk import TokenModel
from vitwarm.warmup.learned import block_norms, find_ceiling
from vitwarm.warmup.module import WarmupModule
from vitwarm.warmup.plan import WarmupPlan


def make_record(
    plan: WarmupPlan,
    module: WarmupModule,
    facts: dict[str, Any],
    loader: WaitMeter,
    trunk_sha256: str,
) -> Record:
    """Returns the facts of a finished warm-up; `facts` are what it learned."""
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


def trunk_metadata(
    plan: WarmupPlan, tokens: TokenModel, steps: int, status: str, **facts: Any
) -> dict[str, str]:
    """Returns what stands in the header of a trunk file: text, anything else as JSON."""
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

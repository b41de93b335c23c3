"""What a warm-up config comes to, before anything is trained."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitwarm.config import WarmupRun, config_hash
from vitwarm.errors import ConfigError
from vitwarm.loop.plan import Plan, Updates, plan_machine
from vitwarm.loop.start import choose_attention
from vitwarm.rules import Rule, make_rule, rule_config
from vitwarm.trunk import (
    TokenModel,
    build_model,
    build_shapes,
    checkpoint_gradients,
    patch_grid,
    read_groups,
    tie_blocks,
)
from vitwarm.units import Budget, parse_budget
from vitwarm.warmup.module import WarmupModule
from vitwarm.warmup.sequences import SequenceLoader


@dataclass(frozen=True, kw_only=True)
class WarmupPlan(Plan):
    """What a config comes to, before anything is trained."""

    config: WarmupRun
    rule: Rule
    rule_facts: dict[str, Any]
    budget: Budget
    n_tokens: int
    n_words: int
    """Tokens that the rule itself makes; the rest of the sequence is one visible pad."""
    hide_share: float | None
    """None: what the rule says, row by row (the members of a mixture may differ)."""

    def __str__(self) -> str:
        warm = self.config.warmup
        pads = self.n_tokens - self.n_words
        lines = [
            f"rule      {json.dumps(self.rule_facts)}",
            f"model     {warm.model}, {self.n_tokens} tokens a sequence"
            + (f" ({pads} visible pad: the rule refuses this length)" if pads else ""),
            f"budget    {self.budget}",
            f"base      {warm.base_images or 0:,} images x {warm.base_epochs or 0:g} epochs",
            super().__str__(),
        ]
        return "\n".join(lines)


def plan_warmup(config: WarmupRun, *, n_tokens: int | None = None) -> WarmupPlan:
    """Resolves a config: rule, budget, hash and folder. Builds the model only to count its tokens.

    Args:
        n_tokens: the model's patch count, where the caller knows it already.
    Raises: ConfigError, RuleError, ModelError: something in the config cannot be used.
    """
    warm = config.warmup
    machine = plan_machine(config)
    rule = make_rule(config.rule.name, **config.rule.params)
    facts = rule_config(rule)
    if n_tokens is None:
        shapes = build_shapes(warm.model, **warm.model_kwargs)
        n_tokens = warm.n_tokens or math.prod(patch_grid(shapes))
    budget = parse_budget(
        warm.budget,
        batch_size=warm.batch_size,
        n_tokens=n_tokens,
        base_images=warm.base_images,
        base_epochs=warm.base_epochs,
    )
    if warm.ramp_steps is not None and warm.ramp_steps > budget.steps:
        raise ConfigError(
            f"warmup.ramp_steps is {warm.ramp_steps:,}, but the budget has {budget.steps:,} steps; "
            "the learning rate would never reach its peak. Shorten the ramp or leave it out."
        )
    contents = {"rule.name": facts["name"], "rule.params": json.dumps(facts)}
    if warm.tie is not None:  # two spellings are one warm-up
        contents["warmup.tie"] = json.dumps(read_groups(warm.tie))
    return WarmupPlan(
        config=config,
        rule=rule,
        rule_facts=facts,
        digest=config_hash(config, contents),
        budget=budget,
        n_steps=budget.steps,
        ramp_steps=warm.ramp_steps or min(1000, budget.steps // 15),
        n_tokens=n_tokens,
        n_words=rule.fit_length(n_tokens),
        hide_share=warm.hide_share,
        **machine,
    )


def warmup_folder(config: WarmupRun) -> Path:
    """Returns the run folder that this config has, or will have."""
    return plan_warmup(config).folder


def make_token_model(config: WarmupRun) -> TokenModel:
    """Builds the timm model of a config with its token embedding in the patch embedding's place."""
    warm = config.warmup
    rule = make_rule(config.rule.name, **config.rule.params)
    model = build_model(warm.model, seed=config.seed, **warm.model_kwargs)
    if warm.tie is not None:
        tie_blocks(model, read_groups(warm.tie), with_norms=warm.tie_norms)
    tokens = TokenModel(
        model,
        n_ids=rule.n_ids + 1,  # the mask has an id of its own, the head has no class for it
        n_tokens=warm.n_tokens,
        seed=config.seed,
        token_scale=warm.token_scale,
        position_scale=warm.position_scale,
    )
    if warm.grad_checkpointing:
        checkpoint_gradients(tokens.model, warm.model, section="warmup")
    if warm.tie is not None:
        tokens.facts["block_groups"] = json.dumps(read_groups(warm.tie))
        tokens.facts["tied"] = "all of a block" if warm.tie_norms else "attention and MLP"
    return tokens


def make_loader(plan: WarmupPlan, *, start_step: int) -> SequenceLoader:
    """Returns this process's micro-batches of the steps from `start_step` on."""
    return SequenceLoader(
        plan.rule,
        seed=plan.config.seed,
        n_tokens=plan.n_tokens,
        batch_size=plan.cut.batch_size,
        micro_batch_size=plan.cut.micro_batch_size,
        start_step=start_step,
        n_steps=plan.budget.steps,
        rank=plan.world.rank,
        world_size=plan.world.size,
        hide_share=plan.hide_share,
        pin_memory=plan.device.type == "cuda",
    )


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

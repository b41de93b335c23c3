"""What a warm-up config comes to, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitwarm.config import WarmupRun, config_hash
from vitwarm.loop import (
    Cut,
    World,
    check_optimizer,
    choose_device,
    cut_batch,
    find_world,
)
from vitwarm.rules import Rule, make_rule, rule_config
from vitwarm.sequences import SequenceLoader
from vitwarm.trunk import (
    TokenModel,
    build_model,
    build_shapes,
    patch_grid,
)
from vitwarm.units import Budget, parse_budget


@dataclass(frozen=True)
class WarmupPlan:
    """What a config comes to, before anything is trained."""

    config: WarmupRun
    rule: Rule
    rule_facts: dict[str, Any]
    digest: str
    budget: Budget
    ramp_steps: int
    n_tokens: int
    n_words: int
    """Tokens that the rule itself makes; the rest of the sequence is one visible pad."""
    cut: Cut
    world: World
    hide_share: float | None
    """None: what the rule says, row by row (the members of a mixture may differ)."""

    @property
    def folder(self) -> Path:
        return Path(self.config.run.root) / f"{self.config.name}-{self.digest[:8]}"

    def __str__(self) -> str:
        warm = self.config.warmup
        pads = self.n_tokens - self.n_words
        lines = [
            f"rule      {json.dumps(self.rule_facts)}",
            f"model     {warm.model}, {self.n_tokens} tokens a sequence"
            + (f" ({pads} visible pad: the rule refuses this length)" if pads else ""),
            f"budget    {self.budget}",
            f"base      {warm.base_images or 0:,} images x {warm.base_epochs or 0:g} epochs",
            f"schedule  {warm.opt}, lr {warm.lr:g}, {self.ramp_steps:,} ramp steps, cosine to "
            f"{warm.min_lr:g}, weight decay {warm.weight_decay:g}",
            f"batch     {self.cut.batch_size} = {self.world.size} process(es) x "
            f"{self.cut.micro_batch_size} x {self.cut.accumulate} accumulated",
            f"folder    {self.folder}",
        ]
        return "\n".join(lines)


def plan_warmup(config: WarmupRun, *, n_tokens: int | None = None) -> WarmupPlan:
    """Resolves a config: rule, budget, hash and folder. Builds the model only to count its tokens.

    Args:
        n_tokens: the model's patch count, where the caller knows it already.
    Raises: ConfigError, RuleError, ModelError: something in the config cannot be used.
    """
    warm = config.warmup
    choose_device(config.run)
    check_optimizer("warmup.opt", warm.opt)
    rule = make_rule(config.rule.name, **config.rule.params)
    facts = rule_config(rule)
    if n_tokens is None:
        n_tokens = warm.n_tokens or count_tokens(warm.model, warm.model_kwargs)
    budget = parse_budget(
        warm.budget,
        batch_size=warm.batch_size,
        n_tokens=n_tokens,
        base_images=warm.base_images,
        base_epochs=warm.base_epochs,
    )
    world = find_world(config.run)
    digest = config_hash(config, {"rule.name": facts["name"], "rule.params": json.dumps(facts)})
    return WarmupPlan(
        config=config,
        rule=rule,
        rule_facts=facts,
        digest=digest,
        budget=budget,
        ramp_steps=warm.ramp_steps or min(1000, budget.steps // 15),
        n_tokens=n_tokens,
        n_words=rule.fit_length(n_tokens),
        cut=cut_batch(warm.batch_size, warm.micro_batch_size, world, field="warmup"),
        world=world,
        hide_share=warm.hide_share,
    )


def count_tokens(model: str, model_kwargs: dict[str, Any]) -> int:
    """Returns the patch count of a timm model, without allocating its weights."""
    rows, columns = patch_grid(build_shapes(model, **model_kwargs))
    return rows * columns


def warmup_folder(config: WarmupRun) -> Path:
    """Returns the run folder that this config has, or will have."""
    return plan_warmup(config).folder


def make_token_model(config: WarmupRun) -> TokenModel:
    """Builds the timm model of a config with its token embedding in the patch embedding's place."""
    warm = config.warmup
    rule = make_rule(config.rule.name, **config.rule.params)
    model = build_model(warm.model, seed=config.seed, **warm.model_kwargs)
    return TokenModel(
        model,
        n_ids=rule.n_ids + 1,  # the mask has an id of its own, the head has no class for it
        n_tokens=warm.n_tokens,
        seed=config.seed,
        token_scale=warm.token_scale,
        position_scale=warm.position_scale,
    )


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
        pin_memory=choose_device(plan.config.run).type == "cuda",
    )

"""Masked-token training of the trunk on a rule (Lightning).

    config ─► plan ─► sequences, generated ahead on a thread ─► TokenModel ─► hidden tokens only ─►
    trunk.safetensors + record.json

Source: arXiv 2511.13945, Table 9, and its authors' code: AdamW 2e-3, weight decay 0.05 on all
trainables, linear ramp then cosine to 1e-6, batch 256, half of the closing tokens hidden.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from vitwarm.callbacks import (
    Checkpoint,
    Metrics,
    StopRequest,
    TimedCheckpoint,
    WaitMeter,
    load_checkpoint,
)
from vitwarm.config import WarmupRun, config_hash, to_plain
from vitwarm.errors import VitwarmError
from vitwarm.loop import (
    Cut,
    SteppedModule,
    World,
    choose_device,
    compile_blocks,
    cosine_lr,
    cut_batch,
    find_world,
    make_trainer,
)
from vitwarm.masking import IGNORE, make_batch
from vitwarm.records import Record, RunFolder, code_version, open_run, read_metrics
from vitwarm.rules import Rule, make_rule, rule_config
from vitwarm.seeding import seed_of
from vitwarm.sequences import SequenceLoader, WarmupBatch, pack
from vitwarm.trunk import (
    TokenModel,
    build_model,
    build_shapes,
    load_trunk,
    patch_grid,
    save_trunk,
)
from vitwarm.units import Budget, format_seconds, parse_budget
from vitwarm.verdict import SATURATED_PERCENT, Verdict, describe, find_saturation, judge

#: Optimisers of torch that have a fused implementation.
FUSED = {"adam", "adamw", "sgd", "momentum", "nesterov", "adagrad"}

#: An estimate above this on a CPU names the quickstart.
LONG_SECONDS = 2 * 3600.0


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
    hide_share: float

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
        hide_share=warm.hide_share or rule.hide_share,
    )


def count_tokens(model: str, model_kwargs: dict[str, Any]) -> int:
    """Returns the patch count of a timm model, without allocating its weights."""
    rows, columns = patch_grid(build_shapes(model, **model_kwargs))
    return rows * columns


def warmup_folder(config: WarmupRun) -> Path:
    """Returns the run folder that this config has, or will have."""
    return plan_warmup(config).folder


class HiddenLoss(NamedTuple):
    """Sums over the hidden tokens of a micro-batch."""

    loss: Tensor
    """Cross-entropy in nats, summed."""
    correct: Tensor
    n_hidden: Tensor


def hidden_loss(logits_KV: Tensor, targets_K: Tensor) -> HiddenLoss:
    """Sums cross-entropy and hits over hidden tokens.

    Args:
        logits_KV: one row per hidden token, padded rows included.
        targets_K: int64 ids, IGNORE in padded rows.
    """
    loss = nn.functional.cross_entropy(
        logits_KV.float(), targets_K, ignore_index=IGNORE, reduction="sum"
    )
    with torch.no_grad():
        correct = (logits_KV.argmax(dim=-1) == targets_K).sum()
        n_hidden = (targets_K != IGNORE).sum()
    return HiddenLoss(loss, correct, n_hidden)


class WarmupModule(SteppedModule):
    """TokenModel and a linear head, with logits only where a token is hidden."""

    def __init__(
        self,
        tokens: TokenModel,
        *,
        n_ids: int,
        n_steps: int,
        ramp_steps: int,
        accumulate: int,
        world_size: int = 1,
        rank: int = 0,
        opt: str = "adamw",
        lr: float = 2e-3,
        min_lr: float = 1e-6,
        warmup_lr: float = 1e-7,
        weight_decay: float = 0.05,
        clip_grad: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            n_steps=n_steps, accumulate=accumulate, clip_grad=clip_grad, seed=seed, rank=rank
        )
        self.tokens = tokens
        self.head = nn.Linear(tokens.width, n_ids)
        generator = torch.Generator().manual_seed(seed_of(seed, "warmup head"))
        with torch.no_grad():
            nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.head.bias)
        self.ramp_steps = ramp_steps
        self.world_size = world_size
        self.opt = opt
        self.peak, self.end, self.begin = lr, min_lr, warmup_lr
        self.weight_decay = weight_decay
        self.compiled = False
        self.seconds_before = 0.0
        self._started: float | None = None
        self._meters: Tensor | None = None

    def forward(self, input_ids_BT: Tensor, hidden_K: Tensor) -> Tensor:
        """Returns logits [K, n_ids] of the tokens at the flat positions `hidden_K`."""
        x_BTD = self.tokens(input_ids_BT)
        logits_KV: Tensor = self.head(x_BTD.flatten(0, 1)[hidden_K])
        return logits_KV

    def training_step(self, batch: WarmupBatch, batch_idx: int) -> Tensor:
        sums = hidden_loss(self(batch.input_ids, batch.hidden), batch.targets)
        part = torch.stack([sums.loss.detach(), sums.correct.float(), sums.n_hidden.float()])
        self._meters = part if self._meters is None else self._meters + part
        # Lightning divides by the accumulation and DDP by the processes; what is left is the mean
        # over the hidden tokens of the whole batch, wherever they were computed.
        return sums.loss * (self.accumulate * self.world_size / batch.n_hidden)

    def make_optimizer(self) -> Optimizer:
        # A list, not the module: the published recipe decays biases and norms too.
        parameters = [p for p in self.parameters() if p.requires_grad]
        extra: dict[str, Any] = {"fused": True} if self.opt in FUSED else {}
        return create_optimizer_v2(
            parameters, opt=self.opt, lr=self.peak, weight_decay=self.weight_decay, **extra
        )

    def lr_at(self, step: int) -> float:
        return cosine_lr(
            step,
            n_steps=self.n_steps,
            ramp=self.ramp_steps,
            start=self.begin,
            peak=self.peak,
            end=self.end,
        )

    def read_meters(self) -> dict[str, float]:
        if self._meters is None:
            return {}
        sums = self._meters
        if self.world_size > 1:
            torch.distributed.all_reduce(sums)
        loss, correct, count = sums.tolist()
        self._meters = None
        count = max(count, 1.0)
        return {"loss": loss / count, "hidden_accuracy_percent": 100 * correct / count}

    def checkpoint_facts(self) -> dict[str, Any]:
        return {"compiled": self.compiled, "seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumptions."""
        began = self._started
        return self.seconds_before + (0.0 if began is None else time.monotonic() - began)

    def on_train_start(self) -> None:
        self._started = time.monotonic()

    def describe_batch(self, step: int) -> str:
        return f"sequences of seed {self.seed} at step {step:,}"


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
    say = _speaker(config, plan.world)
    root = config.run.root
    with open_run(
        root, config.name, config, plan.digest, fresh=fresh, writer=plan.world.is_zero
    ) as run:
        record = run.record
        if record is not None and record.status == "finished":
            say(f"{run.path} is finished already; --fresh runs it again.")
            return record
        say(str(plan))
        try:
            return _train(plan, tokens, run, say)
        except VitwarmError as error:
            if plan.world.is_zero and error.exit_code == 1:
                run.write_failure(error)
            raise


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


def make_module(plan: WarmupPlan, tokens: TokenModel) -> WarmupModule:
    """Wires a plan's numbers into the module that Lightning trains."""
    warm = plan.config.warmup
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


def _train(
    plan: WarmupPlan, tokens: TokenModel, run: RunFolder, say: Callable[[str], None]
) -> Record:
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

    saver = TimedCheckpoint(run, plan.digest, minutes=warm.checkpoint_minutes)
    metrics = Metrics(
        run,
        loader,
        every_steps=config.run.log_every_steps,
        progress=config.run.progress,
        label="warm-up",
        samples_per_step=warm.batch_size,
        unit="sequences",
    )
    callbacks: list[Callback] = [metrics, Estimate(say), saver]
    callbacks.append(
        StopRequest(saver, time_limit_minutes=config.run.time_limit_minutes, on_stop=leave_trunk)
    )
    if warm.until == "saturated":
        callbacks.insert(1, StopWhenSaturated(metrics, run))
    trainer = make_trainer(
        config.run, precision=warm.precision, accumulate=plan.cut.accumulate, callbacks=callbacks
    )
    if module.start_step < plan.budget.steps:
        trainer.fit(module, loader)
        module.check_finite()
    if not plan.world.is_zero:
        return _record(plan, run, module, {}, loader, "")
    saver.save(module) if trainer.optimizers else None
    facts = evaluate(module, plan, device=choose_device(config.run))
    metadata = _trunk_metadata(plan, tokens, steps=module.steps_done, status="finished", **facts)
    trunk = save_trunk(run.path / "trunk.safetensors", tokens, metadata)
    sha = load_trunk(trunk).sha256
    record = _record(plan, run, module, facts, loader, sha)
    run.write_record(record)
    say(describe(record))
    say(f"trunk     {trunk}")
    return record


def _restore(
    module: WarmupModule, checkpoint: Checkpoint | None, say: Callable[[str], None]
) -> None:
    module.restore(checkpoint)
    if checkpoint is not None:
        module.seconds_before = float(checkpoint.facts["seconds"])
        say(f"resuming after step {checkpoint.step:,} of {module.n_steps:,} ({checkpoint.path})")


def _shall_compile(config: WarmupRun, checkpoint: Checkpoint | None) -> bool:
    """What the first start chose is kept on resume: compiled kernels round differently."""
    if checkpoint is not None:
        return bool(checkpoint.facts["compiled"])
    wanted = config.warmup.compile
    return wanted == "on" or (wanted == "auto" and choose_device(config.run).type == "cuda")


@torch.no_grad()
def evaluate(module: WarmupModule, plan: WarmupPlan, *, device: torch.device) -> dict[str, Any]:
    """Measures loss and accuracy on hidden tokens of sequences that no training step has seen.

    Returns: `hidden_accuracy_percent`, `hidden_loss` in nats per hidden token, and
        `chance_percent`: the accuracy of always answering the most frequent hidden id.
    """
    warm = plan.config.warmup
    module.to(device).eval()
    counts = np.zeros(plan.rule.n_ids, dtype=np.int64)
    loss = correct = 0.0
    size = min(plan.cut.micro_batch_size, warm.eval_sequences)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=warm.precision == "bf16"):
        for start in range(0, warm.eval_sequences, size):
            batch = make_batch(
                plan.rule,
                seed=seed_of(plan.config.seed, "held-out"),
                start=start,
                n_sequences=min(size, warm.eval_sequences - start),
                n_tokens=plan.n_tokens,
                hide_share=plan.hide_share,
            )
            targets = batch.target_ids[batch.target_ids != IGNORE].astype(np.int64)
            counts += np.bincount(targets, minlength=plan.rule.n_ids)
            packed = pack(
                batch.input_ids, batch.target_ids, n_hidden=len(targets), places=len(targets)
            )
            inputs, hidden, wanted, _ = (tensor.to(device) for tensor in packed)
            sums = hidden_loss(module(inputs, hidden), wanted)
            loss += float(sums.loss)
            correct += float(sums.correct)
    n_hidden = max(int(counts.sum()), 1)
    return {
        "hidden_accuracy_percent": 100 * correct / n_hidden,
        "hidden_loss": loss / n_hidden,
        "chance_percent": 100 * float(counts.max()) / n_hidden,
    }


def _record(
    plan: WarmupPlan,
    run: RunFolder,
    module: WarmupModule,
    facts: dict[str, Any],
    loader: WaitMeter,
    trunk_sha256: str,
) -> Record:
    config = plan.config
    saturated = find_saturation(run) if facts else None
    verdict: Verdict | None = None
    if facts:
        verdict = judge(
            accuracy_percent=facts["hidden_accuracy_percent"],
            chance_percent=facts["chance_percent"],
            saturated_at=saturated,
            n_steps=module.steps_done,
        )
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
        saturated_at_step=saturated,
        verdict=verdict,
        extra={
            "sequences_per_second": samples / max(module.seconds, 1e-9),
            "hide_share": plan.hide_share,
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
        "hide_share": plan.hide_share,
        "code_version": code_version(),
        "config_hash": plan.digest,
        **tokens.facts,
        **facts,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in plain.items()
    }


class Estimate(Callback):
    """Says once, after ten seconds, how long the run will take on this machine."""

    def __init__(self, say: Callable[[str], None], *, after_seconds: float = 10.0) -> None:
        self.say = say
        self.after_seconds = after_seconds
        self.began: float | None = None
        self.began_step = 0
        self.said = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.said or not pl_module.at_step_end(batch_idx):
            return
        now, step = time.monotonic(), pl_module.steps_done
        if self.began is None:  # the first step holds compilation and warm caches
            self.began, self.began_step = now, step
        elif now - self.began >= self.after_seconds:
            self.said = True
            rate = (step - self.began_step) / (now - self.began)
            left = (pl_module.n_steps - step) / rate
            self.say(f"estimate  {format_seconds(left)} to the end ({rate:.2f} steps/s)")
            if left > LONG_SECONDS and pl_module.device.type == "cpu":
                self.say(
                    "          This is a long run for a CPU. It can be stopped and resumed at any "
                    "time;\n          python scripts/quickstart.py shows every stage in minutes."
                )


class StopWhenSaturated(Callback):
    """Ends the training at the second log line in a row above 99 % on hidden tokens."""

    def __init__(self, metrics: Metrics, run: RunFolder) -> None:
        self.metrics = metrics
        self.run = run

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.at_step_end(batch_idx) or self.metrics.marked_step != pl_module.steps_done:
            return
        # From the file, not from memory: a resumed run must stop where an uninterrupted one does.
        lines = [line for line in read_metrics(self.run.path) if line["kind"] == "train"][-2:]
        solved = [line.get("hidden_accuracy_percent") or 0.0 for line in lines]
        if len(solved) == 2 and min(solved) >= SATURATED_PERCENT:
            trainer.should_stop = True


def _speaker(config: WarmupRun, world: World) -> Callable[[str], None]:
    def say(text: str) -> None:
        if world.is_zero and config.run.progress:
            print(text, flush=True)

    return say

"""Running a plan: fit, evaluate, export, record."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf

from vitwarm.augment import Targets
from vitwarm.callbacks import (
    Checkpoint,
    Metrics,
    StopRequest,
    TimedCheckpoint,
    WaitMeter,
    load_checkpoint,
)
from vitwarm.config import TrainRun, to_plain
from vitwarm.files import write_text
from vitwarm.handoff import Audit, export_model
from vitwarm.loop import (
    Say,
    World,
    choose_device,
    compile_blocks,
    make_speaker,
    make_trainer,
    run_once,
)
from vitwarm.records import Record, RunFolder, code_version, read_metrics
from vitwarm.training.data import Pictures
from vitwarm.training.evaluate import Evaluation, evaluate_module
from vitwarm.training.losses import image_loss
from vitwarm.training.module import ImageModule, freeze
from vitwarm.training.plan import TrainPlan, make_model, plan_training
from vitwarm.units import format_seconds

#: Above this share of the time spent waiting for images, a run is called input-bound.
INPUT_BOUND_SHARE = 0.1

#: Images after which too many unreadable ones stop a run (or all images, where there are fewer).
ENOUGH_IMAGES = 10_000


def run_training(config: TrainRun, *, fresh: bool = False) -> Record:
    """Trains an image model and leaves `export/` and `record.json` in the run folder.

    A finished run is returned as it is; an interrupted one goes on from its last checkpoint.

    Args:
        fresh: throw away what an earlier execution left, and start anew.
    Returns: the run's record.
    Raises: VitwarmError: see the subclasses; Stopped after a signal or the time limit, saved.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    plan = plan_training(config)
    say = make_speaker(config.run, plan.world)
    return run_once(
        config, plan.digest, plan.world, fresh=fresh, say=say, plan=str(plan),
        work=lambda run: _train(plan, run, say),
    )  # fmt: skip


def show_plan(config: TrainRun) -> str:
    """Returns the resolved config, the plan, and the time it would take, from a few passes."""
    plan = plan_training(config)
    vit, audit = make_model(plan)
    freeze(vit, config.train.freeze)
    device = choose_device(config.run)
    seconds = plan.n_steps * _time_step(plan, vit.to(device), device)
    return (
        f"{OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))}\n{plan}\n"
        f"hand-off  {audit.summary()}\n"
        f"estimate  {format_seconds(seconds)} on this machine's {device.type}, from three passes "
        "without compilation and data"
    )


def make_module(plan: TrainPlan, vit: torch.nn.Module) -> ImageModule:
    """Wires a plan's numbers into the module that Lightning trains."""
    train = plan.config.train
    return ImageModule(
        vit,
        n_steps=plan.n_steps,
        ramp_steps=plan.ramp_steps,
        accumulate=plan.cut.accumulate,
        world_size=plan.world.size,
        rank=plan.world.rank,
        opt=train.opt,
        opt_betas=train.opt_betas,
        momentum=train.momentum,
        lr=train.lr,
        min_lr=train.min_lr,
        warmup_lr=train.warmup_lr,
        weight_decay=train.weight_decay,
        layer_decay=train.layer_decay,
        clip_grad=train.clip_grad,
        smoothing=train.smoothing,
        bce=train.bce_loss,
        ema_decay=train.model_ema_decay if train.model_ema else None,
        seed=plan.config.seed,
        describe=lambda step: describe_images(plan, step),
    )


def describe_images(plan: TrainPlan, step: int) -> str:
    """Names the images of a step: rows of the index and the first few keys."""
    size = plan.cut.batch_size
    _, rows = plan.order.rows_at(np.arange(step * size, (step + 1) * size))
    text = f"rows {', '.join(map(str, rows[:8]))}, ... of data.train"
    if plan.train.streaming:
        return text
    return f"{text}, keys {', '.join(plan.train.keys[int(row)] for row in rows[:3])}, ..."


def _train(plan: TrainPlan, run: RunFolder, say: Say) -> Record:
    config, train = plan.config, plan.config.train
    vit, audit = make_model(plan)
    freeze(vit, train.freeze)
    say(f"hand-off  {audit.summary()}")
    module = make_module(plan, vit)
    checkpoint = load_checkpoint(run, plan.digest)
    module.restore(checkpoint)
    if checkpoint is not None:
        say(f"resuming after step {checkpoint.step:,} of {plan.n_steps:,} ({checkpoint.path})")
    if plan.world.is_zero:
        _describe(plan, run, audit)
    module.compiled = _shall_compile(config, checkpoint)
    if module.compiled:
        compile_blocks(vit)
    pictures = Pictures(plan)
    try:
        return _fit(plan, module, pictures, run, say)
    finally:
        pictures.close()


def _fit(
    plan: TrainPlan, module: ImageModule, pictures: Pictures, run: RunFolder, say: Say
) -> Record:
    config, train = plan.config, plan.config.train
    feed, waits = pictures.feed(start_step=module.start_step)
    saver = TimedCheckpoint(run, plan.digest, minutes=train.checkpoint_minutes)
    stop = StopRequest(saver, time_limit_minutes=config.run.time_limit_minutes)
    validation = pictures.validation(plan.world)
    evaluation = Evaluation(
        validation,
        plan.eval_steps,
        run=run,
        stop=stop,
        bf16=train.precision == "bf16",
        images_per_step=plan.cut.batch_size,
        say=say,
    )
    metrics = Metrics(
        run,
        waits,
        every_steps=config.run.log_every_steps,
        progress=config.run.progress,
        label="training",
        samples_per_step=plan.cut.batch_size,
        unit="images",
    )
    watch = Watch(plan, waits, say)
    callbacks: list[Callback] = [metrics, watch, evaluation, saver, stop]
    trainer = make_trainer(
        config.run, precision=train.precision, accumulate=plan.cut.accumulate, callbacks=callbacks
    )
    if module.start_step < plan.n_steps:
        trainer.fit(module, feed)
        module.check_finite()
        module.check_unreadable(plan.n_steps * plan.cut.batch_size)
    if plan.world.is_zero:
        if trainer.optimizers:
            saver.save(module)
        if module.evaluation.get("step") != plan.n_steps:
            _evaluate_late(plan, module, pictures, run)
        _export(plan, module, run)
    record = _record(plan, run, module, waits)
    if plan.world.is_zero:
        run.write_record(record)
        say(_describe_record(record, run))
    return record


def _describe(plan: TrainPlan, run: RunFolder, audit: Audit) -> None:
    """Writes where every tensor comes from, and which images are in the fraction."""
    run.write_json("audit.json", audit.to_json())
    data = plan.config.data
    run.write_json(
        "subset.json",
        {
            "fraction": None if data.image_list else data.fraction,
            "image_list": data.image_list,
            "n_images": plan.n_images,
            "of": plan.train.n_images,
            "sha256": plan.subset.sha256,
            "per_class": plan.subset.per_class.tolist(),
            "keys": "subset.txt" if plan.n_images < plan.train.n_images else "all",
        },
    )
    if plan.n_images < plan.train.n_images:
        keys = (plan.train.keys[int(row)] for row in plan.subset.rows)
        write_text(run.path / "subset.txt", "".join(f"{key}\n" for key in keys))


def _shall_compile(config: TrainRun, checkpoint: Checkpoint | None) -> bool:
    """What the first start chose is kept on resume: compiled kernels round differently."""
    if checkpoint is not None:
        return bool(checkpoint.facts["compiled"])
    wanted = config.train.compile
    return wanted == "on" or (wanted == "auto" and choose_device(config.run).type == "cuda")


def _evaluate_late(
    plan: TrainPlan, module: ImageModule, pictures: Pictures, run: RunFolder
) -> None:
    """Makes up for a last evaluation that was cut short; one process does it alone."""
    module.to(choose_device(plan.config.run))
    if module.ema_vit is None:
        module.make_ema()
    found = evaluate_module(
        module,
        pictures.validation(World(rank=0, size=1)),
        device=module.device,
        bf16=plan.config.train.precision == "bf16",
    )
    module.evaluation = {"step": plan.n_steps, **found}
    seen = plan.n_steps * plan.cut.batch_size
    run.append_metrics(kind="eval", step=plan.n_steps, images_seen=seen, **found)


def _export(plan: TrainPlan, module: ImageModule, run: RunFolder) -> None:
    """Writes the trained model as a timm folder: the last weights, and their average."""
    train = plan.config.train
    facts: dict[str, Any] = {
        "mean": train.mean,
        "std": train.std,
        "crop_pct": train.crop_pct,
        "interpolation": train.interpolation,
        "input_size": (3, plan.img_size, plan.img_size),
        "description": f"{train.model} trained with vitwarm from {plan.arm!r}.",
        "arm": plan.arm,
        "seed": plan.config.seed,
        "config_hash": plan.digest,
        "code_version": code_version(),
        "n_train_images": plan.n_images,
        "subset_sha256": plan.subset.sha256,
        "trunk_sha256": plan.trunk.sha256 if plan.trunk else None,
        "evaluation": module.evaluation,
    }
    export_model(module.vit, run.path / "export", facts={**facts, "weights": "raw"})
    if module.ema_vit is not None:
        export_model(module.ema_vit, run.path / "export_ema", facts={**facts, "weights": "ema"})


def _record(plan: TrainPlan, run: RunFolder, module: ImageModule, waits: WaitMeter) -> Record:
    config, found = plan.config, module.evaluation
    lines = read_metrics(run.path)
    evaluations = [line["top1_percent"] for line in lines if line["kind"] == "eval"]
    losses = [line.get("loss") for line in lines if line["kind"] == "train"]
    waits.take()
    spent = module.seconds - module.seconds_before
    seen = plan.n_steps * plan.cut.batch_size
    return Record(
        stage="train",
        name=config.name,
        seed=config.seed,
        config_hash=plan.digest,
        code_version=code_version(),
        arm=plan.arm,
        pair=plan.pair,
        match=config.match,
        model=config.train.model,
        steps=plan.n_steps,
        epochs=plan.epochs,
        wall_seconds=module.seconds,
        images_per_second=seen / max(module.seconds, 1e-9),
        data_wait_percent=100 * waits.total / max(spent, 1e-9),
        fraction=None if config.data.image_list else config.data.fraction,
        n_train_images=plan.n_images,
        n_val_images=plan.val.n_images,
        n_classes=plan.n_classes,
        images_seen=seen,
        top1_percent=found["top1_percent"],
        top5_percent=found["top5_percent"],
        top1_weights="raw" if module.ema_decay is None else "ema",
        val_loss=found["val_loss"],
        train_loss=losses[-1] if losses else None,
        best_top1_percent=max([*evaluations, found["top1_percent"]]),
        unreadable_images=module.n_unreadable,
        subset_sha256=plan.subset.sha256,
        trunk_sha256=plan.trunk.sha256 if plan.trunk else None,
        **_warmup_facts(plan),
        extra={
            "compiled": module.compiled,
            "init": config.handoff.init,
            "scope": config.handoff.scope,
            "blocks": config.handoff.blocks,
            "img_size": plan.img_size,
            "unreadable_val_images": found.get("unreadable_val_images"),
            **{name: value for name, value in found.items() if name.startswith("raw_")},
        },
    )


def _warmup_facts(plan: TrainPlan) -> dict[str, Any]:
    """What a record says of the warm-up that made its trunk."""
    if plan.trunk is None:
        return {}
    facts = plan.trunk.facts
    rule = facts.get("rule")
    return {
        "rule": rule if isinstance(rule, dict) else None,
        "warmup_samples": facts.get("samples"),
        "warmup_tokens": facts.get("tokens"),
        "warmup_seed": facts.get("seed"),
        "hidden_accuracy_percent": facts.get("hidden_accuracy_percent"),
        "chance_percent": facts.get("chance_percent"),
        "order_blind_percent": facts.get("order_blind_percent"),
        "hidden_loss": facts.get("hidden_loss"),
        "saturated_at_step": facts.get("saturated_at_step"),
        "verdict": facts.get("verdict"),
    }


def _describe_record(record: Record, run: RunFolder) -> str:
    return (
        f"finished  {record.steps or 0:,} steps in {format_seconds(record.wall_seconds or 0)}, "
        f"{record.images_per_second or 0:,.0f} images/s\n"
        f"reached   top-1 {record.top1_percent or 0:.2f} %, top-5 {record.top5_percent or 0:.2f} % "
        f"of {record.n_val_images or 0:,} images ({record.top1_weights} weights, last step)\n"
        f"model     {run.path / 'export'}"
    )


def _time_step(plan: TrainPlan, vit: torch.nn.Module, device: torch.device) -> float:
    """Seconds per optimiser step: forward and backward of a few images, scaled to a batch."""
    few = max(8, 2**20 // (3 * plan.img_size**2)) if device.type == "cpu" else 256
    n_probe = min(few, plan.cut.micro_batch_size)
    images = torch.randn(n_probe, 3, plan.img_size, plan.img_size, device=device)
    labels = torch.zeros(n_probe, dtype=torch.int64, device=device)
    bf16 = plan.config.train.precision == "bf16"
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = vit(images)
        image_loss(logits, Targets(labels)).loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times) * plan.cut.batch_size / n_probe / plan.world.size


class Watch(Callback):
    """Says when training waits for images, and stops it when too many cannot be read."""

    def __init__(self, plan: TrainPlan, waits: WaitMeter, say: Say) -> None:
        self.waits = waits
        self.say = say
        self.every_steps = plan.config.run.log_every_steps
        self.images_per_step = plan.cut.batch_size
        self.enough_images = min(ENOUGH_IMAGES, plan.n_images)
        self.said = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = pl_module.steps_done
        if not pl_module.at_step_end(batch_idx) or step % self.every_steps:
            return
        seen = step * self.images_per_step
        if seen >= self.enough_images:
            pl_module.check_unreadable(seen)
        spent = pl_module.seconds - pl_module.seconds_before
        share = self.waits.total / max(spent, 1e-9)
        if not self.said and spent > 60 and share > INPUT_BOUND_SHARE:
            self.said = True
            self.say(
                f"input-bound: {share:.0%} of the time is spent waiting for images, "
                f"{self.waits.total / (step - pl_module.start_step):.3f} s a step. More "
                "loader processes (run.workers), faster storage, or smaller images would help."
            )

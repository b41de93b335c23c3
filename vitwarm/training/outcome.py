"""What a training leaves: its origin, exports, each with its own accuracy, and the record."""

from __future__ import annotations

from typing import Any, Literal

from vitwarm.files import write_text
from vitwarm.handoff import Audit, export_model
from vitwarm.loop.meters import WaitMeter
from vitwarm.loop.start import facts_of_run
from vitwarm.records import Record, RunFolder, code_version, read_metrics
from vitwarm.training.evaluate import figures_of
from vitwarm.training.module import ImageModule
from vitwarm.training.plan import TrainPlan
from vitwarm.units import format_seconds

#: Kind of weights -> the folder of the run that they are exported to.
EXPORTS: dict[Literal["raw", "ema"], str] = {"raw": "export", "ema": "export_ema"}

#: What a record says of the warm-up as the trunk's metadata do, in the same words.
_OF_THE_WARMUP = (
    "hidden_accuracy_percent", "chance_percent", "order_blind_percent", "hidden_loss",
    "saturated_at_step", "verdict",
)  # fmt: skip


def write_origin(plan: TrainPlan, run: RunFolder, audit: Audit) -> None:
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


def write_exports(plan: TrainPlan, module: ImageModule, run: RunFolder) -> None:
    """Writes the trained model as timm folders, each with its own accuracy: the last weights, and
    their average.
    """
    train = plan.config.train
    facts: dict[str, Any] = {
        "mean": plan.mean,
        "std": plan.std,
        "crop_pct": train.crop_pct,
        "interpolation": train.interpolation,
        "crop_mode": "center",
        "input_size": (plan.in_chans, *plan.img_size),
        "description": f"{train.model} trained with vitwarm from {plan.arm!r}.",
        "arm": plan.arm,
        "seed": plan.config.seed,
        "config_hash": plan.digest,
        "code_version": code_version(),
        "n_train_images": plan.n_images,
        "subset_sha256": plan.subset.sha256,
        "trunk_sha256": plan.trunk.sha256 if plan.trunk else None,
    }
    for weights, folder in EXPORTS.items():
        vit = module.vit if weights == "raw" else module.ema_vit
        if vit is not None:
            found = figures_of(module.evaluation, weights)
            about = {"n_val_images": plan.val.n_images, "precision": plan.numbers.precision}
            own = {"weights": weights, "evaluation": {**found, **about}}
            export_model(vit, run.path / folder, facts={**facts, **own})


def make_record(plan: TrainPlan, run: RunFolder, module: ImageModule, waits: WaitMeter) -> Record:
    """Returns the facts of a finished run; top-1 is the average's where one is kept.

    Processes other than zero have no figures where an evaluation that was cut short is made up for.
    """
    config, found = plan.config, module.evaluation
    lines = read_metrics(run.path)
    evaluations = [line["top1_percent"] for line in lines if line["kind"] == "eval"]
    evaluations += [found["top1_percent"]] if found else []
    losses = [line.get("loss") for line in lines if line["kind"] == "train"]
    seen = plan.n_steps * plan.cut.batch_size
    warmed: dict[str, Any] = plan.trunk.facts if plan.trunk else {}
    rule = warmed.get("rule")
    taken: dict[str, Any] = {name: warmed.get(name) for name in _OF_THE_WARMUP}
    taken |= {f"warmup_{name}": warmed.get(name) for name in ("samples", "tokens", "seed")}
    taken["rule"] = rule if isinstance(rule, dict) else None
    return Record(
        stage="train",
        **facts_of_run(plan, module, waits),
        arm=plan.arm,
        pair=plan.pair,
        match=config.match,
        epochs=plan.epochs,
        images_per_second=seen / max(module.seconds, 1e-9),
        fraction=None if config.data.image_list else config.data.fraction,
        n_train_images=plan.n_images,
        n_val_images=plan.val.n_images,
        n_classes=plan.n_classes,
        images_seen=seen,
        top1_percent=found.get("top1_percent"),
        top5_percent=found.get("top5_percent"),
        top1_weights="raw" if module.how.ema_decay is None else "ema",
        val_loss=found.get("val_loss"),
        train_loss=losses[-1] if losses else None,
        best_top1_percent=max(evaluations, default=None),
        unreadable_images=module.n_unreadable,
        subset_sha256=plan.subset.sha256,
        trunk_sha256=plan.trunk.sha256 if plan.trunk else None,
        **taken,
        extra={
            "compiled": module.compiled,
            "grad_checkpointing": config.train.grad_checkpointing,
            "precision": plan.numbers.precision,
            "init": config.handoff.init,
            "scope": config.handoff.scope,
            "blocks": config.handoff.blocks,
            "img_size": plan.img_size[0] if len(set(plan.img_size)) == 1 else plan.img_size,
            "unreadable_val_images": found.get("unreadable_val_images"),
            **{name: value for name, value in found.items() if name.startswith("raw_")},
        },
    )


def describe_record(record: Record, run: RunFolder) -> str:
    """Returns the last words to the user: what was reached, and each export with its own top-1."""
    kinds: list[Literal["raw", "ema"]] = ["ema", "raw"] if record.top1_weights == "ema" else ["raw"]
    found = {"top1_percent": record.top1_percent or 0, **record.extra}
    exports = [
        f"{run.path / EXPORTS[weights]} ({weights} weights, "
        f"top-1 {figures_of(found, weights)['top1_percent']:.2f} %)"
        for weights in kinds
    ]
    return (
        f"finished  {record.steps or 0:,} steps in {format_seconds(record.wall_seconds or 0)}, "
        f"{record.images_per_second or 0:,.0f} images/s\n"
        f"reached   top-1 {record.top1_percent or 0:.2f} %, top-5 {record.top5_percent or 0:.2f} % "
        f"of {record.n_val_images or 0:,} images ({record.top1_weights} weights, last step)\n"
        f"model     {', '.join(exports)}"
    )

"""Running a plan: fit, evaluate, export, record."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from vitwarm.augment import Targets
from vitwarm.config import TrainRun
from vitwarm.files import write_text
from vitwarm.handoff import Audit
from vitwarm.loggers import mirrored
from vitwarm.loop.meters import WaitMeter
from vitwarm.loop.module import StepCallback
from vitwarm.loop.start import Fit, Say, find_checkpoint, run_once, show, take_up, time_step
from vitwarm.records import Record, RunFolder
from vitwarm.training.data import Pictures
from vitwarm.training.evaluate import Evaluation
from vitwarm.training.module import ImageModule, ImageUpdates, freeze, image_loss
from vitwarm.training.outcome import describe_record, make_record, write_exports
from vitwarm.training.plan import TrainPlan, make_model, plan_training
from vitwarm.world import World

#: Above this share of the time spent waiting for images, a run is called input-bound.
INPUT_BOUND_SHARE = 0.1

#: Images after which too many unreadable ones stop a run (or all images, where there are fewer).
ENOUGH_IMAGES = 10_000


def run_training(config: TrainRun, *, fresh: bool = False) -> Record:
    """Trains an image model and leaves `export/` and `record.json` in the run folder.

    A finished run is returned as it is; an interrupted one goes on from its last checkpoint, unless
    `fresh` throws away what an earlier execution left.

    Raises: VitwarmError: see the subclasses; Stopped after a signal or the time limit, saved.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    plan = plan_training(config)
    return run_once(plan, lambda run, say: _train(plan, run, say), fresh=fresh)


def show_plan(config: TrainRun) -> str:
    """Returns the resolved config, the plan, and the time it would take, from a few passes."""
    plan = plan_training(config)
    vit, audit = make_model(plan)
    freeze(vit, config.train.freeze)
    vit, device, sides = vit.to(plan.device), plan.device, plan.img_size
    few = max(8, 2**20 // (3 * math.prod(sides))) if device.type == "cpu" else 256
    n_probe = min(few, plan.cut.micro_batch_size)
    images = torch.randn(n_probe, plan.in_chans, *sides, device=device)
    targets = Targets(torch.zeros(n_probe, dtype=torch.int64, device=device))
    seconds = time_step(plan, lambda: image_loss(vit(images), targets).loss, n_samples=n_probe)
    facts = f"hand-off  {audit.summary()}"
    return show(plan, facts, step_seconds=seconds, without="compilation and data")


def make_module(plan: TrainPlan, vit: torch.nn.Module) -> ImageModule:
    """Wires a plan's numbers into the module that Lightning trains."""
    train = plan.config.train
    updates = ImageUpdates(
        opt=train.opt,
        opt_betas=train.opt_betas,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        layer_decay=train.layer_decay,
        clip_grad=train.clip_grad,
        smoothing=train.smoothing,
        bce=train.bce_loss,
        ema_decay=train.model_ema_decay if train.model_ema else None,
        seed=plan.config.seed,
    )
    describe = partial(describe_images, plan)
    return ImageModule(vit, plan.schedule, plan.cut, plan.world, updates, describe=describe)


def describe_images(plan: TrainPlan, step: int) -> str:
    """Names the images of a step: rows of the index and the first few keys."""
    size = plan.cut.batch_size
    _, rows = plan.order.rows_at(np.arange(step * size, (step + 1) * size))
    text = f"rows {', '.join(map(str, rows[:8]))}, ... of data.train"
    if plan.train.streaming:
        return text
    return f"{text}, keys {', '.join(plan.train.keys[int(row)] for row in rows[:3])}, ..."


def _train(plan: TrainPlan, run: RunFolder, say: Say) -> Record:
    vit, audit = make_model(plan)
    freeze(vit, plan.config.train.freeze)
    say(f"hand-off  {audit.summary()}")
    plan, checkpoint = find_checkpoint(plan, run)
    module = make_module(plan, vit)
    take_up(module, vit, plan, checkpoint, say)
    writer, start = plan.world.is_zero, module.start_step
    if writer:
        _describe(plan, run, audit)
    with (
        closing(Pictures(plan)) as pictures,
        mirrored(run, plan.config, start_step=start, writer=writer),
    ):
        return _fit(plan, module, pictures, run, say)


def _fit(
    plan: TrainPlan, module: ImageModule, pictures: Pictures, run: RunFolder, say: Say
) -> Record:
    feed, waits = pictures.feed(start_step=module.start_step)
    fit = Fit(plan, run, waits, label="training", unit="images")
    evaluation = Evaluation(
        validation=pictures.validation(plan.world),
        steps=plan.eval_steps,
        run=run,
        stop=fit.stop,
        bf16=plan.numbers.bf16,
        images_per_step=plan.cut.batch_size,
        say=say,
    )
    if module.start_step < plan.n_steps:
        fit.run(module, feed, [Watch(plan, waits, say), evaluation])
        module.check_unreadable(plan.n_steps * plan.cut.batch_size)
        if plan.world.is_zero:
            fit.saver.save(module)
    else:
        module.make_ema()  # a start after the last step makes no optimiser, which would have
    if plan.world.is_zero:
        if module.evaluation.get("step") != plan.n_steps:  # cut short; one process does it alone
            module.to(plan.device)
            if module.ema_vit is not None:
                module.ema_vit.to(plan.device)  # no submodule of it
            evaluation.evaluate(module, pictures.validation(World(rank=0, size=1)))
        write_exports(plan, module, run)
    record = make_record(plan, run, module, waits)
    if plan.world.is_zero:
        run.write_record(record)
        say(describe_record(record, run))
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


@dataclass(eq=False)
class Watch(StepCallback):
    """Says when training waits for images, and stops it when too many cannot be read."""

    plan: TrainPlan
    waits: WaitMeter
    say: Say
    said = False

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        step, plan = module.steps_done, self.plan
        if step % plan.config.run.log_every_steps:
            return
        seen = step * plan.cut.batch_size
        if seen >= min(ENOUGH_IMAGES, plan.n_images):
            module.check_unreadable(seen)
        spent = module.seconds - module.seconds_before
        share = self.waits.total / max(spent, 1e-9)
        if not self.said and spent > 60 and share > INPUT_BOUND_SHARE:
            self.said = True
            self.say(
                f"input-bound: {share:.0%} of the time is spent waiting for images, "
                f"{self.waits.total / (step - module.start_step):.3f} s a step. More "
                "loader processes (run.workers), faster storage, or smaller images would help."
            )

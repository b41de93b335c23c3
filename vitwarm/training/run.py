"""Running a plan: fit, evaluate, export, record."""

from __future__ import annotations

import math
from contextlib import closing

import torch

from vitwarm.augment import Targets
from vitwarm.config import TrainRun
from vitwarm.loggers import mirrored
from vitwarm.loop.start import Fit, Say, find_checkpoint, run_once, show, take_up, time_step
from vitwarm.records import Record, RunFolder
from vitwarm.training.data import Pictures, Watch
from vitwarm.training.evaluate import Evaluation
from vitwarm.training.module import ImageModule, freeze, image_loss
from vitwarm.training.outcome import describe_record, make_record, write_exports, write_origin
from vitwarm.training.plan import TrainPlan, make_model, make_module, plan_training
from vitwarm.world import World


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


def _train(plan: TrainPlan, run: RunFolder, say: Say) -> Record:
    vit, audit = make_model(plan)
    freeze(vit, plan.config.train.freeze)
    say(f"hand-off  {audit.summary()}")
    plan, checkpoint = find_checkpoint(plan, run)
    module = make_module(plan, vit)
    take_up(module, vit, plan, checkpoint, say)
    writer, start = plan.world.is_zero, module.start_step
    if writer:
        write_origin(plan, run, audit)
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
    is_cut_short = module.evaluation.get("step") != plan.n_steps  # one process does it alone
    if is_cut_short and not plan.world.is_zero:
        module.evaluation = {}  # what a checkpoint says is of an earlier step
    if plan.world.is_zero:
        if is_cut_short:
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

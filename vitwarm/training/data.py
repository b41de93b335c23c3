"""Which way the images come, through a loader or resident on the device, and whether in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vitwarm.augment import Augmentation, Mixing
from vitwarm.errors import ShardError
from vitwarm.loop.meters import WaitMeter
from vitwarm.loop.module import StepCallback
from vitwarm.loop.start import Say
from vitwarm.shards import (
    EvalCrop,
    EvalLoader,
    TrainCrop,
    TrainLoader,
    first_size,
    make_train_loader,
    make_val_loader,
)
from vitwarm.training.evaluate import Validation
from vitwarm.training.module import TrainBatch
from vitwarm.training.plan import TrainPlan
from vitwarm.training.resident import ResidentBatches, ResidentFeed, ResidentImages, decoded, here
from vitwarm.world import World

#: `data.resident: auto` keeps images on the device up to this side and these bytes.
RESIDENT_SIDE = 64
RESIDENT_BYTES = 2 << 30

#: Above this share of the time spent waiting for images, a run is called input-bound.
INPUT_BOUND_SHARE = 0.1

#: Images after which too many unreadable ones stop a run (or all images, where there are fewer).
ENOUGH_IMAGES = 10_000


class Pictures:
    """The images of one run: where they come from and how they are fed."""

    def __init__(self, plan: TrainPlan) -> None:
        """Decides between the two ways, and decodes the images of a resident set.

        Raises: ShardError: images that cannot be read, or `data.resident=on` with several sizes.
        """
        self.plan = plan
        self._train = self._val = None
        self._loaders: list[TrainLoader | EvalLoader] = []
        if wants_resident(plan):
            try:
                self._train = decoded(plan.train, plan.subset.rows)
                self._val = decoded(plan.val, np.arange(plan.val.n_images))
            except ShardError:
                if plan.config.data.resident == "on":
                    raise
                self._train = self._val = None  # of several sizes: the loader does without

    def close(self) -> None:
        """Ends the loaders' worker processes, which would outlive the run."""
        for loader in self._loaders:
            iterator = getattr(loader.loader, "_iterator", None)
            if iterator is not None:
                iterator._shutdown_workers()
        self._loaders.clear()

    def feed(self, *, start_step: int) -> tuple[LoaderFeed | ResidentFeed, WaitMeter]:
        """Returns what the model is fed from a step on, and a meter of the waiting for it."""
        plan, cut = self.plan, self.plan.cut
        train, seed, augment = plan.config.train, plan.config.seed, make_augmentation(plan)
        crop = TrainCrop(
            size=plan.img_size,
            scale=(train.scale[0], train.scale[1]),
            ratio=(train.ratio[0], train.ratio[1]),
            hflip=train.hflip,
            interpolation=train.interpolation,
            mode=train.train_crop,
        )
        same: Any = {"crop": crop, "seed": seed, "start_step": start_step, "n_steps": plan.n_steps}
        if self._train is not None:
            feed = ResidentFeed(
                ResidentImages(self._train.images, self._train.labels, plan.subset.rows),
                plan.order,
                augment=augment,
                cut=cut,
                world=plan.world,
                device=plan.device,
                unreadable=self._train.unreadable,
                **same,
            )
            return feed, WaitMeter(())  # nothing to wait for
        loader = make_train_loader(
            plan.train,
            plan.order,
            batch_size=cut.batch_size,
            micro_batch_size=cut.micro_batch_size,
            **same,
            **self._share(plan.world),
        )
        self._loaders.append(loader)
        meter = WaitMeter(loader)
        return LoaderFeed(meter, augment, plan.device), meter

    def _share(self, world: World) -> dict[str, Any]:
        """Which part of the images a loader reads, and how."""
        workers, pin = self.plan.config.run.workers, self.plan.device.type == "cuda"
        place = {"rank": world.rank, "world_size": world.size}
        return {**place, "workers": workers, "pin_memory": pin}

    def validation(self, world: World) -> Validation:
        """Returns a process's share of the validation images."""
        plan, val, size = self.plan, self.plan.val, self.plan.cut.micro_batch_size
        train = plan.config.train
        crop = EvalCrop(plan.img_size, train.crop_pct, train.interpolation)
        batches: Callable[[], Iterable[tuple[Tensor, Tensor, int]]]
        if self._val is not None:
            images = ResidentImages(self._val.images, self._val.labels, np.arange(val.n_images))
            batches = ResidentBatches(images, self._val.unreadable, crop, size, world, plan.device)
        else:
            loader = make_val_loader(val, crop=crop, batch_size=size, **self._share(world))
            self._loaders.append(loader)

            def batches() -> Iterator[tuple[Tensor, Tensor, int]]:
                return ((batch.images, batch.labels, int(batch.unreadable)) for batch in loader)

        n_common = -(-(val.n_images // world.size) // size)
        return Validation(
            batches,
            n_images=val.n_images,
            n_common=0 if val.streaming and world.size > 1 else n_common,
            mean=plan.mean,
            std=plan.std,
        )


@dataclass(frozen=True, eq=False)
class LoaderFeed:
    """Moves a loader's batches to the device and augments them there."""

    loader: Any
    """Gives `ImageBatch`es, as many as its `len`."""
    augment: Augmentation
    device: torch.device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[TrainBatch]:
        device = here(self.device)
        for batch in self.loader:
            out = self.augment(
                batch.images.to(device, non_blocking=True),
                batch.labels.to(device, non_blocking=True),
                rows=batch.rows.numpy(),
                epochs=batch.epochs.numpy(),
                positions=batch.positions.numpy(),
            )
            yield TrainBatch(out.images, out.targets, int(batch.unreadable))


def make_augmentation(plan: TrainPlan) -> Augmentation:
    """Returns the per-batch augmentation of a plan."""
    train = plan.config.train
    mixing = Mixing(
        mixup=train.mixup,
        cutmix=train.cutmix,
        prob=train.mixup_prob,
        switch_prob=train.mixup_switch_prob,
    )
    return Augmentation(
        seed=plan.config.seed,
        mean=plan.mean,
        std=plan.std,
        aa=train.aa,
        color_jitter=train.color_jitter,
        reprob=train.reprob,
        mixing=mixing if train.mixup > 0 or train.cutmix > 0 else None,
        interpolation=train.interpolation,
    )


def wants_resident(plan: TrainPlan) -> bool:
    """Whether the images of a plan are to live on the device."""
    wanted = plan.config.data.resident
    if wanted != "auto" or plan.train.streaming or plan.val.streaming:
        return wanted == "on"
    height, width = first_size(plan.train, plan.subset.rows)
    n_bytes = 3 * height * width * (plan.n_images + plan.val.n_images)
    return max(height, width) <= RESIDENT_SIDE and n_bytes <= RESIDENT_BYTES


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

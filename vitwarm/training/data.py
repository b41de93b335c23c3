"""Which way the images come: through a loader, or resident on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitwarm.augment import Augmentation, Mixing
from vitwarm.errors import ShardError
from vitwarm.loop import WaitMeter
from vitwarm.shards import (
    Decoded,
    EvalCrop,
    EvalLoader,
    ShardIndex,
    TrainCrop,
    TrainLoader,
    decode_all,
    first_size,
    make_train_loader,
    make_val_loader,
)
from vitwarm.training.evaluate import Validation
from vitwarm.training.feed import LoaderFeed, ResidentFeed, here
from vitwarm.training.plan import TrainPlan
from vitwarm.training.resident import ResidentImages, resize_and_crop
from vitwarm.world import World

#: `data.resident: auto` keeps images on the device up to this side and these bytes.
RESIDENT_SIDE = 64
RESIDENT_BYTES = 2 << 30

#: Validation images that are resized once and kept, in bytes of all of them.
KEEP_BYTES = 1 << 29


def make_augmentation(plan: TrainPlan) -> Augmentation:
    """Returns the per-batch augmentation of a plan."""
    train = plan.config.train
    mixing = None
    if train.mixup > 0 or train.cutmix > 0:
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
        mixing=mixing,
        interpolation=train.interpolation,
    )


def make_train_crop(plan: TrainPlan) -> TrainCrop:
    """Returns the random crop of a plan."""
    train = plan.config.train
    return TrainCrop(
        size=plan.img_size,
        scale=(train.scale[0], train.scale[1]),
        ratio=(train.ratio[0], train.ratio[1]),
        hflip=train.hflip,
        interpolation=train.interpolation,
        mode=train.train_crop,
    )


class Pictures:
    """The images of one run: where they come from and how they are fed."""

    def __init__(self, plan: TrainPlan) -> None:
        """Decides between the two ways, and decodes the images of a resident set.

        Raises: ShardError: images that cannot be read, or `data.resident=on` with several sizes.
        """
        self.plan = plan
        self.device = plan.device
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
        plan = self.plan
        augment = make_augmentation(plan)
        crop = make_train_crop(plan)
        if self._train is not None:
            feed = ResidentFeed(
                ResidentImages(self._train.images, self._train.labels, plan.subset.rows),
                plan.order,
                crop=crop,
                augment=augment,
                seed=plan.config.seed,
                cut=plan.cut,
                world=plan.world,
                start_step=start_step,
                n_steps=plan.n_steps,
                device=self.device,
                unreadable=self._train.unreadable,
            )
            return feed, WaitMeter(())  # nothing to wait for
        loader = make_train_loader(
            plan.train,
            plan.order,
            crop=crop,
            seed=plan.config.seed,
            batch_size=plan.cut.batch_size,
            micro_batch_size=plan.cut.micro_batch_size,
            rank=plan.world.rank,
            world_size=plan.world.size,
            start_step=start_step,
            n_steps=plan.n_steps,
            workers=plan.config.run.workers,
            pin_memory=self.device.type == "cuda",
        )
        self._loaders.append(loader)
        meter = WaitMeter(loader)
        return LoaderFeed(meter, augment, self.device), meter

    def validation(self, world: World) -> Validation:
        """Returns a process's share of the validation images."""
        plan, train = self.plan, self.plan.config.train
        crop = EvalCrop(plan.img_size, train.crop_pct, train.interpolation)
        size = plan.cut.micro_batch_size
        batches: Callable[[], Iterable[tuple[Tensor, Tensor, int]]]
        if self._val is not None:
            rows = np.arange(plan.val.n_images)
            images = ResidentImages(self._val.images, self._val.labels, rows)
            batches = _ResidentBatches(images, self._val.unreadable, crop, size, world, self.device)
        else:
            loader = make_val_loader(
                plan.val,
                crop=crop,
                batch_size=size,
                rank=world.rank,
                world_size=world.size,
                workers=plan.config.run.workers,
                pin_memory=self.device.type == "cuda",
            )
            self._loaders.append(loader)

            def batches() -> Iterator[tuple[Tensor, Tensor, int]]:
                return ((batch.images, batch.labels, int(batch.unreadable)) for batch in loader)

        n_common = -(-(plan.val.n_images // world.size) // size)
        return Validation(
            batches,
            n_images=plan.val.n_images,
            n_common=0 if plan.val.streaming and world.size > 1 else n_common,
            mean=plan.mean,
            std=plan.std,
        )


@dataclass(eq=False)
class _ResidentBatches:
    """Validation batches of images on the device, resized once if they are few enough to keep."""

    images: ResidentImages
    unreadable: np.ndarray
    crop: EvalCrop
    size: int
    world: World
    device: torch.device
    kept: list[Tensor] = field(default_factory=list)

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        self.images = self.images.to(here(self.device))
        rank, n = self.world.rank, len(self.images)
        low, high = (n * r // self.world.size for r in (rank, rank + 1))
        keeps = (high - low) * 3 * math.prod(self.crop.sides) <= KEEP_BYTES
        for number, start in enumerate(range(low, high, self.size)):
            some = slice(start, min(start + self.size, high))
            if number < len(self.kept):
                batch = self.kept[number]
            else:
                batch = resize_and_crop(self.images.images[some], self.crop)
                if keeps:
                    self.kept.append(batch)
            n_bad = int(((self.unreadable >= some.start) & (self.unreadable < some.stop)).sum())
            yield batch, self.images.labels[some], n_bad


def wants_resident(plan: TrainPlan) -> bool:
    """Whether the images of a plan are to live on the device."""
    wanted = plan.config.data.resident
    if wanted != "auto" or plan.train.streaming or plan.val.streaming:
        return wanted == "on"
    height, width = first_size(plan.train, plan.subset.rows)
    n_bytes = 3 * height * width * (plan.n_images + plan.val.n_images)
    return max(height, width) <= RESIDENT_SIDE and n_bytes <= RESIDENT_BYTES


_decoded: dict[str, tuple[np.ndarray, Decoded]] = {}


def decoded(index: ShardIndex, rows: np.ndarray) -> Decoded:
    """Decodes some rows of an index; what this process decoded before is used again.

    A sweep trains many times on fractions of one set in one process.
    """
    known = _decoded.get(index.sha256)
    # Which image stands in for one that does not decode depends on the rows of the fraction.
    usable = known is not None and (not len(known[1].unreadable) or len(known[0]) == len(rows))
    if known is None or not usable or not np.isin(rows, known[0]).all():
        if len(_decoded) >= 4:
            _decoded.clear()
        _decoded[index.sha256] = (rows, decode_all(index, rows))
    have, images = _decoded[index.sha256]
    if len(have) == len(rows):
        return images
    places = np.searchsorted(have, rows)
    unreadable = np.intersect1d(images.unreadable, rows)
    return Decoded(images.images[torch.from_numpy(places)], unreadable, images.labels[places])

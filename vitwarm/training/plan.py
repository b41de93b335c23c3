"""What a training config comes to, before anything is trained: images, steps, hash, folder."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from vitwarm.augment import parse_policy
from vitwarm.config import HandoffConfig, TrainConfig, TrainRun, config_hash
from vitwarm.errors import ConfigError, ShardError
from vitwarm.files import sha256_of
from vitwarm.handoff import Audit, arguments_of, attach, refuse_unlearned, start_from
from vitwarm.hardware import choose_device, choose_numbers
from vitwarm.loggers import check_loggers
from vitwarm.loop import Cut, Plan, Schedule, check_optimizer, cut_batch, evaluation_steps
from vitwarm.shards import (
    Order,
    ShardIndex,
    Subset,
    check_classes,
    choose_fraction,
    choose_list,
    open_shards,
)
from vitwarm.shards.stream.index import StreamIndex
from vitwarm.training.shape import find_img_size, find_in_chans, per_channel, say_sides
from vitwarm.trunk import (
    Trunk,
    build_shapes,
    check_name,
    checkpoint_gradients,
    load_trunk,
)
from vitwarm.units import to_steps
from vitwarm.world import World, find_world


@dataclass(frozen=True, kw_only=True)
class TrainPlan(Plan):
    """What a config comes to, before anything is trained."""

    config: TrainRun
    pair: str
    """Runs that share it share data order and fresh tensors."""
    arm: str
    trunk: Trunk | None
    train: ShardIndex
    val: ShardIndex
    subset: Subset
    n_classes: int
    img_size: tuple[int, int]
    """Height and width."""
    in_chans: int
    """3, or 1: grey images."""

    @property
    def n_images(self) -> int:
        """Training images of the fraction."""
        return len(self.subset.rows)

    @property
    def mean(self) -> list[float]:
        """What is taken off the images, per channel in [0, 1]; grey: the mean over the colours."""
        return per_channel(self.config.train.mean, self.in_chans)

    @property
    def std(self) -> list[float]:
        """What the images are divided by then."""
        return per_channel(self.config.train.std, self.in_chans)

    @property
    def epochs(self) -> float:
        """Passes over the images of the fraction, as the steps really make them."""
        return self.n_steps * self.cut.batch_size / self.n_images

    @property
    def eval_steps(self) -> set[int]:
        return evaluation_steps(self.n_steps, self.config.train.evaluations)

    @cached_property
    def order(self) -> Order:
        """The global order of the training images."""
        data = self.config.data
        return Order(
            self.train,
            self.subset.rows,
            seed=self.config.seed,
            mode=data.order,
            window_shards=data.window_shards,
        )

    def __str__(self) -> str:
        data, train = self.config.data, self.config.train
        share = "a list" if data.image_list else f"fraction {data.fraction:g}"
        return "\n".join(
            [
                f"images    {self.n_images:,} of {self.train.n_images:,} ({share}), "
                f"{self.n_classes} classes; {self.val.n_images:,} for validation",
                f"model     {train.model} at {say_sides(self.img_size)} px"
                f"{', grey' if self.in_chans == 1 else ''}, arm {self.arm!r}",
                f"budget    {self.n_steps:,} steps = {self.epochs:.4g} epochs = "
                f"{self.n_steps * self.cut.batch_size:,} images",
                super().__str__(),
            ]
        )


def plan_training(config: TrainRun) -> TrainPlan:
    """Resolves a config against its shards and its trunk. Reads indices, builds no weights.

    Raises: ConfigError, ShardError, TrunkError, HandoffError, ModelError: something cannot be used.
    """
    train, data = config.train, config.data
    device = choose_device(config.run)
    check_loggers(config.run.logger)
    check_optimizer("train.opt", train.opt, device, train.opt_betas)
    check_name(train.model)
    parse_policy(train.aa)
    trunk = None if config.handoff.trunk is None else load_trunk(config.handoff.trunk)
    if trunk is not None and not config.handoff.allow_failed:
        refuse_unlearned(trunk, str(config.handoff.trunk), "set handoff.allow_failed=true")
    index, val = _open(config, "train"), _open(config, "val")
    check_classes(index, val)
    subset = _choose(config, index)
    n_classes = _count_classes(config, index, val)
    for one in (index, val):
        if isinstance(one, StreamIndex):
            one.expect(n_classes)
    world = find_world(config.run)
    n_steps = train.steps or to_steps(
        train.epochs, n_images=len(subset.rows), batch_size=train.batch_size
    )
    contents = {"data.train": index.sha256, "data.val": val.sha256}
    if data.image_list is not None:
        contents["data.image_list"] = subset.sha256
    without_start = _without_start(config)
    pair = config_hash(without_start, contents)[:16]
    if trunk is not None:
        contents["handoff.trunk"] = trunk.sha256
    if config.handoff.init is not None:
        contents["handoff.init"] = _content_of(config.handoff.init)
    return TrainPlan(
        config=config,
        digest=config_hash(config, contents),
        pair=pair,
        arm=config.arm or _arm(config, trunk),
        trunk=trunk,
        train=index,
        val=val,
        subset=subset,
        n_classes=n_classes,
        **_shape_of(config, n_classes),
        schedule=Schedule(
            n_steps=n_steps,
            ramp_steps=round(n_steps * train.warmup_epochs / train.epochs),
            lr=train.lr,
            min_lr=train.min_lr,
            warmup_lr=train.warmup_lr,
        ),
        cut=_cut(train, world),
        world=world,
        device=device,
        numbers=choose_numbers(train.precision, device),
    )


def _shape_of(config: TrainRun, n_classes: int) -> dict[str, Any]:
    """The fields of a plan that the model decides, which is built without weights."""
    train, kwargs = config.train, model_kwargs(config, n_classes)
    in_chans = find_in_chans(kwargs)
    vit = build_shapes(train.model, **kwargs)
    if train.grad_checkpointing:  # refused here, before anything is written
        checkpoint_gradients(vit, train.model, section="train")
    return {"img_size": find_img_size(vit, train.model, train.img_size), "in_chans": in_chans}


def make_model(plan: TrainPlan) -> tuple[nn.Module, Audit]:
    """Builds the image model of a plan: a trunk or weights carried over, everything else fresh."""
    handoff, train = plan.config.handoff, plan.config.train
    kwargs = model_kwargs(plan.config, plan.n_classes)
    if handoff.init is not None:
        vit, audit = start_from(handoff.init, model=train.model, seed=plan.config.seed, **kwargs)
    else:
        vit, audit = attach(
            plan.trunk,
            model=train.model,
            scope=handoff.scope,
            blocks=handoff.blocks,
            seed=plan.config.seed,
            **kwargs,
        )
    if train.grad_checkpointing:
        checkpoint_gradients(vit, train.model, section="train")
    return vit, audit


def model_kwargs(config: TrainRun, n_classes: int) -> dict[str, Any]:
    """Returns what timm.create_model gets beside the model's name; an export's own come first.

    Raises: HandoffError: `handoff.init` is a folder without a model.
    """
    train, init = config.train, config.handoff.init
    brought = arguments_of(init) if init is not None else {}
    kwargs: dict[str, Any] = {**brought, **train.model_kwargs, "num_classes": n_classes}
    if train.img_size is not None:
        given = train.img_size
        kwargs["img_size"] = tuple(given) if isinstance(given, list) else given
    if train.drop_path:
        kwargs["drop_path_rate"] = train.drop_path
    return kwargs


def _open(config: TrainRun, split: Literal["train", "val"]) -> ShardIndex:
    data = config.data
    try:
        return open_shards(
            getattr(data, split),
            cache=data.index_cache,
            label_key=data.label_key,
            label_from=data.label_from,
            classes=data.classes,
            allow_pipe=data.allow_pipe,
        )
    except ShardError as error:
        raise ShardError(f"data.{split}: {error}") from error


def _choose(config: TrainRun, index: ShardIndex) -> Subset:
    data = config.data
    if data.image_list is not None:
        return choose_list(index, data.image_list)
    seed = config.seed if data.subset_seed is None else data.subset_seed
    return choose_fraction(index, data.fraction, seed=seed)


def _count_classes(config: TrainRun, train: ShardIndex, val: ShardIndex) -> int:
    asked = config.train.num_classes
    if asked is None:
        known = [index.known_classes for index in (train, val) if index.known_classes]
        return max(known) if known else train.n_classes
    for where, index in (("data.train", train), ("data.val", val)):
        if index.largest_label >= asked:
            raise ShardError(
                f"{where} holds the label {index.largest_label}, but train.num_classes is {asked}; "
                f"labels run from 0. Use train.num_classes={index.largest_label + 1} or leave it "
                "out."
            )
    return asked


def _cut(train: TrainConfig, world: World) -> Cut:
    """Cuts the batch; mixup and cutmix need whole pairs in every micro-batch."""
    cut = cut_batch(train.batch_size, train.micro_batch_size, world, field="train")
    if (train.mixup or train.cutmix) and cut.micro_batch_size % 2:
        raise ConfigError(
            f"train.micro_batch_size is {cut.micro_batch_size}; mixup and cutmix mix pairs of "
            f"images, so it must be even. Use {cut.micro_batch_size + 1}."
        )
    return cut


def _without_start(config: TrainRun) -> TrainRun:
    """The config without what may differ between two runs that are compared as a pair."""
    train = dataclasses.replace(config.train, epochs=1e9, steps=None)
    return dataclasses.replace(config, handoff=HandoffConfig(), train=train)


def _content_of(init: str) -> str:
    path = Path(init.removeprefix("local-dir:")).expanduser()
    for weights in (path, path / "model.safetensors"):
        if weights.is_file():
            return sha256_of(weights)
    return hashlib.sha256(init.encode()).hexdigest()  # a tag of timm's


def _arm(config: TrainRun, trunk: Trunk | None) -> str:
    if config.handoff.init is not None:
        return Path(config.handoff.init).name
    if trunk is None:
        return "default"
    rule = trunk.facts.get("rule")
    name = rule.get("name") if isinstance(rule, dict) else None
    return str(name or trunk.metadata.get("source") or (trunk.path.stem if trunk.path else "trunk"))

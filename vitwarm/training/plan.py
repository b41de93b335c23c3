"""What a training config comes to, before anything is trained: images, steps, hash, folder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from vitwarm.augment import parse_policy
from vitwarm.config import HandoffConfig, TrainRun, config_hash
from vitwarm.errors import ConfigError, ShardError
from vitwarm.files import sha256_of
from vitwarm.handoff import Audit, arguments_of, attach, check_start, refuse_unlearned, start_from
from vitwarm.loop.plan import Plan, plan_machine
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
from vitwarm.training.module import ImageModule, ImageUpdates
from vitwarm.trunk import Trunk, build_shapes, check_name, checkpoint_gradients, load_trunk
from vitwarm.units import to_steps


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
        return self._per_channel(self.config.train.mean)

    @property
    def std(self) -> list[float]:
        """What the images are divided by then."""
        return self._per_channel(self.config.train.std)

    def _per_channel(self, colours: Sequence[float]) -> list[float]:
        return list(colours) if self.in_chans == len(colours) else [sum(colours) / len(colours)]

    @property
    def epochs(self) -> float:
        """Passes over the images of the fraction, as the steps really make them."""
        return self.n_steps * self.cut.batch_size / self.n_images

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
        height, width = self.img_size
        sides = f"{height}" if height == width else f"{height} x {width}"
        return "\n".join(
            [
                f"images    {self.n_images:,} of {self.train.n_images:,} ({share}), "
                f"{self.n_classes} classes; {self.val.n_images:,} for validation",
                f"model     {train.model} at {sides} px"
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
    machine = plan_machine(config)
    check_name(train.model)
    parse_policy(train.aa)
    trunk = None if config.handoff.trunk is None else load_trunk(config.handoff.trunk)
    if trunk is not None and not config.handoff.allow_failed:
        refuse_unlearned(trunk, str(config.handoff.trunk), "set handoff.allow_failed=true")
    index, val = _open(config, "train"), _open(config, "val")
    check_classes(index, val)
    subset = choose_images(config, index)
    n_classes = _count_classes(config, index, val)
    for one in (index, val):
        if isinstance(one, StreamIndex):
            one.expect(n_classes)
    n_steps = train.steps or to_steps(
        train.epochs, n_images=len(subset.rows), batch_size=train.batch_size
    )
    contents = {"data.train": index.sha256, "data.val": val.sha256}
    if data.image_list is not None:
        contents["data.image_list"] = subset.sha256
    # The config without what may differ between two runs that are compared as a pair.
    alike = dataclasses.replace(train, epochs=1e9, steps=None)
    unstarted = dataclasses.replace(config, handoff=HandoffConfig(), train=alike)
    pair = config_hash(unstarted, contents)[:16]
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
        n_steps=n_steps,
        ramp_steps=round(n_steps * train.warmup_epochs / train.epochs),
        **machine,
    )


def _shape_of(config: TrainRun, n_classes: int) -> dict[str, Any]:
    """The fields of a plan that the model decides, which is built without weights.

    Raises: ConfigError: no size, a side that whole patches do not fill, other than 3 or 1 channels.
    """
    train, kwargs = config.train, model_kwargs(config, n_classes)
    in_chans = kwargs.get("in_chans", 3)
    if in_chans not in (3, 1):
        raise ConfigError(
            f"in_chans is {in_chans!r}; the images of the shards have three channels. Use 3, or 1 "
            "for grey images."
        )
    vit = build_shapes(train.model, **kwargs)
    if train.grad_checkpointing:  # refused here, before anything is written
        checkpoint_gradients(vit, train.model, section="train")
    stem: Any = getattr(vit, "patch_embed", None)
    size = train.img_size or getattr(stem, "img_size", None)
    size = size or getattr(vit, "pretrained_cfg", {}).get("input_size", (3, None, None))[1:]
    sides, patches = _pair(size), _pair(getattr(stem, "patch_size", None) or 1)
    if None in sides:
        raise ConfigError(
            f"train.img_size is not given and {train.model!r} has none of its own "
            f"({size}). Give train.img_size=224."
        )
    for side, step in zip(sides, patches, strict=True):
        if side % step and not getattr(stem, "dynamic_img_pad", False):
            below = side // step * step
            use = f"{below} or {below + step}" if below else f"{step}"
            raise ConfigError(
                f"train.img_size is {side}, which patches of {' x '.join(map(str, patches))} "
                f"pixels do not fill; a strip at the edge would be lost. Use train.img_size={use}."
            )
    return {"img_size": sides, "in_chans": int(in_chans)}


def _pair(sides: Any) -> tuple[int, int]:
    height, width = sides if isinstance(sides, tuple | list) else (sides, sides)
    return height, width


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


def choose_images(config: TrainRun, index: ShardIndex) -> Subset:
    """Returns the training images of a config's list or fraction."""
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


def _content_of(init: str) -> str:
    check_start(init)
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
    path, source = trunk.path, trunk.metadata.get("source", "")
    if path and source.startswith("image model"):  # called by its path, which no table shows
        return f"image model {path.parent.name if path.name.startswith('export') else path.name}"
    if source == trunk.metadata.get("init"):  # several of one initialiser are several arms
        source = ""
    rule = trunk.facts.get("rule")
    name = rule.get("name") if isinstance(rule, dict) else None
    return str(name or source or (path.stem if path else "trunk"))


def make_module(plan: TrainPlan, vit: nn.Module) -> ImageModule:
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

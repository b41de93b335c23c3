"""The configs of a warm-up and of an image training. A sweep's own fields stand in `sweep.py`."""

# ruff: noqa: RUF009  the calls make fields (vitwarm/config/ranges.py), not shared defaults

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vitwarm.config.check import Checked, check_rates
from vitwarm.config.ranges import (
    OF_A_TRAINING,
    OF_A_WARMUP,
    a_budget,
    a_seed,
    alpha,
    arguments,
    free,
    line,
    number,
    numbers,
    plain_name,
    positive,
    share,
    sides,
    some_blocks,
    some_of,
    unit,
    unit_below_one,
)
from vitwarm.errors import ConfigError

Precision = Literal["auto", "bf16", "fp32"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class RuleConfig(Checked, section="rule"):
    """What generates the token sequences."""

    name: str = line("dyck")
    """A name in `vitwarm.rules.RULES`; `shuffled:dyck` wraps one rule in another."""
    params: dict[str, Any] = arguments()
    """Parameters of the (innermost) rule, checked against its signature."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked, section="run"):
    """Where and with what a run is executed. None of it changes the result, none is hashed."""

    root: str = line("runs", free=True)
    """Folder that run folders are made in."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = free("auto")
    """`auto`: CUDA where there is one, else Apple's GPU, else the CPU."""
    devices: int = positive(1, most=1024, free=True)
    """Processes per node."""
    nodes: int = positive(1, most=65_536, free=True)
    """Nodes; start the same command on each (torchrun, srun)."""
    workers: int | None = number(None, least=0, most=1024, free=True)
    """Loader processes per training process; none: from the CPU affinity of the job."""
    threads: int | None = positive(None, most=1024, free=True)
    """torch threads per process; none: torch's own choice."""
    log_every_steps: int = positive(50, free=True)
    """Steps between two lines of metrics.jsonl."""
    logger: list[str] = some_of([], ("tensorboard", "wandb", "mlflow", "csv"), free=True)
    """What shows the numbers of metrics.jsonl beside it, on rank zero: `[tensorboard, csv]`."""
    time_limit_minutes: float | None = positive(None, free=True)
    """Save and leave with exit code 75 after so long; the same command goes on."""
    progress: bool = free(True)
    """Plan, bar (a plain line now and then where there is no terminal) and verdict; false: nothing
    is printed, and everything stands in the run folder."""


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(Checked, section="warmup"):
    """Masked-token training of a trunk on a rule. Defaults: the published recipe."""

    model: str = line("vit_tiny_patch16_224")
    """A timm model name."""
    model_kwargs: dict[str, Any] = arguments(OF_A_WARMUP)
    """Passed to timm.create_model: `{depth: 3, embed_dim: 64, num_heads: 4}`."""
    tie: str | None = line(None)
    """Groups of blocks that share weights, `0|1-10|11` or `[[0], [1, 2], [3]]`: every block in one
    of them; plain ViTs only. The trunk file holds what is shared once, the hand-off unties it."""
    tie_norms: bool = True
    """Tied blocks share norms and layer scales too; false: attention and MLP alone."""
    n_tokens: int | None = positive(None, most=16_384)
    """Tokens per sequence; none: the model's patch count."""
    budget: str = a_budget("0.01")
    """A share of the image training's samples, or 15000steps, 3.84Msamples, 2epochs."""
    base_images: int | None = positive(1_281_167, most=10**12)
    """Images of the image training that the budget is a share of (ImageNet-1k)."""
    base_epochs: float | None = positive(300.0, most=10**6)
    """Epochs of that training."""
    batch_size: int = positive(256, most=2**20)
    """Sequences per optimiser step, over all processes."""
    micro_batch_size: int | None = positive(None, most=2**20, free=True)
    """Sequences per forward pass and process; none: the whole share of the batch at once."""
    grad_checkpointing: bool = free(False)
    """Keep what enters each block and compute the rest again in the backward pass (timm's own):
    less memory, a third more work, the same numbers."""
    opt: str = line("adamw")
    """Any optimiser name of timm."""
    lr: float = positive(2e-3, most=1000)
    """Peak learning rate."""
    min_lr: float = number(1e-6, least=0, most=1000)
    """Learning rate at the last step (cosine)."""
    warmup_lr: float = number(1e-7, least=0, most=1000)
    """Learning rate at step 0 of the linear ramp."""
    ramp_steps: int | None = positive(None)
    """Steps of the ramp; none: min(1000, steps / 15)."""
    weight_decay: float = number(0.05, least=0, most=1000)
    """On all trainable tensors, biases and norms included."""
    clip_grad: float | None = positive(None)
    """Largest gradient norm; none: no clipping."""
    precision: Precision = "auto"
    """`auto`: bf16 where the hardware multiplies in it, else fp32; kept on resume. `bf16`:
    autocast; parameters and optimiser stay fp32. On a CPU at widths under ~128 fp32 is faster."""
    compile: Switch = "auto"
    """torch.compile per block; `auto`: on a GPU only. The choice is kept on resume."""
    token_scale: float | None = positive(None, most=10**6)
    """Norm of a token's vector; none: the policy per LayerNorm epsilon in trunk/vectors.py."""
    position_scale: float | None = positive(None, most=10**6)
    """Norm of a position's vector; none: the same policy."""
    hide_share: float | None = share(None)
    """Share of maskable tokens hidden; none: the rule's own (0.5 for Dyck)."""
    until: Literal["budget", "saturated"] = "budget"
    """`saturated`: stop early once the hidden tokens are solved."""
    checkpoint_minutes: float = positive(5.0, free=True)
    """Minutes between two checkpoints."""
    eval_sequences: int = positive(2048, most=10**7)
    """Held-out sequences on which the final accuracy is measured."""
    evaluations: int = positive(10, most=10**5, free=True)
    """Looks at 256 held-out sequences and at the weights on the way, evenly spaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("warmup", self.lr, warmup_lr=self.warmup_lr, min_lr=self.min_lr)
        if not self.tie_norms and not self.tie:
            raise ConfigError("warmup.tie_norms is false, but warmup.tie is not given. Give both.")


@dataclass(frozen=True, kw_only=True)
class HandoffConfig(Checked, section="handoff"):
    """What the image model starts from."""

    trunk: str | None = line(None)
    """A trunk file, a run folder, a name in data/trunks, `hf-hub:OWNER/NAME[@revision]`, or an
    image model (export folder, timm tag), whose trunk is taken; none: timm's own initialisation."""
    scope: Literal["all", "blocks", "attention", "mlp"] = "all"
    """What is carried: blocks and final norm, the blocks without it, or one half of each block."""
    blocks: str | None = some_blocks(None)
    """Which blocks: a slice such as `-4:` or a list such as `0,1,2`; none: all."""
    init: str | None = line(None)
    """For fine-tuning, all weights and not only a trunk: an export folder, a file of weights
    (.safetensors, .pth, .pt), or a timm model name with the tag of its weights."""
    allow_failed: bool = free(False)
    """Hand off a trunk whose own record says that nothing was learned: for controls."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trunk and self.init:
            raise ConfigError(
                f"handoff.trunk is {self.trunk!r} and handoff.init is {self.init!r}; a model "
                "starts from one of them. Leave one out."
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked, section="data"):
    """The image shards."""

    train: str = line("???")
    """A folder of tars, a brace pattern, or an http(s) address; see data/README.md."""
    val: str = line("???")
    """The same for validation."""
    fraction: float = share(1.0)
    """Share of the training images, class-balanced and nested."""
    subset_seed: int | None = a_seed(None)
    """Seed of the order that fractions are prefixes of; none: the run's seed."""
    image_list: str | None = line(None)
    """A file of keys, one a line (SimCLR's 1 % and 10 % lists); replaces `fraction`."""
    label_from: Literal["cls", "json", "folder", "text"] | None = free(None)
    """Where a label stands: KEY.cls, KEY.json, the key's folder, or KEY.txt; none: KEY.cls, else
    KEY.json. Not hashed: the labels that come of it are."""
    label_key: str | None = line(None)
    """Field of the member KEY.json that is the label; none: `label`."""
    classes: str | None = line(None, free=True)
    """The names of the classes in the order of their labels: a file with one a line, or an
    `_info.json` with a list `classes`; none: `_info.json` or `classes.txt` beside the shards."""
    order: Literal["windows", "full"] = "windows"
    """`windows`: shards in random windows, samples shuffled inside; `full`: one permutation."""
    window_shards: int = positive(32)
    """Shards per window."""
    resident: Switch = "auto"
    """Keep the decoded images on the device (small sets); `auto`: if images are at most 64 px
    and fit in 2 GB."""
    allow_pipe: bool = free(False)
    """Permit `pipe:` sources, which run a shell command."""
    index_cache: str | None = line(None, free=True)
    """Folder for the index; none: beside the shards, or the user's cache if they are read-only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_key and self.label_from not in (None, "json"):
            raise ConfigError(
                f"data.label_key is {self.label_key!r}, a field of KEY.json, and data.label_from "
                f"is {self.label_from!r}. Leave one out, or use data.label_from=json."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked, section="train"):
    """Image classification. Field names are timm's where timm has one."""

    model: str = line("vit_tiny_patch16_224")
    """A timm model name."""
    model_kwargs: dict[str, Any] = arguments(OF_A_TRAINING)
    """Passed to timm.create_model."""
    num_classes: int | None = number(None, least=2, most=10**6)
    """None: from the shards (largest label + 1, or `_info.json`)."""
    img_size: Any = sides(None, most=8192)
    """Pixels of both sides, or `[height, width]`; none: the model's own."""
    epochs: float = positive(300.0)
    """Passes over the images of the fraction."""
    steps: int | None = positive(None)
    """Optimiser steps; replaces `epochs` where given (sweeps with `match: steps`)."""
    batch_size: int = positive(512, most=2**20)
    """Images per optimiser step, over all processes and accumulation."""
    micro_batch_size: int | None = positive(None, most=2**20, free=True)
    """Images per forward pass and process; none: the whole share of the batch at once."""
    grad_checkpointing: bool = free(False)
    """Keep what enters each block and compute the rest again in the backward pass (timm's own):
    less memory, a third more work, the same numbers."""
    opt: str = line("adamw")
    """Any optimiser name of timm."""
    opt_betas: list[float] | None = numbers(None, n=(2, 3), least=0, below=1)
    """None: the optimiser's own."""
    momentum: float = unit_below_one(0.9)
    """For the optimisers that have one."""
    lr: float = positive(1e-3, most=1000)
    """Peak learning rate."""
    weight_decay: float = number(0.05, least=0, most=1000)
    """Not on biases, norms and other 1-D tensors."""
    layer_decay: float | None = share(None)
    """Factor on the learning rate per layer from the top (fine-tuning)."""
    warmup_epochs: float = number(5.0, least=0, most=10**9)
    """Epochs of the linear ramp; with `steps`, the same share of the steps."""
    warmup_lr: float = number(0.0, least=0, most=1000)
    """Learning rate at step 0."""
    min_lr: float = number(1e-6, least=0, most=1000)
    """Learning rate at the last step (cosine)."""
    clip_grad: float | None = positive(None)
    """Largest gradient norm; none: no clipping."""
    smoothing: float = unit_below_one(0.1)
    """Label smoothing."""
    bce_loss: bool = False
    """Binary cross-entropy over the classes (DeiT-III) instead of softmax."""
    mixup: float = alpha(0.0)
    """Alpha of mixup; 0: off."""
    cutmix: float = alpha(0.0)
    """Alpha of CutMix; 0: off."""
    mixup_prob: float = unit(1.0)
    """Share of images that are mixed."""
    mixup_switch_prob: float = unit(0.5)
    """Share of CutMix where both are on."""
    aa: str | None = line(None)
    """`rand-m9-mstd0.5-inc1` (RandAugment), `3a` (3-Augment), or none."""
    color_jitter: float | None = number(None, least=0, most=10)
    """Strength of brightness, contrast and saturation jitter; with RandAugment not used (timm)."""
    reprob: float = unit(0.0)
    """Probability of random erasing, per-pixel noise."""
    hflip: float = unit(0.5)
    """Probability of a horizontal flip."""
    scale: list[float] = numbers([0.08, 1.0], n=(2,), ascending=True, least=1e-4, most=1)
    """Area of the random crop, share of the image."""
    ratio: list[float] = numbers([0.75, 4.0 / 3.0], n=(2,), ascending=True, least=0.01, most=100)
    """Aspect ratio of the random crop."""
    train_crop: Literal["rrc", "pad"] = "rrc"
    """`rrc`: RandomResizedCrop; `pad`: reflect-pad by an eighth and crop (small images)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """For training and evaluation."""
    crop_pct: float = number(0.875, least=0.05, most=1, percent=True)
    """Evaluation: the image is resized to img_size / crop_pct, then centre-cropped."""
    mean: list[float] = numbers([0.485, 0.456, 0.406], n=(3,), least=0, most=1)
    """Per channel, in [0, 1]."""
    std: list[float] = numbers([0.229, 0.224, 0.225], n=(3,), least=0.001, most=1)
    """Per channel, in [0, 1]."""
    drop_path: float = unit_below_one(0.0)
    """Stochastic depth of the last block."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights and evaluate it too."""
    model_ema_decay: float = unit_below_one(0.9998)
    """Its decay, with timm's warm-up."""
    freeze: Literal["none", "trunk", "all_but_head"] = "none"
    """`all_but_head`: linear probe."""
    precision: Precision = "auto"
    """`auto`: bf16 where the hardware multiplies in it, else fp32; kept on resume. `bf16`:
    autocast; parameters and optimiser stay fp32."""
    compile: Switch = "auto"
    """torch.compile per block; `auto`: on a GPU only. The choice is kept on resume."""
    evaluations: int = positive(30, most=10**5)
    """Evaluations on the whole validation set, evenly spaced; the last is at the end."""
    checkpoint_minutes: float = positive(5.0, free=True)
    """Minutes between two checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("train", self.lr, warmup_lr=self.warmup_lr, min_lr=self.min_lr)
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"train.warmup_epochs is {self.warmup_epochs}; it must lie between 0 and "
                f"train.epochs ({self.epochs}). Shorten the ramp or train longer."
            )


@dataclass(frozen=True, kw_only=True)
class WarmupRun(Checked):
    """A warm-up: `vitwarm warmup`."""

    name: str = plain_name("warmup", free=True)
    """First part of the run folder's name; a recipe's own name if it does not set one."""
    extends: str | None = line(None, free=True)
    """A recipe that this one starts from, relative to this file."""
    seed: int = a_seed(0)
    """Seeds the sequences, the hidden positions, the model and the frozen embeddings."""
    rule: RuleConfig = field(default_factory=RuleConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class TrainRun(Checked):
    """An image training: `vitwarm train`."""

    name: str = plain_name("train", free=True)
    """First part of the run folder's name; a recipe's own name if it does not set one."""
    extends: str | None = line(None, free=True)
    """A recipe that this one starts from, relative to this file."""
    seed: int = a_seed(0)
    """Seeds the subset, the order, the augmentation and the fresh tensors."""
    arm: str | None = plain_name(None, free=True)
    """Label of the initialisation in reports; none: `default`, or the trunk's own name."""
    match: Literal["steps", "epochs"] | None = free(None)
    """What a sweep held equal across fractions; reports never mix the two."""
    data: DataConfig = field(default_factory=DataConfig)
    handoff: HandoffConfig = field(default_factory=HandoffConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)

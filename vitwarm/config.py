"""Every structured config, on one page; a YAML recipe holds only what differs.

Loading order: the schema's defaults, the recipe named by `extends` (which may not extend in turn),
the recipe itself, then dotted overrides from the command line. What comes out is a frozen plain
dataclass; no OmegaConf object leaves `load_config`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitwarm.errors import ConfigError, nearest
from vitwarm.files import write_text

Precision = Literal["bf16", "fp32"]
Switch = Literal["auto", "on", "off"]


def _free(default: Any) -> Any:
    """A field that does not change the result and so stays out of the config's hash."""
    return field(default=default, metadata={"hashed": False})


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """What generates the token sequences."""

    name: str = "dyck"
    """A name in `vitwarm.rules.RULES`; `shuffled:dyck` wraps one rule in another."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters of the (innermost) rule, checked against its signature."""

    def __post_init__(self) -> None:
        _names(self, "rule", "params")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and with what a run is executed. None of it changes the result, none is hashed."""

    root: str = _free("runs")
    """Folder that run folders are made in."""
    device: Literal["auto", "cpu", "cuda"] = _free("auto")
    """`auto`: CUDA where there is one."""
    devices: int = _free(1)
    """Processes per node."""
    nodes: int = _free(1)
    """Nodes; start the same command on each (torchrun, srun)."""
    workers: int | None = _free(None)
    """Loader processes per training process; none: from the CPU affinity of the job."""
    threads: int | None = _free(None)
    """torch threads per process; none: torch's own choice."""
    log_every_steps: int = _free(50)
    """Steps between two lines of metrics.jsonl."""
    time_limit_minutes: float | None = _free(None)
    """Save and leave with exit code 75 after so long; the same command goes on."""
    progress: bool = _free(True)
    """Plan, bar (a plain line now and then where there is no terminal) and verdict; false: nothing
    is printed, and everything stands in the run folder."""

    def __post_init__(self) -> None:
        _positive(self, "run", "devices", "nodes", "log_every_steps")


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """Masked-token training of a trunk on a rule. Defaults: the published recipe."""

    model: str = "vit_tiny_patch16_224"
    """A timm model name."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to timm.create_model: `{depth: 3, embed_dim: 64, num_heads: 4}`."""
    n_tokens: int | None = None
    """Tokens per sequence; none: the model's patch count."""
    budget: str = "0.01"
    """A share of the image training's samples, or 15000steps, 3.84Msamples, 2epochs."""
    base_images: int | None = 1_281_167
    """Images of the image training that the budget is a share of (ImageNet-1k)."""
    base_epochs: float | None = 300.0
    """Epochs of that training."""
    batch_size: int = 256
    """Sequences per optimiser step, over all processes."""
    micro_batch_size: int | None = _free(None)
    """Sequences per forward pass and process; none: the whole share of the batch at once."""
    opt: str = "adamw"
    """Any optimiser name of timm."""
    lr: float = 2e-3
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the last step (cosine)."""
    warmup_lr: float = 1e-7
    """Learning rate at step 0 of the linear ramp."""
    ramp_steps: int | None = None
    """Steps of the ramp; none: min(1000, steps / 15)."""
    weight_decay: float = 0.05
    """On all trainable tensors, biases and norms included."""
    clip_grad: float | None = None
    """Largest gradient norm; none: no clipping."""
    precision: Precision = "bf16"
    """`bf16`: autocast; parameters and optimiser stay fp32. At widths under ~128 fp32 is faster."""
    compile: Switch = "auto"
    """torch.compile per block; `auto`: on a GPU only. The choice is kept on resume."""
    token_scale: float | None = None
    """Norm of a token's vector; none: the policy per LayerNorm epsilon in trunk/vectors.py."""
    position_scale: float | None = None
    """Norm of a position's vector; none: the same policy."""
    hide_share: float | None = None
    """Share of maskable tokens hidden; none: the rule's own (0.5 for Dyck)."""
    until: Literal["budget", "saturated"] = "budget"
    """`saturated`: stop early once the hidden tokens are solved."""
    checkpoint_minutes: float = _free(5.0)
    """Minutes between two checkpoints."""
    eval_sequences: int = 2048
    """Held-out sequences on which the final accuracy is measured."""
    evaluations: int = _free(10)
    """Looks at 256 held-out sequences and at the weights on the way, evenly spaced."""

    def __post_init__(self) -> None:
        _positive(self, "warmup", "batch_size", "micro_batch_size", "n_tokens", "ramp_steps")
        _positive(self, "warmup", "base_images", "base_epochs")
        _positive(
            self,
            "warmup",
            "lr",
            "clip_grad",
            "eval_sequences",
            "evaluations",
            "token_scale",
            "position_scale",
        )
        _share(self, "warmup", "hide_share")
        _names(self, "warmup", "model_kwargs")
        _check_minutes(self.checkpoint_minutes, "warmup.checkpoint_minutes")


@dataclass(frozen=True, kw_only=True)
class HandoffConfig:
    """What the image model starts from."""

    trunk: str | None = None
    """A trunk file, a run folder, or a name in data/trunks; none: timm's own initialisation."""
    scope: Literal["all", "attention", "mlp"] = "all"
    """Which part of each block is carried."""
    blocks: str | None = None
    """Which blocks: a slice such as `-4:` or a list such as `0,1,2`; none: all."""
    init: str | None = None
    """For fine-tuning: an export folder or a timm model tag whose weights (not only trunk) load."""
    allow_failed: bool = _free(False)
    """Hand off a trunk whose own record says that nothing was learned: for controls."""

    def __post_init__(self) -> None:
        if self.trunk and self.init:
            raise ConfigError(
                f"handoff.trunk is {self.trunk!r} and handoff.init is {self.init!r}; a model "
                "starts from one of them. Leave one out."
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The image shards."""

    train: str = "???"
    """A folder of tars, a brace pattern, or an http(s) address; see data/README.md."""
    val: str = "???"
    """The same for validation."""
    fraction: float = 1.0
    """Share of the training images, class-balanced and nested."""
    subset_seed: int | None = None
    """Seed of the order that fractions are prefixes of; none: the run's seed."""
    image_list: str | None = None
    """A file of keys, one a line (SimCLR's 1 % and 10 % lists); replaces `fraction`."""
    label_key: str | None = None
    """Field of the member KEY.json that is the label; none: KEY.cls."""
    order: Literal["windows", "full"] = "windows"
    """`windows`: shards in random windows, samples shuffled inside; `full`: one permutation."""
    window_shards: int = 32
    """Shards per window."""
    resident: Switch = "auto"
    """Keep the decoded images on the device (small sets); `auto`: if images are at most 64 px
    and fit in 2 GB."""
    allow_pipe: bool = _free(False)
    """Permit `pipe:` sources, which run a shell command."""
    index_cache: str | None = _free(None)
    """Folder for the index; none: beside the shards, or the user's cache if they are read-only."""

    def __post_init__(self) -> None:
        _share(self, "data", "fraction")
        _positive(self, "data", "window_shards")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Image classification. Field names are timm's where timm has one."""

    model: str = "vit_tiny_patch16_224"
    """A timm model name."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to timm.create_model."""
    num_classes: int | None = None
    """None: from the shards (largest label + 1, or `_info.json`)."""
    img_size: int | None = None
    """Pixels; none: the model's own."""
    epochs: float = 300.0
    """Passes over the images of the fraction."""
    steps: int | None = None
    """Optimiser steps; replaces `epochs` where given (sweeps with `match: steps`)."""
    batch_size: int = 512
    """Images per optimiser step, over all processes and accumulation."""
    micro_batch_size: int | None = _free(None)
    """Images per forward pass and process; none: the whole share of the batch at once."""
    opt: str = "adamw"
    """Any optimiser name of timm."""
    opt_betas: list[float] | None = None
    """None: the optimiser's own."""
    momentum: float = 0.9
    """For the optimisers that have one."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Not on biases, norms and other 1-D tensors."""
    layer_decay: float | None = None
    """Factor on the learning rate per layer from the top (fine-tuning)."""
    warmup_epochs: float = 5.0
    """Epochs of the linear ramp; with `steps`, the same share of the steps."""
    warmup_lr: float = 0.0
    """Learning rate at step 0."""
    min_lr: float = 1e-6
    """Learning rate at the last step (cosine)."""
    clip_grad: float | None = None
    """Largest gradient norm; none: no clipping."""
    smoothing: float = 0.1
    """Label smoothing."""
    bce_loss: bool = False
    """Binary cross-entropy over the classes (DeiT-III) instead of softmax."""
    mixup: float = 0.0
    """Alpha of mixup; 0: off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: off."""
    mixup_prob: float = 1.0
    """Share of images that are mixed."""
    mixup_switch_prob: float = 0.5
    """Share of CutMix where both are on."""
    aa: str | None = None
    """`rand-m9-mstd0.5-inc1` (RandAugment), `3a` (3-Augment), or none."""
    color_jitter: float | None = None
    """Strength of brightness, contrast and saturation jitter; with RandAugment not used (timm)."""
    reprob: float = 0.0
    """Probability of random erasing, per-pixel noise."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Area of the random crop, share of the image."""
    ratio: list[float] = field(default_factory=lambda: [0.75, 4.0 / 3.0])
    """Aspect ratio of the random crop."""
    train_crop: Literal["rrc", "pad"] = "rrc"
    """`rrc`: RandomResizedCrop; `pad`: reflect-pad by an eighth and crop (small images)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """For training and evaluation."""
    crop_pct: float = 0.875
    """Evaluation: the image is resized to img_size / crop_pct, then centre-cropped."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Per channel, in [0, 1]."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Per channel, in [0, 1]."""
    drop_path: float = 0.0
    """Stochastic depth of the last block."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights and evaluate it too."""
    model_ema_decay: float = 0.9998
    """Its decay, with timm's warm-up."""
    freeze: Literal["none", "trunk", "all_but_head"] = "none"
    """`all_but_head`: linear probe."""
    precision: Precision = "bf16"
    """`bf16`: autocast; parameters and optimiser stay fp32."""
    compile: Switch = "auto"
    """torch.compile per block; `auto`: on a GPU only. The choice is kept on resume."""
    evaluations: int = 30
    """Evaluations on the whole validation set, evenly spaced; the last is at the end."""
    checkpoint_minutes: float = _free(5.0)
    """Minutes between two checkpoints."""

    def __post_init__(self) -> None:
        _positive(self, "train", "epochs", "steps", "batch_size", "micro_batch_size", "img_size")
        _positive(self, "train", "lr", "clip_grad", "evaluations", "num_classes", "layer_decay")
        for name in (
            "smoothing",
            "mixup_prob",
            "mixup_switch_prob",
            "reprob",
            "hflip",
            "drop_path",
        ):
            _unit(self, "train", name)
        if self.warmup_epochs < 0 or self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"train.warmup_epochs is {self.warmup_epochs}; it must lie between 0 and "
                f"train.epochs ({self.epochs}). Shorten the ramp or train longer."
            )
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(
                f"train.crop_pct is {self.crop_pct}; the evaluation's crop is a share of the "
                "resized image's shorter side, above 0 and at most 1. Use 0.875, or 1.0 for all."
            )
        _names(self, "train", "model_kwargs")
        _check_minutes(self.checkpoint_minutes, "train.checkpoint_minutes")


@dataclass(frozen=True, kw_only=True)
class WarmupRun:
    """A warm-up: `vitwarm warmup`."""

    name: str = _free("warmup")
    """First part of the run folder's name; a recipe's own name if it does not set one."""
    extends: str | None = _free(None)
    """A recipe that this one starts from, relative to this file."""
    seed: int = 0
    """Seeds the sequences, the hidden positions, the model and the frozen embeddings."""
    rule: RuleConfig = field(default_factory=RuleConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """An image training: `vitwarm train`."""

    name: str = _free("train")
    """First part of the run folder's name; a recipe's own name if it does not set one."""
    extends: str | None = _free(None)
    """A recipe that this one starts from, relative to this file."""
    seed: int = 0
    """Seeds the subset, the order, the augmentation and the fresh tensors."""
    arm: str | None = _free(None)
    """Label of the initialisation in reports; none: `default`, or the trunk's own name."""
    match: Literal["steps", "epochs"] | None = _free(None)
    """What a sweep held equal across fractions; reports never mix the two."""
    data: DataConfig = field(default_factory=DataConfig)
    handoff: HandoffConfig = field(default_factory=HandoffConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One way to initialise the image model in a sweep. All fields empty: timm's own (default)."""

    warmup: str | None = None
    """A warm-up recipe that the sweep runs first: relative to its file, or below configs/."""
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides of that recipe: `{rule.name: "shuffled:dyck"}`."""
    trunk: str | None = None
    """A trunk file, run folder or shipped name, instead of a warm-up."""
    init: str | None = None
    """An initialiser that needs no training: see `vitwarm.inits.INITS`."""
    init_params: dict[str, Any] = field(default_factory=dict)
    """Its parameters."""
    scope: Literal["all", "attention", "mlp"] = "all"
    """Which part of each block is carried."""
    blocks: str | None = None
    """Which blocks are carried."""
    train: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides of the image training for this arm alone. A control whose warm-up is meant
    to fail says so here: `{handoff.allow_failed: true}`."""
    extra_samples_of: str | None = None
    """Train longer: add the samples of this arm's warm-up to the image budget."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Arms x fractions (or anything else) x paired seeds: `vitwarm sweep`."""

    name: str = "sweep"
    """Name of the sweep's folder; the file's own name if it does not set one."""
    extends: str | None = None
    """A sweep recipe that this one starts from, relative to this file."""
    base: str = "???"
    """Training recipe: relative to this file, or below configs/."""
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides of the base, the same for every row."""
    match: Literal["steps", "epochs"] = "???"  # type: ignore[assignment]
    """What is held equal across fractions: the updates, or the passes over the images."""
    warmup_seeds: Literal["shared", "paired"] = "???"  # type: ignore[assignment]
    """`shared`: one warm-up (seed 0) for all seeds of an arm; `paired`: one per seed."""
    arms: dict[str, ArmConfig] = field(default_factory=lambda: {"default": ArmConfig()})
    """Label -> arm."""
    over: dict[str, Any] = field(default_factory=dict)
    """Dotted field -> list of values; `warmup.*` and `rule.*` fields multiply the warm-ups."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds; the same seeds in every cell, so that arms are paired."""
    run: RunConfig = field(default_factory=RunConfig)
    executor: Literal["local", "slurm"] = "local"
    """`local`: worker processes on this machine; `slurm`: an sbatch array."""
    slots: int | None = None
    """Runs at a time on this machine; none: one per GPU, else one per CPU core."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Options of sbatch by their long names: `{partition: gpu, time: "12:00:00"}`."""
    array_limit: int = 1000
    """Jobs per sbatch array, at most (sites allow MaxArraySize - 1, commonly 1000)."""

    def __post_init__(self) -> None:
        for name in ("slots", "array_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0.")


Config = TypeVar("Config", WarmupRun, TrainRun, SweepConfig)


def load_config(
    schema: type[Config],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    fields: Mapping[str, Any] | None = None,
) -> Config:
    """Builds a config from a recipe file and dotted overrides.

    Args:
        schema: WarmupRun, TrainRun or SweepConfig.
        path: a YAML recipe, or None for the defaults.
        overrides: `section.field=value` words.
        fields: dotted field -> value, as a sweep's `set`; merged before the overrides.
    Returns: the frozen config; its `name` is the recipe's file name if the recipe sets none.
    Raises: ConfigError: a file that is no recipe, a key that does not exist (with the nearest that
        does), a value of another type, a mandatory field without value, a value out of range.
    """
    where = f"{path}" if path else "the command line"
    try:
        merged = OmegaConf.structured(schema)
        if path:
            recipe = _read_yaml(Path(path))
            if recipe.get("extends"):
                parent = Path(path).parent / str(recipe["extends"])
                inherited = _read_yaml(parent)
                if inherited.get("extends"):
                    raise ConfigError(
                        f"extends in {path} names {parent}, which extends "
                        f"{inherited['extends']} in turn; one level is allowed. "
                        "Extend the last one directly."
                    )
                where = f"{parent}"
                merged = OmegaConf.merge(merged, _nest(inherited))
            where = f"{path}"
            merged = OmegaConf.merge(merged, {"name": Path(path).stem}, _nest(recipe))
        if fields:
            where = "the given fields"
            merged = OmegaConf.merge(merged, _nest(fields))
        where = "the command line"
        for word in overrides:
            _check_override(word)
        typed = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
        merged = OmegaConf.merge(merged, _switches(typed))
        where = f"{path or schema.__name__}"
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"{missing[0]} has no value in {where}; it is mandatory. "
                f"Give it in the recipe or as {missing[0]}=..."
            )
        return cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_explain(error, schema)} (in {where})") from error


def save_config(config: Any, path: str | Path) -> None:
    """Writes the resolved config as YAML, atomically."""
    write_text(Path(path), OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))


def to_plain(config: Any) -> dict[str, Any]:
    """Returns the config as nested dicts and lists of plain values."""
    return dataclasses.asdict(config)


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Returns a copy with dotted fields replaced, checked like a recipe's.

    Raises: ConfigError: as `load_config`.
    """
    schema = type(config)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(to_plain(config)))
        merged = OmegaConf.merge(merged, _nest(dict(overrides)))
        return cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, schema)) from error


def config_hash(config: Any, contents: Mapping[str, str | None] | None = None) -> str:
    """Returns 64 hex digits that depend on what changes the result, and on nothing else.

    Args:
        config: a config dataclass. Fields marked free (paths, workers, logging) are left out.
        contents: dotted field -> content hash, for fields that name files: the trunk's sha256
            instead of its path, so that a moved or renamed file is the same run.
    """
    plain = dict(_hashed(config, ""))
    for name, content in (contents or {}).items():
        if name not in plain:
            raise KeyError(name)
        plain[name] = content
    text = json.dumps({"schema": type(config).__name__, **plain}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def find_recipe(name: str | Path, *, beside: Path | None = None) -> Path:
    """Returns the recipe file that a name means: as given, beside another file, or in configs/.

    Raises: ConfigError: no such file, with the nearest names.
    """
    asked = Path(name)
    homes = [Path(), *([beside] if beside else []), *_config_homes()]
    for home in homes:
        for candidate in (home / asked, (home / asked).with_suffix(".yaml")):
            if candidate.is_file():
                return candidate
    known = sorted(
        str(p.relative_to(home)) for home in _config_homes() for p in home.rglob("*.yaml")
    )
    raise ConfigError(
        f"There is no recipe {str(name)!r}.{nearest(str(name), known)} "
        "Give the path of a YAML file, or a name below configs/."
    )


def _config_homes() -> list[Path]:
    package = Path(__file__).resolve().parent
    return [home for home in (package.parent / "configs", package / "configs") if home.is_dir()]


def _hashed(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.metadata.get("hashed", True) is False:
            continue
        if dataclasses.is_dataclass(value):
            yield from _hashed(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"There is no recipe file {path}. Give the path of a YAML file.")
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # yaml raises a family of its own
        first = str(error).splitlines()[0]
        raise ConfigError(f"{path} is no valid YAML: {first}. Mend the file.") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} holds no fields; a recipe is a YAML mapping of sections.")
    return cast(dict[str, Any], plain)


def _nest(plain: Mapping[str, Any]) -> Any:
    """Turns dotted keys at the top (`{"warmup.lr": 1}`) into nested ones for a merge."""
    nested: dict[str, Any] = {}
    for key, value in plain.items():
        parts = str(key).split(".")
        place = nested
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        if isinstance(value, Mapping) and isinstance(place.get(parts[-1]), dict):
            place[parts[-1]].update(value)
        else:
            place[parts[-1]] = dict(value) if isinstance(value, Mapping) else value
    return OmegaConf.create(_switches(nested))


def _switches(plain: Any, name: str = "") -> Any:
    """Undoes what YAML does to `compile: off`: it reads on and off as booleans."""
    if isinstance(plain, dict):
        return {key: _switches(value, str(key)) for key, value in plain.items()}
    if isinstance(plain, bool) and name.rpartition(".")[2] in ("compile", "resident"):
        return "on" if plain else "off"
    return plain


def _check_override(word: str) -> None:
    if not re.match(r"^[A-Za-z_][\w.]*=", word):
        raise ConfigError(
            f"{word!r} is no override; write section.field=value, for example warmup.lr=1e-3."
        )


def _explain(error: OmegaConfBaseException, schema: type) -> str:
    """One sentence from OmegaConf's several lines, with the nearest key where one is mistyped."""
    first = str(error).splitlines()[0].strip().rstrip(".")
    key = getattr(error, "full_key", None)
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", first)
    if unknown:
        known = [name for name, _ in _all_fields(schema, "")]
        asked = str(key or unknown[1])
        if asked.startswith("arms."):  # their labels are the user's, so no default names them
            arm = asked.rpartition(".")[0]
            known += [f"{arm}.{item.name}" for item in dataclasses.fields(ArmConfig)]
        return f"There is no field {asked!r}.{nearest(asked, known)}"
    return f"{key}: {first}." if key else f"{first}."


def _all_fields(schema: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    default = schema() if isinstance(schema, type) else schema
    for item in dataclasses.fields(default):
        value = getattr(default, item.name)
        yield f"{prefix}{item.name}", value
        if dataclasses.is_dataclass(value):
            yield from _all_fields(value, f"{prefix}{item.name}.")


def _positive(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be above 0.")


def _share(config: Any, section: str, name: str) -> None:
    value = getattr(config, name)
    if value is not None and not 0 < value <= 1:
        raise ConfigError(f"{section}.{name} is {value}; it must lie above 0 and at most 1.")


def _unit(config: Any, section: str, name: str) -> None:
    value = getattr(config, name)
    if not 0 <= value <= 1:
        raise ConfigError(f"{section}.{name} is {value}; it must lie between 0 and 1.")


def _names(config: Any, section: str, name: str) -> None:
    """Refuses `{depth:3}`, which YAML reads as one key without a value (a blank is missing)."""
    for key in getattr(config, name):
        if not str(key).isidentifier():
            raise ConfigError(
                f"{section}.{name} has the key {str(key)!r}, which is no argument's name. "
                f"Write {{depth: 3}} with a blank after the colon, or {section}.{name}.depth=3."
            )


def _check_minutes(value: float, name: str) -> None:
    if not value > 0:
        raise ConfigError(f"{name} is {value}; it must be above 0 minutes.")

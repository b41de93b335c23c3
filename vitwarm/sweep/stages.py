"""What a sweep asks of the other stages, in one place; torch is loaded when one is first asked.

Everything here is a plain function of plain values, so that a worker process can be told which to
call, and a test can put quick ones in their place.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vitwarm.config import SweepConfig, TrainRun, WarmupRun
from vitwarm.errors import ConfigError
from vitwarm.sweep.rows import ARM_PREFIX, Config
from vitwarm.sweep.worker import run_row

if TYPE_CHECKING:
    from vitwarm.shards import ShardIndex


@dataclass(frozen=True, kw_only=True)
class WarmupFacts:
    """What a warm-up will be, before it has run."""

    folder: Path
    samples: int
    steps: int
    tokens: int


ConfigT = TypeVar("ConfigT", WarmupRun, TrainRun)


def plan_warmup(config: WarmupRun) -> WarmupFacts:
    """Returns what a warm-up will be. Raises: as `vitwarm.warmup.plan_warmup`."""
    from vitwarm import warmup

    plan = warmup.plan_warmup(_on_a_login_node(config))
    samples, steps, tokens = plan.budget.samples, plan.budget.steps, plan.budget.tokens
    return WarmupFacts(folder=plan.folder, samples=samples, steps=steps, tokens=tokens)


def count_images(config: TrainRun) -> int:
    """Returns the number of images that a training's fraction or list holds.

    Raises: ShardError: shards that are missing or damaged, a fraction that leaves a class empty.
    """
    from vitwarm.training.plan import choose_images

    data = config.data
    how = {name: getattr(data, name) for name in ("label_key", "label_from", "classes")}
    index = _open_index(data.train, cache=data.index_cache, allow_pipe=data.allow_pipe, **how)
    if data.fraction == 1 and not data.image_list:
        return int(index.n_images)
    return len(choose_images(config, index).rows)


def find_training(config: TrainRun) -> Path:
    """Returns the run folder that a training has or will have; its trunk must exist."""
    from vitwarm.training import training_folder

    return training_folder(_on_a_login_node(config))


def _on_a_login_node(config: ConfigT) -> ConfigT:
    """The config as a plan may look at it where nobody has started its processes.

    The same number of them, so that a batch that they cannot share is refused.
    """
    from vitwarm.world import find_launch

    run = config.run
    size = run.devices * run.nodes
    launched = size == 1 or find_launch(os.environ) is not None
    return config if launched else _on_cpu(config, devices=size, nodes=1)


def _on_cpu(config: ConfigT, **changes: Any) -> ConfigT:
    run = dataclasses.replace(config.run, device="cpu", **changes)
    return dataclasses.replace(config, run=run)


_NUMBERS = {float: "a number", bool: "true or false", int: "a whole number"}


def check_init(init: str, params: dict[str, Any]) -> dict[str, str]:
    """Checks an initialiser's parameters before anything has run.

    Returns: parameter -> sha256 of the tensors, for parameters that name a trunk that exists.
    Raises: ConfigError: no such initialiser or parameter, or a value that it does not take;
        TrunkError: no such trunk.
    """
    from vitwarm.inits import INITS, check_params
    from vitwarm.trunk import Trunk, load_trunk

    check_params(init, model="", model_kwargs={}, seed=0, **params)
    named = []
    for name, hint in get_type_hints(INITS[init]).items():
        value, parts = params.get(name), [hint, *get_args(hint)]
        if value is None:
            continue
        words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
        numbers = [what for kind, what in _NUMBERS.items() if kind in parts]
        said = f"init_params.{name} of {init!r} is {value!r}; allowed"
        if Trunk in parts:
            named += [] if str(value).startswith(ARM_PREFIX) else [name]
        elif words and value not in words:
            raise ConfigError(f"{said} are {', '.join(map(str, words))}.")
        elif not words and numbers and not _holds(value, parts):
            raise ConfigError(f"{said} is {numbers[0]}.")
    return {name: load_trunk(params[name]).sha256 for name in named}


def _holds(value: Any, parts: list[Any]) -> bool:
    """Whether a value is of one of the types, and finite; a whole number is a number too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return type(value) in parts
    return math.isfinite(value) and (float in parts or type(value) in parts)


def check_trunk(label: str, warm: WarmupRun, train: TrainRun) -> None:
    """Refuses an arm whose warm-up makes no trunk for the arm's image model, before either runs.

    Both models are built on torch's meta device: names and shapes, no memory.

    Raises: HandoffError: the first tensor that does not fit; ModelError: a model that cannot be
        built, or not warmed up at this length.
    """
    import torch

    from vitwarm.handoff import check_fit
    from vitwarm.training.plan import model_kwargs
    from vitwarm.trunk import Trunk, build_shapes, checkpoint_gradients, trunk_names
    from vitwarm.warmup import make_token_model

    with torch.device("meta"):
        tokens = make_token_model(warm)
    state = tokens.model.state_dict()
    trunk = Trunk({n: state[n] for n in trunk_names(tokens.model)}, tokens.facts, sha256="")
    vit = build_shapes(train.train.model, **model_kwargs(train, n_classes=1))
    if train.train.grad_checkpointing:
        checkpoint_gradients(vit, train.train.model, section="train")
    where = f"arms.{label}: the trunk of its warm-up ({warm.warmup.model}) and train.model "
    where += train.train.model
    check_fit(trunk, vit, where=where, scope=train.handoff.scope, blocks=train.handoff.blocks)


def check_start(label: str, train: TrainRun) -> None:
    """Refuses an arm without a warm-up whose trunk file, or choice of blocks, does not fit.

    Raises: HandoffError: the first tensor that does not fit, a trunk that learned nothing, or no
        such blocks; TrunkError: no such trunk; ModelError: a model that cannot be built.
    """
    from vitwarm.handoff import check_fit, refuse_unlearned
    from vitwarm.training.plan import model_kwargs
    from vitwarm.trunk import build_shapes, choose_names, load_trunk, trunk_names

    start, where = train.handoff, f"arms.{label}"
    vit = build_shapes(train.train.model, **model_kwargs(train, n_classes=1))
    if start.trunk is None:  # an initialiser makes a trunk of the model's own shape
        choose_names(trunk_names(vit), scope=start.scope, blocks=start.blocks)
        return
    trunk = load_trunk(start.trunk)
    if not start.allow_failed:
        remedy = f"set {where}.train.handoff.allow_failed=true"
        refuse_unlearned(trunk, start.trunk, remedy)
    where = f"{where}: the trunk {start.trunk} and train.model {train.train.model}"
    check_fit(trunk, vit, where=where, scope=start.scope, blocks=start.blocks)


@dataclass(frozen=True)
class Stages:
    """The functions that a sweep calls; every one must be importable by a worker process."""

    plan_warmup: Callable[[WarmupRun], WarmupFacts] = plan_warmup
    count_images: Callable[[TrainRun], int] = count_images
    find_training: Callable[[TrainRun], Path] = find_training
    check_init: Callable[[str, dict[str, Any]], dict[str, str]] = check_init
    check_trunk: Callable[[str, WarmupRun, TrainRun], None] = check_trunk
    check_start: Callable[[str, TrainRun], None] = check_start
    run_row: Callable[[Config], None] = run_row


REAL = Stages()


def choose_stages(config: SweepConfig, stages: Stages) -> Stages:
    """Returns the stages as the sweep's own process asks them.

    For SLURM it asks without a device: a login node need not have the GPU of the jobs.
    """
    if config.executor != "slurm":
        return stages
    return dataclasses.replace(
        stages,
        plan_warmup=lambda config: stages.plan_warmup(_on_cpu(config)),
        find_training=lambda config: stages.find_training(_on_cpu(config)),
    )


@cache
def _open_index(source: str, **how: Any) -> ShardIndex:
    from vitwarm.shards import open_shards

    return open_shards(source, **how)

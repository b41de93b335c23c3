"""What a sweep will run: arms x settings x fractions x seeds as rows, warm-ups before trainings.

A row's key depends on what it computes and on its place in the sweep, never on paths or on the
order of the recipe. A training's folder is known only once its trunk exists, because a trunk enters
the config's hash by its content; so rows name what they need by key, and `resolve` fills it in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitwarm.config import (
    ArmConfig,
    RunConfig,
    SweepConfig,
    TrainRun,
    WarmupRun,
    config_hash,
    find_recipe,
    load_config,
    with_overrides,
)
from vitwarm.errors import ConfigError
from vitwarm.records import Record
from vitwarm.sweep import checks
from vitwarm.sweep.rows import (
    ARM_PREFIX,
    ArmKind,
    InitConfig,
    Plan,
    Row,
    home_of,
    make_key,
    make_label,
    set_fields,
)
from vitwarm.sweep.stages import REAL, Stages, WarmupFacts
from vitwarm.units import to_steps

T = TypeVar("T")


def make_plan(config: SweepConfig, *, recipe: Path | None = None, stages: Stages = REAL) -> Plan:
    """Expands a sweep into rows.

    Args:
        recipe: the sweep's file, which `base` and the arms' recipes are relative to.
        stages: what counts images and sizes warm-ups; none: the real ones.
    Raises: ConfigError: fields that contradict each other or do not exist; and what the other
        stages refuse (an unknown rule, missing shards) before anything has run.
    """
    return _Planner(checks.spell_out(config), recipe, stages).make()


def resolve(config: TrainRun, *, trunk: Path | None, warm: Record | None) -> TrainRun:
    """Fills in what a training's needs gave.

    Args:
        trunk: the trunk file of the row that makes it.
        warm: the record of the warm-up whose samples are added: whole steps, rounded up, so
            that the arm that trains longer never has less than the warmed arm had.
    """
    changes: dict[str, Any] = {}
    if trunk is not None:
        changes["handoff.trunk"] = str(trunk)
    if warm is not None and config.train.steps is not None:
        extra = extra_steps(warm.warmup_samples or 0, config.train.batch_size)
        changes["train.steps"] = config.train.steps + extra
    return set_fields(config, changes)


def extra_steps(samples: int, batch_size: int) -> int:
    """Returns the optimiser steps that hold so many samples: exactly, or the last one not full."""
    return math.ceil(samples / batch_size)


class _Planner:
    """Expands one sweep; the rows collect in `warmups`, `inits` and `trainings`."""

    def __init__(self, config: SweepConfig, recipe: Path | None, stages: Stages) -> None:
        self.config = config
        self.beside = recipe.parent if recipe else None
        self.stages = stages
        self.home = home_of(config)
        self.warmups: dict[str, Row] = {}
        self.inits: dict[str, Row] = {}
        self.trainings: list[Row] = []
        self.known: dict[str, Any] = {}
        self.labels: dict[str, str] = {}
        self.axes = checks.split_axes(config)

    def make(self) -> Plan:
        config = self.config
        checks.check_sweep(config, self.axes)
        base = load_config(TrainRun, self._find(config.base), fields=config.set)
        base = dataclasses.replace(base, match=config.match, run=_merge_run(base.run, config.run))
        if config.match == "epochs" and base.train.steps is not None:
            raise ConfigError(
                f"match is 'epochs', but train.steps is {base.train.steps} in {config.base}; "
                "steps replace epochs. Use set.train.steps=null, or match=steps."
            )
        checks.check_base(config, base)
        for setting, size in itertools.product(_grid(self.axes.settings), _grid(self.axes.sizes)):
            fraction = float(size.get("data.fraction", base.data.fraction))
            for seed in config.seeds[: config.n_seeds.get(fraction)]:
                for label, arm in config.arms.items():
                    self._add_arm(base, label, arm, setting, size, seed)
        # Seed by seed, so that a sweep that is stopped has whole comparisons.
        self.trainings.sort(key=lambda row: config.seeds.index(row.seed))
        rows = [*self.warmups.values(), *self.inits.values(), *self.trainings]
        return Plan(config.name, config.match, config.warmup_seeds, self.home, rows)

    def _add_arm(
        self, base: TrainRun, label: str, arm: ArmConfig, setting: dict[str, Any],
        size: dict[str, Any], seed: int,
    ) -> None:  # fmt: skip
        source = self.config.arms[arm.extra_samples_of] if arm.extra_samples_of else arm
        # What an arm says itself is no axis of it: it would be named by a value that it has not.
        own_handoff = {**arm.train, **_carried(arm)}
        warm_grid = list(_grid(self.axes.warm, source.set)) if source.warmup else [{}]
        if arm.extra_samples_of:
            warm_grid = self._distinct_samples(source, warm_grid, seed)
        carries = bool(arm.warmup or arm.trunk or arm.init)
        for warm, handoff in itertools.product(
            warm_grid, _grid(self.axes.handoff, own_handoff) if carries else [{}]
        ):
            own = {**setting, **size, **handoff, **arm.train}
            config = set_fields(self._override(base, own), {"seed": seed})
            named = {**warm, **handoff} if arm.warmup or len(warm_grid) > 1 else handoff
            self._add_training(config, self._label(label, named), arm, source, warm, setting)

    def _label(self, label: str, fields: dict[str, Any]) -> str:
        name, meant = make_label(label, fields), f"{label} with {fields}"
        if self.labels.setdefault(name, meant) != meant:
            raise ConfigError(
                f"over gives two arms the label {name!r}: {self.labels[name]} and {meant}. "
                "Make arms with names of their own of them."
            )
        return name

    def _distinct_samples(
        self, source: ArmConfig, grid: list[dict[str, Any]], seed: int
    ) -> list[dict[str, Any]]:
        """Variants of a warm-up that differ in samples: each has its own arm that trains longer."""
        found: dict[int, dict[str, Any]] = {}
        for warm in grid:
            config = self._warmup_config(source, warm, seed)
            found.setdefault(self._plan_warmup(config).samples, warm)
        return list(found.values())

    def _add_training(
        self, config: TrainRun, name: str, arm: ArmConfig, source: ArmConfig,
        warm: dict[str, Any], setting: dict[str, Any],
    ) -> None:  # fmt: skip
        n_images, steps = self._size(config, name)
        changes: dict[str, Any] = {"arm": name, **_carried(arm)}
        changes |= {"handoff.trunk": arm.trunk} if arm.trunk else {}
        if self.config.match == "steps" or arm.extra_samples_of:
            changes["train.steps"] = steps
        config = set_fields(config, changes)
        trunk = extra = None
        if arm.warmup:
            self._check_trunk(name, self._warmup_config(arm, warm, config.seed), config)
            trunk = self._add_warmup(name, arm, warm, config.seed)
        elif arm.init or arm.trunk:
            shape = config.train.model, config.train.model_kwargs, config.train.img_size
            once = "start", *shape, *dataclasses.astuple(config.handoff)
            self._once(lambda: self.stages.check_start(name, config), *once)
            trunk = self._add_init(name, arm, warm, config) if arm.init else None
        if arm.extra_samples_of:
            extra = self._add_warmup(None, source, warm, config.seed)
            steps += extra_steps(extra.samples, config.train.batch_size)
        needs = [row.key for row in (trunk, extra) if row]
        self.trainings.append(
            Row(
                key=make_key("train", name, setting, config_hash(config), needs),
                kind="train", config=config, needs=tuple(needs), seed=config.seed, arms=(name,),
                arm_kind=_arm_kind(arm), trunk_of=trunk.key if trunk else None,
                extra_of=extra.key if extra else None, extra_samples_of=arm.extra_samples_of,
                setting=setting, n_images=n_images,
                fraction=None if config.data.image_list else config.data.fraction,
                steps=steps, samples=steps * config.train.batch_size,
            )
        )  # fmt: skip

    def _size(self, config: TrainRun, label: str) -> tuple[int, int]:
        """Images of the fraction, and optimiser steps before any are added."""
        n_images, train = self._count(config), config.train
        if train.steps is not None:
            if self.config.match == "epochs":
                raise ConfigError(
                    f"arms.{label}.train sets train.steps to {train.steps}, but match is "
                    "'epochs'. Set train.epochs there instead."
                )
            return n_images, train.steps
        counted = n_images
        if self.config.match == "steps":
            counted = self._count(
                set_fields(config, {"data.fraction": 1.0, "data.image_list": None})
            )
        steps = to_steps(train.epochs, n_images=counted, batch_size=train.batch_size)
        return n_images, steps

    def _count(self, config: TrainRun) -> int:
        # A fraction has the same size for every seed; counting once is enough.
        data = dataclasses.replace(config.data, subset_seed=None)
        facts = dataclasses.asdict(data)
        return self._once(lambda: self.stages.count_images(config), "images", facts)

    def _once(self, find: Callable[[], T], *facts: Any) -> T:
        """What a costly look found for the same facts before, or finds now."""
        key = json.dumps(facts, sort_keys=True, default=str)
        if key not in self.known:
            self.known[key] = find()
        found: T = self.known[key]
        return found

    def _warmup_config(self, arm: ArmConfig, warm: dict[str, Any], seed: int) -> WarmupRun:
        name, fields = str(arm.warmup), {**warm, **arm.set}

        def load() -> WarmupRun:
            return with_overrides(load_config(WarmupRun, self._find(name)), fields)

        config = self._once(load, "warm-up", name, fields)
        config = dataclasses.replace(config, run=_merge_run(config.run, self.config.run))
        checks.check_devices(self.config, config.run, name)
        if self.config.warmup_seeds == "paired":
            config = dataclasses.replace(config, seed=seed)
        return config

    def _override(self, base: TrainRun, fields: dict[str, Any]) -> TrainRun:
        """Checks fields of the recipe once, not for every seed."""
        return self._once(lambda: with_overrides(base, fields) if fields else base, "base", fields)

    def _plan_warmup(self, config: WarmupRun) -> WarmupFacts:
        facts = (config.name, config_hash(config))
        return self._once(lambda: self.stages.plan_warmup(config), "plan", *facts)

    def _add_warmup(self, name: str | None, arm: ArmConfig, warm: dict[str, Any], seed: int) -> Row:
        config = self._warmup_config(arm, warm, seed)
        facts = self._plan_warmup(config)
        # The folder, not the config: two spellings of one rule are one warm-up.
        key = make_key("warmup", str(facts.folder))
        old = self.warmups.get(key)
        arms = dict.fromkeys([*(old.arms if old else ()), *([name] if name else [])])
        row = Row(
            key=key, kind="warmup", config=old.config if old else config, seed=config.seed,
            arms=tuple(arms), steps=facts.steps, samples=facts.samples, tokens=facts.tokens,
            folder=facts.folder,
        )  # fmt: skip
        self.warmups[key] = row
        return row

    def _check_trunk(self, name: str, warm: WarmupRun, train: TrainRun) -> None:
        """Once per pair of models: building them takes a tenth of a second."""
        both = "model", "model_kwargs", "grad_checkpointing"
        shapes = [getattr(one, name) for one in (warm.warmup, train.train) for name in both]
        shapes += [warm.warmup.n_tokens, warm.warmup.tie, train.train.img_size]
        shapes += [train.handoff.scope, train.handoff.blocks]
        self._once(lambda: self.stages.check_trunk(name, warm, train), "fit", *shapes)

    def _add_init(self, name: str, arm: ArmConfig, warm: dict[str, Any], train: TrainRun) -> Row:
        assert arm.init is not None
        params, needs = dict(arm.init_params), []
        for param, value in arm.init_params.items():
            if isinstance(value, str) and value.startswith(ARM_PREFIX):
                other = self._arm(value.removeprefix(ARM_PREFIX), f"init_params.{param}")
                row = self._add_warmup(None, other, warm if other.warmup else {}, train.seed)
                needs.append(row.key)
                params[param] = f"{row.folder}/trunk.safetensors"
        model_kwargs = dict(train.train.model_kwargs)
        init, given = arm.init, dict(arm.init_params)
        contents = self._once(lambda: self.stages.check_init(init, given), init, given)
        made_of = {**given, **contents}  # another trunk of that name makes another trunk
        facts = [arm.init, made_of, needs, train.train.model, model_kwargs, train.seed]
        key = make_key("init", *facts)
        path = self.home / "inits" / f"{arm.init}-seed{train.seed}-{key[-8:]}.safetensors"
        config = InitConfig(
            name=arm.init, path=str(path), model=train.train.model, model_kwargs=model_kwargs,
            seed=train.seed, params=params,
        )  # fmt: skip
        old = self.inits.get(key)
        arms = dict.fromkeys([*(old.arms if old else ()), name])
        self.inits[key] = Row(
            key=key, kind="init", config=config, needs=tuple(needs), seed=train.seed,
            arms=tuple(arms), samples=0, folder=path,
        )  # fmt: skip
        return self.inits[key]

    def _arm(self, label: str, where: str) -> ArmConfig:
        arm = self.config.arms.get(label)
        if arm is None or not arm.warmup:
            warmed = [name for name, one in self.config.arms.items() if one.warmup]
            raise ConfigError(
                f"{where} names the arm {label!r}, which has no warm-up recipe. "
                f"Arms with one: {', '.join(warmed) or 'none'}."
            )
        return arm

    def _find(self, name: str) -> Path:
        """A recipe relative to the sweep's own file, else as given, else below configs/."""
        own: list[str | Path] = [] if self.beside is None else [self.beside / name]
        for one in (*own, name, Path("sweep") / name):  # the last: its recipe's path is not known
            with contextlib.suppress(ConfigError):
                return find_recipe(one)
        return find_recipe(name)  # says what there is


def _merge_run(own: RunConfig, sweep: RunConfig) -> RunConfig:
    """The sweep's root, and whatever else the sweep sets; the recipe's own word for the rest."""
    usual = vars(RunConfig())
    said = {name: value for name, value in vars(sweep).items() if value != usual[name]}
    return dataclasses.replace(own, **{**said, "root": sweep.root})


def _arm_kind(arm: ArmConfig) -> ArmKind:
    if arm.extra_samples_of:
        return "longer"
    if arm.warmup or arm.trunk:
        return "warm"
    return "init" if arm.init else "cold"


def _carried(arm: ArmConfig) -> dict[str, Any]:
    """Which part of its trunk an arm says that it carries."""
    said = {"handoff.scope": arm.scope, "handoff.blocks": arm.blocks}
    return {name: value for name, value in said.items() if value is not None}


def _grid(
    axes: dict[str, list[Any]], said: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Every combination of the axes but those in `said`."""
    axes = {name: values for name, values in axes.items() if name not in (said or {})}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))

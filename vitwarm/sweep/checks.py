"""What a sweep's config may not say, found before anything runs; and what `over` means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vitwarm.config import (
    ArmConfig,
    RunConfig,
    SweepConfig,
    TrainRun,
    WarmupRun,
    value_of,
)
from vitwarm.config.fields import fields_of
from vitwarm.errors import ConfigError, nearest

#: The axes of the report: they change how many images there are.
SIZE_FIELDS = ("data.fraction", "data.image_list")


@dataclass(frozen=True)
class Axes:
    """`over`, sorted by what a field multiplies; warm-ups and hand-offs stand in an arm's label."""

    sizes: dict[str, list[Any]]
    """The numbers of images: the report's axis."""
    warm: dict[str, list[Any]]
    """The warm-ups."""
    handoff: dict[str, list[Any]]
    """The arms that carry a trunk."""
    settings: dict[str, list[Any]]
    """All arms; every combination is a section of the report."""


def split_axes(config: SweepConfig) -> Axes:
    """Sorts the fields of `over`. Raises: ConfigError: a field without a list of usable values."""
    axes = Axes({}, {}, {}, {})
    homes = {"warmup": axes.warm, "rule": axes.warm, "handoff": axes.handoff}
    for name, values in dict(_flatten(config.over, "")).items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"over.{name} is {values!r}; give a list of values, or leave the field out."
            )
        values = [value_of(_schema_of(name), name, value) for value in values]
        if any(value in values[:place] for place, value in enumerate(values)):
            raise ConfigError(f"over.{name} is {values}; give each value once.")
        home = homes.get(name.split(".")[0], axes.settings)
        (axes.sizes if name in SIZE_FIELDS else home)[name] = values
    return axes


def _schema_of(name: str) -> type[TrainRun] | type[WarmupRun]:
    return WarmupRun if name.split(".")[0] in ("warmup", "rule") else TrainRun


def _flatten(plain: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The command line's `over.data.fraction=[0.1]` arrives nested, a recipe's key dotted."""
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def spell_out(config: SweepConfig) -> SweepConfig:
    """Returns the sweep with `core: TRUNK` as what it is short for: an initialiser, its parameter.

    Raises: ConfigError: an arm that starts from something else as well.
    """
    arms = {}
    for label, arm in config.arms.items():
        if arm.core is not None:
            _check_single(f"arms.{label}", arm)
            params = {**arm.init_params, "core": arm.core}
            arm = dataclasses.replace(arm, core=None, init="expand", init_params=params)
        arms[label] = arm
    return dataclasses.replace(config, arms=arms)


def check_sweep(config: SweepConfig, axes: Axes) -> None:
    """Raises ConfigError for fields that contradict each other, naming them and the remedy."""
    for fraction, n in config.n_seeds.items():
        if not 1 <= n <= len(config.seeds):
            raise ConfigError(
                f"n_seeds has {n} seeds at the fraction {fraction:g}; seeds lists "
                f"{len(config.seeds)}. Give a number from 1 to {len(config.seeds)}."
            )
        if fraction not in (fractions := axes.sizes.get("data.fraction", [])):
            raise ConfigError(
                f"n_seeds has the fraction {fraction:g}, which no row has. Give one of "
                f"over.data.fraction ({', '.join(map(str, fractions)) or 'which is not given'})."
            )
    check_devices(config, config.run, "run")
    if "seed" in axes.settings:
        raise ConfigError("over has 'seed'; seeds have a field of their own: seeds: [0, 1, 2].")
    _check_own("set", config.set)
    facts = [*fields_of(TrainRun), *fields_of(WarmupRun)]
    free = {one.name for one in facts if not one.hashed}
    for name in (*axes.warm, *axes.handoff, *axes.settings):
        if name in ("handoff.trunk", "handoff.init"):
            raise ConfigError(
                f"over has {name!r}, which is what makes an arm. Give each its own: "
                "arms: {a: {trunk: A}, b: {trunk: B}}."
            )
        if name in free:
            at_the_top = name in ("name", "match") or name.startswith("run.")
            place = name if at_the_top else f"set.{name}"
            remedy = f"Use {place}=... with one value."
            remedy = "Leave it out." if name in ("arm", "extends") else remedy
            raise ConfigError(
                f"over has {name!r}, which changes no result: its rows would be one run. {remedy}"
            )
    if axes.warm and not any(arm.warmup for arm in config.arms.values()):
        raise ConfigError(
            f"over has {', '.join(axes.warm)}, but no arm has a warm-up recipe. "
            "Give an arm one: arms.dyck.warmup=..."
        )
    for label, arm in config.arms.items():
        _check_arm(config, label, arm)


def check_base(config: SweepConfig, base: TrainRun) -> None:
    """Checks what the base recipe, with `set`, says that is for the arms to say.

    Raises: ConfigError: a trunk, which the default arm would start from too; whole weights beside
        an arm that carries a trunk; several devices for a run on one machine.
    """
    check_devices(config, base.run, config.base)
    if base.handoff.trunk:
        raise ConfigError(
            f"handoff.trunk is {base.handoff.trunk!r} for every arm, so none would be a cold "
            "start. Give it to an arm: arms.LABEL.trunk=..."
        )
    carrying = [name for name, arm in config.arms.items() if arm.warmup or arm.trunk or arm.init]
    if base.handoff.init and carrying:
        raise ConfigError(
            f"handoff.init is {base.handoff.init!r} for every arm, and arms.{carrying[0]} carries "
            "a trunk; a model starts from one of them. Leave one out."
        )


def check_devices(config: SweepConfig, run: RunConfig, where: str) -> None:
    """Raises ConfigError if a sweep on one machine would give a run several devices."""
    if config.executor == "local" and run.devices * run.nodes > 1:
        raise ConfigError(
            f"run.devices is {run.devices} and run.nodes is {run.nodes} ({where}); a sweep on "
            "one machine gives every run one device and starts one run per device. Leave both at "
            "1, or use executor=slurm."
        )


def _check_own(where: str, fields: Mapping[str, Any]) -> None:
    """Refuses fields of a run that have a place of their own in a sweep."""
    for name, _ in _flatten(fields, ""):
        if name == "seed":
            what = "; seeds have a field of their own: seeds: [0, 1, 2]."
        elif name in ("name", "extends", "arm", "match"):
            what = ", which the sweep says itself. Leave it out there."
        elif name == "run.root":
            what = ", which all rows share. Use run.root=... at the top."
        else:
            continue
        raise ConfigError(f"{where} has {name!r}{what}")


def _check_single(where: str, arm: ArmConfig) -> list[str]:
    """What an arm starts from: at most one thing."""
    given = [name for name in ("warmup", "trunk", "init", "core") if getattr(arm, name)]
    if len(given) > 1:
        raise ConfigError(
            f"{where} has {' and '.join(given)}; an arm starts from one of them. Leave one out."
        )
    return given


def _check_arm(config: SweepConfig, label: str, arm: ArmConfig) -> None:
    where = f"arms.{label}"
    given = _check_single(where, arm)
    for name, owner in (("set", "warmup"), ("init_params", "init")):
        if getattr(arm, name) and not getattr(arm, owner):
            raise ConfigError(f"{where}.{name} is given without {where}.{owner}; add that field.")
    if not given and (arm.scope is not None or arm.blocks is not None):
        raise ConfigError(
            f"{where} has scope {arm.scope!r} and blocks {arm.blocks!r}, but no trunk to carry. "
            "Give it a warmup, a trunk or an init."
        )
    _check_own(f"{where}.train", arm.train)
    for name in ("trunk", "scope", "blocks"):
        if f"handoff.{name}" in dict(_flatten(arm.train, "")):
            raise ConfigError(
                f"{where}.train has 'handoff.{name}'; an arm has a field for it: {where}.{name}."
            )
    if arm.set.get("seed") is not None and config.warmup_seeds == "paired":
        raise ConfigError(
            f"{where}.set has a seed, but warmup_seeds is 'paired': every run's warm-up takes the "
            "run's own seed. Leave the seed out, or use warmup_seeds=shared."
        )
    other = arm.extra_samples_of
    if other is None:
        return
    warmed = [name for name, one in config.arms.items() if one.warmup]
    if other not in warmed:
        raise ConfigError(
            f"{where}.extra_samples_of is {other!r}, which is not an arm with a warm-up recipe."
            f"{nearest(other, warmed)} Arms with one: {', '.join(warmed) or 'none'}."
        )
    if arm.warmup or arm.trunk:
        raise ConfigError(
            f"{where} has both {given[0]} and extra_samples_of; training longer is what is "
            "compared with a warm-up. Leave one out."
        )

"""The structured config of a sweep: its arms, what it crosses, and where its runs go."""

# ruff: noqa: RUF009  the calls make fields (vitwarm/config/ranges.py), not shared defaults

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vitwarm.config.check import Checked, check_fields
from vitwarm.config.ranges import (
    arguments,
    labelled,
    line,
    plain_name,
    positive,
    sbatch_options,
    seeds_per_fraction,
    settings,
    some_blocks,
    some_seeds,
)
from vitwarm.config.schema import RunConfig

#: What an initialiser is given beside its parameters.
_OF_THE_ROW = {
    **dict.fromkeys(("model", "model_kwargs"), "it makes a trunk of the image model's shape"),
    "seed": "it takes the run's own",
}


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One way to initialise the image model in a sweep. All fields empty: timm's own (default)."""

    warmup: str | None = line(None)
    """A warm-up recipe that the sweep runs first: relative to its file, or below configs/."""
    set: dict[str, Any] = settings()
    """Dotted overrides of that recipe: `{rule.name: "shuffled:dyck"}`."""
    trunk: str | None = line(None)
    """What `handoff.trunk` takes, instead of a warm-up."""
    init: str | None = line(None)
    """An initialiser that needs no training: see `vitwarm.inits.INITS`."""
    init_params: dict[str, Any] = arguments(_OF_THE_ROW)
    """Its parameters; those of `expand` where `core` is given."""
    core: str | None = line(None)
    """A trunk that is made as deep and wide as the image model (the initialiser `expand`); or
    `arm:LABEL`, that of another arm's warm-up."""
    scope: Literal["all", "blocks", "attention", "mlp"] | None = None
    """What is carried: blocks and final norm, the blocks without it, or one half of each block;
    none: what the base says."""
    blocks: str | None = some_blocks(None)
    """Which blocks are carried."""
    train: dict[str, Any] = settings()
    """Dotted overrides of the image training for this arm alone. A control whose warm-up is meant
    to fail says so here: `{handoff.allow_failed: true}`."""
    extra_samples_of: str | None = line(None)
    """Train longer: add the samples of this arm's warm-up to the image budget."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Checked):
    """Arms x fractions (or anything else) x paired seeds: `vitwarm sweep`."""

    name: str = plain_name("sweep")
    """Name of the sweep's folder; the file's own name if it does not set one."""
    extends: str | None = line(None)
    """A sweep recipe that this one starts from, relative to this file."""
    base: str = line("???")
    """Training recipe: relative to this file, or below configs/."""
    set: dict[str, Any] = settings()
    """Dotted overrides of the base, the same for every row."""
    match: Literal["steps", "epochs"] = "???"  # type: ignore[assignment]
    """What is held equal across fractions: the updates, or the passes over the images."""
    warmup_seeds: Literal["shared", "paired"] = "???"  # type: ignore[assignment]
    """`shared`: one warm-up (seed 0) for all seeds of an arm; `paired`: one per seed."""
    arms: dict[str, ArmConfig] = labelled({"default": ArmConfig()})
    """Label -> arm."""
    over: dict[str, Any] = settings()
    """Dotted field -> list of values; `warmup.*` and `rule.*` fields multiply the warm-ups."""
    seeds: list[int] = some_seeds([0, 1, 2])
    """Seeds; the same seeds in every cell, so that arms are paired."""
    n_seeds: dict[float, int] = seeds_per_fraction()
    """data.fraction -> how many of the seeds, the first ones, run at it: `{1.0: 3}`. A fraction
    that is not named runs them all."""
    run: RunConfig = field(default_factory=RunConfig)
    executor: Literal["local", "slurm"] = "local"
    """`local`: worker processes on this machine; `slurm`: an sbatch array."""
    slots: int | None = positive(None, most=10**6)
    """Runs at a time on this machine; none: one per GPU, else one per CPU core."""
    sbatch: dict[str, Any] = sbatch_options()
    """Options of sbatch by their long names: `{partition: gpu, time: "12:00:00"}`."""
    array_limit: int = positive(1000, most=10**6)
    """Jobs per sbatch array, at most (sites allow MaxArraySize - 1, commonly 1000)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for label, arm in self.arms.items():
            check_fields(arm, f"arms.{label}.")

"""The stages from a script or a notebook, with keyword arguments that are the config's fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitwarm.commands.shared import refuse_idle_handoff
from vitwarm.config import TrainRun, WarmupRun, find_recipe, load_config
from vitwarm.config.fields import fields_of
from vitwarm.records import Record


def warm_up(recipe: str | Path | None = None, *, fresh: bool = False, **fields: Any) -> Record:
    """Warms up a trunk, as `vitwarm warmup` does.

    Args:
        recipe: a recipe file, or a name of `vitwarm configs list`.
        fresh: throw away what an earlier execution of the same config left.
        fields: of the config, see `to_fields`: `rule="dyck", budget="100steps", lr=1e-3`.
    Returns: the record; its trunk lies in `runs/<record.folder_name>`.
    Raises: VitwarmError: as `vitwarm.warmup.run_warmup`.
    """
    path = find_recipe(recipe) if recipe else None
    config = load_config(WarmupRun, path, fields=to_fields(WarmupRun, fields))
    from vitwarm.warmup import run_warmup

    return run_warmup(config, fresh=fresh)


def train(recipe: str | Path | None = None, *, fresh: bool = False, **fields: Any) -> Record:
    """Trains an image model on shards, as `vitwarm train` does.

    Args:
        recipe: as of `warm_up`.
        fresh: as of `warm_up`.
        fields: as there: `trunk="runs/warmup-1a2b3c4d", fraction=0.1, data={"train": ...}`.
    Returns: the record; its export lies in `runs/<record.folder_name>/export`.
    Raises: VitwarmError: as `vitwarm.training.run_training`.
    """
    path = find_recipe(recipe) if recipe else None
    config = load_config(TrainRun, path, fields=to_fields(TrainRun, fields))
    refuse_idle_handoff(config)
    from vitwarm.training import run_training

    return run_training(config, fresh=fresh)


def to_fields(schema: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments by the dotted names of a config's fields.

    A field goes by its own name where only one section has it (`lr`), else by its dotted one in
    `**{"warmup.lr": 1e-3}` or in its section, `warmup={"lr": 1e-3}`. `rule` also takes a name.
    Names that the config does not have stay, for `load_config` to refuse.
    """
    sections = {facts.name.partition(".")[0] for facts in fields_of(schema)}
    homes: dict[str, list[str]] = {}
    for facts in fields_of(schema):
        homes.setdefault(facts.name.rpartition(".")[2], []).append(facts.name)
    named = {}
    for name, value in given.items():
        if name == "rule" and isinstance(value, str):
            name = "rule.name"
        elif name not in sections and len(homes.get(name, [])) == 1:
            name = homes[name][0]
        named[name] = value
    return named

"""From recipes and overrides to a frozen config, and back: loading, merging, saving, hashing.

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
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitwarm.config.check import describe, hints_of
from vitwarm.config.fields import LABEL, SCHEMAS, fields_of
from vitwarm.config.reading import as_meant, read_word, read_yaml
from vitwarm.config.schema import TrainRun, WarmupRun
from vitwarm.config.sweep import SweepConfig
from vitwarm.errors import ConfigError, nearest
from vitwarm.files import write_text

Config = TypeVar("Config", WarmupRun, TrainRun, SweepConfig)


def load_config(
    schema: type[Config],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    fields: Mapping[str, Any] | None = None,
    start: Config | None = None,
) -> Config:
    """Builds a config from a recipe file and dotted overrides.

    Args:
        schema: WarmupRun, TrainRun or SweepConfig.
        path: a YAML recipe, or None for the defaults.
        overrides: `section.field=value` words.
        fields: dotted field -> value, as a sweep's `set`; merged before the overrides.
        start: what the others are merged into, in place of the schema's defaults.
    Returns: the frozen config; its `name` is the recipe's file name if the recipe sets none.
    Raises: ConfigError: a file that is no recipe, a key that does not exist (with the nearest that
        does), a value of another type, a mandatory field without value, a value out of range.
    """
    where = "the command line"
    try:
        merged = OmegaConf.structured(start or schema)
        for place, plain, once in _layers(schema, path, fields, overrides):
            where = place
            merged = OmegaConf.merge(merged, _nest(plain, schema, once=once))
        where = "the command line"
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            section, _, last = missing[0].rpartition(".")
            owner: Any = schema
            owner = hints_of(owner)[section] if section else owner
            raise ConfigError(
                f"{missing[0]} has no value{f' in {path}' if path else ''}; it is mandatory: "
                f"{describe(owner, last)}. Give it in the recipe or as {missing[0]}=..."
            )
        return cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_explain(error, schema)} (in {where})") from error


def _layers(
    schema: type, path: str | Path | None, fields: Mapping[str, Any] | None, words: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """What is merged in turn: where it stands, nested or dotted fields, and `once` of `_nest`."""
    if path:
        recipe = read_yaml(Path(path))
        if recipe.get("extends"):
            parent = Path(path).parent / str(recipe["extends"])
            inherited = read_yaml(parent)
            if inherited.get("extends"):
                raise ConfigError(
                    f"extends in {path} names {parent}, which extends {inherited['extends']} in "
                    "turn; one level is allowed. Extend the last one directly."
                )
            yield f"{parent}", inherited, True
        yield f"{path}", {"name": Path(path).stem, **recipe}, True
    if fields:
        yield "the given fields", fields, False
    for word in words:
        if word.startswith("extends="):
            raise ConfigError(
                f"{word!r} changes nothing: extends stands in a recipe file. "
                "Give that file with --config."
            )
        yield "the command line", dict([read_word(word, schema)]), True


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
    return load_config(type(config), fields=overrides, start=config)


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
    homes = [Path(), *([beside] if beside else []), *_config_homes()]
    for home in homes:
        for candidate in (home / name, home / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    raise ConfigError(
        f"There is no recipe {str(name)!r}.{nearest(str(name), list_recipes())} "
        "Give the path of a YAML file, or a name below configs/ (vitwarm configs list)."
    )


def list_recipes() -> dict[str, Path]:
    """Returns the recipes that ship, name below configs/ -> file, in their order."""
    return {
        path.relative_to(home).with_suffix("").as_posix(): path
        for home in _config_homes()
        for path in sorted(home.rglob("*.yaml"))
    }


def _config_homes() -> list[Path]:
    package = Path(__file__).resolve().parent.parent
    return [home for home in (package.parent / "configs", package / "configs") if home.is_dir()]


def _hashed(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        hashed = item.metadata.get("hashed", True)
        make = item.default_factory
        default = item.default if make is dataclasses.MISSING else make()
        if not hashed or (hashed == "changed" and value == default):
            continue
        if dataclasses.is_dataclass(value):
            yield from _hashed(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def _nest(plain: Mapping[str, Any], schema: type, *, once: bool = True) -> Any:
    """Turns dotted keys (`{"warmup.lr": 1}`) into nested ones with the schema's types.

    Args:
        once: refuse a field that is given twice, in its section and by its dotted name; else the
            later one counts, as where a word of the command line joins a recipe's `set`.
    """
    nested: dict[str, Any] = {}
    for key, value in plain.items():
        *sections, last = str(key).split(".")
        for part in reversed((*sections, last)):
            value = {part: value}
        _merge(nested, value, "", once)
    return OmegaConf.create(as_meant(schema, nested))


def _merge(into: dict[str, Any], plain: Mapping[Any, Any], section: str, once: bool) -> None:
    for key, value in plain.items():
        before = into.get(key)
        if isinstance(value, Mapping) and isinstance(before, dict | None):
            into[key] = {} if before is None else before
            _merge(into[key], value, f"{section}{key}.", once)
        elif once and key in into:
            raise ConfigError(
                f"{section}{key} is given twice: in its section and by its dotted name."
            )
        else:
            into[key] = value


def _explain(error: OmegaConfBaseException, schema: type) -> str:
    """One sentence from OmegaConf's several lines, with the nearest key where one is mistyped."""
    first = str(error).splitlines()[0].strip().rstrip(".")
    key = getattr(error, "full_key", None)
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", first)
    if unknown:
        asked, known = str(key or unknown[1]), set[str]()
        top = asked.partition(".")[0]
        of = [word for word, other in SCHEMAS.items() if top in hints_of(other)]
        if of and top not in hints_of(schema):
            return f"There is no field {asked!r} here; it is one of vitwarm {' and '.join(of)}."
        for name in (facts.name for facts in fields_of(schema)):
            if asked.startswith("arms."):  # their labels are the user's, so no default names them
                name = name.replace(LABEL, asked.removeprefix("arms.").rpartition(".")[0])
            if LABEL not in name:
                known |= {name, name.rpartition(".")[0]}
        return f"There is no field {asked!r}.{nearest(asked, known)}"
    return f"{key}: {first}." if key else f"{first}."

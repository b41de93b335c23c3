"""Checks a config's fields against their declarations, and says what they may hold."""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vitwarm.errors import ConfigError


class Checked:
    """A config that checks its fields as it is made; `section` stands before them in messages."""

    _section = ""  # not annotated, so no field of the dataclass

    def __init_subclass__(cls, section: str = "") -> None:
        cls._section = f"{section}." if section else ""

    def __post_init__(self) -> None:
        check_fields(self, self._section)


def check_fields(config: Any, section: str = "") -> None:
    """Checks every field of a config's dataclass against its declaration.

    Args:
        section: what stands before a field's name in messages, with its dot: `train.`.
    Raises: ConfigError: field, value, what is allowed, what to do.
    """
    for item in dataclasses.fields(config):
        allowed, value = item.metadata.get("allowed"), getattr(config, item.name)
        if allowed is not None and value is not None and not allowed.holds(value):
            raise refusal(type(config), item.name, value, section)


def check_rates(section: str, peak: float, **ends: float) -> None:
    """Checks that a learning rate rises to its peak and falls from it: neither end lies above.

    Raises: ConfigError: one does.
    """
    for name, rate in ends.items():
        if rate > peak:
            raise ConfigError(
                f"{section}.{name} is {rate:g}, above {section}.lr ({peak:g}), the peak of the "
                f"schedule. Use {section}.{name}=0, or a higher {section}.lr."
            )


def refusal(schema: type, field_name: str, value: Any, section: str = "") -> ConfigError:
    """Returns the one sentence about a value that a field does not take."""
    item = item_of(schema, field_name)
    allowed, name = item.metadata.get("allowed"), f"{section}{field_name}"
    kind, _ = inner_type(hints_of(schema)[field_name])
    if allowed and allowed.explain and isinstance(value, get_origin(kind) or kind):
        return ConfigError(allowed.explain(name, value))
    given = value if isinstance(value, int | float) or value is None else repr(value)
    default = default_of(item)
    if default is None or default == "???" or isinstance(default, dict):
        advice = f"Give such a value{', or leave it out' if default is None else ''}."
    else:
        said = str(default).lower() if kind is bool else default
        advice = f"Use for example {name}={said}, the default."
    return ConfigError(f"{name} is {given}; it must be {describe(schema, field_name)}. {advice}")


def describe(schema: type, field_name: str) -> str:
    """Returns what a field may hold in words: `a number above 0 and at most 1`."""
    kind, _ = inner_type(hints_of(schema)[field_name])
    allowed = item_of(schema, field_name).metadata.get("allowed")
    if get_origin(kind) is Literal:
        *most, last = map(str, get_args(kind))
        return f"{', '.join(most)} or {last}"
    nouns = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind is Any and allowed:
        return str(allowed.words)
    noun = nouns.get(kind) or ("a list" if get_origin(kind) is list else "a mapping")
    return f"{noun} {allowed.words}" if allowed else noun


def inner_type(hint: Any) -> tuple[Any, bool]:
    """Returns a field's type without None, and whether None is allowed."""
    if get_origin(hint) not in (types.UnionType, Union):
        return hint, hint is Any
    (kind,) = [part for part in get_args(hint) if part is not type(None)]
    return kind, True


def default_of(item: dataclasses.Field[Any]) -> Any:
    """Returns a field's default."""
    return item.default_factory() if callable(item.default_factory) else item.default


@cache
def hints_of(schema: type) -> dict[str, Any]:
    """Returns a schema's field -> type, resolved."""
    return get_type_hints(schema)


@cache
def item_of(schema: type, field_name: str) -> dataclasses.Field[Any]:
    """Returns a field of a schema."""
    return next(item for item in dataclasses.fields(schema) if item.name == field_name)

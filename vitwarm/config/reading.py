"""What people write, as plain values of the types that the schema asks for.

YAML as people mean it: `12:00:00` and `1:3` stay text (YAML 1.1 reads numbers to base 60), 1e-3 is
a number, a key given twice is refused. A field of text takes a word of the command line as it is
(`handoff.blocks=-4:` is no mapping), a field of numbers takes `2e3`, `15k` and `10%`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml  # type: ignore[import-untyped]

from vitwarm.config.check import hints_of, inner_type, item_of, refusal
from vitwarm.errors import ConfigError
from vitwarm.units import read_number

_SWITCHES = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
_NOTHING = ("", "null", "none", "~")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without dates and numbers to base 60, with 1e-3, and without keys given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                meant = self.construct_object(key)  # 1 and 1.0 are one key
                if meant in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"found duplicate key {key.value}", key.start_mark
                    )
                seen.add(meant)
        return dict(super().construct_mapping(node, deep=deep))


_NUMBERS = {
    "int": re.compile(r"[-+]?(?:0x[0-9a-fA-F]+|0b[01]+|0|[1-9][0-9_]*)$"),
    "float": re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, rule) for tag, rule in rules if tag.split(":")[-1] not in (*_NUMBERS, "timestamp")
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _rule in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _rule, list("-+0123456789."))


class _OtherTypeError(Exception):
    """A value is of another type than its field."""


def read_text(path: Path) -> str:
    """Returns the text of a recipe file. Raises: ConfigError: no file, or no text, and where."""
    if not path.is_file():
        raise ConfigError(f"There is no recipe file {path}. Give the path of a YAML file.")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        where = _place(error.object[: error.start].decode("latin-1"))
        raise ConfigError(f"{path}{where}: no UTF-8 text. Save the file as UTF-8.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns what a recipe file holds. Raises: ConfigError: it is no YAML mapping, and where."""
    text = read_text(path)
    try:
        plain = yaml.load(text, Loader=_Loader)
        json.dumps(plain, default=str)  # raises where a section holds itself (`a: &a [*a]`)
    except yaml.reader.ReaderError as error:
        where = _place(text[: error.position])
        raise ConfigError(f"{path}{where}: this is not valid YAML ({error.reason}).") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}{_yaml_fault(error)}. Fix the file.") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} holds no fields; a recipe is a YAML mapping of sections.")
    return plain


def read_word(word: str, schema: type) -> tuple[str, Any]:
    """Splits `section.field=value`; the value is YAML, but of a field of text the word itself.

    Raises: ConfigError: no override, or a value that is no YAML.
    """
    name, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[^.=\s]+)*", name):
        raise ConfigError(
            f"{word!r} is not an override; write section.field=value, for example warmup.lr=1e-3."
        )
    kind = _kind_of(schema, name)
    if (kind is str or get_origin(kind) is Literal) and not value.startswith(("'", '"')):
        return name, value
    try:
        return name, yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{name} is {value!r}{_yaml_fault(error)}. Fix it.") from error


def as_meant(schema: type, plain: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Returns nested fields with every value of the type that its field has.

    Names that the schema does not have stay as they are.

    Args:
        section: what stands before the names in messages, with its dot.
    Raises: ConfigError: a value of another type: field, value, what is allowed, what to do.
    """
    hints = hints_of(schema)
    return {
        name: _convert(schema, name, value, section) if name in hints else value
        for name, value in plain.items()
    }


def value_of(schema: type, name: str, value: Any) -> Any:
    """Returns the value that a dotted field would get; as it is where there is no such field."""
    section, dot, last = name.rpartition(".")
    owner = _kind_of(schema, section) if dot else schema
    if not _is_schema(owner) or last not in hints_of(owner):
        return value
    return _convert(owner, last, value, section + dot)


def _convert(schema: type, field_name: str, value: Any, section: str) -> Any:
    kind, optional = inner_type(hints_of(schema)[field_name])
    name = f"{section}{field_name}"
    if isinstance(value, str) and ("${" in value or value == "???"):
        return value  # OmegaConf's own: a reference to another field, a value that is to come
    if optional and (value is None or (isinstance(value, str) and value.lower() in _NOTHING)):
        return None
    if _is_schema(kind):
        if not isinstance(value, Mapping):
            first = next(iter(hints_of(kind)))
            raise ConfigError(f"{name} is {value!r}; it is a section: give {name}.{first}=...")
        return as_meant(kind, value, f"{name}.")
    allowed: Any = item_of(schema, field_name).metadata.get("allowed")
    try:
        if kind in (int, float) and "%" in str(value) and not allowed.percent:
            raise _OtherTypeError  # 300% epochs
        return _take(kind, value, name)
    except _OtherTypeError:
        raise refusal(schema, field_name, value, section) from None


def _take(kind: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is dict:
        keys, values = args
        return _take_mapping(keys, values, value, name)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise _OtherTypeError
        return [_take_scalar(args[0], (), one) for one in value]
    if kind is Any:  # one side, or height and width
        several = isinstance(value, list | tuple)
        found = [_take_scalar(int, (), one) for one in (value if several else [value])]
        return found[0] if len(set(found)) == 1 and len(found) < 3 else found  # [8, 8] is 8
    return _take_scalar(origin, args, value)


def _take_mapping(keys: Any, values: Any, value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _OtherTypeError
    if values is Any:
        return dict(value)
    if not _is_schema(values):
        return {_take_scalar(keys, (), k): _take_scalar(values, (), v) for k, v in value.items()}
    arms = {}
    for key, one in value.items():  # `default:` alone is an arm with nothing set
        if one is not None and not isinstance(one, Mapping):
            raise ConfigError(
                f"{name}.{key} is {one!r}; it is a section: give its fields, or {{}}."
            )
        arms[str(key)] = as_meant(values, one or {}, f"{name}.{key}.")
    return arms


def _take_scalar(kind: Any, choices: tuple[Any, ...], value: Any) -> Any:
    if kind is bool and isinstance(value, str):
        value = _SWITCHES.get(value.lower(), value)
    if kind is Literal:  # YAML takes on and off for true and false
        text = str(value).lower() if isinstance(value, bool) else value
        found = [c for c in choices if c in (text, {"true": "on", "false": "off"}.get(str(text)))]
        if found:
            return found[0]
    elif isinstance(value, bool):
        if kind is bool:
            return value
    elif kind is str:
        if isinstance(value, list) and value and all(type(one) is int for one in value):
            return ",".join(map(str, value))  # blocks: [0, 1]
        if isinstance(value, list) and value and all(isinstance(one, list) for one in value):
            return "|".join(",".join(map(str, one)) for one in value)  # tie: [[0], [1, 2], [3]]
        if isinstance(value, dict) and len(value) == 1 and list(value.values()) == [None]:
            return f"{next(iter(value))}:"  # over.handoff.blocks=[-4:]
        if isinstance(value, str | int | float):
            return str(value)
    elif kind in (int, float):
        number = read_number(value) if isinstance(value, str) else value
        if isinstance(number, int | float):
            if kind is float and (isinstance(number, float) or abs(number) < 1e300):
                return float(number)
            if kind is int and number == number // 1 and abs(number) < 1e300:
                return int(number)
    raise _OtherTypeError


def _kind_of(schema: Any, name: str) -> Any:
    """The type of a dotted field, without None; None: there is no such field."""
    for part in name.split("."):
        if get_origin(schema) is dict and _is_schema(get_args(schema)[1]):
            schema = get_args(schema)[1]  # the part is an arm's label
        else:
            schema = inner_type(hints_of(schema).get(part))[0] if _is_schema(schema) else None
    return schema


def _is_schema(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _yaml_fault(error: Exception) -> str:
    """Says where YAML is none, and what is the matter there: `, line 3, column 5: ...`."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    twice = re.fullmatch(r"found duplicate key (.+)", what)
    what = f"the key {twice[1]!r} is given twice" if twice else f"this is not valid YAML ({what})"
    return f", line {mark.line + 1}, column {mark.column + 1}: {what}" if mark else f": {what}"


def _place(before: str) -> str:
    """The line and column that follow some text."""
    return f", line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"

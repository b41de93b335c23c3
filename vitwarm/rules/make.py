"""From a name and parameters to a rule, and back."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitwarm.errors import RuleError, nearest
from vitwarm.rules.algorithms import Delete, Identity, Reverse, Set, Sort, Union
from vitwarm.rules.automata import CellularAutomaton, NeuralAutomaton
from vitwarm.rules.base import Rule
from vitwarm.rules.blends import Blend, Curriculum, Mixture
from vitwarm.rules.controls import RandomTokens, Shuffled
from vitwarm.rules.copies import Copy
from vitwarm.rules.dyck import Dyck
from vitwarm.rules.presets import PRESETS
from vitwarm.rules.shuffle_dyck import ShuffleDyck
from vitwarm.rules.stack import Stack

#: Every rule by its name. A new rule is one file, and one line here.
RULES: dict[str, type[Rule]] = {
    kind.name: kind
    for kind in (
        Dyck, ShuffleDyck, Copy,
        Identity, Reverse, Sort, Set, Union, Delete, Stack,
        CellularAutomaton, NeuralAutomaton,
        RandomTokens, Shuffled, Mixture, Curriculum,
    )
}  # fmt: skip

#: Largest whole number that a parameter takes: floats such as 1e15 hold all of them up to here.
MOST_WHOLE = 2**53


def make_rule(name: str, **params: Any) -> Rule:
    """Builds a rule from its name and parameters, all of them checked.

    Args:
        name: a name in `RULES`, an alias, or a preset; `shuffled:dyck` is the control of a rule,
            and the parameters are then those of the rule inside.
        params: the rule's own parameters; `of` takes a rule, a name, or a mapping with `name` and
            `params`.
    Raises: RuleError: no such rule or parameter, or one that describes no usable language.
    """
    try:
        return _make(name, params)
    except RecursionError:
        raise RuleError(f"rule {name} contains itself; a wrapper takes other rules.") from None


def find_preset(rule: Rule) -> str | None:
    """Returns the name of the preset with exactly these parameters, or None."""
    for name, preset in PRESETS.items():
        if preset.rule == rule.name and make_rule(name) == rule:
            return name
    return None


def rule_config(rule: Rule) -> dict[str, Any]:
    """Returns `{"name": ..., "params": {...}}` with every parameter: JSON-able and canonical.

    `make_rule(config["name"], **config["params"])` gives the same rule back.
    """
    fields = dataclasses.fields(rule)  # type: ignore[arg-type]
    return {"name": rule.name, "params": {f.name: plain(getattr(rule, f.name)) for f in fields}}


def _make(name: str, params: Mapping[str, Any]) -> Rule:
    outer, _, inner = str(name).strip().partition(":")
    kind, preset = _find(outer)
    if inner:
        if kind is not Shuffled:
            raise RuleError(f"rule.name is {name!r}; only shuffled:RULE is written with a colon.")
        return _shuffled(_make(inner, params))
    params = {**preset, **params}
    if kind is Shuffled and set(params) == {"of"}:
        return _shuffled(_to_rule(params["of"]))
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for given in params:
        if not given:
            raise RuleError(f"A parameter of rule {kind.name} has no name; write KEY=VALUE.")
        if given not in fields:
            raise RuleError(
                f"rule.params.{given} does not exist.{nearest(given, fields)} "
                f"Rule {kind.name} takes {', '.join(fields) or 'no parameters'}."
            )
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in params:
            raise RuleError(f"rule.params.{field.name} is not set; rule {kind.name} needs it.")
    return kind(**{key: _to_type(kind, key, hints[key], params[key]) for key in params})


def _find(name: str) -> tuple[type[Rule], Mapping[str, Any]]:
    """Returns the class behind a name, alias or preset, and the preset's parameters."""
    word = name.strip().lower().replace("_", "-")
    known = RULES | {alias: kind for kind in RULES.values() for alias in kind.aliases}
    if word in PRESETS:
        return RULES[PRESETS[word].rule], PRESETS[word].params
    if word not in known:
        raise RuleError(
            f"rule.name is {name!r}, which is not a rule.{nearest(word, [*known, *PRESETS])} "
            f"Rules: {', '.join(RULES)}."
        )
    return known[word], {}


def _shuffled(rule: Rule) -> Rule:
    """Returns the control of a rule; for several rules in one stream, the control of each."""
    if not isinstance(rule, Blend):
        return Shuffled(of=rule)
    members = (m if isinstance(m, Shuffled) else _shuffled(m) for m in rule.of)
    return dataclasses.replace(rule, of=tuple(members))


def _to_rule(value: Any) -> Rule:
    if isinstance(value, Rule):
        return value
    if isinstance(value, str):
        return _make(value, {})
    if isinstance(value, Mapping) and "name" in value and set(value) <= {"name", "params"}:
        params = {} if value.get("params") is None else value["params"]
        if not isinstance(params, Mapping) or not all(isinstance(key, str) for key in params):
            raise RuleError(
                f"rule.params.of holds {dict(value)!r}; params is a mapping from names of "
                "parameters to their values, such as {n_kinds: 8}."
            )
        return _make(value["name"], params)
    raise RuleError(
        f"rule.params.of holds {value!r}; a rule is a name, or a mapping of name and params."
    )


def _to_type(kind: type[Rule], key: str, hint: Any, value: Any) -> Any:
    """Turns what YAML or a command line gave into the type that a parameter has."""
    origin, choices = get_origin(hint), get_args(hint)
    or_none = ""
    if type(None) in choices:
        if value is None or str(value).strip().lower() in ("none", "null"):
            return None
        or_none = ", or none"
        (hint,) = (choice for choice in choices if choice is not type(None))
        origin, choices = get_origin(hint), get_args(hint)
    if hint is Rule:
        return _to_rule(value)
    if origin is tuple and isinstance(value, list | tuple):
        hints = choices[:1] * len(value) if choices[-1] is Ellipsis else choices
        if len(hints) == len(value):
            return tuple(_to_type(kind, key, *pair) for pair in zip(hints, value, strict=True))
    if origin is Literal and value in choices:
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int and is_number and abs(value) <= MOST_WHOLE and value == int(value):
        return int(value)
    if hint is float and is_number and abs(value) <= sys.float_info.max:
        return float(value)
    if origin is Literal:
        takes = " or ".join(map(str, choices))
    elif origin is tuple:
        n_items = "" if choices[-1] is Ellipsis else f"{len(choices)} "
        takes = f"a list of {n_items}{_WORDS[choices[0]][1]}"
    else:
        takes = _WORDS[hint][0]
    raise RuleError(f"rule.params.{key} is {value!r}; rule {kind.name} takes {takes}{or_none}.")


#: What a parameter takes, and what a list of it holds.
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number up to 2**53", "whole numbers"),
    float: ("a finite number", "numbers"),
    Rule: ("a rule", "rules"),
}


def plain(value: Any) -> Any:
    """Returns a parameter's value as JSON has it."""
    if isinstance(value, Rule):
        return rule_config(value)
    return [plain(item) for item in value] if isinstance(value, tuple) else value

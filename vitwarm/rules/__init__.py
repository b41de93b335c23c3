"""Rules generate token sequences from simple algorithms: numpy and compiled code, never torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitwarm.errors import RuleError, nearest
from vitwarm.rules.base import Rule, build
from vitwarm.rules.dyck import Dyck
from vitwarm.rules.shuffled import Shuffled

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Dyck, Shuffled)}

#: Names that other code bases use; accepted wherever a rule is named.
ALIASES = {"k-dyck": "dyck", "kdyck": "dyck"}


def make_rule(name: str, **params: Any) -> Rule:
    """Makes a rule by name.

    Args:
        name: a name in RULES or ALIASES; `shuffled:dyck` wraps the rule behind the colon.
        params: the rule's parameters; with a colon, the innermost rule's. A wrapper's `of` may be
            a Rule or a mapping with `name` and `params`.
    Raises: RuleError: an unknown name (with the nearest), or parameters that are no language.
    """
    outer, colon, inner = name.partition(":")
    outer = ALIASES.get(outer, outer)
    if outer not in RULES:
        raise RuleError(
            f"rule.name is {name!r}; there is no such rule."
            f"{nearest(outer, [*RULES, *ALIASES])} "
            f"Rules are {', '.join(RULES)}."
        )
    if colon:
        return build(RULES[outer], {"of": make_rule(inner, **params)})
    of = params.get("of")
    if isinstance(of, Mapping):
        params = {**params, "of": make_rule(str(of.get("name")), **dict(of.get("params", {})))}
    return build(RULES[outer], params)


def rule_config(rule: Rule) -> dict[str, Any]:
    """Returns `{"name", "params"}` with every parameter, ready for JSON and for `make_rule`."""
    return {"name": rule.name, "params": rule.params()}


__all__ = ["ALIASES", "RULES", "Rule", "make_rule", "rule_config"]

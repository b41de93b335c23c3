"""Rules: generators of token sequences, each with a recogniser of its own. numpy, never torch."""

from vitwarm.rules.base import Ceiling, Rule, held_out_seed
from vitwarm.rules.make import RULES, find_preset, make_rule, rule_config
from vitwarm.rules.presets import PRESETS

__all__ = [
    "PRESETS",
    "RULES",
    "Ceiling",
    "Rule",
    "find_preset",
    "held_out_seed",
    "make_rule",
    "rule_config",
]

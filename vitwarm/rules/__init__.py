"""Rules: generators of token sequences, each with a recogniser of its own. numpy, never torch."""

from vitwarm.rules.base import Rule, held_out_seed
from vitwarm.rules.make import RULES, make_rule, rule_config

__all__ = ["RULES", "Rule", "held_out_seed", "make_rule", "rule_config"]

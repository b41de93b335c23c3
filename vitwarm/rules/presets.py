"""Names for the variants that published code really runs, so that a run says which one it used.

Sources: WS `zlshinnick/weight-selection`, AJ `aajayi-21/Procedural-Warm-Up-for-ViT`, DW another
group's reproduction, PP `zlshinnick/procedural-pretraining`, HU `michahu/pre-pretraining`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A rule with parameters, and where they come from."""

    rule: str
    params: Mapping[str, Any]
    source: str


def _algorithm(rule: str, length: int = 64) -> Preset:
    source = "PP: vocabulary 100, L = 64 (there next-token prediction; the sequence is the same)"
    return Preset(rule=rule, params={"length": length}, source=source)


PRESETS: dict[str, Preset] = {
    "dyck-uncapped": Preset(
        rule="dyck",
        params={},
        source="AJ; WS configs v5 to v8, if their generator does not use the default cap of 16",
    ),
    "dyck-cap16": Preset(
        rule="dyck",
        params={"max_depth": 16},
        source="WS cfg.py's default and v2.yaml (their generator is not public)",
    ),
    "dyck-p50": Preset(
        rule="dyck", params={"p_open": 0.5}, source="PP as it runs: the command line's default"
    ),
    "dyck-p49": Preset(rule="dyck", params={"p_open": 0.49}, source="PP's function default"),
    "dyck-cap4": Preset(rule="dyck", params={"max_depth": 4}, source="DW's kdyck"),
    "dyck-cap4-truncated": Preset(
        rule="dyck",
        params={"max_depth": 4, "ending": "truncated"},
        source="DW's kdyck_truncated, which its launch scripts use",
    ),
    "dyck-k30-cap16": Preset(
        rule="dyck",
        params={"n_kinds": 30, "p_open": 0.5, "max_depth": 16, "ending": "truncated"},
        source="HU's file writer: short words one behind the other, cut at the end",
    ),
    "shuffle-dyck-brackets": Preset(
        rule="shuffle-dyck", params={}, source="AJ: uniform over open brackets, balanced, no cap"
    ),
    "shuffle-dyck-types": Preset(
        rule="shuffle-dyck",
        params={"p_open": 0.5, "max_depth": 16, "closing": "types", "ending": "truncated"},
        source="PP: uniform over open types, cut, p = 0.5 from the command line",
    ),
    "shuffle-dyck-cap8": Preset(
        rule="shuffle-dyck",
        params={"p_open": 0.51, "max_depth": 8, "closing": "types", "ending": "truncated"},
        source="HU: the language-model runs with k = 64",
    ),
    "shuffle-dyck-cap4": Preset(
        rule="shuffle-dyck",
        params={"max_depth": 4},
        source="DW's *_shuffled: a uniform pop from the stack",
    ),
    "copy-one": Preset(
        rule="copy", params={}, source="AJ: one pair of 98 symbols, first half hidden"
    ),
    "copy-packed": Preset(
        rule="copy",
        params={"n_symbols": 64, "pairs": "packed", "min_length": 3, "max_length": 32},
        source="WS's WwConfig (its packing code is not public)",
    ),
    "eca-blocks": Preset(
        rule="eca",
        params={"tokens": "block"},
        source="AJ: rule 110, 7 cells a token (burn-in and simulated width are not stated)",
    ),
    "identity-64": _algorithm("identity"),
    "reverse-64": _algorithm("reverse"),
    "sort-64": _algorithm("sort"),
    "set-64": _algorithm("set"),
    "union-64": _algorithm("union"),
    "delete-64": _algorithm("delete"),
    "stack-64": _algorithm("stack"),
}

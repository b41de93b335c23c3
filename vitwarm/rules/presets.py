"""Names for the variants that published code really runs, so that a run says which one it used.

Sources: WS `zlshinnick/weight-selection`, AJ `aajayi-21/Procedural-Warm-Up-for-ViT`, DW another
group's reproduction, PP `zlshinnick/procedural-pretraining`, HU `michahu/pre-pretraining`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A rule with parameters, and where they come from."""

    rule: str
    source: str
    params: Mapping[str, Any] = field(default_factory=dict)


_OF_64 = "PP: vocabulary 100, L = 64 (there next-token prediction; the sequence is the same)"
_ALGORITHMS = ("identity", "reverse", "sort", "set", "union", "delete", "stack")

PRESETS: dict[str, Preset] = {
    "dyck-uncapped": Preset(
        "dyck", "AJ; WS configs v5 to v8, if their generator does not use the default cap of 16"
    ),
    "dyck-cap16": Preset(
        "dyck", "WS cfg.py's default and v2.yaml (their generator is not public)", {"max_depth": 16}
    ),
    "dyck-p50": Preset("dyck", "PP as it runs: the command line's default", {"p_open": 0.5}),
    "dyck-p49": Preset("dyck", "PP's function default", {"p_open": 0.49}),
    "dyck-cap4": Preset("dyck", "DW's kdyck", {"max_depth": 4}),
    "dyck-cap4-truncated": Preset(
        "dyck", "DW's kdyck_truncated, which its launch scripts use",
        {"max_depth": 4, "ending": "truncated"},
    ),
    "dyck-k30-cap16": Preset(
        "dyck", "HU's file writer: short words one behind the other, cut at the end",
        {"n_kinds": 30, "p_open": 0.5, "max_depth": 16, "ending": "truncated"},
    ),
    "shuffle-dyck-brackets": Preset(
        "shuffle-dyck", "AJ: uniform over open brackets, balanced, no cap"
    ),
    "shuffle-dyck-types": Preset(
        "shuffle-dyck", "PP: uniform over open types, cut, p = 0.5 from the command line",
        {"p_open": 0.5, "max_depth": 16, "closing": "types", "ending": "truncated"},
    ),
    "shuffle-dyck-cap8": Preset(
        "shuffle-dyck", "HU: the language-model runs with k = 64",
        {"p_open": 0.51, "max_depth": 8, "closing": "types", "ending": "truncated"},
    ),
    "shuffle-dyck-cap4": Preset(
        "shuffle-dyck", "DW's *_shuffled: a uniform pop from the stack", {"max_depth": 4}
    ),
    "copy-one": Preset("copy", "AJ: one pair of 98 symbols, first half hidden"),
    "copy-packed": Preset(
        "copy", "WS's WwConfig (its packing code is not public)",
        {"n_symbols": 64, "pairs": "packed", "min_length": 3, "max_length": 32},
    ),
    "eca-blocks": Preset(
        "eca", "AJ: rule 110, 7 cells a token (burn-in and simulated width are not stated)",
        {"tokens": "block"},
    ),
    **{f"{name}-64": Preset(name, _OF_64, {"length": 64}) for name in _ALGORITHMS},
}  # fmt: skip

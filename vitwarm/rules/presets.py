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


def _preset(rule: str, source: str, **params: Any) -> Preset:
    return Preset(rule=rule, params=params, source=source)


_OF_64 = "PP: vocabulary 100, L = 64 (there next-token prediction; the sequence is the same)"
_ALGORITHMS = ("identity", "reverse", "sort", "set", "union", "delete", "stack")

PRESETS: dict[str, Preset] = {
    "dyck-uncapped": _preset(
        "dyck", "AJ; WS configs v5 to v8, if their generator does not use the default cap of 16"
    ),
    "dyck-cap16": _preset(
        "dyck", "WS cfg.py's default and v2.yaml (their generator is not public)", max_depth=16
    ),
    "dyck-p50": _preset("dyck", "PP as it runs: the command line's default", p_open=0.5),
    "dyck-p49": _preset("dyck", "PP's function default", p_open=0.49),
    "dyck-cap4": _preset("dyck", "DW's kdyck", max_depth=4),
    "dyck-cap4-truncated": _preset(
        "dyck", "DW's kdyck_truncated, which its launch scripts use",
        max_depth=4, ending="truncated",
    ),
    "dyck-k30-cap16": _preset(
        "dyck", "HU's file writer: short words one behind the other, cut at the end",
        n_kinds=30, p_open=0.5, max_depth=16, ending="truncated",
    ),
    "shuffle-dyck-brackets": _preset(
        "shuffle-dyck", "AJ: uniform over open brackets, balanced, no cap"
    ),
    "shuffle-dyck-types": _preset(
        "shuffle-dyck", "PP: uniform over open types, cut, p = 0.5 from the command line",
        p_open=0.5, max_depth=16, closing="types", ending="truncated",
    ),
    "shuffle-dyck-cap8": _preset(
        "shuffle-dyck", "HU: the language-model runs with k = 64",
        p_open=0.51, max_depth=8, closing="types", ending="truncated",
    ),
    "shuffle-dyck-cap4": _preset(
        "shuffle-dyck", "DW's *_shuffled: a uniform pop from the stack", max_depth=4
    ),
    "copy-one": _preset("copy", "AJ: one pair of 98 symbols, first half hidden"),
    "copy-packed": _preset(
        "copy", "WS's WwConfig (its packing code is not public)",
        n_symbols=64, pairs="packed", min_length=3, max_length=32,
    ),
    "eca-blocks": _preset(
        "eca", "AJ: rule 110, 7 cells a token (burn-in and simulated width are not stated)",
        tokens="block",
    ),
    **{f"{name}-64": _preset(name, _OF_64, length=64) for name in _ALGORITHMS},
}  # fmt: skip

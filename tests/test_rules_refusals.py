"""Parameters that describe an empty or impossible language are refused in one sentence."""

import copy
from typing import Any

import numpy as np
import pytest

from vitwarm.errors import RuleError
from vitwarm.rules import RULES, make_rule

LOOP: dict[str, Any] = {"name": "mixture", "params": {"of": ["dyck"]}}
LOOP["params"]["of"].append(LOOP)
ROUND: dict[str, Any] = {"name": "shuffled", "params": {}}
ROUND["params"]["of"] = ROUND

HUGE = {"name": "random", "params": {"n_symbols": 20_000}}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("dick", {}, "Did you mean dyck"),
    ("", {}, "not a rule"),
    ("sorted:dyck", {}, "not a rule"),
    ("sort:dyck", {}, "only shuffled:RULE"),
    ("shuffled:", {}, "rule.params.of is not set"),
    ("dyck", {"n_kind": 3}, "Did you mean n_kinds"),
    ("dyck", {"n_kinds": 0}, "n_kinds is 0"),
    ("dyck", {"n_kinds": 2.5}, "whole number"),
    ("dyck", {"n_kinds": True}, "whole number"),
    ("dyck", {"n_kinds": "many"}, "'many'"),
    ("dyck", {"n_kinds": 16_384}, "16 bits"),
    ("dyck", {"": 3}, "has no name; write KEY=VALUE"),
    ("dyck", {"n_kinds": float("inf")}, "n_kinds is inf; rule dyck takes a whole number"),
    ("dyck", {"n_kinds": float("nan")}, "n_kinds is nan; rule dyck takes a whole number"),
    ("dyck", {"n_kinds": "none"}, "takes a whole number up to 2**53."),
    ("dyck", {"max_depth": 0}, "max_depth is 0"),
    ("dyck", {"max_depth": "deep"}, "takes a whole number up to 2**53, or none."),
    ("dyck", {"max_depth": float("inf")}, "max_depth is inf"),
    ("dyck", {"max_depth": 10**10}, "takes a depth from 1 to 16,777,216, or none"),
    ("dyck", {"max_depth": 10**23}, "up to 2**53, or none"),
    ("dyck", {"p_open": 10**400}, "takes a finite number."),
    ("copy", {"max_length": 10**12, "pairs": "packed"}, "3, to 16,777,216"),
    ("copy", {"max_length": 10**22, "pairs": "packed"}, "max_length is 1"),
    ("identity", {"length": float("inf")}, "length is inf"),
    ("identity", {"length": 10**9}, "1 to 16,777,216, or none"),
    ("eca", {"grid": [float("inf"), 3]}, "grid is inf"),
    ("eca", {"grid": [10**6, 10**6]}, "at most 16,777,216 tokens"),
    ("eca", {"width": 10**11}, "2 to 16,777,216 cells, or none"),
    ("eca", {"burn_in": 10**9}, "0 to 16,777,216 steps"),
    ("curriculum", {"of": ["dyck", "sort"], "n_sequences": float("inf")}, "n_sequences is inf"),
    ("curriculum", {"of": ["dyck", "sort"], "n_sequences": 10**18}, "up to 2**53"),
    ("dyck", {"p_open": 0.0}, "p_open is 0.0"),
    ("dyck", {"p_open": 1}, "p_open is 1"),
    ("dyck", {"p_open": float("nan")}, "p_open is nan"),
    ("dyck", {"ending": "cut"}, "balanced or truncated"),
    ("shuffle-dyck", {"closing": "any"}, "brackets or types"),
    ("copy", {"n_symbols": 1}, "at least 2"),
    ("copy", {"pairs": "packed", "min_length": 0}, "min_length is 0"),
    ("copy", {"pairs": "packed", "min_length": 9, "max_length": 8}, "max_length is 8"),
    ("copy", {"min_length": 2}, "looks at min_length with pairs=packed alone; leave it at 3"),
    ("copy", {"max_length": 40}, "looks at max_length with pairs=packed alone; leave it at 32"),
    ("eca", {"hidden_rows": 2}, "looks at hidden_rows with hidden=last_rows alone; leave it at 1"),
    ("sort", {"n_symbols": 40_000}, "16 bits"),
    ("sort", {"length": 0}, "length is 0"),
    ("union", {"length": 3}, "even"),
    ("eca", {"rule": 256}, "rule is 256"),
    ("eca", {"rule": -1}, "0 to 255"),
    ("eca", {"grid": [1, 9]}, "2 rows"),
    ("eca", {"grid": 9}, "a list of 2 whole numbers, or none"),
    ("eca", {"grid": [4, 4], "width": 3}, "width is 3"),
    ("eca", {"grid": [3, 4], "hidden": "last_rows", "hidden_rows": 3}, "at most 2"),
    ("eca", {"density": 1.0}, "density is 1.0"),
    ("eca", {"burn_in": -1}, "burn_in is -1"),
    ("nca", {"n_states": 9}, "n_states is 9; rule nca takes 2 to 8 states"),
    ("nca", {"frame": [1, 4]}, "2 rows and 2 columns"),
    ("nca", {"frame": [4096, 4096]}, "at most 16,777,216 tokens"),
    ("nca", {"complexity": [0.6, 0.3]}, "takes two shares from 0 to 1, the lower one first"),
    ("nca", {"complexity": [0.5, float("nan")]}, "complexity is nan"),
    ("nca", {"complexity": 0.5}, "a list of 2 numbers"),
    ("nca", {"burn_in": 10**9}, "0 to 16,777,216 steps"),
    ("random", {"n_symbols": 1}, "at least 2"),
    ("random", {"n_symbols": 2**15}, "16 bits"),
    ("shuffled", {"of": "shuffled:dyck"}, "plain rule"),
    ("shuffled", {"of": 3}, "a rule is a name"),
    ("mixture", {}, "needs it"),
    ("mixture", {"of": []}, "at least 1 rule"),
    ("mixture", {"of": "dyck"}, "takes a list of rules."),
    ("mixture", {"of": ["dyck"], "weights": 1}, "takes a list of numbers, or none."),
    ("mixture", {"of": [{"name": "dyck", "params": 3}]}, "params is a mapping"),
    ("mixture", {"of": [{"name": "dyck", "params": [3]}]}, "params is a mapping"),
    ("mixture", {"of": [{"name": "dyck", "params": {3: 4}}]}, "params is a mapping"),
    ("mixture", {"of": [{"name": "dyck", "params": 0}]}, "params is a mapping"),
    ("mixture", {"of": ["dyck", "sort"], "weights": [0.5, 0.6]}, "sum to 1"),
    ("mixture", {"of": ["dyck", "sort"], "weights": [0.0, 1.0]}, "above 0"),
    ("mixture", {"of": ["dyck", "sort"], "weights": [1.0]}, "one for each of 2"),
    ("mixture", {"of": ["dyck", {"name": "mixture", "params": {"of": ["sort"]}}]}, "cannot hold"),
    ("mixture", LOOP["params"], "contains itself"),
    ("shuffled", ROUND["params"], "contains itself"),
    ("mixture", {"of": [HUGE, HUGE], "ids": "disjoint"}, "16 bits"),
    ("curriculum", {"of": ["dyck"]}, "n_sequences is not set"),
    ("curriculum", {"of": ["dyck", "set"], "n_sequences": 1}, "at least 1 sequence"),
    ("curriculum", {"of": ["dyck", "set"], "n_sequences": 9, "shares": [0.7, 0.7]}, "sum to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params", "says"), REFUSED)
def test_impossible_parameters_are_refused(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(RuleError) as refusal:
        make_rule(name, **params)
    message = str(refusal.value)
    assert says in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


@pytest.mark.parametrize("word", ["none", "None", "null", None])
@pytest.mark.parametrize(
    ("name", "field"), [("dyck", "max_depth"), ("eca", "width"), ("eca", "grid"), ("set", "length")]
)
def test_none_may_be_written_out(name: str, field: str, word: str | None) -> None:
    assert make_rule(name, **{field: word}) == make_rule(name)


LENGTHS: list[tuple[str, dict[str, Any], int, str]] = [
    ("dyck", {}, 7, "Use 6"),
    ("dyck", {}, 0, "at least 2"),
    ("copy", {}, 9, "Use 8"),
    ("copy", {"pairs": "packed", "min_length": 9, "max_length": 10}, 16, "at least 18"),
    ("identity", {"length": 64}, 64, "at least 129"),
    ("eca", {"grid": [4, 4]}, 15, "at least 16"),
    ("eca", {}, 14, "Use 12"),
    ("nca", {"frame": [6, 4]}, 47, "at least 48"),
    ("nca", {}, 15, "Use 12"),
    ("dyck", {}, 10**30, "at most 16,777,216 tokens"),
    ("mixture", {"of": ["random", "identity-64"]}, 64, "at least 129"),
]


@pytest.mark.parametrize(("name", "params", "n_tokens", "says"), LENGTHS)
def test_lengths_that_cannot_be_made_are_refused(
    name: str, params: dict[str, Any], n_tokens: int, says: str
) -> None:
    with pytest.raises(RuleError, match=says):
        make_rule(name, **params).sample(0, 0, 1, n_tokens)


def test_windows_that_do_not_fit_their_width_are_refused() -> None:
    with pytest.raises(RuleError, match="width is 5"):
        make_rule("eca", width=5).sample(0, 0, 1, 36)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (np.empty((3, 8), np.int32), "int32"),
        (np.empty((3, 9), np.int16), "it must be contiguous"),
        (np.empty((8, 3), np.int16).T, "it must be contiguous"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(out: np.ndarray, says: str) -> None:
    with pytest.raises(RuleError, match=says):
        make_rule("dyck").sample(0, 0, 3, 8, out)
    frozen = np.empty((3, 8), np.int16)
    frozen.flags.writeable = False
    with pytest.raises(RuleError, match="read-only"):
        make_rule("dyck").sample(0, 0, 3, 8, frozen)


def test_rows_that_no_stream_has_and_ids_that_are_none_are_refused() -> None:
    rule = make_rule("dyck")
    with pytest.raises(RuleError, match="start is -1"):
        rule.sample(0, -1, 3, 8)
    for start in (2**63 - 2, 2**64, 10**30):
        with pytest.raises(RuleError, match=f"start is {start}.*9,223,372,036,854,775,808 rows"):
            rule.sample(0, start, 3, 8)
    assert rule.accepts(rule.sample(0, 2**63 - 3, 3, 8)).all()
    for wrong in (np.zeros((2, 4)), np.zeros((1, 2, 3), int), np.array([[70_000]])):
        with pytest.raises(RuleError, match="16-bit"):
            rule.accepts(wrong)


@pytest.mark.parametrize(
    ("params", "ids", "says"),
    [
        ({}, [0, 70, 3, 67], r"ids\[0, 1\] is 70; only 64 or the mask 129"),
        ({}, [0, -5, 3, 67], r"ids\[0, 1\] is -5"),
        ({}, [0, 130], r"ids\[0, 1\] is 130"),
        ({}, [0, 128, 0, 64], r"ids\[0, 1\] is 128"),
        ({}, [129, 0, 64, 128], r"ids\[0, 0\] is 129; no bracket is open"),
        ({}, [0, 0, 129, 128], "leaves 1 brackets open"),
        ({"max_depth": 1}, [0, 0, 129, 129], "at most 1 brackets may be open"),
    ],
)
def test_rows_that_are_no_dyck_words_are_not_solved(
    params: dict[str, Any], ids: list[int], says: str
) -> None:
    with pytest.raises(RuleError, match=says):
        make_rule("dyck", **params).solve([ids])


def test_rules_cannot_be_changed() -> None:
    rule = make_rule("dyck")
    with pytest.raises(AttributeError):
        rule.n_kinds = 3
    assert copy.copy(rule) == rule
    assert {make_rule("dyck"), rule} == {rule}
    assert all(kind.__doc__ for kind in RULES.values())

"""The recogniser of automata against their definition: every plane tried, every history run."""

import itertools
from typing import Any

import numpy as np
import pytest

from vitwarm.errors import RuleError
from vitwarm.rules import make_rule
from vitwarm.rules.automata import histories

#: Rows and columns of the planes that are all tried.
SIDE = 3
EVERYTHING = np.array(list(itertools.product((0, 1), repeat=SIDE * SIDE)), dtype=np.int16)


def _next(rule: int, cells: tuple[int, ...], *, ring: bool) -> tuple[int, ...]:
    padded = (cells[-1], *cells, cells[0]) if ring else (0, *cells, 0)
    patterns = (4 * padded[i] + 2 * padded[i + 1] + padded[i + 2] for i in range(len(cells)))
    return tuple((rule >> pattern) & 1 for pattern in patterns)


def _language(params: dict[str, Any]) -> set[tuple[int, ...]]:
    """All planes that some first state shows somewhere."""
    width, ring = params.get("width", SIDE), params.get("boundary", "ring") == "ring"
    words = set()
    for state in itertools.product((0, 1), repeat=width):
        for _ in range(params.get("burn_in", 0)):
            state = _next(params["rule"], state, ring=ring)
        history = [state]
        while len(history) < SIDE:
            history.append(_next(params["rule"], history[-1], ring=ring))
        for first in range(width - SIDE + 1):
            words.add(tuple(cell for row in history for cell in row[first : first + SIDE]))
    return words


CASES: list[dict[str, Any]] = [
    {"rule": rule, "boundary": boundary, **more}
    for rule in (0, 30, 90, 105, 110, 184)
    for boundary in ("ring", "zero")
    for more in (
        {},
        {"width": 3},
        {"width": 4},
        {"width": 5},
        {"width": 8},
        {"burn_in": 1},
        {"burn_in": 3},
    )
]


@pytest.mark.parametrize("params", CASES, ids=str)
def test_exactly_the_windows_on_a_history_are_accepted(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = make_rule("eca", **params)
    language = _language(params)
    for widest in (histories.WIDEST_LISTED, 0):  # by listing states, and by searching
        monkeypatch.setattr(histories, "WIDEST_LISTED", widest)
        accepted = {tuple(word) for word in EVERYTHING[rule.accepts(EVERYTHING)].tolist()}
        assert accepted == language


@pytest.mark.parametrize(
    ("params", "relaxed"),
    [
        ({"rule": 110, "width": 8}, {"MOST_UNSEEN": 1}),
        ({"rule": 30, "width": 8, "boundary": "zero"}, {"MOST_UNSEEN": 1}),
        ({"rule": 110, "burn_in": 4}, {"MOST_STEPS_BACK": 1}),
        ({"rule": 110, "width": 6, "burn_in": 2}, {}),
    ],
    ids=str,
)
def test_wide_automata_may_pass_too_much_and_never_too_little(
    params: dict[str, Any], relaxed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, language = make_rule("eca", **params), _language(params)
    for name, limit in {"WIDEST_LISTED": 0, **relaxed}.items():
        monkeypatch.setattr(histories, name, limit)
    accepted = {tuple(word) for word in EVERYTHING[rule.accepts(EVERYTHING)].tolist()}
    assert language <= accepted
    assert len(accepted) < len(EVERYTHING) / 4


@pytest.mark.parametrize("boundary", ["ring", "zero"])
@pytest.mark.parametrize(
    ("params", "n_tokens"),
    [
        ({"width": 16, "burn_in": 2}, 144),
        ({"width": 25}, 144),
        ({"width": 40, "burn_in": 9}, 100),
        ({"width": 90, "rule": 30}, 324),
        ({"tokens": "block", "burn_in": 5}, 49),
    ],
    ids=str,
)
def test_long_words_pass_and_a_wrong_row_does_not(
    params: dict[str, Any], n_tokens: int, boundary: str
) -> None:
    rule = make_rule("eca", boundary=boundary, **params)
    words = rule.sample(3, 0, 3, n_tokens)
    assert rule.accepts(words).all()
    wrong = words.copy()
    wrong[:, n_tokens // 2] ^= 1
    assert not rule.accepts(wrong).any()


@pytest.mark.parametrize("boundary", ["ring", "zero"])
@pytest.mark.parametrize("more", [{}, {"width": 5}, {"burn_in": 2}], ids=str)
def test_the_control_holds_as_many_ones_as_some_history(
    more: dict[str, Any], boundary: str
) -> None:
    params = {"rule": 110, "boundary": boundary, **more}
    totals = {sum(word) for word in _language(params)}
    accepted = make_rule("shuffled:eca", **params).accepts(EVERYTHING)
    np.testing.assert_array_equal(accepted, np.isin(EVERYTHING.sum(axis=1), list(totals)))
    assert not accepted.all()


@pytest.mark.parametrize(
    ("name", "params", "n_tokens"),
    [
        ("eca", {}, 2),
        ("eca", {}, 15 + 2),
        ("eca", {"grid": (4, 4)}, 9),
        ("eca", {"width": 20}, 441),
        ("eca", {"hidden": "last_rows", "hidden_rows": 3}, 9),
    ],
)
def test_rows_of_impossible_lengths_are_no_words(
    name: str, params: dict[str, Any], n_tokens: int
) -> None:
    rule, ids = make_rule(name, **params), np.zeros((2, n_tokens), dtype=np.int16)
    assert not rule.accepts(ids).any()
    assert not rule.accepts_any_order(ids).any()
    assert not rule.maskable(ids).any()


def test_a_width_of_the_window_itself_crops_nothing() -> None:
    rule = make_rule("eca", width=14, hidden="last_rows")
    ids = rule.sample(0, 0, 4, 196)
    visible = np.where(rule.maskable(ids), rule.n_ids, ids).astype(np.int16)
    np.testing.assert_array_equal(rule.solve(visible), ids)
    assert rule.ceiling(ids, visible)[:2] == (1.0, 1.0)
    assert make_rule("eca", width=14, hidden="last_rows", grid=(14, 14)).determined
    assert not make_rule("eca", width=15, hidden="last_rows", grid=(14, 14)).determined


def test_cells_of_lengths_that_cannot_be_are_not_read() -> None:
    with pytest.raises(RuleError, match="ids have 9 tokens"):
        make_rule("eca", grid=(4, 4)).solve(np.zeros((1, 9), dtype=np.int16))

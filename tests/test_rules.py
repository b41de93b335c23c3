"""Every rule: its sequences are words of its language, the same anywhere, and can be solved."""

import itertools
import json
import os
import warnings
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vitwarm.errors import RuleError
from vitwarm.rules import PRESETS, RULES, Rule, find_preset, held_out_seed, make_rule, rule_config
from vitwarm.rules.masking import IGNORE, make_batch

N_ROWS = 12


def _params(**choices: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=choices)


KINDS, ENDING = st.integers(1, 200), st.sampled_from(["balanced", "truncated"])
BRACKETS = {
    "n_kinds": KINDS,
    "p_open": st.floats(0.05, 0.95),
    "max_depth": st.none() | st.integers(1, 9),
    "ending": ENDING,
}
ALGORITHM = _params(n_symbols=st.integers(2, 300), length=st.none() | st.sampled_from([4, 6]))
COPY = {"n_symbols": st.integers(2, 300), "hidden": st.sampled_from(["first", "second"])}
AUTOMATON = {
    "rule": st.integers(0, 255),
    "grid": st.none() | st.just([3, 5]),
    "boundary": st.sampled_from(["ring", "zero"]),
    "burn_in": st.integers(0, 5),
    "width": st.none() | st.integers(70, 90),
    "density": st.none() | st.floats(0.1, 0.9),
    "tokens": st.sampled_from(["binary", "block"]),
}

PARAMS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "dyck": _params(**BRACKETS),
    "shuffle-dyck": _params(**BRACKETS, closing=st.sampled_from(["brackets", "types"])),
    "copy": st.one_of(
        _params(**COPY),
        _params(**COPY, min_length=st.integers(1, 5), max_length=st.integers(5, 12)).map(
            lambda params: {**params, "pairs": "packed"}
        ),
    ),
    **dict.fromkeys(("identity", "reverse", "sort", "set", "union", "delete", "stack"), ALGORITHM),
    "eca": st.one_of(
        _params(**AUTOMATON),
        _params(**AUTOMATON, hidden_rows=st.integers(1, 2)).map(
            lambda params: {**params, "hidden": "last_rows"}
        ),
    ),
    "nca": _params(
        n_states=st.integers(2, 8),
        frame=st.none() | st.just([2, 3]),
        complexity=st.sampled_from([[0.1, 0.6], [0.5, 1.0]]),
        burn_in=st.integers(0, 3),
        hidden=st.sampled_from(["random", "last_frame"]),
    ),
    "random": _params(n_symbols=st.integers(2, 30_000)),
}
PLAIN = list(PARAMS)


@st.composite
def rules(draw: st.DrawFn, name: str) -> Rule:
    """A rule with drawn parameters; wrappers get drawn members."""
    if name == "shuffled":
        inner = draw(st.sampled_from(PLAIN))
        return make_rule("shuffled", of=draw(rules(inner)))
    if name in ("mixture", "curriculum"):
        names = draw(st.lists(st.sampled_from([*PLAIN, "shuffled"]), min_size=1, max_size=3))
        total = {"n_sequences": 20} if name == "curriculum" else {}
        ids = draw(st.sampled_from(["shared", "disjoint"]))
        members = [draw(rules(member)) for member in names]
        if sum(member.n_ids for member in members) > 32_000:
            ids = "shared"
        return make_rule(name, of=members, ids=ids, **total)
    return make_rule(name, **draw(PARAMS[name]))


#: Parameters under which a single hidden token is always determined by the others.
UNIQUE: dict[str, dict[str, Any]] = {
    "shuffle-dyck": {"ending": "balanced"},
    "eca": {"hidden": "last_rows", "width": None},
}

LENGTHS = st.integers(20, 50)
SEEDS = st.integers(-(2**40), 2**40)
STARTS = st.integers(0, 2**40)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_sequences_are_words_and_the_same_in_any_batch(name: str, data: st.DataObject) -> None:
    rule = data.draw(rules(name))
    asked, seed, start = data.draw(LENGTHS), data.draw(SEEDS), data.draw(STARTS)
    n_tokens = rule.fit_length(asked)

    ids = rule.sample(seed, start, N_ROWS, n_tokens)

    assert ids.shape == (N_ROWS, n_tokens)
    assert ids.dtype == np.int16
    assert ids.min() >= 0
    assert ids.max() < rule.n_ids
    assert rule.accepts(ids).all()
    assert rule.accepts_any_order(ids).all()
    cut = data.draw(st.integers(0, N_ROWS))
    out = np.empty_like(ids[cut:])
    assert rule.sample(seed, start + cut, N_ROWS - cut, n_tokens, out) is out
    np.testing.assert_array_equal(out, ids[cut:])
    threaded = rule.sample(seed, start, N_ROWS, n_tokens, n_threads=3)
    np.testing.assert_array_equal(threaded, ids)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_hidden_tokens_may_be_hidden_and_can_be_solved(name: str, data: st.DataObject) -> None:
    rule = data.draw(rules(name))
    asked, seed, start = data.draw(LENGTHS), data.draw(SEEDS), data.draw(STARTS)
    n_tokens = rule.fit_length(asked)

    batch = make_batch(rule, seed=seed, start=start, n_sequences=N_ROWS, n_tokens=asked)

    ids = rule.sample(seed, start, N_ROWS, n_tokens)
    visible, targets = batch.input_ids[:, :n_tokens], batch.target_ids[:, :n_tokens]
    hidden = targets != IGNORE
    np.testing.assert_array_equal(np.where(hidden, targets, visible), ids)
    assert (visible[hidden] == rule.n_ids).all()
    assert (batch.input_ids[:, n_tokens:] == rule.pad_id).all()
    assert (batch.target_ids[:, n_tokens:] == IGNORE).all()
    assert not (hidden & ~rule.maskable(ids)).any()
    pads = ids == (-1 if rule.pad_id is None else rule.pad_id)
    assert not (hidden & pads).any()
    rows = np.arange(start, start + N_ROWS, dtype=np.uint64)
    maskable, share = rule.may_hide(ids, seed, rows)
    n_maskable = maskable.sum(axis=1)
    sd = np.sqrt(n_maskable @ (share * (1 - share)))
    assert abs(hidden.sum() - n_maskable @ share) <= 4.5 * sd + 1e-9
    cut = data.draw(st.integers(0, N_ROWS - 1))
    again = make_batch(rule, seed=seed, start=start + cut, n_sequences=N_ROWS - cut, n_tokens=asked)
    np.testing.assert_array_equal(again.target_ids, batch.target_ids[cut:])
    if rule.determined:
        np.testing.assert_array_equal(rule.solve(visible), ids)
    elif rule.name in ("copy", "eca", "nca"):
        solved = rule.solve(visible)
        known = solved != rule.n_ids
        np.testing.assert_array_equal(solved[known], ids[known])
    else:
        with pytest.raises(RuleError, match="nothing to solve"):
            rule.solve(visible)


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("nca", "random")])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_wrong_token_where_only_one_is_right_is_refused(name: str, data: st.DataObject) -> None:
    """Where one hidden token is determined by all others, any other one leaves the language."""
    params = {**data.draw(PARAMS[name]), **UNIQUE.get(name, {})}
    rule = make_rule(name, **params)
    n_tokens = rule.fit_length(data.draw(LENGTHS))
    (word,) = rule.sample(data.draw(SEEDS), 0, 1, n_tokens)
    places = np.flatnonzero(rule.maskable(word)[0])
    assume(len(places))
    place = data.draw(st.sampled_from(places.tolist()))
    wrong = np.repeat(word[None], rule.n_ids, axis=0)
    wrong[:, place] = np.arange(rule.n_ids)
    others = (wrong[:, place] != word[place]) & rule.maskable(wrong)[:, place]
    assert not rule.accepts(wrong[others]).any()
    assert rule.accepts(wrong[word[place]]).all()


def _some_other(rng: np.random.Generator, token: int, low: int, high: int) -> int:
    return int(low + (token - low + rng.integers(1, high - low)) % (high - low))


#: Parameters under which one wrong token always leaves the language, and where that token may be.
CORRUPTIBLE: dict[str, tuple[dict[str, Any], int, int]] = {
    # name: parameters, the ids a wrong token is drawn from: [low, high)
    "dyck": ({"n_kinds": 9}, 9, 18),
    "shuffle-dyck": ({"n_kinds": 9}, 9, 18),
    "copy": ({}, 0, 98),
    "copy-packed": ({}, 0, 64),
    **dict.fromkeys(
        ("identity", "reverse", "sort", "set", "union", "delete", "stack"), ({}, 1, 99)
    ),
    "eca": ({"hidden": "last_rows"}, 0, 2),
    "shuffled:dyck": ({"n_kinds": 9}, 9, 18),
    "shuffled:sort": ({}, 1, 99),
}


@pytest.mark.parametrize("name", CORRUPTIBLE)
def test_one_wrong_token_is_refused(name: str, rng: np.random.Generator) -> None:
    params, low, high = CORRUPTIBLE[name]
    rule = make_rule(name, **params)
    words = rule.sample(7, 0, 40, rule.fit_length(36))
    for word, maskable in zip(words, rule.maskable(words), strict=True):
        place = rng.choice(np.flatnonzero(maskable & (word >= low) & (word < high)))
        wrong = word.copy()
        wrong[place] = _some_other(rng, word[place], low, high)
        assert not rule.accepts(wrong)[0], (place, word, wrong)


@pytest.mark.parametrize("name", PLAIN)
def test_foreign_ids_and_wrong_lengths_are_refused(name: str) -> None:
    rule = make_rule(name)
    words = rule.sample(7, 0, 5, rule.fit_length(36))
    for foreign in (-1, rule.n_ids, 32_767):
        wrong = words.copy()
        wrong[:, 2] = foreign
        assert not rule.accepts(wrong).any()
    if name != "random":
        assert not rule.accepts(words[:, :-3]).any()
        assert not rule.accepts(words[:, 1:]).any()


@pytest.mark.parametrize("name", ["dyck", "copy", "reverse", "stack", "set"])
def test_a_swap_that_breaks_the_order_is_refused(name: str) -> None:
    rule = make_rule(name)
    for word in rule.sample(3, 0, 30, rule.fit_length(36)):
        places = np.flatnonzero(rule.maskable(word)[0])
        pairs = [(a, b) for a, b in itertools.combinations(places, 2) if word[a] != word[b]]
        for a, b in pairs[::7]:
            wrong = word.copy()
            wrong[[a, b]] = word[[b, a]]
            assert not rule.accepts(wrong)[0]


def _catalan(n: int) -> int:
    return comb(2 * n, n) // (n + 1)


ONE_KIND = {"name": "dyck", "params": {"n_kinds": 1}}
TWO_SYMBOLS = {"name": "copy", "params": {"n_symbols": 2}}

#: Rules so small that all sequences can be tried: name, parameters, length, words in the language.
COUNTED: list[tuple[str, dict[str, Any], int, int]] = [
    ("dyck", {"n_kinds": 2}, 6, _catalan(3) * 2**3),
    ("dyck", {"n_kinds": 1}, 10, _catalan(5)),
    ("dyck", {"n_kinds": 2, "max_depth": 1}, 6, 2**3),
    ("dyck", {"n_kinds": 1, "ending": "truncated"}, 8, comb(8, 4)),  # paths that stay above zero
    ("shuffle-dyck", {"n_kinds": 2}, 6, _catalan(3) * _catalan(4)),  # closed walks in a quadrant
    ("copy", {"n_symbols": 3}, 6, 3**3),
    ("copy", {"n_symbols": 3, "pairs": "packed", "min_length": 1, "max_length": 2}, 4, 9 + 9 - 3),
    ("identity", {"n_symbols": 2}, 5, 4),
    ("reverse", {"n_symbols": 2}, 5, 4),
    ("sort", {"n_symbols": 2}, 5, 4),
    ("set", {"n_symbols": 2}, 5, 4),
    ("union", {"n_symbols": 2}, 6, 4),
    ("delete", {"n_symbols": 2}, 7, 4 * 2),
    ("stack", {"n_symbols": 2}, 5, 2),  # push a, push b, pop | a
    ("eca", {"rule": 110}, 9, 2**3),
    ("eca", {"rule": 30, "boundary": "zero"}, 9, 2**3),
    ("random", {"n_symbols": 3}, 4, 3**4),
    ("shuffled", {"of": {"name": "dyck", "params": {"n_kinds": 1}}}, 6, comb(6, 3)),
    ("shuffled", {"of": {"name": "copy", "params": {"n_symbols": 2}}}, 4, 1 + 1 + comb(4, 2)),
    ("shuffled", {"of": {"name": "sort", "params": {"n_symbols": 2}}}, 5, 1 + 1 + comb(4, 2)),
    ("mixture", {"of": [ONE_KIND, TWO_SYMBOLS]}, 4, 2 + 4 - 1),  # 0101 is a word of both
    ("mixture", {"of": [ONE_KIND, TWO_SYMBOLS], "ids": "disjoint"}, 4, 2 + 4),
    ("curriculum", {"of": [ONE_KIND, TWO_SYMBOLS], "n_sequences": 100}, 4, 2 + 4 - 1),
]


@pytest.mark.parametrize(("name", "params", "n_tokens", "n_words"), COUNTED)
def test_languages_have_as_many_words_as_mathematics_says(
    name: str, params: dict[str, Any], n_tokens: int, n_words: int
) -> None:
    rule = make_rule(name, **params)
    ids = range(rule.n_ids - (name == "eca"))
    everything = np.array(list(itertools.product(ids, repeat=n_tokens)), dtype=np.int16)
    words = {word.tobytes() for word in everything[rule.accepts(everything)]}
    assert len(words) == n_words
    sampled = {word.tobytes() for word in rule.sample(0, 0, 40 * n_words, n_tokens)}
    assert sampled == words  # the generator reaches all of them, and nothing else


def test_seeds_and_held_out_sequences_share_nothing() -> None:
    rule = make_rule("dyck")
    streams = [(seed, start) for seed in (-1, 0, 1, 2) for start in (0, 500)]
    streams += [(held_out_seed(seed), 0) for seed in (0, 1)]
    rows = [row.tobytes() for s in streams for row in rule.sample(*s, 500, 64)]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("name", [*RULES, *PRESETS])
def test_configs_make_the_same_rule_again(name: str) -> None:
    needed = {"shuffled": {"of": "dyck"}, "mixture": {"of": ["dyck", "set"]}}
    needed["curriculum"] = {"of": ["sort", "shuffled:set"], "n_sequences": 9, "shares": [0.4, 0.6]}
    rule = make_rule(name, **needed.get(name, {}))
    config = json.loads(json.dumps(rule_config(rule)))
    assert config["name"] in RULES
    assert make_rule(config["name"], **config["params"]) == rule
    if name in PRESETS:
        assert find_preset(rule) == name


def test_names_that_people_use() -> None:
    assert make_rule("k-dyck") == make_rule("Dyck") == make_rule("dyck-uncapped")
    assert make_rule("ww").name == "copy"
    assert make_rule("shuffle_dyck") == make_rule("k-dyck-shuffle")
    assert make_rule("shuffled:dyck", n_kinds=3).of == make_rule("dyck", n_kinds=3)
    assert make_rule("dyck-cap4", n_kinds=8).max_depth == 4
    blend = make_rule("shuffled:mixture", of=["dyck", "shuffled:set"])
    assert [member.name for member in blend.of] == ["shuffled", "shuffled"]
    assert blend.of[1].of.name == "set"


def test_the_control_keeps_the_tokens_and_the_places_of_separators() -> None:
    for name in ("dyck", "union", "copy-packed", "eca"):
        rule, control = make_rule(name), make_rule("shuffled", of=make_rule(name))
        words, mixed = (r.sample(5, 9, 30, 64) for r in (rule, control))
        np.testing.assert_array_equal(np.sort(words), np.sort(mixed))
        assert (words != mixed).any(axis=1).mean() > 0.8  # an automaton may be all zeros
        np.testing.assert_array_equal(
            rule.maskable(words).sum(axis=1), control.maskable(mixed).sum(axis=1)
        )
        for marker in rule.separator_ids:
            np.testing.assert_array_equal(words == marker, mixed == marker)


def test_mixtures_take_each_row_from_a_member_by_weight() -> None:
    members = [make_rule("dyck", n_kinds=5), make_rule("sort", n_symbols=6)]
    rule = make_rule("mixture", of=members, weights=[0.8, 0.2], ids="disjoint")
    ids = rule.sample(0, 100, 2000, 31)
    from_dyck = (ids < members[0].n_ids).all(axis=1)
    assert abs(from_dyck.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 2000)
    np.testing.assert_array_equal(
        ids[from_dyck, :30], members[0].sample(0, 100, 2000, 30)[from_dyck]
    )
    assert (ids[from_dyck, 30] == members[0].pad_id).all()
    np.testing.assert_array_equal(
        ids[~from_dyck] - members[0].n_ids, members[1].sample(0, 100, 2000, 31)[~from_dyck]
    )


def test_curricula_follow_their_total() -> None:
    stages = [{"name": "dyck", "params": {"max_depth": d}} for d in (1, 2, 9)]
    rule = make_rule("curriculum", of=stages, n_sequences=100, shares=[0.1, 0.5, 0.4])
    ids = rule.sample(0, 0, 130, 40)
    for member, rows in zip(rule.of, ((0, 10), (10, 60), (60, 130)), strict=True):
        begin, end = rows
        np.testing.assert_array_equal(ids[begin:end], member.sample(0, begin, end - begin, 40))
    assert rule.evaluation_start == 60


def test_threads_that_a_fork_left_behind_are_made_anew() -> None:
    rule = make_rule("dyck", n_kinds=3)
    words = rule.sample(0, 0, 64, 20, n_threads=2)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
        child = os.fork()
    if not child:
        os.write(writer, rule.sample(0, 0, 64, 20, n_threads=2).tobytes())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == words.tobytes()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

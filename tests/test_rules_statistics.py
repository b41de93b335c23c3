"""The variants of k-Dyck are the published ones: their statistics, and what can be reached."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from vitwarm.rules import make_rule
from vitwarm.rules.masking import make_batch
from vitwarm.rules.shuffle_dyck import ShuffleDyck
from vitwarm.rules.stats import match_distances, rule_stats

#: Measured by others' generators on 4,000 words of 196 tokens, k = 64: mean largest depth, closing
#: run at the end, match distance (median, mean, 90 %, 99 %), share of closed by the next token.
PUBLISHED = {
    "dyck-uncapped": (35.9, 34.5, 3, 35.7, 137, 191, 0.41),
    "dyck-cap16": (16.0, 14.0, 1, 21.9, 89, 189, 0.53),
    "dyck-p50": (16.2, 11.0, 1, 14.0, 39, 165, 0.51),
    "dyck-p49": (14.8, 9.4, 1, 12.3, 33, 155, 0.52),
    "dyck-cap4": (4.0, 3.0, 1, 4.9, 13, 49, 0.64),
    "dyck-cap4-truncated": (4.0, 0.7, 1, 4.6, 11, 47, 0.65),
}
#: Half a unit of the last digit given; distances are odd, so their quantiles move in steps of two.
ROUNDING = (0.05, 0.05, 0.5, 0.05, 2, 2, 0.005)
N_WORDS, N_GROUPS = 4000, 20


@pytest.mark.parametrize("name", PUBLISHED)
def test_variants_have_the_published_statistics(name: str) -> None:
    rule = make_rule(name)
    words = rule.sample(0, 0, N_WORDS, 196)
    depth = np.where(words < 64, 1, -1).cumsum(axis=1)
    run = 195 - np.where(words < 64, np.arange(196), -1).max(axis=1)
    distance = match_distances(rule, words)

    def over(rows: slice) -> tuple[float, ...]:
        found = distance[rows][distance[rows] > 0]
        cuts = np.quantile(found, (0.5, 0.9, 0.99))
        return (
            float(depth[rows].max(axis=1).mean()), float(run[rows].mean()),
            cuts[0], float(found.mean()), cuts[1], cuts[2], float((found == 1).mean()),
        )  # fmt: skip

    ours = np.array(over(slice(None)))
    size = N_WORDS // N_GROUPS
    groups = np.array([over(slice(i * size, (i + 1) * size)) for i in range(N_GROUPS)])
    # Both sides were sampled, so the difference has twice the variance of one of them.
    error = groups.std(axis=0, ddof=1) / np.sqrt(N_GROUPS) * np.sqrt(2)
    assert (np.abs(ours - PUBLISHED[name]) <= 3.5 * error + ROUNDING).all(), (ours, error)


def test_uniform_kinds_and_the_stated_share_of_opening() -> None:
    words = make_rule("dyck", n_kinds=7, p_open=0.3, ending="truncated").sample(0, 0, 3000, 60)
    opens = words < 7
    counts = np.bincount(words[opens])
    assert (np.abs(counts - counts.mean()) < 4.5 * np.sqrt(counts.mean())).all()
    free = (np.where(opens, 1, -1).cumsum(axis=1) > 0)[:, :-1]  # where both are possible next
    share = opens[:, 1:][free].mean()
    assert abs(share - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / free.sum())


@pytest.mark.parametrize("closing", ["brackets", "types"])
def test_dyck_shuffle_closes_what_it_says(closing: str) -> None:
    # After (( [ the next close is a round one in 2 of 3 cases over brackets, in 1 of 2 over types.
    rule = make_rule("shuffle-dyck", n_kinds=2, closing=closing, ending="truncated")
    words = rule.sample(0, 0, 40_000, 4)
    after = words[np.isin(words[:, :3], [0, 1]).all(axis=1) & (words[:, :3].sum(axis=1) == 1)]
    closes = after[after[:, 3] >= 2, 3]
    expected = 2 / 3 if closing == "brackets" else 1 / 2
    assert abs((closes == 2).mean() - expected) < 4.5 * np.sqrt(0.25 / len(closes))


def _exact(rule: ShuffleDyck, visible: np.ndarray, weight: Callable[..., float]) -> np.ndarray:
    """The posterior of every hidden kind, from all assignments of one sequence."""
    places = np.flatnonzero(visible == rule.n_ids)
    totals = np.zeros((len(places), rule.n_kinds))
    for kinds in itertools.product(range(rule.n_kinds), repeat=len(places)):
        word = visible.copy()
        word[places] = np.array(kinds) + rule.n_kinds
        totals[np.arange(len(places)), kinds] += weight(rule, word.tolist())
    return totals / totals.sum(axis=1, keepdims=True)


def _probability(rule: ShuffleDyck, word: list[int]) -> float:
    """What the closing choices of a word have as their probability; 0 where it is none."""
    if not rule.accepts(word)[0]:
        return 0.0
    opened, product = [0] * rule.n_kinds, 1.0
    for token in word:
        if token < rule.n_kinds:
            opened[token] += 1
        else:
            n = opened[token - rule.n_kinds]
            brackets = n / sum(opened)
            types = 1 / sum(count > 0 for count in opened)
            product *= brackets if rule.closing == "brackets" else types
            opened[token - rule.n_kinds] -= 1
    return product


@pytest.mark.parametrize("ending", ["balanced", "truncated"])
@pytest.mark.parametrize("closing", ["brackets", "types"])
def test_the_estimated_ceiling_is_the_exact_one(closing: str, ending: str) -> None:
    rule = make_rule("shuffle-dyck", n_kinds=3, closing=closing, ending=ending)
    assert isinstance(rule, ShuffleDyck)
    ids = rule.sample(0, 0, 60, 12)
    visible = make_batch(rule, seed=0, start=0, n_sequences=60, n_tokens=12).input_ids
    right, sure = [], []
    for word, row in zip(ids, visible, strict=True):
        posterior = _exact(rule, row, _probability)
        wanted = word[row == rule.n_ids] - rule.n_kinds
        right += (posterior.argmax(axis=1) == wanted).tolist()
        sure += posterior.max(axis=1).tolist()
    # Ties between kinds fall either way, so the two agree up to some tokens.
    estimate = rule.ceiling(ids, visible)
    assert abs(estimate.low - np.mean(right)) < 0.08
    assert abs(estimate.high - np.mean(sure)) < 0.03


def test_ceilings_of_the_other_rules() -> None:
    def ceiling(name: str, n_tokens: int, **params: object) -> tuple[float, float]:
        found = rule_stats(make_rule(name, **params), n_sequences=256, n_tokens=n_tokens)
        return found["ceiling"]["low"], found["ceiling"]["high"]

    assert ceiling("dyck", 36) == (1.0, 1.0)
    assert ceiling("random", 36) == (1 / 128, 1 / 128)
    low, high = ceiling("shuffled:dyck", 16, n_kinds=8)
    assert low == high
    assert 0.35 < high < 0.45  # the control of the learning test must stay below
    low, high = ceiling("eca", 36)
    assert low == high
    assert 0.8 < low <= 1.0
    low, high = ceiling("eca", 36, width=40)  # cropped: bounds only
    assert 0.4 < low < high == 1.0
    members = [{"name": "random", "params": {"n_symbols": 4}}, {"name": "eca", "params": {}}]
    low, high = ceiling("mixture", 36, of=members, ids="disjoint")
    assert 0.5 < low == high < 0.7


def test_a_mixtures_ceiling_does_not_know_which_member_made_a_row() -> None:
    def ceiling(*of: str, name: str = "mixture", **params: object) -> tuple[float, float]:
        rule = make_rule(name, of=list(of), **params)
        found = rule_stats(rule, n_sequences=64, n_tokens=64)["ceiling"]
        return found["low"], found["high"]

    for pair in (("random", "dyck"), ("shuffle-dyck", "dyck"), ("shuffled:dyck", "dyck")):
        assert ceiling(*pair) == pytest.approx(ceiling(*pair[::-1]), abs=0.06)
    low, high = ceiling("random", "dyck")
    assert low < 0.1  # every dyck word could be a random one
    assert 0.2 < high < 0.5  # half of the rows are dyck, but they hide a quarter, random ones half
    # Which of two answers is asked for cannot be seen: one is a guess, an oracle knows it.
    low, high = ceiling("identity", "reverse")
    assert 0.35 < low < 0.65
    assert high == 1.0
    stages = {"name": "curriculum", "n_sequences": 1000}
    assert ceiling("shuffle-dyck", "dyck", **stages) == (1.0, 1.0)  # type: ignore[arg-type]


def test_the_automatons_exact_ceiling_is_no_less_than_what_deduction_fills_in() -> None:
    rule = make_rule("eca", rule=30, burn_in=2)
    batch = make_batch(rule, seed=0, start=0, n_sequences=50, n_tokens=36)
    ids = rule.sample(0, 0, 50, 36)
    hidden = batch.input_ids == rule.n_ids
    solved = (rule.solve(batch.input_ids) != rule.n_ids)[hidden].mean()
    assert 0.3 < solved <= rule.ceiling(ids, batch.input_ids).low <= 1.0


def test_trivial_predictors_do_what_their_names_say() -> None:
    stats = rule_stats(make_rule("dyck", max_depth=1), n_sequences=200, n_tokens=20)
    assert stats["predictors"]["nearest opening token to the left"] == 1.0
    assert stats["brackets"]["adjacent_share"] == 1.0
    assert stats["brackets"]["match_distance"]["shares"] == {"1": 1.0}
    stats = rule_stats(make_rule("eca", rule=204), n_sequences=100, n_tokens=64)  # nothing moves
    above = stats["predictors"]["visible token above"]
    # Right unless every token above is hidden: in row r of 8 that is 1 - 2^-r.
    assert abs(above - sum(1 - 0.5**r for r in range(8)) / 8) < 0.03
    stats = rule_stats(make_rule("random", n_symbols=16), n_sequences=400, n_tokens=50)
    assert abs(stats["ids"]["entropy_bits"] - 4) < 0.01
    assert max(stats["predictors"].values()) < 0.09
    assert abs(stats["hidden"]["share"] - 0.5) < 0.02

"""N-grams, gzip and the order-blind bound against slow formulas written from their definitions."""

import gzip
from collections import Counter
from typing import Any

import numpy as np
import pytest

from vitwarm.rules import RULES, make_rule
from vitwarm.rules.masking import Masked, make_batch
from vitwarm.rules.stats import (
    gzip_stats,
    ngram_accuracies,
    order_blind_accuracy,
    rule_stats,
)

NEEDED = {
    "shuffled": {"of": "dyck"},
    "mixture": {"of": ["dyck", "set"], "ids": "disjoint"},
    "curriculum": {"of": ["copy", "dyck"], "n_sequences": 40},
}
SMALL: list[tuple[str, dict[str, Any], int]] = [
    ("dyck", {"n_kinds": 2}, 10),
    ("copy", {"n_symbols": 3}, 7),  # one visible pad at the end
    ("set", {"n_symbols": 4}, 12),
    ("eca", {"hidden": "last_rows"}, 9),
    ("random", {"n_symbols": 300}, 5),  # most windows are new
]


def _batches(name: str, params: dict[str, Any], n_tokens: int) -> tuple[Masked, Masked]:
    rule = make_rule(name, **params)
    how: dict[str, Any] = {"seed": 3, "n_tokens": n_tokens}
    seen = make_batch(rule, start=40, n_sequences=150, **how)
    return seen, make_batch(rule, start=0, n_sequences=40, **how)


def _windows(batch: Masked, n: int, place: int) -> list[tuple[tuple[int | None, ...], int]]:
    """What stands around every hidden token as the input shows it (None: beyond the ends)."""
    found = []
    for shown, targets in zip(batch.input_ids.tolist(), batch.target_ids.tolist(), strict=True):
        for t, target in enumerate(targets):
            if target >= 0:
                around = [t + k - place for k in range(n) if k != place]
                context = tuple(shown[u] if 0 <= u < len(shown) else None for u in around)
                found.append((context, target))
    return found


@pytest.mark.parametrize(("name", "params", "n_tokens"), SMALL)
def test_ngrams_count_what_stood_in_the_same_window(
    name: str, params: dict[str, Any], n_tokens: int
) -> None:
    seen, batch = _batches(name, params, n_tokens)
    shorter: list[int] = []
    for n in (1, 2, 3):
        placed = []
        for place in range(n):
            counts: dict[tuple[int | None, ...], Counter[int]] = {}
            for context, target in _windows(seen, n, place):
                counts.setdefault(context, Counter())[target] += 1
            guesses, right = [], []
            for i, (context, wanted) in enumerate(_windows(batch, n, place)):
                times = counts.get(context)
                most = max(times.values()) if times else 0
                ids = [x for x in times or () if times and times[x] == most]
                guesses.append(min(ids) if ids else shorter[i])  # of equals the smallest id
                right.append(guesses[-1] == wanted)
            placed.append((np.mean(right), guesses))
        best = max(share for share, _ in placed)
        shorter = next(guesses for share, guesses in placed if share == best)
        assert ngram_accuracies(seen, batch)[f"{n}-gram"] == pytest.approx(best)


def test_ngrams_where_nothing_is_hidden_or_seen() -> None:
    seen, batch = _batches("dyck", {"n_kinds": 2}, 10)
    none = Masked(batch.ids, np.full_like(batch.target_ids, -100))
    assert set(ngram_accuracies(seen, none).values()) == {0.0}
    assert set(ngram_accuracies(none, batch).values()) == {0.0}


def test_what_two_neighbours_tell() -> None:
    """An open bracket of depth 1 tells the close behind it; a row of ones all of it."""
    stats = rule_stats(make_rule("dyck", max_depth=1), n_sequences=50, n_tokens=20)
    told = stats["predictors"]
    assert told["2-gram"] == told["3-gram"] == 1.0
    assert told["1-gram"] < 0.06
    stats = rule_stats(make_rule("eca", rule=255, burn_in=1), n_sequences=9, n_tokens=16)
    assert [stats["predictors"][f"{n}-gram"] for n in (1, 2, 3)] == [1.0, 1.0, 1.0]
    assert stats["order_blind"] == 1.0


@pytest.mark.parametrize("name", ["dyck", "union", "eca", "shuffled", "mixture"])
def test_the_order_blind_bound_is_the_most_frequent_hidden_id(name: str) -> None:
    rule = make_rule(name, **NEEDED.get(name, {}))
    batch = make_batch(rule, seed=0, start=0, n_sequences=30, n_tokens=36)
    n_right = n_hidden = 0
    for row in batch.target_ids:
        hidden = Counter(row[row >= 0].tolist())
        n_right += max(hidden.values(), default=0)
        n_hidden += hidden.total()
    bound = order_blind_accuracy(rule, batch.ids, batch.input_ids)
    assert bound == pytest.approx(n_right / n_hidden)


@pytest.mark.parametrize(("name", "width"), [("dyck", 1), ("copy", 1), ("random", 2)])
def test_the_gzip_ratio_is_gzips(name: str, width: int) -> None:
    rule = make_rule(name, **({"n_symbols": 1000} if name == "random" else {}))
    ids = rule.sample(5, 20, 30, 64)
    mixed = make_rule("shuffled", of=rule).sample(5, 20, 30, 64)

    def n_bytes(rows: np.ndarray) -> int:
        # gzip's header and end take 18 bytes, zlib's 6; between them stands the same.
        packed = [b"".join(int(x).to_bytes(width, "little") for x in row) for row in rows]
        return sum(len(gzip.compress(row, 9)) - 12 for row in packed)

    found = gzip_stats(rule, ids, 5, 20)
    assert found["ratio"] == n_bytes(ids) / (ids.size * width)
    assert found["over_shuffled"] == n_bytes(ids) / n_bytes(mixed)
    if name == "copy":
        assert found["over_shuffled"] < 0.7  # half of it is a copy


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_its_place_on_the_scale(name: str) -> None:
    stats = rule_stats(make_rule(name, **NEEDED.get(name, {})), n_sequences=24, n_tokens=36)
    ngrams = [stats["predictors"][f"{n}-gram"] for n in (1, 2, 3)]
    assert all(0 <= share <= 1 for share in [*ngrams, stats["order_blind"]])
    assert 0 < stats["gzip"]["ratio"] < 1.4  # short sequences that are noise gain nothing
    assert 0 < stats["gzip"]["over_shuffled"] < 1.1
    if name in ("shuffled", "random"):
        assert stats["gzip"]["over_shuffled"] == pytest.approx(1, abs=0.01)

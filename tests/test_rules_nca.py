"""Neural cellular automata against a plain reference, and what can be inferred from a sequence."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from vitwarm.errors import RuleError
from vitwarm.rules import make_rule
from vitwarm.rules.automata.neural import ATTEMPTS, UNITS, NeuralAutomaton
from vitwarm.rules.draws import GAMMA, mixed, stream
from vitwarm.rules.masking import make_batch
from vitwarm.rules.stats import rule_stats

WORD = 2**64 - 1


class Draws:
    """The draws of a row, one after the other, as whole numbers of Python."""

    def __init__(self, rule: NeuralAutomaton, seed: int, row: int) -> None:
        with np.errstate(over="ignore"):
            self.state = int(stream.py_func(rule.key(seed), np.uint64(row)))

    def __call__(self) -> int:
        self.state = (self.state + int(GAMMA)) & WORD
        with np.errstate(over="ignore"):  # numbers of 64 bits go round
            return int(mixed.py_func(np.uint64(self.state)))

    def bytes(self, n: int) -> NDArray[np.int64]:
        words = [self().to_bytes(8, "little") for _ in range(-(-n // 8))]
        return np.frombuffer(b"".join(words), np.uint8)[:n].astype(np.int64) - 128


def run_network(rule: NeuralAutomaton, seed: int, row: int, n_tokens: int) -> NDArray[np.int64]:
    """Frames [frames, height, width] by convolution of one-hot cells, and the band by a set."""
    draw, n = Draws(rule, seed, row), rule.n_states
    rows, columns = rule.frame_of(n_tokens)
    n_frames, low_high = n_tokens // (rows * columns), rule.complexity
    for _ in range(ATTEMPTS):
        first = draw.bytes(9 * n * UNITS).reshape(3, 3, n, UNITS)
        second = draw.bytes(n * UNITS).reshape(n, UNITS)
        n_cells = 4 * rows * columns
        words = [draw() for _ in range(n_cells // 4)]
        shorts = [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
        cells = np.array([short * n >> 16 for short in shorts]).reshape(2 * rows, 2 * columns)
        frames = []
        for t in range(rule.burn_in + n_frames):
            if t >= rule.burn_in:
                frames.append(cells)
            one_hot = np.eye(n, dtype=np.int64)[cells]
            units = np.zeros((*cells.shape, UNITS), np.int64)
            for y, x in itertools.product(range(3), range(3)):
                units += np.roll(one_hot, (1 - y, 1 - x), axis=(0, 1)) @ first[y, x]
            cells = (np.maximum(units, 0) @ second.T).argmax(axis=2)
        ids = to_tokens(np.array(frames), n)
        novel = len({tuple(ids[t : t + 3]) for t in range(n_tokens - 2)}) / n_tokens
        if low_high[0] <= novel <= low_high[1]:
            break
    return np.array(frames)


def to_tokens(frames: NDArray[np.int64], n: int) -> list[int]:
    """Two by two cells as one number, row by row."""
    return [
        int(((frame[y, x] * n + frame[y, x + 1]) * n + frame[y + 1, x]) * n + frame[y + 1, x + 1])
        for frame in frames
        for y in range(0, frame.shape[0], 2)
        for x in range(0, frame.shape[1], 2)
    ]


@pytest.mark.parametrize(
    ("params", "n_tokens"),
    [
        ({}, 64),
        ({"n_states": 2, "burn_in": 2, "complexity": [0.3, 0.6]}, 36),
        ({"n_states": 8, "frame": [2, 5], "complexity": [0.8, 1.0]}, 30),
        ({"n_states": 3, "complexity": [0.0, 0.01]}, 16),  # which no network meets
    ],
)
def test_every_row_is_its_own_network_run_by_hand(params: dict[str, object], n_tokens: int) -> None:
    rule = make_rule("nca", **params)
    assert isinstance(rule, NeuralAutomaton)
    ids = rule.sample(5, 1000, 6, n_tokens)
    for k in range(6):
        frames = run_network(rule, 5, 1000 + k, n_tokens)
        assert ids[k].tolist() == to_tokens(frames, rule.n_states)
        np.testing.assert_array_equal(rule.to_cells(ids[k])[0], frames)
    np.testing.assert_array_equal(rule.to_ids(rule.to_cells(ids)), ids)


def test_the_band_is_kept_and_stands_for_the_gzip_ratio() -> None:
    rule = make_rule("nca", complexity=[0.3, 0.5])
    ids = rule.sample(0, 0, 300, 196).astype(np.uint8)
    novel = np.array([len({tuple(w[t : t + 3]) for t in range(194)}) for w in ids.tolist()]) / 196
    assert ((novel >= 0.3) & (novel <= 0.5)).all()
    ratio = np.array([len(zlib.compress(word.tobytes(), 9)) for word in ids]) / 196
    wide = make_rule("nca", complexity=[0.0, 1.0]).sample(0, 0, 300, 196).astype(np.uint8)
    wide_ratio = np.array([len(zlib.compress(word.tobytes(), 9)) for word in wide]) / 196
    assert wide_ratio.std() > 2 * ratio.std()
    novel = np.array([len({tuple(w[t : t + 3]) for t in range(194)}) for w in wide.tolist()])
    assert np.corrcoef(novel, wide_ratio)[0, 1] > 0.93


def test_sequences_have_networks_of_their_own() -> None:
    """The same neighbourhood is followed by different cells in different sequences."""
    rule = make_rule("nca", n_states=4)
    assert isinstance(rule, NeuralAutomaton)
    cells = rule.to_cells(rule.sample(0, 0, 50, 196))
    after = {tuple(cells[k, 1, y, x] for y, x in ((0, 0), (3, 5), (9, 9))) for k in range(50)}
    assert len(after) > 20
    joined = cells[:2].reshape(1, 8, 14, 14)
    assert rule._deduce(cells).all()
    assert not rule._deduce(joined).any()


def test_one_cell_that_contradicts_another_is_refused(rng: np.random.Generator) -> None:
    """In frames that repeat, every neighbourhood is there twice."""
    rule = make_rule("nca", frame=[4, 4], complexity=[0.0, 0.4], burn_in=20)
    assert isinstance(rule, NeuralAutomaton)
    cells = rule.to_cells(rule.sample(3, 0, 60, 64))
    still = cells[(cells == cells[:, :1]).all(axis=(1, 2, 3))]
    assert len(still) > 5
    assert rule.accepts(rule.to_ids(still)).all()
    wrong = still.copy()
    wrong[:, 3, 2, 5] ^= 1
    assert not rule.accepts(rule.to_ids(wrong)).any()


def test_what_is_seen_elsewhere_is_filled_in() -> None:
    """As a dictionary over neighbourhoods says, whose frames before the last are all visible."""
    rule = make_rule("nca", n_states=3)
    assert isinstance(rule, NeuralAutomaton)
    batch = make_batch(rule, seed=1, start=0, n_sequences=20, n_tokens=196)
    assert (batch.hidden.sum(axis=1) == 49).all()
    assert batch.hidden[:, -49:].all()
    cells = rule.to_cells(batch.input_ids)
    for one in cells:
        seen: dict[tuple[int, ...], int] = {}
        for t in range(3):
            rolled = [np.roll(one[t], (-y, -x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
            for y, x in np.ndindex(14, 14):
                around = tuple(int(plane[y, x]) for plane in rolled)
                if t < 2:
                    seen[around] = int(one[t + 1, y, x])
                elif around in seen:
                    one[t + 1, y, x] = seen[around]
    solved = rule.solve(batch.input_ids)
    np.testing.assert_array_equal(solved, rule.to_ids(cells))
    known = solved != rule.n_ids
    np.testing.assert_array_equal(solved[known], batch.ids[known])
    low, high, _ = rule.ceiling(batch.ids, batch.input_ids)
    assert known[batch.hidden].mean() < low < 1
    assert high == 1


def test_hidden_at_random_the_frame_before_says_most() -> None:
    rule = make_rule("nca", hidden="random")
    batch = make_batch(rule, seed=1, start=0, n_sequences=50, n_tokens=196)
    low, high, _ = rule.ceiling(batch.ids, batch.input_ids)
    at, before = batch.ids[:, 49:], batch.ids[:, :-49]
    sure = batch.hidden[:, 49:] & ~batch.hidden[:, :-49]
    assert low >= (at == before)[sure].sum() / batch.hidden.sum()
    assert high == 1


def test_a_band_that_nothing_meets_is_refused_and_strays_are_counted() -> None:
    with pytest.raises(RuleError, match=r"complexity is \[0.0, 0.001\].*in that band; widen it"):
        make_rule("nca", complexity=[0.0, 0.001]).sample(0, 0, 32, 64)
    narrow = make_rule("nca", complexity=[0.4, 0.45])
    ids = narrow.sample(0, narrow.evaluation_start, 500, 64).tolist()
    # Counted here triple by triple.
    shares = [len({tuple(row[t - 2 : t + 1]) for t in range(2, 64)}) / 64 for row in ids]
    strays = np.mean([not 0.4 <= share <= 0.45 for share in shares])
    assert 0 < strays < 1
    found = rule_stats(narrow, n_sequences=500, n_tokens=64)
    assert found["outside_band"] == pytest.approx(strays)

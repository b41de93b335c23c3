"""Hidden exactly where targets count, as much as was asked, the same in any batch."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitwarm.errors import RuleError
from vitwarm.rules import make_rule
from vitwarm.rules.masking import IGNORE, Masked, make_batch

DYCK = make_rule("dyck", n_kinds=8)


def _batch(start: int, n: int, share: float | None = None, n_tokens: int = 16) -> Masked:
    return make_batch(DYCK, seed=3, start=start, n_sequences=n, n_tokens=n_tokens, hide_share=share)


def test_hidden_tokens_are_closing_ones_and_only_they_have_targets() -> None:
    batch = _batch(0, 200)
    hidden = batch.input_ids == DYCK.n_ids
    assert batch.input_ids.dtype == batch.target_ids.dtype == np.int16
    np.testing.assert_array_equal(hidden, batch.target_ids != IGNORE)
    targets = batch.target_ids[hidden]
    assert targets.min() >= 8
    assert targets.max() < 16
    assert batch.input_ids[~hidden].max() < DYCK.pad_id


@settings(max_examples=20, deadline=None, derandomize=True)
@given(share=st.floats(0.01, 1.0), seed=st.integers())
def test_the_hidden_share_is_what_was_asked(share: float, seed: int) -> None:
    batch = make_batch(DYCK, seed=seed, start=0, n_sequences=400, n_tokens=40, hide_share=share)
    n_closes, n_hidden = 400 * 20, int((batch.target_ids != IGNORE).sum())
    assert abs(n_hidden - share * n_closes) <= 4.5 * np.sqrt(share * (1 - share) * n_closes)


@pytest.mark.parametrize("name", ["dyck", "copy", "random", "eca", "sort"])
def test_the_rules_own_share_is_the_default(name: str) -> None:
    rule = make_rule(name)
    batch = make_batch(rule, seed=0, start=0, n_sequences=300, n_tokens=36)
    n_maskable = rule.maskable(rule.sample(0, 0, 300, 36)).sum()
    share = rule.hide_share
    n_hidden = (batch.target_ids != IGNORE).sum()
    assert abs(n_hidden - share * n_maskable) <= 4.5 * np.sqrt(share * (1 - share) * n_maskable)


def test_members_of_a_mixture_hide_their_own_shares() -> None:
    rule = make_rule("mixture", of=["dyck", "sort"], ids="disjoint")
    batch = make_batch(rule, seed=0, start=0, n_sequences=300, n_tokens=36)
    shares = (batch.target_ids != IGNORE).sum(axis=1) / rule.maskable(
        rule.sample(0, 0, 300, 36)
    ).sum(axis=1)
    from_sort = batch.input_ids[:, 0] >= make_rule("dyck").n_ids
    assert (shares[from_sort] == 1.0).all()
    assert abs(shares[~from_sort].mean() - 0.5) < 0.05


@settings(max_examples=25, deadline=None, derandomize=True)
@given(start=st.integers(0, 90), n=st.integers(0, 10))
def test_rows_are_the_same_in_any_batch(start: int, n: int) -> None:
    whole, part = _batch(0, 100), _batch(start, n)
    for all_rows, some in zip(whole, part, strict=True):
        np.testing.assert_array_equal(all_rows[start : start + n], some)


def test_a_larger_share_hides_what_a_smaller_one_hides() -> None:
    small, large = _batch(0, 50, 0.3), _batch(0, 50, 0.6)
    assert not ((small.target_ids != IGNORE) & (large.target_ids == IGNORE)).any()


def test_odd_lengths_end_with_one_visible_pad() -> None:
    odd, even = _batch(0, 50, n_tokens=17), _batch(0, 50, n_tokens=16)
    np.testing.assert_array_equal(odd.input_ids[:, :16], even.input_ids)
    assert (odd.input_ids[:, 16] == DYCK.pad_id).all()
    assert (odd.target_ids[:, 16] == IGNORE).all()


def test_hidden_positions_do_not_depend_on_the_hidden_kinds() -> None:
    # The control must hide as the rule does: as many tokens, with positions drawn the same way.
    control = make_rule("shuffled", of=DYCK)
    batch = make_batch(control, seed=3, start=0, n_sequences=400, n_tokens=16)
    assert abs((batch.target_ids != IGNORE).sum() - 400 * 4) < 4.5 * np.sqrt(400 * 8 * 0.25)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(RuleError, match="hide_share is"):
        _batch(0, 1, share)


def test_threads_may_make_batches_at_once() -> None:
    found: dict[int, Masked] = {}

    def work(start: int) -> None:
        found[start] = _batch(start, 50)

    threads = [threading.Thread(target=work, args=(50 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = _batch(0, 200)
    for start, batch in found.items():
        np.testing.assert_array_equal(batch.target_ids, whole.target_ids[start : start + 50])

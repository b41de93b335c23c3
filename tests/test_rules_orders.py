"""Which tokens can be put into an order that is a word: tried against every word of a length."""

import itertools

import numpy as np
import pytest

from vitwarm.rules import make_rule


@pytest.mark.parametrize(("n_symbols", "length"), [(2, n) for n in range(1, 8)] + [(3, 5), (3, 6)])
def test_stacks_are_accepted_in_any_order_of_some_word(n_symbols: int, length: int) -> None:
    rule = make_rule("stack", n_symbols=n_symbols, length=length)
    ids = range(n_symbols + 1)
    words = set()
    for operations in itertools.product(ids, repeat=length):
        answer = rule.answer([list(operations)], length)
        if answer is not None:
            words.add((len(answer), tuple(sorted([*operations, *answer]))))
    n_tokens = rule.n_needed(length)
    found = set()
    for n_answer in range(1, n_tokens - length):
        bags = list(itertools.combinations_with_replacement(ids, length + n_answer))
        rows = np.full((len(bags), n_tokens), rule.pad_id, dtype=np.int16)
        rows[:, :length] = [bag[:length] for bag in bags]
        rows[:, length] = rule.separator_id
        rows[:, length + 1 : length + 1 + n_answer] = [bag[length:] for bag in bags]
        accepted = rule.accepts_any_order(rows)
        found |= {(n_answer, bag) for bag, fine in zip(bags, accepted, strict=True) if fine}
    assert words
    assert found == words

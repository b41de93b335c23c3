"""Streams are independent of one another and the same everywhere."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitwarm.seeding import hash_bits, mix_u64, numpy_rng, seed_of, torch_seeded


def test_the_hash_is_the_same_on_every_machine() -> None:
    # Golden: a change here changes every order, sequence and augmentation of every published run.
    assert hash_bits(0, "fraction", 3) == 12046625217084932294
    assert numpy_rng(7, "order").integers(0, 1000, 4).tolist() == [228, 556, 510, 974]
    assert mix_u64(np.arange(3), 5).tolist() == [
        14215410453492816245,
        15338668914452690661,
        4523620323296177911,
    ]


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_no_arithmetic_on_seeds_makes_two_paths_meet(seed: int, row: int) -> None:
    assert seed_of(seed, "row", row + 1) != seed_of(seed + 1, "row", row)
    assert seed_of(seed, "train") != seed_of(seed, "held-out")
    assert hash_bits(seed, "a", "b") != hash_bits(seed, "ab")
    assert hash_bits(seed, 1) != hash_bits(seed, "1")


def test_mixed_integers_are_uniform_and_distinct() -> None:
    mixed = mix_u64(np.arange(100_000), hash_bits(0, "x"))
    assert len(np.unique(mixed)) == 100_000
    counts = np.bincount((mixed >> np.uint64(60)).astype(int), minlength=16)
    chi2 = ((counts - 6250) ** 2 / 6250).sum()
    assert chi2 < 37.7  # 99.9 % quantile for 15 degrees of freedom


def test_a_seeded_block_leaves_torchs_generator_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch_seeded(1, "model"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    with torch_seeded(1, "model"):
        assert torch.equal(torch.rand(3), first)

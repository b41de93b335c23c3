"""Fractions: exact, nested, balanced, and dependent on keys and seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_maker import sample, tiny_set, write_set, write_tar

from vitwarm.errors import ShardError
from vitwarm.shards import ShardIndex, choose_fraction, choose_list
from vitwarm.shards.choose.fraction import fraction_order
from vitwarm.shards.read.rows import hash_key

__all__ = ["tiny_set"]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
)
def test_every_prefix_is_balanced_to_within_one_image(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    hashes = np.array([hash_key(b"k%d" % k) for k in range(len(labels))], np.uint64)
    order = fraction_order(hashes, labels, seed=seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    for n in range(0, len(labels) + 1, 7):
        have = np.bincount(labels[order[:n]], minlength=len(sizes))
        # A class of s images holds between floor and ceil of s * t at some common time t.
        low, high = have / sizes - 1 / np.array(sizes), have / sizes + 1 / np.array(sizes)
        assert low.max() <= high.min() + 1e-12
        if len(set(sizes)) == 1:
            assert have.max() - have.min() <= 1


def test_imagenet_fractions_are_exact_and_nested() -> None:
    """With ImageNet's class sizes: 12,811 images at 1 %, 12 to 14 of each class of about 1,300."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([732, 1000, 1200, 1300], 1000, p=[0.02, 0.05, 0.08, 0.85])
    labels = rng.permutation(np.repeat(np.arange(1000), sizes))
    hashes = rng.integers(0, 2**63, len(labels)).astype(np.uint64)
    order = fraction_order(hashes, labels, seed=0)
    for fraction in (0.01, 0.05, 0.1, 0.5):
        have = np.bincount(labels[order[: round(fraction * len(labels))]], minlength=1000)
        assert (np.abs(have - fraction * sizes) <= 1).all()


def test_fractions_of_an_index(tmp_path: Path) -> None:
    index = ShardIndex.open(write_set(tmp_path, n_shards=3, per_shard=20, n_classes=5))
    before: set[int] = set()
    for fraction in (0.1, 0.25, 1 / 3, 0.5, 0.501, 0.9, 1.0):
        subset = choose_fraction(index, fraction, seed=3)
        assert len(subset) == round(fraction * 60)
        assert before <= set(subset.rows.tolist())
        assert (np.diff(subset.rows) > 0).all()
        assert subset.per_class.sum() == len(subset)
        assert subset.per_class.max() - subset.per_class.min() <= 1
        before = set(subset.rows.tolist())
    assert choose_fraction(index, 0.5, seed=3).sha256 == choose_fraction(index, 0.5, seed=3).sha256
    assert choose_fraction(index, 0.5, seed=3).sha256 != choose_fraction(index, 0.5, seed=4).sha256


def test_the_same_images_however_they_are_packed(tmp_path: Path) -> None:
    every = [(f"k{k}", k % 3) for k in range(30)]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    write_tar(one / "a.tar", [m for key, label in every for m in sample(key, label)])
    for k in range(3):
        part = every[::-1][k::3]
        write_tar(two / f"z{k}.tar", [m for key, label in part for m in sample(key, label)])
    subsets = [choose_fraction(ShardIndex.open(folder), 0.3, seed=0) for folder in (one, two)]
    assert subsets[0].sha256 == subsets[1].sha256
    assert subsets[0].keys == subsets[1].keys


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_out_of_range_are_refused(tiny_set: Path, fraction: float) -> None:
    with pytest.raises(ShardError, match=r"data\.fraction is .*above 0"):
        choose_fraction(ShardIndex.open(tiny_set), fraction, seed=0)


def test_a_fraction_that_leaves_a_class_empty_names_the_smallest_that_does_not(
    tmp_path: Path,
) -> None:
    members = [m for k in range(97) for m in sample(f"k{k}", 0)]
    members += [m for k in range(3) for m in sample(f"r{k}", 2)]
    write_tar(tmp_path / "a.tar", members)
    index = ShardIndex.open(tmp_path)
    with pytest.raises(ShardError, match=r"1 of 2 classes without any \(class 2 first\)") as caught:
        choose_fraction(index, 0.01, seed=0)
    least = float(str(caught.value).split("smallest fraction is ")[1].split(" ")[0])
    assert choose_fraction(index, least, seed=0).per_class.tolist()[2] == 1
    with pytest.raises(ShardError):
        choose_fraction(index, least - 0.01, seed=0)


def test_lists_in_simclrs_form(tmp_path: Path) -> None:
    keys = [f"n0144{k % 2}764_{k}" for k in range(8)]
    write_tar(tmp_path / "a.tar", [m for k, key in enumerate(keys) for m in sample(key, k % 2)])
    index = ShardIndex.open(tmp_path)
    text = tmp_path / "1percent.txt"
    text.write_text(f"{keys[5]}.JPEG\n\nn01440764/{keys[0]}.JPEG\n# two of them\n")
    subset = choose_list(index, text)
    assert subset.rows.tolist() == [0, 5]
    assert subset.per_class.tolist() == [1, 1]
    text.write_text("\n".join([*reversed(keys)]))
    whole = choose_list(index, text)
    assert whole.sha256 == choose_fraction(index, 1.0, seed=0).sha256


def test_keys_in_folders_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample("cat/1", 0) + sample("dog/1", 1))
    text = tmp_path / "list.txt"
    text.write_text("dog/1.jpg\n")
    assert choose_list(ShardIndex.open(tmp_path), text).rows.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("im00001\nim99999.JPEG\n", r"1 of 2 lines name no image of the shards, line 2 first"),
        ("im00001\nim00002\nim00001.png\n", r"line 3: 'im00001\.png' is in line 1"),
        ("\n# nothing\n", "lists no images"),
        (None, "cannot be read"),
    ],
)
def test_bad_lists_get_their_sentence(
    tiny_set: Path, tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ShardError, match=message):
        choose_list(ShardIndex.open(tiny_set), path)

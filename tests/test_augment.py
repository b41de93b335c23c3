"""The augmentation is timm's in what it does and how often, and belongs to samples, not batches."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm.data.auto_augment as timm_aa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from timm.data.mixup import mixup_target
from torch import Tensor
from torchvision.transforms import functional as tv

from vitwarm.augment import (
    Augmentation,
    Augmented,
    Mixing,
    Targets,
    normalise,
    parse_policy,
    to_grey,
)
from vitwarm.augment.draws import Draws, symmetric_beta
from vitwarm.augment.mixing import plan_erasing
from vitwarm.augment.pixels import OPERATIONS, Surroundings
from vitwarm.augment.policy import (
    _KIND,
    NAMES,
    ColorJitter,
    RandAugment,
    ThreeAugment,
    arguments,
)
from vitwarm.errors import ConfigError

SIZE = 24
FILL = (124, 116, 104)
INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def smooth_images(n: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """Images with structure (noise enlarged), uint8 [n, 3, size, size]."""
    small = torch.from_numpy(np.random.default_rng(seed).random((n, 3, 6, 6), np.float32))
    large = torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic")
    return (large.clamp(0, 1) * 255).byte()


def to_pillow(x: Tensor) -> Image.Image:
    return Image.fromarray(x.permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def timm_name(name: str, increasing: bool) -> str:
    return f"{name}Increasing" if increasing and name in INCREASING else name


def timm_level(name: str, level: float, sign: float, monkeypatch: pytest.MonkeyPatch) -> tuple:
    level_to_arg = timm_aa.LEVEL_TO_ARG[name]
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign < 0 else 0.1)
    args = level_to_arg(level, {}) if level_to_arg else ()
    monkeypatch.undo()
    return args


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_operation_is_timms(
    name: str, increasing: bool, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = smooth_images(1)
    around = Surroundings(torch.tensor(FILL, dtype=torch.float32), interpolation)
    their_name = timm_name(name, increasing)
    for level in (0.4, 3.3, 5.0, 9.7):
        for sign in (-1.0, 1.0):
            args = timm_level(their_name, level, sign, monkeypatch)
            if name == "Posterize" and args[0] == 0:
                continue  # older Pillow: black; Pillow 13 refuses
            theirs = timm_aa.NAME_TO_OP[their_name](
                to_pillow(x[0]),
                *args,
                resample=getattr(Image, interpolation.upper()),
                fillcolor=FILL,
            )
            mine = arguments(
                name, np.array([level]), np.array([sign]),
                increasing=increasing, height=SIZE, width=SIZE,
            )  # fmt: skip
            out = OPERATIONS[_KIND[name]](x, torch.from_numpy(mine), around)
            off = (out[0].int() - from_pillow(theirs).int()).abs().float()
            if _KIND[name] == "affine":  # torch's cubic has another constant than Pillow's
                assert off.mean() < (1.2 if interpolation == "bicubic" else 0.1)
            else:
                assert off.max() == 0, (level, sign)


def test_posterize_without_bits_is_black() -> None:
    table = arguments("Posterize", np.array([10.0]), np.array([1.0]), increasing=True)
    assert not table.any()


def test_equalize_and_autocontrast_keep_flat_images() -> None:
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    around = Surroundings(torch.zeros(3))
    for kind in ("equalize", "autocontrast"):
        assert torch.equal(OPERATIONS[kind](flat, torch.zeros(1, 0), around), flat)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.3, 2.0])
def test_blur_is_pillows_within_rounding(sigma: float) -> None:
    x = smooth_images(1)
    theirs = from_pillow(to_pillow(x[0]).filter(ImageFilter.GaussianBlur(sigma)))
    out = OPERATIONS["blur"](x, torch.tensor([[sigma]]), Surroundings(torch.zeros(3)))
    off = (out[0].int() - theirs.int()).abs().float()
    assert off.mean() < 1
    assert off[:, 6:-6, 6:-6].max() <= 4  # Pillow blurs by boxes, which differs at the border


def test_jitter_is_torchvisions_in_the_same_order() -> None:
    x = smooth_images(40)
    draws = Draws(0, "image", np.zeros(40, int), np.arange(40))
    [[operation]] = ColorJitter(strength=0.4).plan(draws, height=SIZE, width=SIZE)
    out = OPERATIONS["jitter"](x, torch.from_numpy(operation.args), Surroundings(torch.zeros(3)))
    orders = []
    for k in range(40):
        image = to_pillow(x[k])
        orders.append([])
        for factor, of_grey, of_mean in operation.args[k].reshape(3, 3).tolist():
            assert 0.6 <= factor <= 1.4
            step = (
                tv.adjust_saturation if of_grey else tv.adjust_contrast if of_mean
                else tv.adjust_brightness
            )  # fmt: skip
            image = step(image, factor)
            orders[-1].append(step.__name__)
        off = (out[k].int() - from_pillow(image).int()).abs().float()
        assert off.mean() < 2  # Pillow truncates after each of the three
        assert off.max() <= 5
    assert {len(set(order)) for order in orders} == {3}
    assert len({tuple(order) for order in orders}) == 6


def test_randaugment_chooses_as_often_and_as_strongly_as_timm() -> None:
    policy = parse_policy("rand-m9-mstd0.5-inc1")
    assert policy == RandAugment(magnitude=9, magnitude_std=0.5, increasing=True)
    theirs = timm_aa.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    assert [op.name for op in theirs.ops] == [timm_name(name, True) for name in NAMES]
    assert theirs.num_layers == policy.n_layers
    assert theirs.choice_weights is None
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in theirs.ops} == {(0.5, 9, 0.5)}

    n = 60_000
    draws = Draws(0, "image", np.zeros(n, int), np.arange(n))
    rng = np.random.default_rng(0)
    level_theirs = np.clip(rng.normal(9, 0.5, n), 0, 10)
    for layer in range(2):
        chosen, level, sign = policy.choose(draws, layer)
        counts = np.bincount(chosen[chosen >= 0], minlength=len(NAMES))
        expected = n * 0.5 / len(NAMES)
        assert np.abs(counts - expected).max() < 5 * expected**0.5
        for share in (0.01, 0.1, 0.5, 0.9):
            assert np.quantile(level, share) == pytest.approx(
                np.quantile(level_theirs, share), abs=0.03
            )
        assert level.max() == 10
        assert abs((sign > 0).mean() - 0.5) < 0.01
    first, second = (policy.choose(draws, layer)[0] for layer in range(2))
    both = np.corrcoef(first == 3, second == 3)[0, 1]
    assert abs(both) < 0.02


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand-m10-n2", {"magnitude": 10, "n_layers": 2, "increasing": False, "magnitude_std": 0}),
        ("rand-m7-n3-p0.8-mstd101-mmax20", {"magnitude_std": np.inf, "magnitude_max": 20}),
    ],
)  # fmt: skip
def test_sections_of_the_name_mean_what_they_mean_in_timm(text: str, expected: dict) -> None:
    policy = parse_policy(text)
    theirs = timm_aa.rand_augment_transform(text, {})
    for name, value in expected.items():
        assert getattr(policy, name) == value
    assert len(theirs.ops) == len(NAMES)
    assert theirs.num_layers == policy.n_layers
    assert theirs.ops[0].magnitude_std == policy.magnitude_std
    assert theirs.ops[0].magnitude == policy.magnitude


@pytest.mark.parametrize("text", ["rnd-m9", "rand-q3", "rand-m9-tweights", "original"])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.aa is .*rand-m9-mstd0\.5-inc1"):
        parse_policy(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m99", "magnitudes go from 0 to 10; timm would clip it.*Use m10 or less"),
        ("rand-m11-mstd0.5-inc1", "magnitudes go from 0 to 10;"),
        ("rand-m9-mmax5", "magnitudes go from 0 to 5;.*Use m5 or less"),
        ("rand-mmax0-m0", "mmax0 is the highest magnitude, and must be from 1 to 100"),
        (
            "rand-m9-n0",
            "n0 is the number of operations per image, a whole number, and must be from",
        ),
        ("rand-m9-n1.5", "n1.5 is the number of operations"),
        ("rand-m9-ninf", "ninf is the number of operations"),
        ("rand-m9-p1.5", "p1.5 is the probability of each operation, and must be from 0 to 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.aa is '{text}'.*{message}"):
        parse_policy(text)
    assert parse_policy("rand-m20-mmax20-n1-p1") is not None


def test_three_augment_is_timms_policy() -> None:
    theirs = timm_aa.auto_augment_policy("3a")
    assert [[(op.name, op.prob, op.magnitude) for op in ops] for ops in theirs] == [
        [("Solarize", 1.0, 5)], [("Desaturate", 1.0, 10)], [("GaussianBlurRand", 1.0, 10)],
    ]  # fmt: skip
    n = 30_000
    draws = Draws(0, "image", np.zeros(n, int), np.arange(n))
    [layer] = ThreeAugment().plan(draws, height=SIZE, width=SIZE)
    for operation in layer:
        assert len(operation.which) == pytest.approx(n / 3, rel=0.05)
    solarise, grey, blur = layer
    assert (
        solarise.args[0] == np.where(np.arange(256) < 128, np.arange(256), 255 - np.arange(256))
    ).all()
    assert not grey.args.any()
    assert blur.args.min() >= 0.1
    assert blur.args.max() <= 2.0
    assert blur.args.mean() == pytest.approx(1.05, abs=0.03)


def augmentation(**settings: object) -> Augmentation:
    every = {
        "seed": 3, "mean": MEAN, "std": STD, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5,
        "mixing": Mixing(mixup=0.8, cutmix=1.0),
    }  # fmt: skip
    return Augmentation(**{**every, **settings})  # type: ignore[arg-type]


def run(augment: Augmentation, x: Tensor, part: slice, *, epoch: int = 0) -> Augmented:
    n = len(x)
    rows = np.arange(n)[::-1].copy()
    labels = torch.arange(n) % 7
    return augment(
        x[part], labels[part], rows=rows[part], epochs=np.full(n, epoch)[part],
        positions=np.arange(n)[part] + 10,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"aa": "3a", "color_jitter": 0.3}])
def test_an_image_does_not_depend_on_its_batch(settings: dict) -> None:
    x = smooth_images(24)
    whole = run(augmentation(**settings), x, slice(None))
    for size in (2, 6, 16):
        parts = [run(augmentation(**settings), x, slice(k, k + size)) for k in range(0, 24, size)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        for name in ("labels", "partners", "shares"):
            together = torch.cat([getattr(part.targets, name) for part in parts])
            assert torch.equal(together, getattr(whole.targets, name))


def test_epoch_and_seed_change_images_and_the_input_stays() -> None:
    x = smooth_images(8)
    before = x.clone()
    first = run(augmentation(), x, slice(None))
    assert not torch.equal(first.images, run(augmentation(), x, slice(None), epoch=1).images)
    assert not torch.equal(first.images, run(augmentation(seed=4), x, slice(None)).images)
    assert torch.equal(first.images, run(augmentation(), x, slice(None)).images)
    assert torch.equal(x, before)


def test_nothing_asked_is_normalising_alone() -> None:
    x = smooth_images(4)
    plain = augmentation(aa=None, reprob=0.0, mixing=None)
    out = run(plain, x, slice(None))
    theirs = tv.normalize(x.float() / 255, MEAN, STD)
    torch.testing.assert_close(out.images, theirs, rtol=1e-5, atol=1e-5)
    assert out.targets.partners is None
    assert torch.equal(out.targets.soft(7).argmax(dim=1), torch.arange(4))
    scale = torch.tensor([1 / (255 * s) for s in STD])
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
    assert torch.equal(normalise(x, scale, shift), out.images)


def test_jitter_is_not_used_with_randaugment_as_in_timm() -> None:
    x = smooth_images(8)
    with_jitter = run(augmentation(color_jitter=0.4), x, slice(None))
    assert torch.equal(with_jitter.images, run(augmentation(), x, slice(None)).images)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    uniform = (np.arange(40_000) + 0.5) / 40_000
    theirs = np.random.default_rng(0).beta(alpha, alpha, 400_000)
    quantiles = (0.05, 0.2, 0.5, 0.7, 0.95)
    np.testing.assert_allclose(
        np.quantile(symmetric_beta(uniform, alpha), quantiles),
        np.quantile(theirs, quantiles),
        atol=6e-3,
    )


def test_mixing_is_switched_as_often_as_asked() -> None:
    mixing = Mixing(mixup=0.8, cutmix=1.0, prob=0.7, switch_prob=0.25)
    mix = mixing.plan(0, np.arange(40_000), height=SIZE, width=SIZE)
    share = mix.shares[::2]
    mixed = share < 1
    cut = mixed & (mix.weights == 1)
    # A box too small for one pixel mixes nothing: expected for about 1 / 24**2 of the cuts.
    assert mixed.mean() == pytest.approx(0.7, abs=0.015)
    assert cut.sum() / mixed.sum() == pytest.approx(0.25, abs=0.015)
    assert mix.shares.dtype == np.float32
    assert (mix.shares[::2] == mix.shares[1::2]).all()


def test_mixed_images_and_targets_agree() -> None:
    x = smooth_images(64)
    out = run(augmentation(aa=None, reprob=0.0), x, slice(None))
    plain = run(augmentation(aa=None, reprob=0.0, mixing=None), x, slice(None)).images
    partner = plain.view(32, 2, 3, SIZE, SIZE).flip(1).flatten(0, 1)
    shares = out.targets.shares[:, None, None, None]
    blend = plain * shares + partner * (1 - shares)
    own = torch.isclose(out.images, plain, atol=1e-5).all(dim=1)
    other = torch.isclose(out.images, partner, atol=1e-5).all(dim=1)
    for k in range(64):
        is_blend = torch.allclose(out.images[k], blend[k], atol=1e-4)
        is_cut = bool((own[k] | other[k]).all())
        assert is_blend or is_cut
        if is_cut and not is_blend:
            assert float(own[k].float().mean()) == pytest.approx(
                float(out.targets.shares[k]), abs=0.02
            )


def test_soft_targets_are_timms() -> None:
    labels = torch.tensor([0, 3, 2, 1])
    shares = torch.tensor([0.25, 0.5, 0.5, 0.25])
    targets = Targets(labels, labels.flip(0), shares)
    theirs = mixup_target(labels, 5, lam=shares[:, None], smoothing=0.1)
    torch.testing.assert_close(targets.soft(5, smoothing=0.1), theirs)


def test_a_cut_pair_is_a_bug_of_the_caller() -> None:
    for positions in (np.arange(1, 5), np.arange(3), np.array([0, 1, 4, 7])):
        with pytest.raises(ValueError, match="cut a pair"):
            Mixing(mixup=0.8).plan(0, positions, height=8, width=8)


def test_erasing_is_timms_random_erasing() -> None:
    n, size = 20_000, 32
    draws = Draws(0, "image", np.zeros(n, int), np.arange(n))
    erasure = plan_erasing(draws, 0.25, height=size, width=size)
    assert len(erasure.which) / n == pytest.approx(0.25, abs=0.01)
    top, bottom, left, right = erasure.boxes.T
    assert (top >= 0).all()
    assert (bottom <= size).all()
    assert (right <= size).all()
    area = (bottom - top) * (right - left) / size**2

    rng = random.Random(0)
    theirs = []
    while len(theirs) < 5000:
        target, aspect = rng.uniform(0.02, 1 / 3), np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = round((target * size**2 * aspect) ** 0.5), round((target * size**2 / aspect) ** 0.5)
        if h < size and w < size:
            theirs.append(h * w / size**2)
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(area, share) == pytest.approx(np.quantile(theirs, share), abs=0.012)


def test_erased_pixels_are_normal_noise_and_others_stay() -> None:
    x = smooth_images(200)
    settings = {"aa": None, "mixing": None}
    plain = run(augmentation(reprob=0.0, **settings), x, slice(None)).images
    out = run(augmentation(reprob=1.0, **settings), x, slice(None)).images
    changed = out != plain
    assert 0.1 < changed.float().mean() < 0.25
    noise = out[changed]
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_images_larger_than_the_bank_of_noise_are_erased() -> None:
    side = 1280
    x = torch.zeros((1, 3, side, side), dtype=torch.uint8)
    out = run(augmentation(aa=None, mixing=None, reprob=1.0), x, slice(None)).images
    assert out.shape == x.shape
    assert len(out.unique()) > 1000


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True),
)
def test_draws_are_a_function_of_the_sample(seed: int, rows: list[int]) -> None:
    epochs = np.zeros(len(rows), int)
    together = Draws(seed, "image", epochs, np.array(rows)).uniform("a", "b")
    for k, row in enumerate(rows):
        alone = Draws(seed, "image", epochs[:1], np.array([row])).uniform("b")
        assert alone[0, 0] == together[1, k]
    assert len(np.unique(together)) == together.size


@pytest.mark.gpu
def test_a_gpu_gives_a_cpus_batches() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    x = smooth_images(64)
    for changes in ({}, {"aa": "3a", "color_jitter": 0.3}):
        here = run(augmentation(**changes), x, slice(None))
        labels = (torch.arange(64) % 7).cuda()
        there = augmentation(**changes)(
            x.cuda(), labels, rows=np.arange(64)[::-1].copy(), epochs=np.zeros(64, int),
            positions=np.arange(64) + 10,
        )  # fmt: skip
        off = (here.images - there.images.cpu()).abs()
        assert float(off.mean()) < 2e-3
        torch.testing.assert_close(here.targets.shares, there.targets.shares.cpu())


def test_grey_is_pillows_to_the_bit(rng: np.random.Generator) -> None:
    colours = rng.integers(0, 256, (300, 400, 3), np.uint8)
    grey = to_grey(torch.from_numpy(colours).permute(2, 0, 1)[None])
    assert np.array_equal(grey[0, 0].numpy(), np.asarray(Image.fromarray(colours).convert("L")))

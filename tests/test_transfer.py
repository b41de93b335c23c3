"""`vitwarm transfer`: what fits into the time, and what may be said of the differences."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitwarm.cli import main
from vitwarm.commands.transfer import (
    LEAST_STEPS,
    MOST_PASSES,
    SHORTER,
    Pilot,
    _sweep,
    add_arguments,
    plan_probe,
    say_result,
    say_trend,
)
from vitwarm.config import TrainRun, find_recipe, load_config
from vitwarm.errors import ConfigError
from vitwarm.report.curves import mean_interval
from vitwarm.trunk import build_model, save_trunk

PILOT = Pilot(step_seconds=0.1, other_seconds=5.0, n_images=50_000, n_classes=100)


def test_the_steps_fill_the_time_and_the_images_follow_the_steps() -> None:
    (short, steps), fraction = plan_probe(PILOT, seconds=3600, n_runs=15, n_slots=2, batch_size=64)
    assert short == steps // SHORTER
    assert 3599 < 8 * (2 * 5.0 + 0.1 * (short + steps)) <= 3600
    assert round(fraction * 50_000) == round(steps * 64 / MOST_PASSES)


def test_few_images_end_the_training_before_the_time() -> None:
    few = Pilot(step_seconds=0.01, other_seconds=1.0, n_images=640, n_classes=10)
    lengths, fraction = plan_probe(few, seconds=3600, n_runs=15, n_slots=1, batch_size=64)
    assert (lengths, fraction) == ([160, 640], 1.0)


def test_without_time_for_a_short_and_a_long_training_there_is_one() -> None:
    lengths, _ = plan_probe(PILOT, seconds=400, n_runs=15, n_slots=2, batch_size=64)
    assert lengths == [399]
    lengths, _ = plan_probe(PILOT, seconds=200, n_runs=15, n_slots=2, batch_size=64)
    assert lengths == [200]


def test_every_class_has_ten_images_where_there_are_that_many() -> None:
    _, fraction = plan_probe(PILOT, seconds=150, n_runs=9, n_slots=9, batch_size=32)
    assert fraction == 1000 / 50_000


def test_too_short_a_time_says_what_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"leaves 25 steps a run.*Give --minutes \d+") as caught:
        plan_probe(PILOT, seconds=60, n_runs=16, n_slots=2, batch_size=64)
    minutes = int(str(caught.value).split("--minutes ")[2].split(",")[0])
    (steps,), _ = plan_probe(
        PILOT, seconds=0.85 * 60 * minutes, n_runs=16, n_slots=2, batch_size=64
    )
    assert steps >= LEAST_STEPS


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.2, 4.2, "+2.2 points against timm's own initialisation with 500 images (n = 5 paired "),
        (0.2, 4.2, "95 % CI +0.2 to +4.2): it helps here."),
        (-1.0, 5.4, "95 % CI -1.0 to +5.4): no significant difference."),
        (-4.0, -0.4, "): it harms here."),
        (None, None, "(n = 5 paired seeds): too few for an interval."),
    ],
)
def test_the_sentence_claims_what_its_interval_carries(
    low: float | None, high: float | None, said: str
) -> None:
    mean = 2.2 if low is None or high is None else (low + high) / 2
    difference = SimpleNamespace(mean=mean, low=low, high=high, n=5)
    one = SimpleNamespace(arm="warmed", reference="default", n_images=500, difference=difference)
    analysis: Any = SimpleNamespace(matched_images=[one])
    text = say_result(analysis, "trunk", mimetic=True)
    assert said in text
    assert text.endswith("The mimetic start has no finished pair; see the report.")
    without = say_result(analysis, "trunk", mimetic=False)
    assert without.endswith("The mimetic start is not defined for this model.")


def section(warmed: list[float], default: list[float]) -> SimpleNamespace:
    pairs = [a - b for a, b in zip(warmed, default, strict=True)]
    points = [SimpleNamespace(seed=seed, value=value) for seed, value in enumerate(pairs)]
    one = SimpleNamespace(
        arm="warmed", reference="default", points=points, difference=mean_interval(pairs)
    )
    return SimpleNamespace(matched_images=[one])


@pytest.mark.parametrize(
    ("short", "long", "said"),
    [
        ([53, 54, 55], [49, 50, 50], "moves it by -4.3 (95 % CI -5.8 to -2.9): expect less of"),
        ([49, 50, 50], [53, 54, 55], "(95 % CI +2.9 to +5.8): a longer training may gain more"),
        ([53, 50, 49], [49, 54, 55], "(95 % CI -11.1 to +15.1): no significant trend"),
        ([53, 54], [49, 50], "moves it by -4.0 (n = 2): too few for an interval."),
    ],
)
def test_the_trend_is_of_the_same_seeds(short: list[float], long: list[float], said: str) -> None:
    default = [50.0] * len(short)
    text = say_trend(section(short, default), section(long, default), [100, 400])  # type: ignore[arg-type]
    assert text.startswith("After 100 steps the trunk's difference was ")
    assert said in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "--minutes is 0; give the time"),
        (["--minutes", "inf"], "--minutes is inf; give the time"),
        (["--seeds", "2"], "an interval needs at least 3 paired seeds"),
        *(
            ([f"{name}=1"], f"{name} is given, which follows from")
            for name in ("train.steps", "data.fraction", "seeds", "match", "arms.x.trunk", "over.a")
        ),
    ],
)
def test_mistakes_get_a_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transfer", "trunk", "--data", "shards", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_planned_training_gives_its_augmentation_and_words_change_it(tmp_path: Path) -> None:
    shape = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = build_model("vit_tiny_patch16_224", seed=0, **shape)
    trunk = save_trunk(tmp_path / "trunk.safetensors", model, {})
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = [str(trunk), "--data", "shards", "train.reprob=0.5"]
    light = _sweep(parser.parse_intermixed_args(words), [400])
    config = load_config(TrainRun, find_recipe(light.base), fields=light.set).train
    assert (config.aa, config.reprob, light.over) == (None, 0.5, {})
    planned = [*words, "--like", "train/imagenet1k_vit_base_300ep"]
    as_planned = _sweep(parser.parse_intermixed_args(planned), [100, 400])
    assert as_planned.over == {"train.steps": [100, 400]}
    config = load_config(TrainRun, find_recipe(as_planned.base), fields=as_planned.set).train
    assert (config.aa, config.mixup, config.reprob) == ("rand-m9-mstd0.5-inc1", 0.8, 0.5)
    assert (config.batch_size, config.lr, config.img_size) == (64, 1e-3, 8)  # of the probe


def test_a_model_without_a_mimetic_start_is_probed_with_two(tmp_path: Path) -> None:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name, starts in (
        ("vit_small_patch16_224", ["default", "warmed", "mimetic"]),
        ("vit_small_patch16_18x2_224", ["default", "warmed"]),  # two attentions side by side
    ):
        trunk = save_trunk(tmp_path / "t.safetensors", build_model(name, seed=0, **shape), {})
        found = _sweep(parser.parse_intermixed_args([str(trunk), "--data", "shards"]), [400])
        assert list(found.arms) == starts


@pytest.mark.slow
def test_a_probe_of_a_real_trunk_ends_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    from vitwarm.shards.write.digits import write_digits

    write_digits(tmp_path / "digits")
    shape = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = build_model("vit_tiny_patch16_224", seed=3, **shape)
    trunk = save_trunk(tmp_path / "trunk.safetensors", model, {})
    began = time.monotonic()
    words = ["--data", str(tmp_path / "digits"), "--out", str(tmp_path / "out")]
    fast = ["--minutes", "1.5", "--seeds", "3", "run.device=cpu"]
    assert main(["transfer", str(trunk), *words, *fast]) == 0
    assert time.monotonic() - began < 300  # two more tests may share its cores
    said = capsys.readouterr().out
    assert "3 paired seeds, 3 starts" in said
    assert "lightly augmented (see --like)" in said
    both = re.search(r"([\d,]+) and [\d,]+ steps, 3 paired", said)
    trend = f"After {both[1]} steps the trunk's difference was " if both else ""
    assert (trend in said, "4 times as long" in said) == (True, bool(both))
    assert f"The trunk {trunk}: " in said
    assert "The mimetic start: " in said
    assert "95 % CI" in said

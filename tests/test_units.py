"""Budgets mean what people type, in every unit, and never zero steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitwarm.errors import ConfigError
from vitwarm.units import format_seconds, parse_budget, to_steps

IMAGENET = {"base_images": 1_281_167, "base_epochs": 300.0}


def test_one_percent_of_imagenet_is_the_published_length() -> None:
    budget = parse_budget("0.01", batch_size=256, n_tokens=196, **IMAGENET)
    assert budget.steps == 15_014  # the paper's 15,000 x 256 is 0.9991 %
    assert budget.samples == 15_014 * 256
    assert budget.tokens == budget.samples * 196
    assert budget.share == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("15000steps", 15_000),
        ("15000 steps", 15_000),
        ("3.84Msamples", 15_000),
        ("1%", 15_014),
        ("1e-2", 15_014),
        ("0.75264Gtokens", 15_000),
        ("2epochs", 10_009),
        ("60steps", 60),
        ("1e-12", 1),
        ("15k steps", 15_000),
        ("1.5e4steps", 15_000),
        ("1epoch", 5_005),
    ],
)
def test_every_unit(text: str, steps: int) -> None:
    assert parse_budget(text, batch_size=256, n_tokens=196, **IMAGENET).steps == steps


@pytest.mark.parametrize(
    "text", ["0", "-1", "0steps", "soon", "1hour", "", "1.2.3", "nan", "1e30steps", "15000", "inf"]
)
def test_what_is_no_budget_is_refused_by_value(text: str) -> None:
    with pytest.raises(ConfigError, match=r"warmup\.budget is"):
        parse_budget(text, batch_size=256, n_tokens=196, **IMAGENET)


def test_a_share_needs_a_base() -> None:
    with pytest.raises(ConfigError, match=r"warmup\.base_images"):
        parse_budget("0.01", batch_size=256, n_tokens=196, base_images=None, base_epochs=300)
    budget = parse_budget("10steps", batch_size=4, n_tokens=8, base_images=None, base_epochs=None)
    assert budget.share is None


@given(st.floats(1e-6, 10), st.integers(1, 4096), st.integers(1, 2048))
def test_steps_are_whole_batches_nearest_to_the_share(share: float, batch: int, n: int) -> None:
    budget = parse_budget(repr(share), batch_size=batch, n_tokens=n, **IMAGENET)
    wanted = share * 1_281_167 * 300
    assert budget.samples == budget.steps * batch
    assert abs(budget.samples - wanted) <= max(batch / 2, batch - wanted) + 1e-6


@given(st.floats(1e-3, 1000), st.integers(1, 2_000_000), st.integers(1, 8192))
def test_epochs_to_steps_is_never_zero(epochs: float, n_images: int, batch: int) -> None:
    steps = to_steps(epochs, n_images=n_images, batch_size=batch)
    assert steps >= 1
    assert abs(steps - epochs * n_images / batch) <= 1


def test_durations_read_as_people_say_them() -> None:
    said = [format_seconds(s) for s in (5, 99, 720, 18_720, 270_000, float("inf"))]
    assert said == ["5 s", "99 s", "12 min", "5.2 h", "3.1 days", "unknown"]

"""Samples, steps, epochs, tokens, and the shares between them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vitwarm.errors import ConfigError

_SCALE = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_DIGITS = r"([0-9]+(?:_[0-9]+)*\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?"
_NUMBER = re.compile(rf"\s*([+-]?){_DIGITS}\s*([kKMGB]?|%)\s*")
_BUDGET = re.compile(rf"\s*({_DIGITS}\s*[kKMGB]?)\s*([a-z%]*)\s*")
_UNITS = ("steps", "samples", "tokens", "epochs", "%")

#: What a budget may be, for messages.
BUDGET_WORDS = (
    "a share such as 0.01 or 1%, or a number with steps, samples, tokens or epochs "
    "(15000steps, 3.84Msamples)"
)
#: A warm-up of more samples than this many image trainings have is a number without its unit.
_HIGHEST_SHARE = 10.0
#: Of anything: beyond it, counting in floats is no longer exact.
_HIGHEST_COUNT = 1e15


def count_of(n: int, word: str, ending: str = "s") -> str:
    """Returns `1 row`, `2,000 rows`, `0 rows`; with `es` as ending `2 processes`."""
    return f"{n:,} {word}{'' if n == 1 else ending}"


def read_number(text: str) -> float | None:
    """Returns what a number as people write it means: `2e3`, `15k`, `3.84M`, `1_000`, `10%` (0.1).

    None: it is no number.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, digits, exponent, scale = match.groups()
    number = float(f"{sign}{digits}e{exponent or 0}")
    return number / 100 if scale == "%" else number * _SCALE[scale]


def read_budget(text: str | float) -> tuple[float, str]:
    """Splits a budget into its number and its unit: steps, samples, tokens, epochs, or share.

    Raises: ConfigError: no number, an unknown unit, not above zero, or more than can be meant.
    """
    match = _BUDGET.fullmatch(str(text))
    unit = match[4] if match else ""
    unit = unit + "s" if unit + "s" in _UNITS else unit
    number = read_number(match[1]) if match else None
    if match is None or number is None or (unit or "%") not in _UNITS:
        raise ConfigError(f"warmup.budget is {text!r}; allowed is {BUDGET_WORDS}.")
    if not 0 < number <= _HIGHEST_COUNT:
        raise ConfigError(
            f"warmup.budget is {text!r}; it must be above 0 and at most {_HIGHEST_COUNT:g}. "
            f"Use {BUDGET_WORDS}."
        )
    if unit in ("", "%"):
        share = number / 100 if unit else number
        if share > _HIGHEST_SHARE:
            raise ConfigError(
                f"warmup.budget is {text!r}, {share:g} times the image training's samples; "
                f"{_HIGHEST_SHARE:g} is the most. If steps are meant, write {match[1]}steps."
            )
        return share, "share"
    return number, unit


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a warm-up is, in every unit that people use for it."""

    samples: int
    """Sequences that will be seen: whole batches, so at most half a batch off what was asked."""
    steps: int
    """Optimiser steps."""
    tokens: int
    """Samples times tokens per sequence."""
    share: float | None
    """Share of the samples of the image training, or None without a base."""

    def __str__(self) -> str:
        share = "" if self.share is None else f" = {self.share:.4%} of the image training's samples"
        return f"{self.steps:,} steps, {self.samples:,} sequences, {self.tokens:,} tokens{share}"


def parse_budget(
    text: str | float,
    *,
    batch_size: int,
    n_tokens: int,
    base_images: int | None,
    base_epochs: float | None,
) -> Budget:
    """Turns `0.01`, `1%`, `15000steps`, `3.84Msamples`, `0.75Gtokens` or `2epochs` into a Budget.

    Args:
        text: a bare number is a share of the base's samples; `epochs` are epochs of the base.
        batch_size: sequences per optimiser step.
        n_tokens: tokens per sequence.
        base_images, base_epochs: the image training that shares refer to.
    Returns: a Budget of whole steps, at least one.
    Raises: ConfigError: as `read_budget`, or a share without a base.
    """
    number, unit = read_budget(text)
    base = None if not base_images or not base_epochs else base_images * base_epochs
    if unit == "steps":
        samples = number * batch_size
    elif unit == "samples":
        samples = number
    elif unit == "tokens":
        samples = number / n_tokens
    elif base is None:
        raise ConfigError(
            f"warmup.budget is {text!r}, a share of an image training, but warmup.base_images or "
            "warmup.base_epochs is not set. Set both, or give the budget as 15000steps."
        )
    elif unit == "epochs":
        samples = number * float(base_images or 0)
    else:
        samples = number * base
    steps = max(1, round(samples / batch_size))
    samples = steps * batch_size
    return Budget(
        samples=samples,
        steps=steps,
        tokens=samples * n_tokens,
        share=None if base is None else samples / base,
    )


def to_steps(epochs: float, *, n_images: int, batch_size: int) -> int:
    """Returns the optimiser steps of a number of epochs: at least one, rounded to the nearest."""
    return max(1, round(epochs * n_images / batch_size))


def format_seconds(seconds: float) -> str:
    """Returns a duration as people say it: `41 s`, `12 min`, `5.2 h`, `3.1 days`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"

"""Samples, steps, epochs, tokens, and the shares between them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vitwarm.errors import ConfigError

_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_BUDGET = re.compile(r"^\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kMGB]?)\s*([a-z%]*)\s*$")
_UNITS = ("steps", "samples", "tokens", "epochs", "%")


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
    Raises: ConfigError: no number, an unknown unit, not above zero, or a share without a base.
    """
    match = _BUDGET.match(str(text))
    units = "a share such as 0.01 or 1%, or a number with steps, samples, tokens or epochs"
    if not match or (match[3] or "%") not in _UNITS:
        raise ConfigError(
            f"warmup.budget is {text!r}; allowed is {units} (15000steps, 3.84Msamples)."
        )
    try:
        number = float(match[1]) * _SCALE[match[2]]
    except ValueError:
        raise ConfigError(f"warmup.budget is {text!r}; {match[1]!r} is no number.") from None
    if not number > 0 or not math.isfinite(number):
        raise ConfigError(f"warmup.budget is {text!r}; it must be above 0. Use {units}.")
    base = None if not base_images or not base_epochs else base_images * base_epochs
    unit = match[3]
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
        share = number / 100 if unit == "%" else number
        samples = share * base
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

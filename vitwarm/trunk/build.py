"""Building a timm model by name, reproducibly, with errors that name what can be done."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from timm.layers import set_reentrant_ckpt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitwarm.config import NO_FRESH_MODEL
from vitwarm.errors import ModelError, first_line, nearest
from vitwarm.seeding import torch_seeded

#: timm's arguments that count something, or are a size.
_COUNTS = {
    "depth", "depths", "embed_dim", "num_heads", "patch_size", "img_size", "in_chans", "mlp_ratio",
    "window_size",
}  # fmt: skip


def build_model(name: str, /, *, seed: int, **timm_kwargs: Any) -> nn.Module:
    """Builds a timm model whose initialisation depends on name, arguments and seed alone.

    Args:
        name: a timm model name, with or without a pretrained tag (no weights are loaded).
        seed: seeds timm's initialisers; torch's global generator is left as it was.
        timm_kwargs: passed to `timm.create_model` (`num_classes`, `img_size`, `depth`, ...).
    Raises: ModelError: no such model (with the nearest names), or arguments it does not take, or
        that would make it anything but fresh (`pretrained`, ...).
    """
    check_name(name)
    with torch_seeded(seed, "model"):
        return _create(name, timm_kwargs)


def build_shapes(name: str, /, **timm_kwargs: Any) -> nn.Module:
    """Builds a timm model on the meta device: names and shapes, no memory, no values.

    Raises: ModelError: as `build_model`.
    """
    check_name(name)
    with torch.device("meta"):
        return _create(name, timm_kwargs)


def check_name(name: str) -> None:
    """Refuses a name that timm does not know.

    Raises: ModelError: with the nearest names that it does.
    """
    if ":" in name or not timm.is_model(name):
        close = nearest(name.split(":")[-1].split(".")[0], timm.list_models())
        raise ModelError(
            f"model is {name!r}; timm {timm.__version__} has no model of that name.{close} "
            "Give a name from timm.list_models()."
        )


def checkpoint_gradients(model: nn.Module, name: str, *, section: str) -> None:
    """Has a timm model keep what enters each block and compute the rest again backwards.

    Args:
        name: how the message calls the model.
        section: of the config, `warmup` or `train`, for the message.
    Raises: ModelError: timm cannot, or the second pass would not be the first one.
    """
    why = None
    if any(isinstance(part, _BatchNorm) for part in model.modules()):
        why = "the second pass would move the running statistics of its BatchNorms once more"
    else:
        # The reentrant kind gives a block no gradient where nothing in front of it has one: here
        # the first, behind frozen tokens.
        set_reentrant_ckpt(False)
        try:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            why = f"timm: {first_line(error)}"
    if why is not None:
        raise ModelError(
            f"{section}.grad_checkpointing is true, but {name!r} cannot do it ({why}). Leave it "
            f"out, and lower {section}.micro_batch_size where memory is short."
        )


def _create(name: str, timm_kwargs: dict[str, Any]) -> nn.Module:
    for key in timm_kwargs:
        if key in NO_FRESH_MODEL:
            raise ModelError(
                f"model {name!r} is asked for with {key}={timm_kwargs[key]!r}, which has no place "
                f"there: {NO_FRESH_MODEL[key]}."
            )
        _check_numbers(name, key, timm_kwargs[key])
    try:
        model: nn.Module = timm.create_model(name, **timm_kwargs)
    except Exception as error:  # timm checks few of its arguments; all else means the same
        given = ", ".join(f"{k}={v!r}" for k, v in timm_kwargs.items()) or "no arguments"
        why = first_line(error)
        if not isinstance(error, TypeError | AssertionError | ValueError | RuntimeError):
            why = f"{type(error).__name__}: {why}"
        raise ModelError(
            f"model {name!r} cannot be built with {given}: {why}. "
            "Change model_kwargs (timm's own arguments of that model)."
        ) from error
    return model


def _check_numbers(name: str, key: str, value: Any) -> None:
    """Refuses what timm would build, and what fails or does nothing in the first step."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, bool) or not isinstance(one, int | float):
            continue
        if key in _COUNTS and not one > 0:
            allowed = "above 0"
        elif key.endswith("_rate") and not 0 <= one < 1:
            allowed = "from 0 and below 1"
        elif not math.isfinite(one):
            allowed = "a finite number"
        else:
            continue
        raise ModelError(
            f"model {name!r} is asked for with {key}={value!r}; it must be {allowed}. "
            f"Change model_kwargs.{key}, or leave it out."
        )

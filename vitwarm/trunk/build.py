"""Building a timm model by name, reproducibly, with errors that name what can be done."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from vitwarm.errors import ModelError, nearest
from vitwarm.seeding import torch_seeded


def build_model(name: str, *, seed: int, **timm_kwargs: Any) -> nn.Module:
    """Builds a timm model whose initialisation depends on name, arguments and seed alone.

    Args:
        name: a timm model name, with or without a pretrained tag (no weights are loaded).
        seed: seeds timm's initialisers; torch's global generator is left as it was.
        timm_kwargs: passed to `timm.create_model` (`num_classes`, `img_size`, `depth`, ...).
    Raises: ModelError: no such model (with the nearest names), or arguments it does not take.
    """
    check_name(name)
    with torch_seeded(seed, "model"):
        return _create(name, timm_kwargs)


def build_shapes(name: str, **timm_kwargs: Any) -> nn.Module:
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


def _create(name: str, timm_kwargs: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, **timm_kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in timm_kwargs.items()) or "no arguments"
        raise ModelError(
            f"model {name!r} cannot be built with {given}: {_first_line(error)}. "
            "Change model_kwargs (timm's own arguments of that model)."
        ) from error
    return model


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")

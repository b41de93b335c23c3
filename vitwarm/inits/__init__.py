"""Trunk files that need no training: the arms a fair comparison is made against.

    write_init("mimetic", "mimetic.safetensors", model="vit_tiny_patch16_224", seed=0)

Each initialiser returns tensors by timm's names; what it does not return stays as timm made it, so
the arm differs from the default arm in nothing else.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitwarm.errors import ConfigError, nearest
from vitwarm.inits.altered import mixed, weights_shuffled_in_heads, weights_shuffled_in_tensors
from vitwarm.inits.expand import expand
from vitwarm.inits.grafts import graft
from vitwarm.inits.made import Made
from vitwarm.inits.mimetic import mimetic, mimetic_04
from vitwarm.records import code_version
from vitwarm.trunk import save_trunk

#: Name -> initialiser. Each takes `model`, `model_kwargs`, `seed` and parameters of its own.
INITS: dict[str, Callable[..., Made]] = {
    "mimetic": mimetic,
    "mimetic_0.4": mimetic_04,
    "weights_shuffled_in_heads": weights_shuffled_in_heads,
    "weights_shuffled_in_tensors": weights_shuffled_in_tensors,
    "mixed": mixed,
    "graft": graft,
    "expand": expand,
}


def check_params(name: str, **given: Any) -> None:
    """Checks what an initialiser is to be called with, before it is.

    Args:
        given: `model`, `model_kwargs`, `seed` and the initialiser's own parameters.
    Raises: ConfigError: no such initialiser, or parameters that it does not have.
    """
    if name not in INITS:
        raise ConfigError(
            f"init is {name!r}; there are {', '.join(INITS)}.{nearest(name, INITS)} "
            "Choose one of them."
        )
    signature = inspect.signature(INITS[name])
    usual = ("model", "model_kwargs", "seed")
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"init_params of {name!r} are {sorted(given.keys() - usual)}; {error}. "
            f"Its parameters are {', '.join(p for p in signature.parameters if p not in usual)}."
        ) from error


def make_init(
    name: str,
    *,
    model: str,
    seed: int,
    model_kwargs: Mapping[str, Any] | None = None,
    **params: Any,
) -> Made:
    """Computes the tensors of an initialiser, without writing them.

    Raises: ConfigError: as `check_params`.
    """
    given = {"model": model, "model_kwargs": dict(model_kwargs or {}), "seed": seed, **params}
    check_params(name, **given)
    return INITS[name](**given)


def write_init(
    name: str,
    out_path: str | Path,
    *,
    model: str,
    seed: int,
    model_kwargs: Mapping[str, Any] | None = None,
    **params: Any,
) -> Path:
    """Writes the trunk file of an initialiser; an equal call writes the same bytes.

    Args:
        name: one of `INITS`.
        out_path: the file, `.safetensors`.
        model: timm's name of the model that will take the trunk.
        seed: of what the initialiser draws; the same seed for every arm of a pair.
        model_kwargs: as for `timm.create_model`.
        params: the initialiser's own parameters.
    Raises: ConfigError, ModelError, TrunkError, HandoffError: as `make_init` and the initialiser.
    """
    made = make_init(name, model=model, seed=seed, model_kwargs=model_kwargs, **params)
    facts = {
        "source": name,
        **made.facts,
        "init": name,
        "init_params": json.dumps(params, default=str, sort_keys=True),
        "seed": str(seed),
        "code_version": code_version(),
    }
    return save_trunk(out_path, made.tensors, facts)


__all__ = ["INITS", "Made", "check_params", "make_init", "write_init"]

"""A warmed trunk softened by a fresh one: scaled, shrunk and perturbed, or between the two.

norms: timm                  each matrix at the size of timm's own start
warmed: 0.4, fresh: 0.1      shrink and perturb (Ash & Adams 2020)
warmed: 0.5, fresh: 0.5      half way from a cold start to a warmed one
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitwarm.errors import ConfigError, HandoffError
from vitwarm.inits.made import Made, facts_of, label, read
from vitwarm.trunk import Trunk, build_model


def mixed(
    *,
    model: str,
    model_kwargs: dict[str, Any],
    seed: int,
    trunk: str | Path | Trunk,
    warmed: float = 1.0,
    fresh: float = 0.0,
    norms: Literal["kept", "timm"] = "kept",
) -> Made:
    """Makes `warmed` times the trunk's tensors plus `fresh` times those of a start by timm.

    Args:
        trunk: the warmed trunk, of the model's own shape.
        warmed, fresh: the two factors, of every tensor, norms and biases included.
        norms: timm scales each matrix of the sum to the Frobenius norm of the fresh matrix; norms
            and biases stay as they are.
    Raises: TrunkError: as `load_trunk`. HandoffError: a trunk of other shapes. ConfigError: a
        factor that is not finite, or another word for `norms`.
    Source: shrink and perturb: Ash & Adams 2020, arXiv 1910.08475; the others are ours.
    """
    for name, factor in (("warmed", warmed), ("fresh", fresh)):
        if not math.isfinite(factor):
            raise ConfigError(f"init_params.{name} is {factor}; give a finite number.")
    if norms not in ("kept", "timm"):
        raise ConfigError(f"init_params.norms is {norms!r}; allowed are kept, timm.")
    source = read(trunk)
    cold = build_model(model, seed=seed, **model_kwargs).state_dict()

    def mix(name: str, tensor: Tensor) -> Tensor:
        other = cold.get(name)
        if other is None or other.shape != tensor.shape:
            found = "none" if other is None else list(other.shape)
            raise HandoffError(
                f"trunk {label(source)} has {name} {list(tensor.shape)}, model {model!r} {found}. "
                "Mix a trunk with a model of its own shape."
            )
        total: Tensor = warmed * tensor.float() + fresh * other.float()
        if norms == "timm" and total.ndim > 1 and total.norm() > 0:
            total *= other.float().norm() / total.norm()
        return total

    tensors = {name: mix(name, tensor) for name, tensor in source.tensors.items()}
    return Made(tensors, facts_of(source))

"""Which optimisers of timm's can take a step here."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from vitwarm.errors import ConfigError, nearest


def check_optimizer(
    field: str, name: str, device: torch.device, betas: Sequence[float] | None = None
) -> None:
    """Refuses an optimiser that timm does not have, or that cannot take a step here.

    Args:
        betas: of `<section>.opt_betas`.
    Raises: ConfigError: with the nearest names, what the optimiser says, or how many betas it has.
    """
    known = [str(known) for known in list_optimizers()]
    if name not in known:
        raise ConfigError(
            f"{field} is {name!r}; timm has no optimiser of that name.{nearest(name, known)} "
            "Give a name from timm.optim.list_optimizers()."
        )
    why = _fault_of(name, device.type)
    if why is not None:  # CUDA or APEX is missing, or it wants more than one gradient (AdaHessian)
        raise ConfigError(
            f"{field} is {name!r}, which cannot take a step here ({why}). "
            "Use adamw, sgd, lamb, lion, muon or another that needs nothing but the gradient."
        )
    info = get_optimizer_info(name)
    n_betas = info.num_betas if info.has_betas else 0
    if betas is not None and len(betas) != n_betas:
        raise ConfigError(
            f"{field}_betas is {list(betas)}, but {name!r} has {n_betas or 'no'} betas. "
            "Give as many, or leave the field out."
        )


@cache
def _fault_of(name: str, device: str) -> str | None:
    """What goes wrong in one step of two weights; None: nothing.

    Only what fails on the CPU is tried on the GPU, so that a plan does not occupy one.
    """
    fault = None
    for place in dict.fromkeys(("cpu", device)):
        with torch.random.fork_rng(devices=[]):
            model = nn.Linear(2, 2).to(place)
        try:
            # Kron compiles its step, which takes 40 s and is not what is asked here.
            with warnings.catch_warnings(action="ignore"), torch.compiler.set_stance("force_eager"):
                optimizer = create_optimizer_v2(model, opt=name, lr=1e-3)
                model(torch.ones(1, 2, device=place)).sum().backward()
                optimizer.step()
            return None
        except Exception as error:  # whatever it is, the training would end with it
            fault = fault or str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return fault

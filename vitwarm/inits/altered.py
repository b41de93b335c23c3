"""One warmed trunk, altered: its numbers without their order, or softened by a fresh start.

Two kinds of shuffling are published under one name and are no comparable controls: here they have
names of their own.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitwarm.errors import ConfigError, HandoffError
from vitwarm.inits.made import Made, facts_of, label, read
from vitwarm.seeding import numpy_rng
from vitwarm.trunk import Trunk, build_model, choose_names
from vitwarm.trunk.select import Blocks, Scope

#: Attention layers by how many of query, key, value their rows hold.
_ROWS_OF_HEADS = re.compile(
    r"\.attn\.(?:(qkv|qk|q_proj|k_proj|v_proj|v)\.(?:weight|bias)|q_bias|v_bias)$"
)
_ROWS_OF_MLP = re.compile(r"\.mlp\.(?!norm)\w+\.(weight|bias)$")


def weights_shuffled_in_heads(
    *,
    model: str,
    model_kwargs: dict[str, Any],
    seed: int,
    trunk: str | Path | Trunk,
    scope: Scope = "all",
    blocks: Blocks = None,
) -> Made:
    """Permutes query, key and value within each head, and each tensor of the MLP in itself.

    The entries of a head's query (key, value) matrix change places among themselves, its bias
    likewise; the attention's projection and all norms stay as they are.

    Args:
        trunk: the trunk whose numbers are shuffled.
        scope, blocks: shuffle only this part; the rest stays as in the trunk.
    Raises: TrunkError, HandoffError: as `load_trunk` and `choose_names`; a trunk that does not say
        how many heads it has, or whose attention and MLPs have other names.
    Source: zlshinnick/weight-selection, shuffle_weights.py.
    """
    source = read(trunk)
    n_heads = source.metadata.get("num_heads", "")

    def n_groups(name: str) -> int:
        rows = _ROWS_OF_HEADS.search(name)
        if rows and not n_heads.isdigit():
            raise HandoffError(
                f"trunk {label(source)} does not say how many heads it has (num_heads is "
                f"{n_heads!r}). Use weights_shuffled_in_tensors."
            )
        if rows:
            return {"qkv": 3, "qk": 2}.get(rows[1], 1) * int(n_heads)
        return 1 if _ROWS_OF_MLP.search(name) else 0

    chosen = choose_names(list(source.tensors), scope=scope, blocks=blocks)
    groups = {name: n_groups(name) for name in chosen}
    if not any(groups.values()):
        raise HandoffError(
            f"trunk {label(source)} has no tensors of the names that attention heads and MLPs have "
            "in most of timm's models, so nothing would be shuffled. Use "
            "weights_shuffled_in_tensors."
        )
    return _shuffled(source, seed, groups)


def weights_shuffled_in_tensors(
    *,
    model: str,
    model_kwargs: dict[str, Any],
    seed: int,
    trunk: str | Path | Trunk,
    scope: Scope = "all",
    blocks: Blocks = None,
) -> Made:
    """Permutes the entries of every tensor in itself, projections and norms included.

    Args, Raises: as `weights_shuffled_in_heads`; any names and heads will do.
    Source: aajayi-21/Procedural-Warm-Up-for-ViT, downstream/init_weights.py.
    """
    source = read(trunk)
    chosen = choose_names(list(source.tensors), scope=scope, blocks=blocks)
    return _shuffled(source, seed, dict.fromkeys(chosen, 1))


def _shuffled(source: Trunk, seed: int, groups: dict[str, int]) -> Made:
    """Permutes the entries of each of so many equal runs of a tensor's rows among themselves."""

    def shuffled(name: str, tensor: Tensor) -> Tensor:
        n = groups.get(name, 0)
        if n == 0:
            return tensor
        flat = tensor.reshape(n, -1)
        rngs = (numpy_rng(seed, "shuffled weights", name, group) for group in range(n))
        order = np.stack([rng.permutation(flat.shape[1]) for rng in rngs])
        return torch.gather(flat, 1, torch.from_numpy(order)).reshape(tensor.shape)

    tensors = {name: shuffled(name, tensor) for name, tensor in source.tensors.items()}
    return Made(tensors, facts_of(source))


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

    0.4 and 0.1 shrink and perturb; 0.5 and 0.5 lie half way from a cold start to a warmed one.

    Args:
        model: empty: the trunk's own, with its arguments.
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
    if not model:
        if "model" not in source.facts:
            raise HandoffError(
                f"trunk {label(source)} does not name its model, so there is no fresh start of it "
                "to mix in. Give the trunk of a warm-up or of an import."
            )
        model, model_kwargs = source.facts["model"], source.facts.get("model_args") or {}
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
    also = f" + {fresh:g} x timm's start of seed {seed}" if fresh else ""
    also += ", matrices at timm's norms" if norms == "timm" else ""
    sources = {name: f"{label(source)}: {warmed:g} x {name}{also}" for name in tensors}
    return Made(tensors, {**facts_of(source), "sources": json.dumps(sources)})

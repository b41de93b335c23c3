"""Weight-shuffled trunks: the numbers of a warmed trunk without their order.

Two kinds are published under one name and are no comparable controls: here they have
names of their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitwarm.errors import HandoffError
from vitwarm.inits.made import Made, facts_of, label, read
from vitwarm.seeding import numpy_rng
from vitwarm.trunk import Trunk, choose_names
from vitwarm.trunk.select import Blocks, Scope

#: Attention layers by how many of query, key, value their rows hold.
_ROWS_OF_HEADS = re.compile(r"\.attn\.(qkv|qk|q_proj|k_proj|v_proj|v)\.(weight|bias)$")
_ROWS_OF_MLP = re.compile(r"\.mlp\.(?!norm)\w+\.(weight|bias)$")
_BIASES_OF_HEADS = re.compile(r"\.attn\.(q_bias|v_bias)$")


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
    chosen = set(choose_names(list(source.tensors), scope=scope, blocks=blocks))
    n_heads = source.metadata.get("num_heads", "")

    def shuffled(name: str, tensor: Tensor) -> Tensor:
        rows = _ROWS_OF_HEADS.search(name)
        if rows or _BIASES_OF_HEADS.search(name):
            if not n_heads.isdigit():
                raise HandoffError(
                    f"trunk {label(source)} does not say how many heads it has (num_heads is "
                    f"{n_heads!r}). Use weights_shuffled_in_tensors."
                )
            n_parts = {"qkv": 3, "qk": 2}.get(rows[1] if rows else "", 1)
            return _permute_groups(tensor, n_parts * int(n_heads), seed, name)
        return _permute_groups(tensor, 1, seed, name) if _ROWS_OF_MLP.search(name) else tensor

    kinds = (_ROWS_OF_HEADS, _BIASES_OF_HEADS, _ROWS_OF_MLP)
    if not any(kind.search(name) for kind in kinds for name in chosen):
        raise HandoffError(
            f"trunk {label(source)} has no tensors of the names that attention heads and MLPs have "
            "in most of timm's models, so nothing would be shuffled. Use "
            "weights_shuffled_in_tensors."
        )
    return _made(source, chosen, shuffled)


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

    Args:
        trunk: the trunk whose numbers are shuffled.
        scope, blocks: shuffle only this part; the rest stays as in the trunk.
    Raises: TrunkError, HandoffError: as `load_trunk` and `choose_names`.
    Source: aajayi-21/Procedural-Warm-Up-for-ViT, downstream/init_weights.py.
    """
    source = read(trunk)
    chosen = set(choose_names(list(source.tensors), scope=scope, blocks=blocks))
    return _made(source, chosen, lambda name, tensor: _permute_groups(tensor, 1, seed, name))


def _made(source: Trunk, chosen: set[str], shuffled: Any) -> Made:
    tensors = {
        name: shuffled(name, tensor) if name in chosen else tensor
        for name, tensor in source.tensors.items()
    }
    return Made(tensors, facts_of(source))


def _permute_groups(tensor: Tensor, n_groups: int, seed: int, name: str) -> Tensor:
    """Permutes the entries of each of `n_groups` equal runs of rows among themselves."""
    flat = tensor.reshape(n_groups, -1)
    order = np.stack(
        [
            numpy_rng(seed, "shuffled weights", name, group).permutation(flat.shape[1])
            for group in range(n_groups)
        ]
    )
    return torch.gather(flat, 1, torch.from_numpy(order)).reshape(tensor.shape)

"""A block's tensors made wider: what the rows and columns of a plain timm ViT's layers mean.

A row or column stands for a channel of the residual stream, for a feature of a head, or for a
hidden unit of the MLP. Heads stay whole; query, key and value are three matrices in one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from vitwarm.errors import ModelError
from vitwarm.trunk.inside import check_plain_blocks

Axis = Literal["stream", "heads", "hidden", "head"]
Width = Literal["tile", "zero"]
Scale = Literal["none", "fro"]
Vectors = Literal["published", "tiled"]
Order = Literal["cyclic", "each"]

_AXES: dict[str, tuple[Axis, ...]] = {
    "attn.qkv": ("heads", "stream"),
    "attn.proj": ("stream", "heads"),
    "mlp.fc1": ("hidden", "stream"),
    "mlp.fc2": ("stream", "hidden"),
    "attn.q_norm": ("head",),
    "attn.k_norm": ("head",),
    **dict.fromkeys(("norm1", "norm2", "ls1", "ls2", "norm_pre", "norm", "fc_norm"), ("stream",)),
}


@dataclass(frozen=True, kw_only=True)
class Widening:
    """How tensors are made wider."""

    head_size: int
    """Features of a head, which stay as many."""
    width: Width = "tile"
    """`tile`: repeat matrices in both directions. `zero`: preserve the function of tokens that are
    zero in the new channels."""
    scale: Scale = "fro"
    """Of tiled matrices. `fro`: keep the Frobenius norm (of query, key and value each)."""
    vectors: Vectors = "published"
    """Of tiled layers. `published`: biases and norms are copied, then 0 and 1; `tiled`: as rows."""
    order: Order = "cyclic"
    """`cyclic`: 0 1 2 0 1 2; `each`: 0 0 1 1 2 2. Heads change places whole."""


def check_can_grow(model: nn.Module) -> None:
    """Refuses a model whose tensors `widen` does not know.

    Raises: ModelError: no plain ViT, or layers with gates or norms inside.
    """
    check_plain_blocks(model, "model", "made from a smaller trunk")
    for number, block in enumerate(model.blocks):  # type: ignore[arg-type]
        layers = {name.rpartition(".")[0] for name in block.state_dict()}
        odd = sorted(layers - set(_AXES))
        if odd or type(block.mlp) is not Mlp:
            raise ModelError(
                f"model cannot be made from a smaller trunk: its block {number} has "
                f"{odd[0] if odd else 'a gated mlp'!r}, whose growth is not defined. Choose a ViT "
                "of plain blocks, such as vit_base_patch16_224."
            )


def widen(name: str, tensor: Tensor, shape: tuple[int, ...], how: Widening) -> tuple[Tensor, str]:
    """Makes one tensor of a trunk wider.

    Args:
        name: of the tensor inside its block, or of a norm outside: `attn.qkv.weight`.
        shape: what it becomes; no axis shrinks.
    Returns: the new tensor, in the old one's dtype, and the rule that made it, in words.
    Source: zlshinnick/weight-selection, width_expand.py (its SVD comes to tiling); `tiled` and
        `zero` are ours.
    """
    if tuple(tensor.shape) == shape:
        return tensor, "copied"
    layer, _, kind = name.rpartition(".")
    make: Callable[..., tuple[Tensor, str]] = _pad if how.width == "zero" else _tile
    if layer != "attn.qkv":
        return make(layer, kind, tensor, shape, how)
    rows, *rest = shape
    parts = [make(layer, kind, part, (rows // 3, *rest), how) for part in tensor.chunk(3)]
    return torch.cat([part for part, _ in parts]), f"{parts[0][1]}; q, k, v apart"


def _tile(
    layer: str, kind: str, tensor: Tensor, shape: tuple[int, ...], how: Widening
) -> tuple[Tensor, str]:
    if tensor.ndim == 1 and how.vectors == "published" and not layer.startswith("ls"):
        fill = float(kind == "weight")  # of a norm
        tail = torch.full((shape[0] - len(tensor),), fill, dtype=tensor.dtype)
        return torch.cat([tensor, tail]), f"copied, then {fill:g}"
    wide = tensor
    for dim, axis in enumerate(_AXES[layer][: tensor.ndim]):
        wide = wide.index_select(dim, _taken(tensor.shape[dim], shape[dim], axis, how))
    times = " x ".join(f"{n / m:.4g}" for n, m in zip(shape, tensor.shape, strict=True))
    rule = f"tiled {times}, {how.order}"
    if tensor.ndim == 1 or how.scale == "none":
        return wide, rule
    factor = float(tensor.double().norm() / wide.double().norm().clamp_min(1e-300))
    return (wide.double() * factor).to(tensor.dtype), f"{rule}, times {factor:.4g} (fro)"


def _pad(
    layer: str, kind: str, tensor: Tensor, shape: tuple[int, ...], how: Widening
) -> tuple[Tensor, str]:
    """Zero columns read nothing new, zero rows write nothing new.

    New heads and hidden units get the incoming rows of old ones: with zeros on both of their sides
    no gradient would ever reach them. A LayerNorm divides by the deviation over all channels, which
    zeros make smaller by sqrt(d / d'): its gain makes up for that. Zeros also move the mean unless
    it is zero: what writes into the stream is centred, as every LayerNorm takes the mean off.
    """
    behind = {
        "ls1": "a layer scale",
        "ls2": "a layer scale",
        "norm_pre": "a norm before its blocks",
    }
    if layer in behind:
        raise ModelError(
            f"width is 'zero', and the model has {behind[layer]}, behind which a centred write is "
            "not centred any more. Use width=tile, or a model without it."
        )
    axes = _AXES[layer]
    if axes == ("stream",):
        gain = math.sqrt(len(tensor) / shape[0]) if kind == "weight" else 1.0
        tail = torch.full((shape[0] - len(tensor),), float(kind == "weight"), dtype=tensor.dtype)
        rule = f"times {gain:.4g}, then 1" if kind == "weight" else "copied, then 0"
        return torch.cat([(tensor.double() * gain).to(tensor.dtype), tail]), rule
    wide = torch.zeros(shape, dtype=tensor.dtype)
    if axes[0] == "stream":  # writes into it
        centred = (tensor.double() - tensor.double().mean(0)).to(tensor.dtype)
        wide[tuple(slice(n) for n in tensor.shape)] = centred
        return wide, "centred over its rows, then 0"
    rows = tensor[_taken(len(tensor), shape[0], axes[0], how)]
    wide[(slice(None), *(slice(n) for n in tensor.shape[1:]))] = rows
    return wide, f"rows tiled {shape[0] / len(tensor):.4g}, {how.order}" + (
        ", new columns 0" if tensor.ndim == 2 else ""
    )


def _taken(n_old: int, n_new: int, axis: Axis, how: Widening) -> Tensor:
    """The old index that each new one is taken from; int64 [n_new]."""
    run = how.head_size if axis == "heads" else 1
    old, new = n_old // run, n_new // run
    runs = torch.arange(new)
    runs = runs % old if how.order == "cyclic" else runs * old // new
    return (runs[:, None] * run + torch.arange(run)).flatten()

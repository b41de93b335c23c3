"""What has to be known of, and changed in, a timm model so that it takes tokens."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from vitwarm.errors import ModelError
from vitwarm.trunk.embed import NaFlexTokens, TokenEmbed, Unfold
from vitwarm.trunk.family import Family, blocks_of, built_with, family_of, name_of, trunk_names
from vitwarm.trunk.vectors import PUBLISHED_EPS


def patch_grid(model: Any) -> tuple[int, int]:
    """Returns (rows, columns) of the patches that the model cuts its images into.

    Raises: ModelError: as `family_of`.
    """
    family_of(model)
    embed: Any = getattr(model, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    if grid is None and hasattr(model, "tokens_spatial_shape"):
        grid = model.tokens_spatial_shape
    if grid is None and hasattr(model, "pooling_scale"):  # VOLO: positions on the pooled grid
        grid = [side * int(model.pooling_scale) for side in model.pos_embed.shape[1:3]]
    if grid is None and hasattr(model, "embeds"):  # NaFlexVit: any size; its own images' size
        size = built_with(model).get("img_size") or model.pretrained_cfg["input_size"][1:]
        pairs = zip(_pair(size), _pair(model.embeds.patch_size), strict=True)
        grid = [side // patch for side, patch in pairs]
    if grid is None and hasattr(embed, "img_size"):
        grid = [
            side // patch
            for side, patch in zip(_pair(embed.img_size), _pair(embed.patch_size), strict=True)
        ]
    if grid is None:
        raise ModelError(
            f"model {name_of(model)!r} does not say how many patches it has; give img_size in "
            "model_kwargs."
        )
    rows, columns = grid
    return int(rows), int(columns)


def choose_grid(
    model: Any, family: Family, native: tuple[int, int], n_tokens: int | None
) -> tuple[int, int]:
    """Returns (rows, columns) for `n_tokens`: the patches' own, or the squarest there is.

    Raises: ModelError: a class that takes its patch count, or square grids, alone.
    """
    grid = native
    if n_tokens is not None and n_tokens != native[0] * native[1]:
        if not family.any_length:
            raise ModelError(
                f"warmup.n_tokens is {n_tokens}; model {name_of(model)!r} takes its patch count, "
                f"{native[0] * native[1]}, alone. Leave n_tokens out, or change img_size in "
                "model_kwargs."
            )
        rows = max(r for r in range(1, math.isqrt(n_tokens) + 1) if n_tokens % r == 0)
        grid = (rows, n_tokens // rows)
    if family.square and grid[0] != grid[1]:
        raise ModelError(
            f"warmup.n_tokens is {grid[0] * grid[1]}; model {name_of(model)!r} takes square grids "
            f"alone. Use {math.isqrt(grid[0] * grid[1]) ** 2}."
        )
    return grid


def resize(model: Any, grid: tuple[int, int]) -> None:
    """Lets timm lay out rotary tables and relative positions for another grid."""
    if hasattr(model, "set_input_size") and (
        getattr(model, "rope", None) is not None or _has_relative(model)
    ):
        patch = _pair(model.patch_embed.patch_size)
        model.set_input_size(img_size=(grid[0] * patch[0], grid[1] * patch[1]))


def first_norm(model: Any) -> tuple[bool, float]:
    """Whether tokens meet a norm before the first attention, and the epsilon of the first norm."""
    trunk = trunk_names(model)
    parts = {name.rpartition(".")[0] for name in trunk}
    norms = (p for name, p in model.named_modules() if name in parts and hasattr(p, "eps"))
    eps = next((float(p.eps) for p in norms), PUBLISHED_EPS)
    first = type(next(iter(blocks_of(model).values()))).__name__
    return not re.search(r"ResPost|PostNorm|SwinTransformerV2", first), eps


def width_in(model: Any) -> int:
    """Returns the width at which patches enter."""
    width = getattr(model, "embed_dim", None)
    return int(width if width is not None else model.patch_embed.proj.out_channels)


def _has_relative(model: Any) -> bool:
    own = re.compile(r"relative_position|rel_pos|cpb_mlp|meta_mlp")
    return any(own.search(name) for name in trunk_names(model))


def own_order(model: Any, family: Family) -> str | None:
    """The model's own means to tell positions apart, if it has no absolute table, in words."""
    absolute = [getattr(model, name, None) for name in family.absolute]
    if family.stem == "embeds":
        absolute = [None if model.embeds.pos_embed_type == "none" else True]
    if any(table is not None for table in absolute):
        return None
    if any(getattr(model, n, None) is not None for n in ("rope", "rope_global", "rope_window")):
        return "the model's own (rotary)"
    return "the model's own (relative)" if _has_relative(model) else None


def put_in(model: Any, family: Family, embed: TokenEmbed) -> None:
    """Swaps the patch embedding for the token embedding and silences absolute positions."""
    embed.enter, embed.with_size = family.enter, family.with_size
    if family.stem == "embeds":
        model.embeds = NaFlexTokens(embed, model.embeds)
    else:
        model.patch_embed = embed
    for name in family.absolute:
        if getattr(model, name, None) is not None:
            first = name == family.absolute[0] and family.needs_positions
            zero = torch.zeros(1, 1, embed.table.shape[1], device=embed.table.device)
            setattr(model, name, nn.Parameter(zero, requires_grad=False) if first else None)
    if getattr(model, "dynamic_img_size", False) and hasattr(model, "pos_embed"):
        if getattr(model, "rope", None) is not None:  # asks the layout for the grid
            embed.enter = "NHWC"
        else:
            model.dynamic_img_size = False


def hold_still(model: Any) -> None:
    """Switches off what treats patches at random: dropped patches, shaken rotary coordinates."""
    if type(getattr(model, "patch_drop", None)).__name__ == "PatchDropout":
        model.patch_drop = nn.Identity()
    elif hasattr(model, "patch_drop") and not isinstance(model.patch_drop, nn.Identity):
        model.patch_drop = None
    if hasattr(model, "patch_drop_rate"):  # Hiera
        model.patch_drop_rate = 0.0
    for part in model.modules():
        if hasattr(part, "aug_active"):
            part.aug_active = False


def take_off(model: Any, family: Family) -> None:
    """Takes off what sees no hidden token: heads, pooling, blocks for the class token alone."""
    if family.head_norm:
        model.head.fc = nn.Identity()
    else:
        for name in ("head", "head_dist"):
            if hasattr(model, name):
                setattr(model, name, nn.Identity())
    for name in ("attn_pool", "aux_head"):
        if hasattr(model, name):
            setattr(model, name, None)
    if family.class_blocks:
        setattr(model, family.class_blocks, None)
        model.cls_token = None


def never_in_front(model: Any) -> bool:
    """ConViT puts its class token in front late; a shallow one never does."""
    return int(getattr(model, "local_up_to_layer", 0)) >= len(blocks_of(model))


def late_norm(model: Any, family: Family) -> str | None:
    """What normalises the tokens after `forward_features`, if that did not.

    `fc_norm`, `head.norm`: timm's own norm after pooling. `plain`: a norm without parameters, for
    models that have no final norm (RADIO, InternViT, some PE). With layer scales of 1e-5, as RADIO
    has them, the head would otherwise see vectors of norm 0.02 and nothing would ever be learned.
    """
    if family.head_norm:
        return "head.norm"

    def has(name: str) -> bool:
        return not isinstance(getattr(model, name, nn.Identity()), nn.Identity)

    if has("norm") or hasattr(model, "neck") or not hasattr(model, "norm"):
        return None
    return "fc_norm" if has("fc_norm") else "plain"


def unfold_for(model: Any, grid: tuple[int, int], width: int) -> Unfold | None:
    """The read-out of a hierarchical model, or None for a model that keeps its tokens."""
    kind = type(model).__name__
    if kind == "Hiera":
        factor = int(model.q_stride[0]) ** int(model.q_pool)
    elif kind == "VOLO":
        factor = int(model.pooling_scale)
    elif kind.startswith("SwinTransformer"):
        stages = getattr(model, "layers", None) or model.stages
        factor = 2 ** (len(stages) - 1)
    else:
        return None
    if grid[0] % factor or grid[1] % factor:
        raise ModelError(
            f"model {name_of(model)!r} has {grid[0]} x {grid[1]} patches; they must divide by "
            f"{factor}, its total downsampling. Change img_size in model_kwargs."
        )
    return Unfold(int(model.num_features), width, grid, factor).to(next(model.parameters()).device)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        return int(value[0]), int(value[1])
    return int(value), int(value)

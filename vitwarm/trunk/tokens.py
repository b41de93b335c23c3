"""A timm model that reads token ids instead of images.

Sizes: the token vectors and position vectors are frozen and tiny (norm 0.02 in the published
recipe), so the first LayerNorm's epsilon is felt: with e = 1e-6 it damps its input by
sqrt(v / (v + e)), v = 2 * 0.02^2 / D, that is to 0.90 at width 192 and 0.71 at width 768
(paper.md b). The policy here keeps that damping: scale = 0.02 * sqrt(e / 1e-6). Above width 768,
where nothing is published, scale also grows with sqrt(D / 768): never more damping than ViT-B's.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitwarm.errors import ModelError
from vitwarm.seeding import numpy_rng, torch_seeded
from vitwarm.trunk.family import (
    PREFIX_TOKENS,
    Family,
    Layout,
    blocks_of,
    family_of,
    model_facts,
    name_of,
    trunk_names,
)

PUBLISHED_SCALE = 0.02
PUBLISHED_EPS = 1e-6
WIDEST_PUBLISHED = 768


class TokenModel(nn.Module):
    """A timm model's trunk behind a frozen token embedding, ready for masked-token training.

    Takes over `model` and changes it in place: the patch embedding becomes the token embedding,
    absolute positions become frozen random vectors (none for class and register tokens), heads
    and blocks that serve the class token alone are taken off. A model without a table of absolute
    positions keeps what order it has (rotary, relative); only one that has none gets vectors.
    Trainable are the trunk, the prefix tokens and, in hierarchical models, `unfold`.

    Attributes:
        model: the timm model.
        n_tokens: T, tokens per sequence.
        grid: (rows, columns) that the tokens are laid out on, row by row; T = rows x columns.
        width: D of what `forward` returns.
        facts: what was decided, as strings, for logs and the trunk file's metadata.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        n_ids: int,
        n_tokens: int | None = None,
        seed: int = 0,
        token_scale: float | None = None,
        position_scale: float | None = None,
    ) -> None:
        """Args:
            model: a timm transformer, as `build_model` returns it.
            n_ids: rows of the token table; the mask id counts.
            n_tokens: tokens per sequence; none: the model's patch count.
            seed: of the frozen vectors.
            token_scale, position_scale: norm of each vector; none: the policy of this module.
        Raises: ModelError: a class without token blocks, or a length that the class cannot take.
        """
        super().__init__()
        family = family_of(model)
        native = patch_grid(model)
        self.grid = _grid_for(model, family, native, n_tokens)
        self.n_tokens = self.grid[0] * self.grid[1]
        if self.grid != native:
            _resize(model, self.grid)
        pre_normed, eps = _first_norm(model)
        width = _width_in(model)
        scale = published_scale(eps, width) if pre_normed else math.sqrt(width / 2)
        token_scale = scale if token_scale is None else token_scale
        position_scale = scale if position_scale is None else position_scale
        table, embedding = token_table(n_ids, width, seed=seed)
        own = _own_order(model, family)
        positions = None if own else random_units(self.n_tokens, width, seed=seed, name="positions")
        embed = TokenEmbed(
            table * token_scale,
            None if positions is None else positions * position_scale,
            self.grid,
        )
        self.facts = {
            **model_facts(model),
            "n_ids": str(n_ids),
            "n_tokens": str(self.n_tokens),
            "grid": f"{self.grid[0]}x{self.grid[1]}",
            "patch_grid": f"{native[0]}x{native[1]}",
            "width": str(width),
            "embedding": f"{embedding}, frozen",
            "token_scale": f"{token_scale:.6g}",
            "positions": own or "random unit vectors, frozen",
            "position_scale": "0" if own else f"{position_scale:.6g}",
            "norm_eps": f"{eps:g}",
            "scale_policy": _policy(pre_normed),
        }
        self._leave = family.leave
        self._late_norm = _late_norm(model, family)
        trunk = set(trunk_names(model))
        _put_in(model, family, embed.to(next(model.parameters()).device))
        _take_off(model, family)
        prefix = () if _never_in_front(model) else PREFIX_TOKENS
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trunk or name.split(".")[-1] in prefix)
        self.model: Any = model  # timm's classes share their attributes by custom, not by type
        with torch_seeded(seed, "unfold"):
            self.unfold = _unfold_for(model, self.grid, width)
        width_out: Any = model.num_features
        self.width = width if self.unfold is not None else int(width_out)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Returns x_BTD, the tokens after the final norm(s), prefix tokens left out.

        Args:
            ids_BT: integers in [0, n_ids), of any integer type.
        """
        x = self.model.forward_features(ids_BT)
        if self._leave == "NCHW":
            x = x.flatten(2).transpose(1, 2)
        elif self._leave == "NHWC":
            x = x.flatten(1, 2)
        if self.unfold is None:
            x = x[:, x.shape[1] - self.n_tokens :]
        if self._late_norm == "fc_norm":
            x = self.model.fc_norm(x)
        elif self._late_norm == "head.norm":
            x = self.model.head.norm(x)
        y: Tensor = x if self.unfold is None else self.unfold(x)
        return y


class TokenEmbed(nn.Module):
    """Frozen vectors for ids plus frozen vectors for positions, in place of a patch embedding."""

    def __init__(
        self, table_VD: Tensor, positions_TD: Tensor | None, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.table: Tensor
        self.positions: Tensor | None
        self.register_buffer("table", table_VD)
        self.register_buffer("positions", positions_TD)
        self.grid_size = grid  # the name that timm's classes ask their patch embedding for
        self.enter: Layout = "NLC"
        self.with_size = False

    def forward(self, ids_BT: Tensor, mask: None = None) -> Tensor | tuple[Tensor, tuple[int, int]]:
        """Returns the vectors in the layout that the model's patch embedding would use."""
        x = F.embedding(ids_BT.int(), self.table)
        if self.positions is not None:
            x = x + self.positions
        if self.enter != "NLC":
            x = x.unflatten(1, self.grid_size)
        if self.enter == "NCHW":
            x = x.permute(0, 3, 1, 2)
        return (x, self.grid_size) if self.with_size else x


class NaFlexTokens(nn.Module):
    """Stands in for NaFlexVit's `embeds`, which puts the prefix tokens in front as well."""

    def __init__(self, tokens: TokenEmbed, embeds: Any) -> None:
        super().__init__()
        self.tokens = tokens
        self.cls_token = embeds.cls_token
        self.reg_token = embeds.reg_token

    def forward(
        self, ids_BT: Tensor, patch_coord: None = None, patch_valid: None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Returns prefix tokens and token vectors, and the grid of the latter."""
        x = self.tokens(ids_BT)
        prefix = [p for p in (self.cls_token, self.reg_token) if p is not None]
        if prefix:
            x = torch.cat([*(p.expand(x.shape[0], -1, -1) for p in prefix), x], dim=1)
        return x, self.tokens.grid_size


class Unfold(nn.Module):
    """One vector per token out of a coarser map: each cell speaks for factor x factor tokens.

    Hierarchical models end on a coarse map. The published wrappers upsample it bilinearly
    (paper.md b), which leaves the tokens of a cell almost one vector; a linear map per cell and
    pixel shuffle (as SimMIM's head for Swin, Xie 2022) lets the cell answer for each of them.
    It is trained in the warm-up and thrown away with the head.
    """

    def __init__(self, width_in: int, width_out: int, grid: tuple[int, int], factor: int) -> None:
        super().__init__()
        self.coarse = (grid[0] // factor, grid[1] // factor)
        self.factor = factor
        self.spread = nn.Linear(width_in, factor * factor * width_out)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Returns [B, T, width_out] from one vector per cell, row by row."""
        x = self.spread(x_BLC).unflatten(1, self.coarse)
        x = x.unflatten(-1, (self.factor, self.factor, -1))  # B, rows, columns, f, f, D
        x_BTD: Tensor = x.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)
        return x_BTD


def published_scale(eps: float, width: int) -> float:
    """Returns the norm of token and position vectors that keeps the published damping.

    Args:
        eps: epsilon of the first norm that the tokens meet.
        width: D of the model.
    Source: paper.md b for 0.02 at 1e-6; epsilon and widths above 768 are our choice (see above).
    """
    wide = math.sqrt(max(width, WIDEST_PUBLISHED) / WIDEST_PUBLISHED)
    return PUBLISHED_SCALE * math.sqrt(eps / PUBLISHED_EPS) * wide


def token_table(n_ids: int, width: int, *, seed: int) -> tuple[Tensor, str]:
    """Returns unit rows [n_ids, width], float32, and what they are in words.

    The identity where it reaches (rows are exactly orthonormal), random unit rows beyond.
    """
    table = torch.eye(n_ids, width)
    if n_ids <= width:
        return table, "identity"
    extra = n_ids - width
    table[width:] = random_units(extra, width, seed=seed, name="tokens")
    return table, f"{width} orthonormal rows (identity), then {extra} random unit rows"


def random_units(n_rows: int, width: int, *, seed: int, name: str) -> Tensor:
    """Returns random unit rows [n_rows, width], float32, the same on every machine."""
    rows = numpy_rng(seed, "embedding", name).standard_normal((n_rows, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows.astype(np.float32))


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
        size = model.embeds.default_img_size or model.pretrained_cfg["input_size"][1:]
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


def _grid_for(
    model: Any, family: Family, native: tuple[int, int], n_tokens: int | None
) -> tuple[int, int]:
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


def _resize(model: Any, grid: tuple[int, int]) -> None:
    """Lets timm lay out rotary tables and relative positions for another grid."""
    if hasattr(model, "set_input_size") and (
        getattr(model, "rope", None) is not None or _has_relative(model)
    ):
        patch = _pair(model.patch_embed.patch_size)
        model.set_input_size(img_size=(grid[0] * patch[0], grid[1] * patch[1]))


def _first_norm(model: Any) -> tuple[bool, float]:
    """Whether tokens meet a norm before the first attention, and the epsilon of the first norm."""
    trunk = trunk_names(model)
    parts = {name.rpartition(".")[0] for name in trunk}
    norms = (p for name, p in model.named_modules() if name in parts and hasattr(p, "eps"))
    eps = next((float(p.eps) for p in norms), PUBLISHED_EPS)
    first = type(next(iter(blocks_of(model).values()))).__name__
    return not re.search(r"ResPost|PostNorm|SwinTransformerV2", first), eps


def _policy(pre_normed: bool) -> str:
    if pre_normed:
        return "0.02 x sqrt(eps / 1e-6) x sqrt(max(width, 768) / 768)"
    return "unit variance per channel (no norm before the first attention)"


def _width_in(model: Any) -> int:
    width = getattr(model, "embed_dim", None)
    return int(width if width is not None else model.patch_embed.proj.out_channels)


def _has_relative(model: Any) -> bool:
    own = re.compile(r"relative_position|rel_pos|cpb_mlp|meta_mlp")
    return any(own.search(name) for name in trunk_names(model))


def _own_order(model: Any, family: Family) -> str | None:
    """The model's own means to tell positions apart, if it has no absolute table, in words."""
    absolute = [getattr(model, name, None) for name in family.absolute]
    if family.stem == "embeds":
        absolute = [None if model.embeds.pos_embed_type == "none" else True]
    if any(table is not None for table in absolute):
        return None
    if any(getattr(model, n, None) is not None for n in ("rope", "rope_global", "rope_window")):
        return "the model's own (rotary)"
    return "the model's own (relative)" if _has_relative(model) else None


def _put_in(model: Any, family: Family, embed: TokenEmbed) -> None:
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
    if type(getattr(model, "patch_drop", None)).__name__ == "PatchDropout":
        model.patch_drop = nn.Identity()
    elif hasattr(model, "patch_drop") and not isinstance(model.patch_drop, nn.Identity):
        model.patch_drop = None


def _take_off(model: Any, family: Family) -> None:
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


def _never_in_front(model: Any) -> bool:
    """ConViT puts its class token in front late; a shallow one never does."""
    return int(getattr(model, "local_up_to_layer", 0)) >= len(blocks_of(model))


def _late_norm(model: Any, family: Family) -> str | None:
    """The final norm that timm applies after pooling, if the model has no other."""
    if family.head_norm:
        return "head.norm"
    has_norm = not isinstance(getattr(model, "norm", nn.Identity()), nn.Identity)
    has_fc_norm = not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity)
    return "fc_norm" if has_fc_norm and not has_norm else None


def _unfold_for(model: Any, grid: tuple[int, int], width: int) -> Unfold | None:
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

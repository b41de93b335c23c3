"""The modules that stand around a timm model's blocks in the warm-up: tokens in, tokens out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitwarm.trunk.family import Layout


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

    Hierarchical models end on a coarse map. The published wrappers upsample it bilinearly,
    which leaves the tokens of a cell almost one vector; a linear map per cell and
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

"""A timm model that reads token ids instead of images."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vitwarm.seeding import torch_seeded
from vitwarm.trunk.embed import TokenEmbed
from vitwarm.trunk.family import PREFIX_TOKENS, family_of, model_facts, trunk_names
from vitwarm.trunk.swap import (
    choose_grid,
    first_norm,
    hold_still,
    late_norm,
    never_in_front,
    own_order,
    patch_grid,
    put_in,
    resize,
    take_off,
    unfold_for,
    width_in,
)
from vitwarm.trunk.vectors import (
    PUBLISHED_EPS,
    published_scale,
    random_units,
    token_table,
)


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
            token_scale, position_scale: norm of each vector; none: the policy of `vectors`.
        Raises: ModelError: a class without token blocks, or a length that the class cannot take.
        """
        super().__init__()
        family = family_of(model)
        native = patch_grid(model)
        self._leave, self._late_norm = family.leave, late_norm(model, family)
        self.grid = choose_grid(model, family, native, n_tokens)
        self.n_tokens = self.grid[0] * self.grid[1]
        if self.grid != native:
            resize(model, self.grid)
        (pre_normed, eps), width = first_norm(model), width_in(model)
        own = own_order(model, family)
        n_vectors = 1 if own else 2
        scale, policy = _scale(pre_normed, eps, width, n_vectors)
        token_scale = scale if token_scale is None else token_scale
        position_scale = scale if position_scale is None else position_scale
        table, embedding = token_table(n_ids, width, seed=seed)
        units = None if own else random_units(self.n_tokens, width, seed=seed, name="positions")
        positions = None if units is None else units * position_scale
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
            "scale_policy": policy,
            "final_norm": self._late_norm or "the model's own",
        }
        trunk = set(trunk_names(model))
        embed = TokenEmbed(table * token_scale, positions, self.grid)
        put_in(model, family, embed.to(next(model.parameters()).device))
        take_off(model, family)
        _train_alone(model, trunk)
        self.model: Any = model  # timm's classes share their attributes by custom, not by type
        with torch_seeded(seed, "unfold"):
            self.unfold = unfold_for(model, self.grid, width)
        out: Any = model.num_features
        self.width = width if self.unfold is not None else int(out)

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
        elif self._late_norm == "plain":
            x = F.layer_norm(x, (x.shape[-1],), eps=PUBLISHED_EPS)
        y: Tensor = x if self.unfold is None else self.unfold(x)
        return y


def _train_alone(model: nn.Module, trunk: set[str]) -> None:
    """Lets the trunk and the prefix tokens train, and nothing else."""
    hold_still(model)
    prefix = () if never_in_front(model) else PREFIX_TOKENS
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trunk or name.split(".")[-1] in prefix)


def _scale(pre_normed: bool, eps: float, width: int, n_vectors: int) -> tuple[float, str]:
    """The norm of each vector of a token, and its policy in words; see `vectors`."""
    if not pre_normed:
        policy = "unit variance per channel (no norm before the first attention)"
        return math.sqrt(width / n_vectors), policy
    alone = " x sqrt(2) (no position vectors)" if n_vectors == 1 else ""
    policy = f"0.02 x sqrt(eps / 1e-6) x sqrt(max(width, 768) / 768){alone}"
    return published_scale(eps, width, n_vectors=n_vectors), policy

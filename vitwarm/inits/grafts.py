"""A trunk assembled from two: attention of one with MLPs of the other, or first and last blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from vitwarm.errors import ConfigError, HandoffError
from vitwarm.inits.made import Made, inherit, label, read, shape_of
from vitwarm.trunk import Trunk, place_of
from vitwarm.trunk.select import block_prefixes

Side = Literal["A", "B"]


def graft(
    *,
    model: str = "",
    model_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    a: str | Path | Trunk,
    b: str | Path | Trunk,
    attention_of: Side | None = None,
    first_blocks: int | None = None,
) -> Made:
    """Assembles a trunk from trunks A and B of one shape; a trunk with itself gives itself.

    The final norm follows whoever owns the end of the last block (with `attention_of`: the MLPs'
    owner), `norm_pre` and tables shared by all blocks whoever owns the first attention.

    Args:
        attention_of: whose attention is taken, with its norm and layer scale; the MLPs are the
            other's.
        first_blocks: take that many first blocks of A and the rest of B.
    Returns: the tensors; the facts hold `sources`, a JSON map from every tensor to its trunk, and
        what `inherit` says of the warm-ups behind them.
    Raises:
        ConfigError: not exactly one of `attention_of` and `first_blocks`, or one out of range.
        HandoffError: trunks of different shapes, or a tensor that serves attention and MLP at once.
    """
    left, right = read(a), read(b)
    _check_alike(left, right)
    prefixes = block_prefixes([*left.tensors, *right.tensors])
    _check_choice(attention_of, first_blocks, len(prefixes))
    for side in (left, right) if first_blocks is not None else ():
        _check_whole(side, len(prefixes))
    trunks = {"A": left, "B": right}
    owners: dict[str, Side] = {}
    for name in dict.fromkeys([*left.tensors, *right.tensors]):
        place = place_of(name, prefixes)
        if first_blocks is not None:
            owners[name] = "A" if (place.block or 0) < first_blocks else "B"
            continue
        if place.component == "fused":
            _check_same(left, right, name)
        is_end = place.component == "outside" and place.block == len(prefixes) - 1
        follows_mlp = place.component == "mlp" or is_end
        owners[name] = "A" if (attention_of == "A") != follows_mlp else "B"
    lacking = [n for n, side in owners.items() if n not in trunks[side].tensors]
    for name in lacking:
        if not trunks[owners[name]].is_partial:
            raise HandoffError(f"trunk {label(trunks[owners[name]])} lacks {name!r}. Use another.")
    tensors = {n: trunks[s].tensors[n] for n, s in owners.items() if n not in lacking}
    return Made(
        tensors,
        {
            **shape_of(left),
            **inherit(left, right),
            "partial": str(bool(lacking) or left.is_partial or right.is_partial).lower(),
            "sources": json.dumps({name: label(trunks[owners[name]]) for name in tensors}),
            "made_from": f"A = {label(left)}, B = {label(right)}",
        },
    )


def _check_choice(attention_of: str | None, first_blocks: int | None, depth: int) -> None:
    if (attention_of is None) == (first_blocks is None):
        raise ConfigError(
            f"a graft was asked for with attention_of {attention_of!r} and first_blocks "
            f"{first_blocks!r}; give exactly one of them."
        )
    if attention_of not in (None, "A", "B"):
        raise ConfigError(f"attention_of is {attention_of!r}; allowed are A and B.")
    if first_blocks is not None and not 0 < first_blocks < depth:
        raise ConfigError(
            f"first_blocks is {first_blocks}; the trunks have {depth} blocks, so 1 to {depth - 1} "
            "is allowed."
        )


def _check_whole(side: Trunk, n_blocks: int) -> None:
    own = len(block_prefixes(side.tensors))
    if side.metadata.get("depth", str(n_blocks)) != str(n_blocks):
        raise HandoffError(
            f"trunk {label(side)} is of a model with {side.metadata['depth']} blocks, of which "
            f"{own} are there, so first_blocks cannot count them. Use whole trunks."
        )


def _check_alike(left: Trunk, right: Trunk) -> None:
    ours, theirs = (
        ({} if t.is_partial else {"depth": str(len(block_prefixes(t.tensors)))}) | t.metadata
        for t in (left, right)
    )
    compared: list[tuple[str, Any, Any]] = [
        (key, ours[key], theirs[key])
        for key in ("depth", "num_heads")
        if ours.get(key) and theirs.get(key)
    ]
    for name in left.tensors:
        if name in right.tensors:
            one, other = (tuple(side.tensors[name].shape) for side in (left, right))
            compared.append((repr(name), one, other))
    for what, one, other in compared:
        if one != other:
            raise HandoffError(
                f"trunks {label(left)} and {label(right)} cannot be grafted: {what} is {one} in "
                f"one and {other} in the other. Use trunks of one model."
            )


def _check_same(left: Trunk, right: Trunk, name: str) -> None:
    a, b = left.tensors.get(name), right.tensors.get(name)
    if a is None or b is None or a.dtype != b.dtype or not torch.equal(a, b):
        raise HandoffError(
            f"{name!r} serves attention and MLP at once and cannot be taken from two trunks. "
            "Use first_blocks for this model."
        )

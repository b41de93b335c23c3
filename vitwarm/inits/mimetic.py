"""Mimetic initialisation (Trockman & Kolter 2023) in both published settings.

Per head, the query-key product is the best rank-d_h approximation of a Z + b I; per layer, the
value-projection product has the spectrum of a' Z - b' I. Z has i.i.d. entries of variance 1/d.
MLPs, norms and everything else stay as timm makes them. No training, so a warm-up has to beat it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.errors import ConfigError, ModelError
from vitwarm.inits.made import Made, facts_for
from vitwarm.seeding import numpy_rng
from vitwarm.trunk import blocks_of, build_shapes, name_of

Entries = Literal["uniform", "normal"]


def mimetic(
    *,
    model: str,
    model_kwargs: dict[str, Any],
    seed: int,
    alpha_qk: float = 0.7,
    beta_qk: float = 0.7,
    alpha_vo: float = 0.4,
    beta_vo: float = 0.4,
    entries: Entries = "uniform",
    zero_biases: bool = False,
) -> Made:
    """Makes attention weights with the products above, computed in float64.

    Args:
        alpha_qk, beta_qk: a and b of the query-key product.
        alpha_vo, beta_vo: a' and b' of the value-projection product.
        entries: distribution of Z: uniform on +-sqrt(3/d), or normal.
        zero_biases: write zero biases of qkv and projection as well.
    Raises: ModelError: a model whose attention has no square query, key, value and projection.
    Source: defaults as in osiriszjq/structured_init (0.7/0.7 and 0.4/0.4); see `mimetic_04`.
    """
    if entries not in ("uniform", "normal"):
        raise ConfigError(f"init_params.entries is {entries!r}; allowed are uniform, normal.")
    shapes = build_shapes(model, **model_kwargs)
    tensors: dict[str, Tensor] = {}
    for index, (name, part, layers) in enumerate(_attentions(shapes)):
        d, heads = int(part.proj.weight.shape[0]), int(part.num_heads)
        pairs = []
        for head in range(heads):
            z = _z(d, entries, seed, index, f"qk {head}")
            pairs.append(query_key(alpha_qk * z + beta_qk * np.eye(d), d // heads))
        query, key = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
        z = _z(d, entries, seed, index, "vo")
        value, projection = value_projection(alpha_vo * z - beta_vo * np.eye(d))
        made, rows = {"proj.weight": projection}, [query, key, value]
        for layer, n in layers.items():
            made[f"{layer}.weight"], rows = np.concatenate(rows[:n]), rows[n:]
        for bias, tensor in part.named_parameters() if zero_biases else ():
            if bias in {*(f"{layer}.bias" for layer in (*layers, "proj")), "q_bias", "v_bias"}:
                made[bias] = np.zeros(tuple(tensor.shape))
        tensors |= {f"{name}.{n}": torch.from_numpy(w.astype(np.float32)) for n, w in made.items()}
    return Made(tensors, facts_for(shapes, tensors))


def mimetic_04(
    *, model: str, model_kwargs: dict[str, Any], seed: int, entries: Entries = "uniform"
) -> Made:
    """Makes the setting of the warm-up paper's baseline: 0.4/0.4 for both products, zero biases.

    Source: zlshinnick/weight-selection, `mimetic`; positions are left as timm's.
    """
    same: Any = {"model": model, "model_kwargs": model_kwargs, "seed": seed, "entries": entries}
    return mimetic(alpha_qk=0.4, beta_qk=0.4, alpha_vo=0.4, beta_vo=0.4, zero_biases=True, **same)


def query_key(target: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns W_q, W_k [rank, d] with W_q^T W_k the best rank-`rank` approximation of `target`."""
    u, s, vt = np.linalg.svd(target)
    root = np.sqrt(s[:rank, None])
    return root * u.T[:rank], root * vt[:rank]


def value_projection(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns W_v, W_o [d, d] for y = W_o W_v x, whose product has the eigenvalues of `target`."""
    u, s, vt = np.linalg.svd(target)
    root = np.sqrt(s)
    return u * root, root[:, None] * vt


#: Layers of an attention, and how many of query, key and value the rows of each hold.
_LAYOUTS = ({"qkv": 3}, {"q_proj": 1, "k_proj": 1, "v_proj": 1}, {"qk": 2, "v": 1})


def has_mimetic(model: nn.Module) -> bool:
    """Whether the initialisation is defined for a model; one of shapes alone will do."""
    try:
        return bool(list(_attentions(model)))
    except ModelError:
        return False


def _attentions(model: nn.Module) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """Yields each block's attention, with its name and its layers."""
    undefined = "so mimetic initialisation is not defined for it. Choose another model."
    for name, block in blocks_of(model).items():
        part: Any = getattr(block, "attn", None)
        if part is None or not hasattr(part, "num_heads") or not hasattr(part, "proj"):
            raise ModelError(
                f"model {name_of(model)!r} has no plain attention in {name!r} (parallel or other "
                f"blocks), {undefined}"
            )
        d = int(part.proj.weight.shape[0])
        found = (one for one in _LAYOUTS if all(getattr(part, layer, None) for layer in one))
        layers = next(found, {})
        sizes = {"proj": 1, **layers}.items()
        square = all(getattr(part, n).weight.shape == (k * d, d) for n, k in sizes)
        if not layers or not square or d % part.num_heads:
            raise ModelError(
                f"model {name_of(model)!r} has no square query, key, value and projection in "
                f"'{name}.attn', {undefined}"
            )
        yield f"{name}.attn", part, layers


def _z(d: int, entries: Entries, seed: int, block: int, what: str) -> np.ndarray:
    rng = numpy_rng(seed, "mimetic", block, what)
    if entries == "normal":
        return rng.standard_normal((d, d)) / math.sqrt(d)
    return rng.uniform(-1, 1, (d, d)) * math.sqrt(3 / d)

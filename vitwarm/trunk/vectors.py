"""The frozen vectors that stand for ids and positions, and how long they are.

Token and position vectors are tiny (norm 0.02 in the published recipe), so the first LayerNorm's
epsilon is felt: with e = 1e-6 it damps its input by sqrt(v / (v + e)), v = 2 * 0.02^2 / D, that is
to 0.90 at width 192 and 0.71 at width 768. The policy keeps that damping:
scale = 0.02 * sqrt(e / 1e-6). Above width 768, where nothing is published, scale also grows with
sqrt(D / 768): never more damping than ViT-B's. A token without a position vector (rotary or
relative positions alone) gets sqrt(2) of that, so that v stays. Where no norm stands before the
first attention (post-norm blocks), tokens enter with unit variance per channel, which is what a
norm would give.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitwarm.seeding import numpy_rng

PUBLISHED_SCALE = 0.02
PUBLISHED_EPS = 1e-6
WIDEST_PUBLISHED = 768


def published_scale(eps: float, width: int, *, n_vectors: int = 2) -> float:
    """Returns the norm of each vector of a token that keeps the published damping.

    Args:
        eps: epsilon of the first norm that the tokens meet.
        width: D of the model.
        n_vectors: 2: a token is the sum of its id's vector and its position's; 1: of its id alone.
    Source: the authors' code for 0.02 at 1e-6; epsilon, widths above 768 and tokens without a
        position vector are our choice.
    """
    wide = math.sqrt(max(width, WIDEST_PUBLISHED) / WIDEST_PUBLISHED)
    return PUBLISHED_SCALE * math.sqrt(eps / PUBLISHED_EPS) * wide * math.sqrt(2 / n_vectors)


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

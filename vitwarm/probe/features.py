"""What frozen features know: read out by a linear map, by neighbours, and likened to others' (CKA).

No steps, no learning rate, no order of the images: the same features give the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

#: Penalties that are tried, relative to features of variance 1 and to the number of samples.
PENALTIES = tuple(10.0**k for k in range(-5, 4))
#: Neighbours that vote, and the temperature of their votes. Wu et al. 2018; Caron et al. 2021.
NEIGHBOURS, TEMPERATURE = 20, 0.07
_CHUNK = 1024


@dataclass(frozen=True)
class LinearMap:
    """What a ridge regression found."""

    weight_DK: Tensor
    bias_K: Tensor
    penalty: float

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Returns float64 [N, K]."""
        return x_ND.double() @ self.weight_DK + self.bias_K


class Ridge:
    """Ridge regression from sums over samples, which may come in parts; float64 throughout."""

    def __init__(self, n_features: int, n_targets: int) -> None:
        """Starts with no samples."""
        zeros = partial(torch.zeros, dtype=torch.float64)
        self.n: Any = zeros(())
        self.x_D, self.xx_DD = zeros(n_features), zeros(n_features, n_features)
        self.y_K, self.yy_K = zeros(n_targets), zeros(n_targets)
        self.xy_DK = zeros(n_features, n_targets)

    def add(self, x_ND: Tensor, y_NK: Tensor, weight_N: Tensor | None = None) -> None:
        """Takes in samples; a sample of weight 2 counts as two."""
        x_ND, y_NK = x_ND.double(), y_NK.double()
        weight_N = torch.ones(len(x_ND)) if weight_N is None else weight_N
        weight_N1 = weight_N.double()[:, None]
        self.n += weight_N1.sum()
        self.x_D += (weight_N1 * x_ND).sum(dim=0)
        self.y_K += (weight_N1 * y_NK).sum(dim=0)
        self.xx_DD += x_ND.T @ (weight_N1 * x_ND)
        self.xy_DK += x_ND.T @ (weight_N1 * y_NK)
        self.yy_K += (weight_N1 * y_NK.square()).sum(dim=0)

    def fit(self) -> LinearMap:
        """Returns the map on standardised features whose penalty has the least generalised error.

        Source: Golub, Heath & Wahba 1979 (generalised cross-validation): the mean squared error
        over (1 - effective parameters / samples)^2.
        """
        mean_D, mean_K = self.x_D / self.n, self.y_K / self.n
        covariance_DD = self.xx_DD / self.n - mean_D.outer(mean_D)
        scale_D = covariance_DD.diagonal().clamp_min(0).sqrt()
        # A feature that does not vary says nothing; its rounding errors must not be blown up.
        floor = 1e-7 * torch.maximum(mean_D.abs().max(), scale_D.max())
        inverse_D = torch.where(scale_D > floor, 1 / scale_D, 0.0)
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD * inverse_D.outer(inverse_D))
        values_D = values_D.clamp_min(0)
        both_DK = inverse_D[:, None] * (self.xy_DK / self.n - mean_D.outer(mean_K))
        turned_DK = vectors_DD.T @ both_DK
        variance = float((self.yy_K / self.n - mean_K.square()).sum())

        def error(penalty: float) -> float:
            found_DK = turned_DK / (values_D + penalty)[:, None]
            explained = (2 * turned_DK - values_D[:, None] * found_DK) * found_DK
            free = 1 - float((1 + (values_D / (values_D + penalty)).sum()) / self.n)
            return max(variance - float(explained.sum()), 0.0) / free**2

        penalty = min(PENALTIES, key=error)
        weight_DK = inverse_D[:, None] * (vectors_DD @ (turned_DK / (values_D + penalty)[:, None]))
        return LinearMap(weight_DK, mean_K - mean_D @ weight_DK, penalty)


def probe_percent(x_ND: Tensor, labels_N: Tensor, is_fit_N: Tensor) -> float:
    """Returns the top-1 of a linear map onto one-hot classes, on what it was not fitted to.

    Args:
        labels_N: int64, from 0 on.
        is_fit_N: bool; the others are for the test.
    """
    ridge = Ridge(x_ND.shape[1], int(labels_N.max()) + 1)
    targets_NC = torch.nn.functional.one_hot(labels_N, len(ridge.y_K))
    ridge.add(x_ND[is_fit_N], targets_NC[is_fit_N])
    guesses_N = ridge.fit()(x_ND[~is_fit_N]).argmax(dim=1)
    return 100 * float((guesses_N == labels_N[~is_fit_N]).double().mean())


def neighbour_percent(x_ND: Tensor, labels_N: Tensor, is_fit_N: Tensor) -> float:
    """Returns the top-1 of a vote of the nearest fitted images by cosine, weighted by exp(cos / T).

    Args: as `probe_percent`.
    """
    unit_ND = torch.nn.functional.normalize(x_ND.float(), dim=1)
    known_ND, known_N = unit_ND[is_fit_N], labels_N[is_fit_N]
    k = min(NEIGHBOURS, len(known_N))
    hits = 0
    for asked_ND, true_N in zip(
        unit_ND[~is_fit_N].split(_CHUNK), labels_N[~is_fit_N].split(_CHUNK), strict=True
    ):
        near = (asked_ND @ known_ND.T).topk(k, dim=1)
        votes_NC = torch.zeros(len(asked_ND), int(labels_N.max()) + 1)
        votes_NC.scatter_add_(1, known_N[near.indices], (near.values / TEMPERATURE).exp())
        hits += int((votes_NC.argmax(dim=1) == true_N).sum())
    return 100 * hits / int((~is_fit_N).sum())


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float | None:
    """Returns the linear CKA of two descriptions of the same n >= 4 images.

    1: alike up to rotation and one scale. 0 on average where they have nothing to do with each
    other, whatever n and the widths are (a single reading may fall below): the estimator without
    bias, because the plain one grows with width / n.

    Returns: None where one of them does not vary.
    Source: Kornblith et al. 2019, eq. 3, with HSIC as Song et al. 2012, eq. 5, estimate it (so
        Nguyen, Raghu & Kornblith 2021).
    """
    grams = [_gram(x_ND), _gram(y_NE)]
    own = [_hsic(gram_NN, gram_NN) for gram_NN in grams]
    return None if min(own) <= 0 else _hsic(*grams) / math.sqrt(own[0] * own[1])


def _gram(x_ND: Tensor) -> Tensor:
    """Inner products with a diagonal of zeros, of features scaled to 1 so that none overflow."""
    x_ND = x_ND.double() - x_ND.double().mean(dim=0)
    largest = x_ND.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    x_ND = x_ND / largest
    return (x_ND @ x_ND.T).fill_diagonal_(0)


def _hsic(a_NN: Tensor, b_NN: Tensor) -> float:
    """Up to the factor 1 / (n (n - 3)), which cancels."""
    n = len(a_NN)
    a_N, b_N = a_NN.sum(dim=0), b_NN.sum(dim=0)
    found = (a_NN * b_NN).sum() + a_N.sum() * b_N.sum() / ((n - 1) * (n - 2))
    return float(found - 2 / (n - 2) * (a_N @ b_N))

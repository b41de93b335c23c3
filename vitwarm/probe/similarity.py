"""Whether two networks describe the same images alike: linear CKA between their features."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    if min(own) <= 0:
        return None
    return _hsic(*grams) / math.sqrt(own[0] * own[1])


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

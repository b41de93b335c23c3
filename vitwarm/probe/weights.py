"""What the weights of a block tell without any image: norms, spectra and effective ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitwarm.trunk.inside import head_matrices

#: Parts of a block whose norms are shown apart; `total` is of all its weights.
PARTS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def weight_figures(block: nn.Module) -> dict[str, Any]:
    """Returns `norms` by part, and rank and spectrum of the QK and VO products, head by head."""
    heads = head_matrices(block)
    found: dict[str, Any] = {"norms": block_norms(block)}
    for name, left_HFD, right_HFD in (
        ("qk", heads.q_HFD, heads.k_HFD),  # a score is x (WqT Wk) yT
        ("vo", heads.o_HDF.mT, heads.v_HFD),  # what a head adds is (Wo Wv) x
    ):
        spectrum_HF = singular_values(left_HFD, right_HFD)
        found[f"{name}_effective_rank"] = effective_rank(spectrum_HF).tolist()
        found[f"{name}_spectrum"] = spectrum_HF.tolist()
    return found


def block_norms(block: nn.Module) -> dict[str, float]:
    """Returns the Euclidean norms of a block's matrices (without biases), and of all it has."""
    modules = dict(block.named_modules())
    norms = {
        part: float(modules[name].weight.detach().double().norm())
        for part, name in PARTS.items()
        if isinstance(getattr(modules.get(name), "weight", None), Tensor)
    }
    total = torch.stack([p.detach().double().square().sum() for p in block.parameters()]).sum()
    return {**norms, "total": float(total.sqrt())}


def singular_values(left_HFD: Tensor, right_HFD: Tensor) -> Tensor:
    """Returns the singular values of left^T right, head by head, largest first; float64 [H, F].

    They are those of the small product of both QR factors: a head's product has D x D numbers and
    at most F values that are not zero.
    """
    left_HKF = torch.linalg.qr(left_HFD.double().cpu().mT, mode="r").R
    right_HKF = torch.linalg.qr(right_HFD.double().cpu().mT, mode="r").R
    values: Tensor = torch.linalg.svdvals(left_HKF @ right_HKF.mT)
    return values


def effective_rank(spectrum: Tensor) -> Tensor:
    """Returns exp(entropy of the singular values as shares of their sum), over the last axis.

    Between 1 and the number of values; 0 where all are zero.
    Source: Roy & Vetterli 2007, eq. 3.
    """
    total = spectrum.sum(dim=-1, keepdim=True)
    shares = spectrum / total.clamp_min(torch.finfo(spectrum.dtype).tiny)
    return torch.where(total[..., 0] > 0, torch.special.entr(shares).sum(dim=-1).exp(), 0.0)

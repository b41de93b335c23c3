"""What a block tells: where its heads look, and the norms, spectra and ranks of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitwarm.trunk.inside import BlockView, head_matrices

#: A patch token is an outlier where its norm exceeds the median of its image's by this factor. In
#: the models of Darcet et al. 2024 outliers have several times the norm of other tokens; their own
#: cut is absolute and differs by model.
OUTLIER_FACTOR = 3.0
#: Parts of a block whose norms are shown apart; `total` is of all its weights.
PARTS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def patch_distances(rows: int, columns: int) -> Tensor:
    """Returns the distances between the centres of patches, in patches, float32 [P, P]."""
    places_PX = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cdist(places_PX, places_PX)


def find_outliers(patches_BPD: Tensor) -> Tensor:
    """Returns which patch tokens are outliers in their image, bool [B, P]."""
    norms_BP = patches_BPD.norm(dim=-1)
    outliers_BP: Tensor = norms_BP > OUTLIER_FACTOR * norms_BP.median(dim=-1, keepdim=True).values
    return outliers_BP


def attention_figures(view: BlockView, distances_PP: Tensor, n_prefix: int) -> dict[str, Tensor]:
    """Returns one batch's sums over images, each float64 [H] but `outlier_tokens`, [1].

    Of an image: means over the queries that its patches ask.

    Args:
        distances_PP: from `patch_distances`.
        n_prefix: tokens before the patches.
    """
    rows_BHPT = view.attention_BHTT[:, :, n_prefix:]
    to_patches_BHPP = rows_BHPT[..., n_prefix:]
    held_BHP = to_patches_BHPP.sum(dim=-1)
    tiny = torch.finfo(held_BHP.dtype).tiny
    far_BHP = (to_patches_BHPP * distances_PP).sum(dim=-1) / held_BHP.clamp_min(tiny)
    outliers_BP = find_outliers(view.entered_BTD[:, n_prefix:])
    per_image = {
        "attention_distance": far_BHP.mean(dim=-1),
        "attention_entropy": torch.special.entr(rows_BHPT).sum(dim=-1).mean(dim=-1),
        "prefix_share": 1 - held_BHP.mean(dim=-1),
        "outlier_share": (to_patches_BHPP * outliers_BP[:, None, None]).sum(dim=-1).mean(dim=-1),
        "outlier_tokens": outliers_BP.float().mean(dim=-1, keepdim=True),
    }
    return {name: value_BH.cpu().double().sum(dim=0) for name, value_BH in per_image.items()}


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
    left_HKF, right_HKF = (
        torch.linalg.qr(one_HFD.double().cpu().mT, mode="r").R for one_HFD in (left_HFD, right_HFD)
    )
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

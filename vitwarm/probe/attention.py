"""Where the heads of a block look: how far, how widely, and how much at tokens that carry nothing.

All of it is over the queries that patches ask, and means over patches and images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitwarm.trunk.inside import BlockView

#: A patch token is an outlier where its norm exceeds the median of its image's by this factor. In
#: the models of Darcet et al. 2024 outliers have several times the norm of other tokens; their own
#: cut is absolute and differs by model.
OUTLIER_FACTOR = 3.0


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

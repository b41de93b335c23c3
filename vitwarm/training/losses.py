"""The loss of an image batch, and the sums of an evaluation: pure functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitwarm.augment import Targets


class LossParts(NamedTuple):
    """What a micro-batch contributes."""

    loss: Tensor
    """Mean over the images, in nats per image (BCE: per image and class). A scalar."""


def image_loss(
    logits_BC: Tensor, targets: Targets, *, smoothing: float = 0.0, bce: bool = False
) -> LossParts:
    """Compares logits with (mixed) labels.

    Args:
        logits_BC: one row per image, any float dtype; the loss is computed in float32.
        smoothing: share of the target that is spread evenly over all classes.
        bce: a binary question per class; every label that shows in a mixed image counts fully.
    Source: softmax: timm's SoftTargetCrossEntropy. BCE: DeiT-III (arXiv 2204.07118, Sec. 3.1 and
        its code, which sets mixed targets above zero to one).
    """
    logits_BC = logits_BC.float()
    if bce:
        present = torch.zeros_like(logits_BC).scatter_(1, targets.labels[:, None], 1.0)
        if targets.partners is not None and targets.shares is not None:
            shown = (targets.shares < 1).to(present.dtype)[:, None]
            partner = torch.zeros_like(logits_BC).scatter_(1, targets.partners[:, None], shown)
            own = (targets.shares > 0).to(present.dtype)[:, None]
            present = torch.maximum(present * own, partner)
        present = present * (1 - smoothing) + smoothing / logits_BC.shape[1]
        return LossParts(F.binary_cross_entropy_with_logits(logits_BC, present))
    if targets.partners is None:
        return LossParts(F.cross_entropy(logits_BC, targets.labels, label_smoothing=smoothing))
    soft = targets.soft(logits_BC.shape[1], smoothing=smoothing)
    return LossParts(F.cross_entropy(logits_BC, soft))


def evaluation_sums(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Returns [loss, top-1 hits, top-5 hits, images], summed; float64.

    A label among five classes or fewer is always a top-5 hit.
    """
    logits_BC = logits_BC.float()
    loss = F.cross_entropy(logits_BC, labels_B, reduction="sum")
    best = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
    hits = best == labels_B[:, None]
    images = torch.full((), len(labels_B), dtype=torch.float64, device=logits_BC.device)
    return torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double(), images])

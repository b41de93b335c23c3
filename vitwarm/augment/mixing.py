"""Mixup, CutMix and random erasing, and the soft targets that come of mixing.

Partners are positions 2k and 2k + 1 of the global order: they share a micro-batch wherever that
has an even size, so no rank or accumulation boundary cuts a pair. (timm mirrors the batch instead,
which ties partners to its size.) Both images of a pair get the same share and the same box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitwarm.augment.draws import Draws, symmetric_beta

ERASE_AREA = (0.02, 1 / 3)  # share of the image; timm's RandomErasing
ERASE_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
ERASE_ATTEMPTS = 10


class Targets(NamedTuple):
    """What an image shows: `share` of its own label, the rest of its partner's."""

    labels: Tensor
    """int64 [b]."""
    partners: Tensor | None = None
    """int64 [b]; None where nothing is mixed."""
    shares: Tensor | None = None
    """float32 [b] in [0, 1]; None where nothing is mixed."""

    def part(self, some: slice) -> Targets:
        """Returns the targets of some of the images."""
        if self.partners is None or self.shares is None:
            return Targets(self.labels[some])
        return Targets(self.labels[some], self.partners[some], self.shares[some])

    def soft(self, n_classes: int, *, smoothing: float = 0.0) -> Tensor:
        """Returns the targets as probabilities, float32 [b, n_classes]."""
        off = smoothing / n_classes
        soft = torch.full((len(self.labels), n_classes), off, device=self.labels.device)
        if self.partners is None or self.shares is None:
            own = torch.full_like(soft[:, :1], 1 - smoothing)
            return soft.scatter_add_(1, self.labels[:, None], own)
        own = (1 - smoothing) * self.shares[:, None]
        soft.scatter_add_(1, self.labels[:, None], own)
        return soft.scatter_add_(1, self.partners[:, None], 1 - smoothing - own)


class Mix(NamedTuple):
    """How each pair of a batch is mixed."""

    boxes: np.ndarray
    """float32 [b / 2, 4]: top, bottom, left, right; the whole image for mixup."""
    weights: np.ndarray
    """float32 [b / 2]: weight of the partner inside the box."""
    shares: np.ndarray
    """float32 [b]: share of an image's own label."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup (Beta-distributed shares) and CutMix (a box of the partner), per pair of images."""

    mixup: float = 0.0
    """Alpha; 0: off."""
    cutmix: float = 0.0
    """Alpha; 0: off."""
    prob: float = 1.0
    switch_prob: float = 0.5
    """Share of CutMix where both are on."""

    def plan(self, seed: int, positions: np.ndarray, *, height: int, width: int) -> Mix:
        """Draws the mixing of a batch.

        Args:
            positions: int64 [b], in pairs 2k, 2k + 1.
        Raises: ValueError: positions that cut a pair.
        """
        whole = len(positions) % 2 == 0
        if not whole or (positions[::2] % 2).any() or (positions[1::2] - positions[::2] != 1).any():
            raise ValueError(f"positions {positions[:4]}... of {len(positions)} images cut a pair")
        draws = Draws(seed, "mixing", positions[::2] // 2)
        switch, applied, beta, y, x = draws.uniform("switch", "applied", "beta", "y", "x")
        if self.mixup > 0 and self.cutmix > 0:
            cut = switch < self.switch_prob
        else:
            cut = np.full(len(draws), self.cutmix > 0)
        share = np.ones(len(draws))
        for chosen, alpha in ((cut, self.cutmix), (~cut, self.mixup)):
            if chosen.any():
                share[chosen] = symmetric_beta(beta[chosen], alpha)
        share[applied >= self.prob] = 1.0

        side = np.sqrt(1 - share)
        box_height, box_width = (height * side).astype(int), (width * side).astype(int)
        row, column = np.floor(y * height).astype(int), np.floor(x * width).astype(int)
        top, left = row - box_height // 2, column - box_width // 2
        edges = np.stack([top, row + (box_height + 1) // 2, left, column + (box_width + 1) // 2], 1)
        boxes = np.clip(edges, 0, [height, height, width, width])
        area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        boxes[~cut] = (0, height, 0, width)
        share = np.where(cut, 1 - area / (height * width), share)  # a box cut off at the border
        weights = np.where(cut, 1.0, 1 - share)
        return Mix(
            boxes.astype(np.float32),
            weights.astype(np.float32),
            np.repeat(share, 2).astype(np.float32),
        )


def mix_images(x: Tensor, boxes: Tensor, weights: Tensor) -> Tensor:
    """Mixes neighbours of a batch in place; x: float [b, 3, H, W], b even."""
    pairs = x.unflatten(0, (-1, 2))
    if x.device.type == "cpu":  # the same sums as below, inside the boxes alone
        for pair, box, weight in zip(pairs, boxes.int().tolist(), weights.tolist(), strict=True):
            if weight > 0:
                first, second = pair[..., box[0] : box[1], box[2] : box[3]]
                towards = (second - first).mul_(weight)
                first.add_(towards)
                second.sub_(towards)
        return x
    first, second = pairs[:, 0], pairs[:, 1]
    amount = _inside(boxes, x.shape[2], x.shape[3]).float() * weights[:, None, None, None]
    towards = (second - first).mul_(amount)
    first.add_(towards)
    second.sub_(towards)
    return x


class Erasure(NamedTuple):
    """Which images lose which box."""

    which: np.ndarray
    """int64 [n]."""
    boxes: np.ndarray
    """float32 [n, 4]: top, bottom, left, right."""
    noise: np.ndarray
    """float64 [n] in [0, 1): where in the bank of noise each image's begins."""


def plan_erasing(draws: Draws, probability: float, *, height: int, width: int) -> Erasure:
    """Draws which images are erased, and where (timm's RandomErasing, one box)."""
    index = np.flatnonzero(draws.uniform("erase/applied")[0] < probability)
    draws = draws.take(index)
    tries = range(ERASE_ATTEMPTS)
    low, high = ERASE_AREA
    area = low + (high - low) * draws.uniform(*(f"erase/area{k}" for k in tries))
    low, high = ERASE_LOG_ASPECT
    aspect = np.exp(low + (high - low) * draws.uniform(*(f"erase/aspect{k}" for k in tries)))
    heights = np.rint(np.sqrt(area * height * width * aspect))
    widths = np.rint(np.sqrt(area * height * width / aspect))
    fits = (heights < height) & (widths < width)
    at = fits.argmax(axis=0), np.arange(len(index))  # the first attempt that fits
    box_height, box_width = heights[at], widths[at]
    top = draws.integers("erase/top", height - box_height + 1)
    left = draws.integers("erase/left", width - box_width + 1)
    boxes = np.stack([top, top + box_height, left, left + box_width], axis=1)
    found = fits.any(axis=0)
    noise = draws.uniform("erase/noise")[0]
    return Erasure(index[found], boxes[found].astype(np.float32), noise[found])


def erase(x: Tensor, index: Tensor, boxes: Tensor, starts: Tensor, bank: Tensor) -> Tensor:
    """Fills boxes of some images with noise, in place.

    Args:
        x: float [b, c, H, W], normalised.
        index, boxes: as in Erasure.
        starts: int64 [n], below len(bank) - 3 H W.
        bank: standard normal numbers, float32, long enough that images hardly ever share noise.
    """
    noise = bank.unfold(0, x[0].numel(), 1)
    if x.device.type == "cpu":
        places = zip(index.tolist(), boxes.int().tolist(), starts.tolist(), strict=True)
        for k, (top, bottom, left, right), start in places:
            box = (slice(None), slice(top, bottom), slice(left, right))
            x[k][box] = noise[start].view(x.shape[1:])[box]
        return x
    values = noise[starts].view(-1, *x.shape[1:])
    inside = _inside(boxes, x.shape[2], x.shape[3])
    return x.index_copy_(0, index, torch.where(inside, values, x.index_select(0, index)))


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool [n, 1, H, W]: which pixels lie in each image's box."""
    rows = torch.arange(height, device=boxes.device)[:, None]
    columns = torch.arange(width, device=boxes.device)
    top, bottom, left, right = boxes[:, :, None, None, None].unbind(1)
    return ((rows >= top) & (rows < bottom)) & ((columns >= left) & (columns < right))

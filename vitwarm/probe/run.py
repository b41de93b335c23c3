"""Goes through models and images once each, and gathers what every probe finds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitwarm.augment import normalise
from vitwarm.probe.blocks import attention_figures, patch_distances, weight_figures
from vitwarm.probe.features import linear_cka, neighbour_percent, probe_percent
from vitwarm.probe.figures import definitions
from vitwarm.probe.images import ProbeImages, Scenes
from vitwarm.probe.models import Probed
from vitwarm.probe.spatial import SpatialProbe
from vitwarm.records import code_version
from vitwarm.shards.bars import make_bar
from vitwarm.trunk import model_facts, patch_grid
from vitwarm.trunk.inside import BlockView, watching

#: Attention matrices of one block of a batch stay below so many numbers.
_MOST_NUMBERS = 1 << 25
_MOST_IMAGES = 64


def run_probe(
    models: list[Probed], images: ProbeImages, *, device: torch.device
) -> list[dict[str, Any]]:
    """Probes models side by side; returns one JSON object for each.

    Raises: ShardError: images, masks or boxes that cannot be used.
    """
    scenes = Scenes(images)
    passes = [Pass(probed, images, scenes, device) for probed in models]
    for way in passes:
        way.go()
    founds = [way.found() for way in passes]
    for (a, one), (b, other) in itertools.combinations(zip(passes, founds, strict=True), 2):
        if a.probed.depth == b.probed.depth:
            found = [linear_cka(x, y) for x, y in zip(a.features, b.features, strict=True)]
            one["cka"][b.probed.label] = other["cka"][a.probed.label] = found
            continue
        note = (
            f"{a.probed.label} has {a.probed.depth} blocks and {b.probed.label} has "
            f"{b.probed.depth}: CKA compares block with block, so it is not defined for the two."
        )
        one["notes"].append(note)
        other["notes"].append(note)
    return founds


class Pass:
    """One model's way through all images, and what was seen on it.

    Attributes:
        features: float32 [depth, n, D], means of the patch tokens that leave each block.
        pooled: float32 [n, D] in parts, what the model's own head would see.
    """

    def __init__(
        self, probed: Probed, images: ProbeImages, scenes: Scenes, device: torch.device
    ) -> None:
        self.probed, self.images, self.device = probed, images, device
        self.grid, self.n_prefix = patch_grid(probed.vit), probed.vit.num_prefix_tokens
        self.distances_PP = patch_distances(*self.grid).to(device)
        self.n_tokens = len(self.distances_PP) + self.n_prefix
        self.sums: list[dict[str, Tensor]] = [{} for _ in range(probed.depth)]
        self.features = torch.empty(probed.depth, len(images), probed.vit.embed_dim)
        self.pooled: list[Tensor] = []
        self.now = range(0)
        self.spatial = SpatialProbe(scenes, probed.vit)

    @torch.no_grad()
    def go(self) -> None:
        """Shows the model all images, in batches."""
        vit = self.probed.vit.to(self.device)
        step = _MOST_NUMBERS // (vit.blocks[0].attn.num_heads * self.n_tokens**2)
        step = max(1, min(_MOST_IMAGES, step))
        std = torch.tensor(self.probed.std, device=self.device)
        shift = -torch.tensor(self.probed.mean, device=self.device) / std
        pixels = self.images.pixels(self.probed.size)
        bar = make_bar(self.probed.label, total=len(pixels), unit="image")
        with watching(vit, self._look):
            for first in range(0, len(pixels), step):
                batch = pixels[first : first + step].to(self.device)
                self.now = range(first, first + len(batch))
                left_BTD = vit.forward_features(normalise(batch, 1 / (255 * std), shift))
                self.pooled.append(vit.forward_head(left_BTD, pre_logits=True).float().cpu())
                self.spatial.take(left_BTD[:, self.n_prefix :], self.now)
                bar.update(len(batch))
        bar.close()
        self.probed.vit.cpu()

    def _look(self, view: BlockView) -> None:
        total = self.sums[view.number]
        for name, value_H in attention_figures(view, self.distances_PP, self.n_prefix).items():
            total[name] = total.get(name, 0) + value_H
        patches_BPD = view.left_BTD[:, self.n_prefix :]
        self.features[view.number, self.now.start : self.now.stop] = patches_BPD.mean(dim=1).cpu()
        if view.number == self.probed.depth - 1:
            self.spatial.look(view, self.now)

    def found(self) -> dict[str, Any]:
        """Returns the model's JSON object, its CKA with others still empty."""
        vit, images = self.probed.vit, self.images
        labels = torch.from_numpy(np.unique(images.labels, return_inverse=True)[1])
        is_fit = torch.from_numpy(images.is_fit)
        blocks = []
        for block, total, features in zip(vit.blocks, self.sums, self.features, strict=True):
            means = {name: (value_H / len(images)).tolist() for name, value_H in total.items()}
            top1 = probe_percent(features, labels, is_fit)
            blocks.append({**means, **weight_figures(block), "linear_probe": top1})
        return {
            "format_version": 1,
            "label": self.probed.label,
            "start": self.probed.start,
            **model_facts(vit),
            "code_version": code_version(),
            "images": images.facts(),
            "grid": list(self.grid),
            "uniform": {
                "attention_distance": float(self.distances_PP.mean()),
                "attention_entropy": float(np.log(self.n_tokens)),
            },
            "definitions": definitions(),
            "blocks": blocks,
            "knn_top1": neighbour_percent(torch.cat(self.pooled), labels, is_fit),
            **self.spatial.found(),
            "cka": {},
        }

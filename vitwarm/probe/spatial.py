"""What frozen patch tokens know of where things are: linear segmentation, boxes found blindly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.ops import box_iou

from vitwarm.probe.features import Ridge
from vitwarm.probe.images import IGNORED, Scenes
from vitwarm.trunk import patch_grid
from vitwarm.trunk.inside import BlockView

#: LOST grows its seed by the 100 least connected of the some 700 patches of a VOC image.
LOST_SHARE = 1 / 7
#: A found box counts where its overlap with a true one, over their union, is at least this (CorLoc:
#: Deselaers et al. 2010).
LEAST_OVERLAP = 0.5


class SpatialProbe:
    """Gathers, batch by batch, what segmentation and localisation need."""

    def __init__(self, scenes: Scenes, vit: Any) -> None:
        """Starts with nothing seen of a plain timm ViT."""
        self.scenes, self.grid = scenes, patch_grid(vit)
        self.size = int(vit.patch_embed.img_size[0])
        self.n_prefix, self.has_class = vit.num_prefix_tokens, vit.cls_token is not None
        self.ridge = Ridge(vit.embed_dim, scenes.n_classes)
        self.held_out: dict[int, Tensor] = {}
        self.hits: dict[str, list[bool]] = {"attention": [], "lost": [], "whole": []}

    def look(self, view: BlockView, places: range) -> None:
        """Finds a box in each image, from the last block's attention and from its keys."""
        n = self.n_prefix
        heads_BTT = view.attention_BHTT.mean(dim=1)
        asked = heads_BTT[:, 0] if self.has_class else heads_BTT[:, n:].mean(dim=1)
        maps_BP = asked[:, n:].cpu().numpy()
        keys_BPD = view.keys_BHTF[:, :, n:].transpose(1, 2).flatten(2).cpu()
        for map_P, keys_PD, place in zip(maps_BP, keys_BPD, places, strict=True):
            true = self.scenes.boxes.get(place)
            if true is not None:
                boxes = {
                    "attention": attended_box(map_P.reshape(self.grid)),
                    "lost": lost_box(keys_PD, self.grid),
                    "whole": np.array([0.0, 0, 1, 1]),
                }
                for name, box in boxes.items():
                    self.hits[name].append(overlaps(box, true).max() >= LEAST_OVERLAP)

    def take(self, patches_BPD: Tensor, places: range) -> None:
        """Takes in the patch tokens behind the final norm: to fit on, or to keep for the test."""
        masked = set(self.scenes.masked)
        for patches_PD, place in zip(patches_BPD.cpu(), places, strict=True):
            if place in masked and self.scenes.images.is_fit[place]:
                mask_SS = self.scenes.mask(place, self.size)
                shares_PK, weight_P = patch_targets(mask_SS, self.grid, self.scenes.n_classes)
                self.ridge.add(patches_PD, shares_PK, weight_P)
            elif place in masked:
                self.held_out[place] = patches_PD

    def found(self) -> dict[str, Any]:
        """Returns `miou` and the three CorLocs in percent, None where there was nothing to see, and
        `notes` on why.
        """
        why = self._why_no_segmentation()
        return {
            "miou": None if why else self._miou(),
            **{
                f"corloc_{name}": 100 * sum(hits) / len(hits) if hits else None
                for name, hits in self.hits.items()
            },
            "n_boxed": len(self.hits["whole"]),
            "n_masked": len(self.scenes.masked),
            "n_masked_test": len(self.held_out),
            "notes": [f"Segmentation is left out: {why}."] if why and self.scenes.masked else [],
        }

    def _why_no_segmentation(self) -> str:
        masked, is_fit = self.scenes.masked, self.scenes.images.is_fit
        n_fit = sum(bool(is_fit[place]) for place in masked)
        if not n_fit or n_fit == len(masked):
            return (
                f"of {len(masked):,} images with masks {n_fit:,} are to learn from and "
                f"{len(masked) - n_fit:,} to test on; give more images with masks"
            )
        if self.scenes.n_classes < 2:
            return f"the masks hold one class alone, beside pixels of {IGNORED} that do not count"
        counted = (self.scenes.mask(place, self.size) != IGNORED for place in self.held_out)
        if not any(mask_SS.any() for mask_SS in counted):
            return f"every pixel of the masks to test on is {IGNORED}, which does not count"
        return ""

    def _miou(self) -> float:
        classify, k = self.ridge.fit(), self.scenes.n_classes
        counts_KK = np.zeros((k, k), np.int64)
        for place, patches_PD in self.held_out.items():
            scores_KRC = classify(patches_PD).float().T.unflatten(1, self.grid)
            guesses_SS = torch.nn.functional.interpolate(
                scores_KRC[None], size=(self.size, self.size), mode="bilinear"
            )[0].argmax(dim=0)
            counts_KK += confusion(self.scenes.mask(place, self.size), guesses_SS.numpy(), k)
        return mean_iou(counts_KK)


def patch_targets(
    mask_SS: np.ndarray, grid: tuple[int, int], n_classes: int
) -> tuple[Tensor, Tensor]:
    """Returns each patch's shares of the classes, and the share of its pixels that count.

    Returns: float64 [P, K], whose rows sum to 1 (to 0 where no pixel counts), and float64 [P].
    """
    rows, columns = (np.arange(len(mask_SS)) * n // len(mask_SS) for n in grid)
    patch_SS = rows[:, None] * grid[1] + columns
    counted = mask_SS != IGNORED
    n_patches = grid[0] * grid[1]
    places = patch_SS[counted] * n_classes + mask_SS[counted]
    counts_PK = np.bincount(places, minlength=n_patches * n_classes).reshape(n_patches, n_classes)
    total_P = counts_PK.sum(axis=1)
    shares_PK = counts_PK / np.maximum(total_P, 1)[:, None]
    return torch.from_numpy(shares_PK), torch.from_numpy(total_P / np.bincount(patch_SS.ravel()))


def confusion(true: np.ndarray, guessed: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts pixels by true and guessed class, those left out that do not count; int64 [K, K]."""
    counted = true != IGNORED
    places = true[counted].astype(np.int64) * n_classes + guessed[counted]
    counts: np.ndarray = np.bincount(places, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def mean_iou(counts_KK: np.ndarray) -> float:
    """Returns the mean, in percent, of both / either over the classes that are true or guessed."""
    both = np.diag(counts_KK)
    either = counts_KK.sum(axis=0) + counts_KK.sum(axis=1) - both
    return 100 * float((both[either > 0] / either[either > 0]).mean())


def attended_box(map_RC: np.ndarray) -> np.ndarray:
    """Returns the box around the most attended patch and what is connected with it.

    Kept are the patches with more attention than the mean patch. (The 60 % of the mass that Caron
    et al. 2021 keep for pictures cut an object in two whose patches are attended to alike.)

    Returns: x0 y0 x1 y1 as shares of the image's sides.
    """
    top = int(map_RC.argmax())
    kept_RC = map_RC > map_RC.mean()
    kept_RC.flat[top] = True  # all alike: nothing exceeds the mean
    return _box_around(kept_RC, top)


def lost_box(keys_PD: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Returns the box that LOST finds: around the patch that is like the fewest others.

    Returns: as `attended_box`.
    Source: Simeoni et al. 2021, eqs. 1 to 5, on the keys of all heads.
    """
    alike_PP = keys_PD @ keys_PD.T
    n_friends_P = (alike_PP > 0).sum(dim=1)
    order = n_friends_P.argsort(stable=True)
    seed = int(order[0])
    candidates = order[: max(1, round(LOST_SHARE * len(order)))]
    grown = candidates[alike_PP[seed, candidates] > 0]
    kept_P = alike_PP[grown].sum(dim=0) > 0
    kept_P[seed] = True  # as it is in theory; rounding and keys of zero must not lose it
    return _box_around(kept_P.numpy().reshape(grid), seed)


def _box_around(kept_RC: np.ndarray, patch: int) -> np.ndarray:
    """Of the connected region of kept patches (by their sides) that a patch lies in."""
    regions, _ = ndimage.label(kept_RC)
    rows, columns = ndimage.find_objects(regions)[regions.flat[patch] - 1]
    edges = np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)
    box: np.ndarray = edges / np.tile(kept_RC.shape[::-1], 2)
    return box


def overlaps(box: np.ndarray, others_K4: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of a box with each of k others, float64 [k]."""
    return np.asarray(box_iou(torch.from_numpy(box)[None], torch.from_numpy(others_K4))[0])

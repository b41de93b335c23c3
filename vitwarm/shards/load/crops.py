"""Crops as pure functions of (seed, epoch, row), however the images come; and cutting them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from vitwarm.seeding import hash_bits, mix_u64

#: A JPEG is decoded at a half (a quarter, an eighth) of its size where the crop then still has so
#: many times the pixels asked for. On 250 ImageNet images at 64 to 112 px the result differs from a
#: whole decoding by 0.9 / 255 on average with 1.5, by 1.5 / 255 with 1.
SCALE_MARGIN = 1.5

#: Draws of a random crop before it falls back to a centred one (torchvision's number).
ATTEMPTS = 10

#: Of the draws that one crop can need: a flip, two of `pad`, four per attempt of `rrc`.
_DRAW_KEYS = np.array([[hash_bits(k, "draw")] for k in range(3 + 4 * ATTEMPTS)], np.uint64)

#: Pixels of an image: of both sides, or height and width.
Size = int | tuple[int, int]


@dataclass(frozen=True)
class _Crop:
    size: Size

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class TrainCrop(_Crop):
    """A random crop, resized, and a random flip.

    `rrc`: torchvision's RandomResizedCrop (Szegedy 2014). `pad`: a box of the image's own size out
    of the image reflected at its edges by an eighth; boxes then may begin below zero.

    Crops much larger than `size` lie on the grid of the reduced decoding (see `reduction`), at most
    seven pixels from where torchvision has them.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mode: Literal["rrc", "pad"] = "rrc"

    def box(
        self, seed: int, epoch: int, row: int, height: int, width: int
    ) -> tuple[int, int, int, int, bool]:
        """Returns (top, left, height, width, flip) of one image's crop."""
        one = self.boxes(seed, np.array([epoch]), np.array([row]), height, width)[0]
        return int(one[0]), int(one[1]), int(one[2]), int(one[3]), bool(one[4])

    def boxes(
        self,
        seed: int,
        epochs: np.ndarray,
        rows: np.ndarray,
        heights: np.ndarray | int,
        widths: np.ndarray | int,
    ) -> np.ndarray:
        """Returns float32 [b, 5]: top, left, height, width, and 1 for a flip."""
        n = len(rows)
        heights = np.broadcast_to(np.asarray(heights, np.float64), n)
        widths = np.broadcast_to(np.asarray(widths, np.float64), n)
        key = hash_bits(seed, "crop")
        base = mix_u64(np.asarray(rows), key) ^ mix_u64(np.asarray(epochs), key ^ 1)
        out = np.empty((n, 5), np.float32)
        bits = mix_u64(base, _DRAW_KEYS)  # all draws of each stream, uniform in [0, 1): [draws, b]
        draw = (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
        out[:, 4] = draw[0] < self.hflip
        if self.mode == "pad":
            pad_h, pad_w = np.round(heights / 8), np.round(widths / 8)
            out[:, 0] = np.floor(draw[1] * (2 * pad_h + 1)) - pad_h
            out[:, 1] = np.floor(draw[2] * (2 * pad_w + 1)) - pad_w
            out[:, 2], out[:, 3] = heights, widths
            return out
        self._fallback(out, heights, widths)
        # All attempts at once, [ATTEMPTS, b] each: most of the time would go into the calls.
        u_area, u_aspect, u_top, u_left = draw[3:].reshape(ATTEMPTS, 4, n).transpose(1, 0, 2)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        area = heights * widths * (self.scale[0] + (self.scale[1] - self.scale[0]) * u_area)
        aspect = np.exp(low + (high - low) * u_aspect)
        box_w, box_h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
        fits = (box_w >= 1) & (box_w <= widths) & (box_h >= 1) & (box_h <= heights)
        some = np.flatnonzero(fits.any(axis=0))
        at = fits.argmax(axis=0)[some], some  # the first attempt that fits
        out[some, 0] = np.floor(u_top[at] * (heights[some] - box_h[at] + 1))
        out[some, 1] = np.floor(u_left[at] * (widths[some] - box_w[at] + 1))
        out[some, 2], out[some, 3] = box_h[at], box_w[at]
        grid = self.reduction(out)[:, None]
        out[:, :4] -= out[:, :4] % grid
        return out

    def reduction(self, boxes: np.ndarray) -> np.ndarray:
        """Returns by what each of `boxes` may be shrunk while decoding: 1, 2, 4 or 8; int64 [b]."""
        if self.mode == "pad":
            return np.ones(len(boxes), np.int64)
        least = [math.ceil(SCALE_MARGIN * side) for side in self.sides]
        room = (boxes[:, 2:4] // least).min(axis=1)
        return np.select([room >= 8, room >= 4, room >= 2], [8, 4, 2], 1)

    def _fallback(self, out: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> None:
        """Fills in the largest centred box whose aspect ratio is allowed."""
        aspect = widths / heights
        box_w = np.where(aspect > self.ratio[1], np.round(heights * self.ratio[1]), widths)
        box_h = np.where(aspect < self.ratio[0], np.round(widths / self.ratio[0]), heights)
        out[:, 0], out[:, 1] = (heights - box_h) // 2, (widths - box_w) // 2
        out[:, 2], out[:, 3] = box_h, box_w


@dataclass(frozen=True)
class EvalCrop(_Crop):
    """The image scaled until it covers sides of size / crop_pct pixels, then the centre of it.

    For a square torchvision's Resize and CenterCrop, otherwise timm's ResizeKeepRatio before it.
    """

    crop_pct: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width that an image is resized to before the centre is cut out."""
        down, across = (math.floor(side / self.crop_pct) for side in self.sides)
        if down == across:
            shorter = min(height, width)
            return int(down * height / shorter), int(down * width / shorter)
        ratio = min(height / down, width / across)
        return round(height / ratio), round(width / ratio)

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Returns top and left of the centre of an image of this size."""
        down, across = self.sides
        return round((height - down) / 2), round((width - across) / 2)


def cut_out(
    pixels: np.ndarray, box: Sequence[float], sides: tuple[int, int], *, interpolation: str
) -> np.ndarray:
    """Cuts (top, left, height, width, flip) out of an image and resizes it with antialiasing.

    Boxes that reach over the edge see the image reflected there.

    Args:
        pixels: uint8 [H, W, 3].
        sides: height and width of the result.
    Returns: uint8 [height, width, 3].
    """
    top, left, height, width = (int(v) for v in box[:4])
    over = max(-top, -left, top + height - pixels.shape[0], left + width - pixels.shape[1], 0)
    if over:
        pixels = np.pad(pixels, ((over, over), (over, over), (0, 0)), mode="reflect")
        top, left = top + over, left + over
    out = resize(pixels[top : top + height, left : left + width], *sides, interpolation)
    return out[:, ::-1] if box[4] else out


def centre(pixels: np.ndarray, crop: EvalCrop) -> np.ndarray:
    """Resizes an image and cuts out its centre; uint8 [height, width, 3], the crop's sides."""
    out = resize(pixels, *crop.scaled(*pixels.shape[:2]), crop.interpolation)
    (top, left), (height, width) = crop.corner(*out.shape[:2]), crop.sides
    return out[top : top + height, left : left + width]


def resize(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes uint8 [H, W, 3] with antialiasing to uint8 [height, width, 3].

    torch's kernel for bytes: a quarter of Pillow's time, and within 1 / 255 of its result.
    """
    # Channels last beyond doubt: with a batch dimension of another stride the kernel would take the
    # images for planar and spend a third of its time on taking the pixels apart.
    x_1CHW = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if pixels.shape[:2] != (height, width):
        x_1CHW = functional.interpolate(
            x_1CHW, size=(height, width), mode=interpolation, antialias=True, align_corners=False
        )
    return np.asarray(x_1CHW[0].permute(1, 2, 0).numpy())

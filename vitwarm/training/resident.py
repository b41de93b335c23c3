"""The device-resident data path: the decoded images of a small set live on the device.

Crops, flips and resizing run there too, for several batches at once, so that a GPU never waits for
the host. Order, crops and batches are those of the loader path, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vitwarm.shards.load.crops import EvalCrop

Kernel = Callable[[Tensor], Tensor]


class ResidentImages:
    """Decoded images of one size on a device, found by their row in the index."""

    def __init__(self, images: Tensor, labels: np.ndarray, rows: np.ndarray) -> None:
        """Takes the images of some rows.

        Args:
            images: uint8 [n, 3, h, w], on any device.
            labels: int64 [n], of what the images show.
            rows: int64 [n], ascending.
        """
        self.images = images
        self.labels = torch.from_numpy(labels).to(images.device)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> ResidentImages:
        """Returns the same images on a device."""
        if self.images.device == device:
            return self
        return ResidentImages(self.images.to(device), self.labels.cpu().numpy(), self.rows)

    def find(self, rows: np.ndarray) -> Tensor:
        """Returns where the images of these rows lie, int64, on the images' device."""
        places = torch.from_numpy(np.searchsorted(self.rows, rows))
        if self.images.device.type == "cuda":
            places = places.pin_memory()  # so that the host need not wait for the copy
        return places.to(self.images.device, non_blocking=True)


def resample(
    images: Tensor,
    boxes: Tensor,
    sides: tuple[int, int],
    *,
    interpolation: str,
    reflect: bool = False,
) -> Tensor:
    """Cuts a box out of each image and resizes it, with antialiasing, as Pillow does.

    One resampling is two products with small matrices, which a GPU does for a whole batch at once.

    Args:
        images: uint8 [b, 3, h, w].
        boxes: float [b, 5]: top, left, height, width, and 1 for a horizontal flip.
        sides: height and width of the result.
        interpolation: bicubic or bilinear.
        reflect: boxes may reach over the edges, by less than the image, and see it reflected.
    Returns: uint8 [b, 3, *sides].
    """
    kernel = KERNELS[interpolation]
    top, left, height, width, flip = boxes.float().unbind(1)
    down_BSh = _weights(top, height, None, images.shape[2], sides[0], kernel, reflect)
    across_BSw = _weights(left, width, flip > 0, images.shape[3], sides[1], kernel, reflect)
    return _apply(images, down_BSh, across_BSw)


def resize_and_crop(images: Tensor, crop: EvalCrop) -> Tensor:
    """Resizes images and cuts out their centres, as the loader does: the evaluation's crop.

    Args:
        images: uint8 [b, 3, h, w].
    Returns: uint8 [b, 3, *crop.sides].
    """
    height, width = images.shape[2:]
    scaled = crop.scaled(height, width)
    start = torch.zeros(1, device=images.device)
    matrices = []
    for side, new, first, kept in zip(
        (height, width), scaled, crop.corner(*scaled), crop.sides, strict=True
    ):
        whole = _weights(start, start + side, None, side, new, KERNELS[crop.interpolation])
        matrices.append(whole[:, first : first + kept])
    return _apply(images, *matrices)


def _apply(images: Tensor, down_BSh: Tensor, across_BSw: Tensor) -> Tensor:
    rows = torch.matmul(images.float(), across_BSw.transpose(1, 2)[:, None])
    rows = rows.round_().clamp_(0, 255)  # as Pillow does between the two directions
    return torch.matmul(down_BSh[:, None], rows).round_().clamp_(0, 255).short().byte()


def _weights(
    start: Tensor,
    length: Tensor,
    flip: Tensor | None,
    n_in: int,
    size: int,
    kernel: Kernel,
    reflect: bool = False,
) -> Tensor:
    """What each output pixel takes of each input pixel, float32 [b, size, n_in]; rows sum to 1."""
    places = (torch.arange(size, device=start.device) + 0.5).expand(len(start), size)
    if flip is not None:
        places = torch.where(flip[:, None], size - places, places)
    scale = length[:, None] / size
    centres = (start[:, None] + places * scale)[..., None]
    reach = scale.clamp(min=1)[..., None]
    pixels = torch.arange(n_in, device=start.device) + 0.5
    first, last = start[:, None, None], (start + length)[:, None, None]

    def seen(at: Tensor) -> Tensor:
        """What pixels at some places give; those beside the crop nothing (timm, torchvision)."""
        return kernel((at - centres) / reach) * ((at > first) & (at < last))

    weights = seen(pixels)
    if reflect:  # pixel j is seen again at -j and at 2 (n - 1) - j
        weights[..., 1:] += seen(1 - pixels[1:])
        weights[..., :-1] += seen(2 * n_in - 1 - pixels[:-1])
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, as Pillow's and torch's antialiased resizing have it."""
    d = distance.abs()
    near = ((1.5 * d - 2.5) * d) * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return near * (d < 1) + far * ((d >= 1) & (d < 2))


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


KERNELS: dict[str, Kernel] = {"bicubic": _cubic, "bilinear": _triangle}

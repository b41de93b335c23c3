"""The operations themselves, on uint8 images of a batch, each image with its own arguments.

Values, clipping and rounding follow Pillow's (which timm calls); images stay uint8 between
operations as they do there. One thing differs: torch's bicubic has another constant than Pillow's,
so that turned and sheared photographs lie 0.6 to 0.9 of 255 from timm's on average. Arithmetic is
per image, so that a result does not depend on the batch.
Shapes: x is uint8 [n, 3, H, W]; args is float32 [n, k] (uint8 [n, 256] for tables).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Surroundings:
    """What operations need to know beside the image and their arguments."""

    fill: Tensor
    """Value outside the image, float32 [3], in [0, 255]."""
    interpolation: str = "bicubic"


def affine(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Samples output pixel (x, y) at (a x + b y + c, d x + e y + f); outside is the fill colour."""
    _, _, height, width = x.shape
    columns = torch.arange(width, device=x.device, dtype=torch.float32) + 0.5
    rows = torch.arange(height, device=x.device, dtype=torch.float32)[:, None] + 0.5
    a, b, c, d, e, f = args[:, :, None, None].unbind(1)
    # grid_sample's coordinates: -1 and 1 are the outer edges of the image.
    grid = torch.empty(len(x), height, width, 2, device=x.device)
    across, down = grid.unbind(-1)
    torch.add((a * 2 / width) * columns, (b * 2 / width) * rows + (c * 2 / width - 1), out=across)
    torch.add((d * 2 / height) * columns, (e * 2 / height) * rows + (f * 2 / height - 1), out=down)
    inside = (torch.maximum(across.abs(), down.abs()) < 1).float()[:, None]
    sampled = F.grid_sample(
        x.float(), grid, mode=around.interpolation, padding_mode="border", align_corners=False
    )
    fill = around.fill[:, None, None]
    sampled.sub_(fill).mul_(inside).add_(fill)  # torch.where is 20 times as slow on a CPU
    # Pillow truncates; the hundredth keeps what float32 lands just below a whole value.
    return _whole(sampled.add_(0.01).clamp_(0, 255))


def table(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Replaces each value by the image's table entry; args: uint8 [n, 256] or [n, 3, 256]."""
    tables = args if args.dim() == 3 else args[:, None].expand(-1, x.shape[1], -1)
    return tables.gather(2, x.flatten(2).long()).view(x.shape)


def autocontrast(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Stretches each channel to the full range."""
    low = x.amin(dim=(2, 3)).double()[..., None]
    high = x.amax(dim=(2, 3)).double()[..., None]
    value = torch.arange(256, device=x.device, dtype=torch.float64)
    scale = torch.full_like(low, 255) / (high - low)  # a number / a tensor rounds twice
    stretched = (value * scale - low * scale).clamp_(0, 255)
    return table(x, torch.where(high > low, stretched, value).byte(), around)


def equalize(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Makes each channel's distribution of values as even as it can be."""
    values = x.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(
        2, values, torch.ones((), dtype=torch.int64, device=x.device).expand_as(values)
    )
    value = torch.arange(256, device=x.device)
    last = counts.gather(2, (value * (counts > 0)).amax(dim=2, keepdim=True))
    step = (values.shape[2] - last) // 255
    below = counts.cumsum(dim=2) - counts
    even = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return table(x, torch.where(step > 0, even, value).byte(), around)


def contrast(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Moves values away from (factor > 1) or towards the image's mean grey."""
    mean = _mean(luma(x))[:, None]
    value = torch.arange(256, device=x.device, dtype=torch.float32)
    return table(x, (mean + args * (value - mean)).clamp_(0, 255).byte(), around)


def saturation(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Moves colours away from (factor > 1) or towards grey."""
    return _blend(luma(x)[:, None].float(), x, args)


def sharpness(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Moves an image away from (factor > 1) or towards a smoothed copy; the border stays."""
    middle = x.float()
    rows = middle[:, :, :-2] + middle[:, :, 1:-1] + middle[:, :, 2:]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle[:, :, 1:-1, 1:-1]
    out = x.clone()
    inner = x[:, :, 1:-1, 1:-1]
    out[:, :, 1:-1, 1:-1] = _blend((smooth / 13).add_(0.5).floor_(), inner, args)
    return out


def blur(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Gaussian blur, cut off at three standard deviations; args: one of them, in (0, 2] pixels."""
    distance = torch.arange(7, device=x.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (distance / args) ** 2) * (distance < 3 * args + 1)
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - 1)
    # A CPU may look how far to go; asking a GPU would stop the host.
    radius = int((weights > 0).sum(dim=1).max()) - 1 if x.device.type == "cpu" else 6
    out = x.float()
    for dim in (2, 3):
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        padded, size = F.pad(out, pad, mode="replicate"), out.shape[dim]
        out = out * weights[:, :1, None, None]
        for k in range(1, radius + 1):
            pair = padded.narrow(dim, radius - k, size) + padded.narrow(dim, radius + k, size)
            out.addcmul_(pair, weights[:, k, None, None, None])
    return _whole(out.round_().clamp_(0, 255))


def jitter(x: Tensor, args: Tensor, around: Surroundings) -> Tensor:
    """Three times x * a + b * grey(x) + c * mean(grey(x)); args: three times (a, b, c).

    (f, 0, 0) is brightness, (f, 0, 1 - f) contrast and (f, 1 - f, 0) saturation by the factor f.
    """
    out = x.float()
    needed = [[True] * 3] * 3
    if x.device.type == "cpu":  # most images need one of the two; asking a GPU would stop the host
        needed = args.bool().any(dim=0).view(3, 3).tolist()
    for k, (_, needs_grey, needs_mean) in enumerate(needed):
        own, of_grey, of_mean = args[:, 3 * k : 3 * k + 3, None, None, None].unbind(1)
        grey = _grey_float(out) if needs_grey or needs_mean else None
        out.mul_(own)
        if grey is not None and needs_mean:
            out.add_(_mean(grey[:, 0])[:, None, None, None].mul_(of_mean))
        if grey is not None and needs_grey:
            out.add_(grey.mul_(of_grey))
        out.clamp_(0, 255)
    return _whole(out.round_())


Apply = Callable[[Tensor, Tensor, Surroundings], Tensor]
OPERATIONS: dict[str, Apply] = {
    operation.__name__: operation
    for operation in (
        affine, table, autocontrast, equalize, contrast, saturation, sharpness, blur, jitter,
    )
}  # fmt: skip


def luma(x: Tensor) -> Tensor:
    """Returns the luma of uint8 [n, 3, H, W] as int32 [n, H, W]: Pillow's mode L, to the bit."""
    red, green, blue = x.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _grey_float(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def _mean(grey: Tensor) -> Tensor:
    """Mean of grey values rounded to integers, itself rounded; float32 [n].

    Integers add up exactly in float64, so that the order of adding does not matter.
    """
    whole = grey.round() if grey.is_floating_point() else grey
    total = whole.sum(dim=(1, 2), dtype=torch.float64)
    return (total / (grey.shape[1] * grey.shape[2]) + 0.5).floor_().float()


def _blend(towards: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """towards + factor (x - towards), cut off below and above and truncated, as Pillow does."""
    x = x.float()
    return _whole((x - towards).mul_(factor[:, :, None, None]).add_(towards).clamp_(0, 255))


def _whole(x: Tensor) -> Tensor:
    """Truncates values in [0, 255] to uint8; by way of int16 three times as fast on a CPU."""
    return x.short().byte()

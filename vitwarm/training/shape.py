"""What images a model takes: their sides and channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vitwarm.errors import ConfigError


def find_img_size(vit: nn.Module, model: str, asked: int | Sequence[int] | None) -> tuple[int, int]:
    """Returns height and width of a training's images: as asked, or the model's own.

    Args:
        vit: the model, on whatever device.
        model: timm's name of it, for messages.
        asked: `train.img_size`.
    Raises: ConfigError: none, or a side that whole patches do not fill.
    """
    stem: Any = getattr(vit, "patch_embed", None)
    size = asked or getattr(stem, "img_size", None)
    size = size or getattr(vit, "pretrained_cfg", {}).get("input_size", (3, None, None))[1:]
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if None in (height, width):
        raise ConfigError(
            f"train.img_size is not given and {model!r} has none of its own "
            f"({size}). Give train.img_size=224."
        )
    patch = getattr(stem, "patch_size", None) or 1
    patches = patch if isinstance(patch, tuple | list) else (patch, patch)
    if not getattr(stem, "dynamic_img_pad", False):
        for side, step in zip((height, width), patches, strict=True):
            _check_filled(int(side), int(step), patches)
    return int(height), int(width)


def find_in_chans(kwargs: dict[str, Any]) -> int:
    """Returns how many channels a model takes, from what timm.create_model gets.

    Raises: ConfigError: neither 3 nor 1.
    """
    n = kwargs.get("in_chans", 3)
    if n not in (3, 1):
        raise ConfigError(
            f"in_chans is {n!r}; the images of the shards have three channels. Use 3, or 1 for "
            "grey images."
        )
    return int(n)


def per_channel(colours: Sequence[float], in_chans: int) -> list[float]:
    """Returns the means (or deviations) of three colours, or their mean for grey images."""
    return list(colours) if in_chans == len(colours) else [sum(colours) / len(colours)]


def say_sides(sides: tuple[int, int]) -> str:
    """Returns sides in words: `224`, or `192 x 256`, the height first."""
    height, width = sides
    return f"{height}" if height == width else f"{height} x {width}"


def _check_filled(side: int, step: int, patches: Sequence[int]) -> None:
    if side % step:
        below = side // step * step
        use = f"{below} or {below + step}" if below else f"{step}"
        raise ConfigError(
            f"train.img_size is {side}, which patches of {' x '.join(map(str, patches))} pixels do "
            f"not fill; a strip at the edge would be lost. Use train.img_size={use}."
        )

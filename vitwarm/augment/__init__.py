"""The part of the augmentation that runs per batch, on the device, after decoding and cropping.

Every image has its own random numbers, a function of (seed, epoch, row) alone, or for mixing of its
position; so a batch may be cut among ranks, micro-batches and resumptions in any way. What happens
to which image is planned on the host and travels to the device in one copy: no host sync.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitwarm.augment.draws import Draws
from vitwarm.augment.mixing import Mixing, Targets, erase, mix_images, plan_erasing
from vitwarm.augment.pixels import OPERATIONS, Surroundings
from vitwarm.augment.policy import ColorJitter, Plan, Policy, ThreeAugment, parse_policy
from vitwarm.seeding import numpy_rng

__all__ = ["Augmentation", "Augmented", "Mixing", "Targets", "normalise", "parse_policy", "to_grey"]


class Augmented(NamedTuple):
    """A batch as the model sees it."""

    images: Tensor
    """float32 [b, 3 or 1, H, W], normalised."""
    targets: Targets


class Augmentation:
    """Colour and shape operations, normalising, erasing and mixing, in this order.

    The order is that of DeiT's training; timm's own loader mixes before it erases.
    """

    def __init__(
        self,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        aa: str | None = None,
        color_jitter: float | None = None,
        reprob: float = 0.0,
        mixing: Mixing | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        """Prepares everything that does not depend on a batch.

        Args:
            seed: the run's seed.
            mean, std: per channel, in [0, 1]; one each makes the images grey.
            aa: `rand-m9-mstd0.5-inc1`, `3a`, or None.
            color_jitter: strength in [0, 1]; with RandAugment not used, as in timm.
            reprob: probability of random erasing.
            mixing: mixup and CutMix, or None.
            interpolation: bicubic or bilinear, for rotations, shears and translations.
        Raises: ConfigError: an `aa` that timm would not understand.
        """
        self.seed = seed
        self.mean, self.std = tuple(mean), tuple(std)
        self.reprob = reprob
        self.mixing = mixing
        self.interpolation = interpolation
        policy = parse_policy(aa)
        self.policies: list[Policy | ColorJitter] = [policy] if policy else []
        if color_jitter and (policy is None or isinstance(policy, ThreeAugment)):
            self.policies.append(ColorJitter(strength=color_jitter))
        self._constants: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        rows: np.ndarray,
        epochs: np.ndarray,
        positions: np.ndarray,
    ) -> Augmented:
        """Augments a batch.

        Args:
            images: uint8 [b, 3, H, W], cropped and flipped; not changed.
            labels: int64 [b], on the same device.
            rows, epochs: int64 [b], on the host: who each image is.
            positions: int64 [b], on the host: places in the global order; with mixing in pairs
                2k, 2k + 1.
        """
        _, _, height, width = images.shape
        draws = Draws(self.seed, "image", epochs, rows)
        plan: Plan = []
        for policy in self.policies:
            plan += policy.plan(draws, height=height, width=width)
        luggage = {
            f"{layer}/{k}/{name}": array
            for layer, operations in enumerate(plan)
            for k, operation in enumerate(operations)
            for name, array in (("which", operation.which), ("args", operation.args))
        }
        if self.reprob > 0:
            erasure = plan_erasing(draws, self.reprob, height=height, width=width)
            spare = self._bank_size(images) - images[0].numel()
            luggage["erase/which"] = erasure.which
            luggage["erase/boxes"] = erasure.boxes
            luggage["erase/starts"] = (erasure.noise * spare).astype(np.int64)
        if self.mixing is not None:
            mix = self.mixing.plan(self.seed, positions, height=height, width=width)
            luggage |= {
                "mix/boxes": mix.boxes,
                "mix/weights": mix.weights,
                "mix/shares": mix.shares,
            }
        there = ship(luggage, images.device)

        x = self._operate(images, plan, there)
        out = normalise(x, *self._scaling(images.device))
        if self.reprob > 0:
            index, boxes, starts = (there[f"erase/{name}"] for name in ("which", "boxes", "starts"))
            erase(out, index, boxes, starts, self._bank(images))
        if self.mixing is None:
            return Augmented(out, Targets(labels))
        mix_images(out, there["mix/boxes"], there["mix/weights"])
        partners = labels.view(-1, 2).flip(1).flatten()
        return Augmented(out, Targets(labels, partners, there["mix/shares"]))

    def _operate(self, images: Tensor, plan: Plan, there: Mapping[str, Tensor]) -> Tensor:
        if not plan:
            return images
        fill = self._constant("fill", images.device, [round(255 * m) for m in (self.mean * 3)[:3]])
        around = Surroundings(fill, self.interpolation)
        x = images.clone()
        for layer, operations in enumerate(plan):
            for k, operation in enumerate(operations):
                if not len(operation.which):
                    continue
                index, args = there[f"{layer}/{k}/which"], there[f"{layer}/{k}/args"]
                for some in pieces(len(index), x):
                    chosen = index[some]
                    changed = OPERATIONS[operation.kind](
                        x.index_select(0, chosen), args[some], around
                    )
                    _put(x, chosen, changed)
        return x

    def _scaling(self, device: torch.device) -> tuple[Tensor, Tensor]:
        scale = self._constant("scale", device, [1 / (255 * s) for s in self.std])
        shift = self._constant(
            "shift", device, [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        )
        return scale, shift

    def _bank_size(self, images: Tensor) -> int:
        return 1 << 20 if images[0].numel() <= 1 << 14 else 1 << 22

    def _bank(self, images: Tensor) -> Tensor:
        size = self._bank_size(images)
        key = (f"bank{size}", images.device)
        if key not in self._constants:
            bank = numpy_rng(self.seed, "augment", "noise").standard_normal(size, np.float32)
            self._constants[key] = torch.from_numpy(bank).to(images.device)
        return self._constants[key]

    def _constant(self, name: str, device: torch.device, values: Sequence[float]) -> Tensor:
        key = (name, device)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=torch.float32, device=device)
        return self._constants[key]


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Returns images * scale + shift, float32; grey ones where there is one scale for all colours.

    Args:
        images: uint8 [b, 3, H, W].
        scale, shift: float32 [c], c = 3 or 1; 1 / (255 std) and -mean / std.
    Returns: float32 [b, c, H, W].
    """
    out = torch.empty((len(images), len(scale), *images.shape[2:]), device=images.device)
    for some in pieces(len(images), images):
        part = out[some]
        part.copy_(images[some] if len(scale) > 1 else to_grey(images[some]))
        part.mul_(scale[:, None, None]).add_(shift[:, None, None])
    return out


def to_grey(images: Tensor) -> Tensor:
    """Returns the luma of uint8 [b, 3, H, W] as [b, 1, H, W]: Pillow's mode L, to the bit."""
    red, green, blue = images.int().split(1, dim=1)
    luma: Tensor = 19595 * red + 38470 * green + 7471 * blue + 0x8000
    return (luma >> 16).byte()


def _put(x: Tensor, index: Tensor, values: Tensor) -> None:
    """x[index] = values, fast: as one copy, or eight bytes at a time where that is possible."""
    if len(index) == 1 and x.device.type == "cpu":
        x[int(index)] = values[0]
        return
    if x[0].numel() % 8 == 0:
        x, values = (t.flatten(1).view(torch.int64) for t in (x, values))
    x.index_copy_(0, index, values)


def pieces(n: int, images: Tensor) -> Iterator[slice]:
    """Cuts [0, n): into pieces whose images stay in a CPU's cache, or in one on a GPU.

    Temporaries of a whole batch would be fetched from the system and cleared each time: on a CPU
    at 224 px that took longer than the arithmetic (0.77 against 0.15 ms an image to normalise).
    """
    size = max(1, (1 << 18) // images[0].numel()) if images.device.type == "cpu" else max(n, 1)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def ship(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Moves many small arrays to a device in one copy that the host does not wait for."""
    if device.type == "cpu":
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    sizes = [-(-a.nbytes // 16) * 16 for a in arrays.values()]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    packed = torch.empty(int(starts[-1]), dtype=torch.uint8, pin_memory=True)
    view = packed.numpy()
    for array, start in zip(arrays.values(), starts[:-1], strict=True):
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = packed.to(device, non_blocking=True)
    return {
        name: there[start : start + array.nbytes]
        .view(torch.from_numpy(array[:0].reshape(-1)).dtype)
        .view(array.shape)
        for (name, array), start in zip(arrays.items(), starts[:-1], strict=True)
    }

"""The part of the augmentation that runs per batch, on the device, after decoding and cropping.

Every image has its own random numbers, a function of (seed, epoch, row) alone, or for mixing of its
position; so a batch may be cut among ranks, micro-batches and resumptions in any way. What happens
to which image is planned on the host and travels to the device in one copy: no host sync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitwarm.augment.draws import Draws
from vitwarm.augment.mixing import Mixing, Targets, erase, mix_images, plan_erasing
from vitwarm.augment.pixels import OPERATIONS, Surroundings, luma
from vitwarm.augment.policy import ColorJitter, Plan, Policy, ThreeAugment, parse_policy
from vitwarm.seeding import numpy_rng

__all__ = [
    "Augmentation", "Augmented", "Mixing", "Targets", "normalise", "parse_policy", "scaling",
    "to_grey",
]  # fmt: skip


class Augmented(NamedTuple):
    """A batch as the model sees it."""

    images: Tensor
    """float32 [b, 3 or 1, H, W], normalised."""
    targets: Targets


@dataclass(eq=False, kw_only=True)
class Augmentation:
    """Colour and shape operations, normalising, erasing and mixing, in this order.

    The order is that of DeiT's training; timm's own loader mixes before it erases.

    Raises: ConfigError: an `aa` that timm would not understand.
    """

    seed: int
    """The run's."""
    mean: Sequence[float]
    std: Sequence[float]
    """Per channel, in [0, 1]; one each makes the images grey."""
    aa: str | None = None
    """`rand-m9-mstd0.5-inc1`, `3a`, or None."""
    color_jitter: float | None = None
    """Strength in [0, 1]; with RandAugment not used, as in timm."""
    reprob: float = 0.0
    """Probability of random erasing."""
    mixing: Mixing | None = None
    interpolation: str = "bicubic"
    """Or bilinear; for rotations, shears and translations."""

    def __post_init__(self) -> None:
        policy = parse_policy(self.aa)
        self.policies: list[Policy | ColorJitter] = [policy] if policy else []
        if self.color_jitter and (policy is None or isinstance(policy, ThreeAugment)):
            self.policies.append(ColorJitter(strength=self.color_jitter))
        self._constants: dict[tuple[str | int, torch.device], Tensor] = {}

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
        n_numbers, device = images[0].numel(), images.device
        n_noise = max(1 << 20 if n_numbers <= 1 << 14 else 1 << 22, 2 * n_numbers)
        if self.reprob > 0:
            which, boxes, begin = plan_erasing(draws, self.reprob, height=height, width=width)
            starts = (begin * (n_noise - n_numbers)).astype(np.int64)
            luggage |= {"erase/which": which, "erase/boxes": boxes, "erase/starts": starts}
        if self.mixing is not None:
            mix = self.mixing.plan(self.seed, positions, height=height, width=width)
            luggage |= {f"mix/{name}": array for name, array in mix._asdict().items()}
        there = ship(luggage, device)

        x = self._operate(images, plan, there)
        scale, shift = self._constant("scaling", device, lambda: scaling(self.mean, self.std))
        out = normalise(x, scale, shift)
        if self.reprob > 0:
            noise = self._constant(n_noise, device, lambda: torch.from_numpy(self._noise(n_noise)))
            index, at, first = (there[f"erase/{name}"] for name in ("which", "boxes", "starts"))
            erase(out, index, at, first, noise)
        if self.mixing is None:
            return Augmented(out, Targets(labels))
        mix_images(out, there["mix/boxes"], there["mix/weights"])
        partners = labels.view(-1, 2).flip(1).flatten()
        return Augmented(out, Targets(labels, partners, there["mix/shares"]))

    def _operate(self, images: Tensor, plan: Plan, there: Mapping[str, Tensor]) -> Tensor:
        if not plan:
            return images
        colour = [float(round(255 * m)) for m in (tuple(self.mean) * 3)[:3]]
        fill = self._constant("fill", images.device, lambda: torch.tensor(colour))
        around = Surroundings(fill, self.interpolation)
        x = images.clone()
        for layer, operations in enumerate(plan):
            for k, operation in enumerate(operations):
                if not len(operation.which):
                    continue
                index, args = there[f"{layer}/{k}/which"], there[f"{layer}/{k}/args"]
                apply = OPERATIONS[operation.kind]
                for some in pieces(len(index), x):
                    chosen = index[some]
                    _put(x, chosen, apply(x.index_select(0, chosen), args[some], around))
        return x

    def _noise(self, size: int) -> np.ndarray:
        return numpy_rng(self.seed, "augment", "noise").standard_normal(size, np.float32)

    def _constant(
        self, name: str | int, device: torch.device, make: Callable[[], Tensor]
    ) -> Tensor:
        """Makes what every batch needs once for each device."""
        if (name, device) not in self._constants:
            self._constants[name, device] = make().to(device)
        return self._constants[name, device]


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
    """Returns the luma of uint8 [b, 3, H, W] as uint8 [b, 1, H, W]: Pillow's mode L, to the bit."""
    return luma(images)[:, None].byte()


def scaling(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns scale and shift of `normalise`, float32 [2, c], of means and deviations in [0, 1]."""
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor([[1 / (255 * s) for s in std], shift])


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

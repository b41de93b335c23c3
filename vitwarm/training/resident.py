"""The device-resident data path: the decoded images of a small set live on the device.

Crops, flips and resizing run there too, for several batches at once, so that a GPU never waits for
the host. Order, crops and batches are those of the loader path, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitwarm.augment import Augmentation
from vitwarm.loop.plan import Cut
from vitwarm.shards import Decoded, EvalCrop, Order, ShardIndex, TrainCrop, decode_all
from vitwarm.training.module import TrainBatch
from vitwarm.world import World

#: Numbers of the largest tensor that is made at once: a CPU's caches, or so much that a GPU's
#: kernels are large against their launches.
CHUNK_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 26}
CHUNK_IMAGES = 4096

#: Validation images that are resized once and kept, in bytes of all of them.
KEEP_BYTES = 1 << 29

Kernel = Callable[[Tensor], Tensor]


def here(device: torch.device) -> torch.device:
    """Returns the device of this process: Lightning has chosen among the GPUs when a fit runs."""
    if device.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


class ResidentImages:
    """Decoded images of one size on a device, found by their row in the index."""

    def __init__(self, images: Tensor, labels: np.ndarray, rows: np.ndarray) -> None:
        """Takes uint8 [n, 3, h, w] on any device, int64 labels [n] and ascending rows [n]."""
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


@dataclass(frozen=True, eq=False)
class ResidentFeed:
    """Makes the loader's batches out of images that live on the device, several steps at once."""

    images: ResidentImages
    """Of all rows in the order."""
    order: Order
    _: KW_ONLY
    crop: TrainCrop
    augment: Augmentation
    seed: int
    """Of the crops."""
    cut: Cut
    world: World
    start_step: int
    n_steps: int
    """The step before which it ends."""
    device: torch.device
    unreadable: np.ndarray | tuple[()] = ()
    """Rows that did not decode and were replaced."""
    chunk_images: int | None = None
    """Made at once; None: by size. Changes nothing in what comes out."""

    def __len__(self) -> int:
        return max(0, self.n_steps - self.start_step) * self.cut.accumulate

    def __iter__(self) -> Iterator[TrainBatch]:
        device = here(self.device)
        images = self.images.to(device)
        local = self.cut.batch_size // self.world.size
        limit = CHUNK_NUMBERS.get(device.type, 1 << 20) // (3 * math.prod(self.crop.sides))
        steps = max(1, (self.chunk_images or min(limit, CHUNK_IMAGES)) // local)
        for start in range(self.start_step, self.n_steps, steps):
            chosen = np.arange(start, min(start + steps, self.n_steps), dtype=np.int64)
            first = chosen[:, None] * self.cut.batch_size + self.world.rank * local
            yield from self._chunk(images, (first + np.arange(local)).reshape(-1))

    def _chunk(self, images: ResidentImages, positions: np.ndarray) -> Iterator[TrainBatch]:
        epochs, rows = self.order.rows_at(positions)
        height, width = images.images.shape[2:]
        boxes = self.crop.boxes(self.seed, epochs, rows, height, width)
        places = images.find(rows)
        cropped = resample(
            images.images.index_select(0, places),
            torch.from_numpy(boxes).to(places.device, non_blocking=True),
            self.crop.sides,
            interpolation=self.crop.interpolation,
            reflect=self.crop.mode == "pad",
        )
        labels = images.labels.index_select(0, places)
        out = self.augment(cropped, labels, rows=rows, epochs=epochs, positions=positions)
        bad = np.isin(rows, self.unreadable)
        size = self.cut.micro_batch_size
        for k in range(0, len(positions), size):
            part = slice(k, k + size)
            yield TrainBatch(out.images[part], out.targets.part(part), int(bad[part].sum()))


@dataclass(eq=False)
class ResidentBatches:
    """Validation batches of images on the device, resized once if they are few enough to keep."""

    images: ResidentImages
    unreadable: np.ndarray
    crop: EvalCrop
    size: int
    world: World
    device: torch.device
    kept: list[Tensor] = field(default_factory=list)

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yields images, labels, and how many of the images did not decode."""
        self.images = self.images.to(here(self.device))
        rank, n = self.world.rank, len(self.images)
        low, high = (n * r // self.world.size for r in (rank, rank + 1))
        keeps = (high - low) * 3 * math.prod(self.crop.sides) <= KEEP_BYTES
        for number, start in enumerate(range(low, high, self.size)):
            some = slice(start, min(start + self.size, high))
            if number < len(self.kept):
                batch = self.kept[number]
            else:
                batch = resize_and_crop(self.images.images[some], self.crop)
                if keeps:
                    self.kept.append(batch)
            n_bad = int(((self.unreadable >= some.start) & (self.unreadable < some.stop)).sum())
            yield batch, self.images.labels[some], n_bad


_decoded: dict[str, tuple[np.ndarray, Decoded]] = {}


def decoded(index: ShardIndex, rows: np.ndarray) -> Decoded:
    """Decodes some rows of an index; what this process decoded before is used again.

    A sweep trains many times on fractions of one set in one process.
    """
    known = _decoded.get(index.sha256)
    # Which image stands in for one that does not decode depends on the rows of the fraction.
    usable = known is not None and (not len(known[1].unreadable) or len(known[0]) == len(rows))
    if known is None or not usable or not np.isin(rows, known[0]).all():
        if len(_decoded) >= 4:
            _decoded.clear()
        _decoded[index.sha256] = (rows, decode_all(index, rows))
    have, images = _decoded[index.sha256]
    if len(have) == len(rows):
        return images
    places = np.searchsorted(have, rows)
    unreadable = np.intersect1d(images.unreadable, rows)
    return Decoded(images.images[torch.from_numpy(places)], unreadable, images.labels[places])


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

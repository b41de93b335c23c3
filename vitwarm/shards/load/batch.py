"""What every loader hands out, wherever its images come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vitwarm.errors import ShardError
from vitwarm.shards.load.slabs import Lent
from vitwarm.shards.load.workers import Failure, start_workers


class ImageBatch(NamedTuple):
    """b images as the workers ship them."""

    images: Tensor
    """uint8 [b, 3, H, W]."""
    labels: Tensor
    """int64 [b], of the images that are shown."""
    rows: Tensor
    """int64 [b], in the index: the images that were asked for."""
    positions: Tensor
    """int64 [b], in the global order; -1 in streamed validation, where nobody knows."""
    epochs: Tensor
    """int64 [b]."""
    unreadable: Tensor
    """int64 scalar: images of this batch that did not decode and were replaced."""


class Shipped(NamedTuple):
    """What a worker returns. Only the pixels are a tensor: each costs a file descriptor."""

    images: Tensor | Lent
    labels: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    epochs: np.ndarray
    n_unreadable: int


def unpack(shipped: Shipped | Failure) -> ImageBatch:
    """Returns a batch as the training sees it. Raises: what went wrong in the worker."""
    if isinstance(shipped, Failure):
        raise shipped.kind(shipped.text)
    images, *numbers, n_unreadable = shipped
    labels, rows, positions, epochs = map(torch.from_numpy, numbers)
    images = images.receive() if isinstance(images, Lent) else images
    return ImageBatch(images, labels, rows, positions, epochs, torch.tensor(n_unreadable))


class Share(NamedTuple):
    """One process's part of every step, in micro-batches."""

    batch_size: int
    """Images per step over all processes and accumulation."""
    micro: int
    """Images per micro-batch."""
    rank: int
    world_size: int

    @property
    def local(self) -> int:
        """Images per step and process."""
        return self.batch_size // self.world_size

    @property
    def micros(self) -> int:
        """Micro-batches per step and process."""
        return self.local // self.micro

    def positions(self, number: int) -> np.ndarray:
        """Returns the positions of this process's micro-batch so and so, from step 0 on; int64."""
        step, part = divmod(number, self.micros)
        first = step * self.batch_size + self.rank * self.local + part * self.micro
        return np.arange(first, first + self.micro, dtype=np.int64)

    def check(self) -> None:
        """Raises ShardError: a batch that does not divide."""
        local, world_size = self.local, self.world_size
        if local % self.micro or self.batch_size % world_size:
            raise ShardError(
                f"train.batch_size is {self.batch_size}; it must divide by {world_size} processes "
                f"and their share by train.micro_batch_size ({self.micro}). "
                f"Use {max(1, local // self.micro) * self.micro * world_size}."
            )


class EvalLoader:
    """One process's part of the validation images, each once."""

    def __init__(self, loader: DataLoader[Any], n_batches: int) -> None:
        """Takes what workers ship from; of a stream the number of batches is not known exactly."""
        self.loader, self.n_batches = loader, n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[ImageBatch]:
        return map(unpack, start_workers(self.loader))


class TrainLoader:
    """Micro-batches of one process, from a step on.

    Its state is the number of steps done, the same on any rank: it may go on with another number
    of ranks, workers or micro-batches. Each iteration starts at `start_step`, or where a loaded
    state says; what workers had made ahead of an abandoned iteration does not count.
    """

    def __init__(
        self,
        share: Share,
        begin: Callable[[int], DataLoader[Any]],
        *,
        start_step: int,
        n_steps: int,
    ) -> None:
        """Prepares the steps from `start_step` to `n_steps`.

        Args:
            begin: returns what ships the micro-batches from a step on.
        """
        self.share, self.begin, self.n_steps = share, begin, n_steps
        self.start_step = self._steps_done = start_step
        self.loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        """Micro-batches of one iteration."""
        return max(0, self.n_steps - self.start_step) * self.share.micros

    def __iter__(self) -> Iterator[ImageBatch]:
        start = self._steps_done = self.start_step
        self.loader = self.begin(start)
        shipped = start_workers(self.loader)
        first = start * self.share.micros
        for number in range(first, first + len(self)):
            yield self._take(shipped, number)  # no name for it: its memory would stay in use

    def _take(self, shipped: Iterator[Any], number: int) -> ImageBatch:
        batch = unpack(next(shipped))
        # Before the yield: who saves after the last micro-batch of a step has done that step.
        self._steps_done = (number + 1) // self.share.micros
        # A stream's workers do not know how many images others have made.
        return batch._replace(positions=torch.from_numpy(self.share.positions(number)))

    def state_dict(self) -> dict[str, int]:
        """The number of steps whose micro-batches have all been handed out."""
        return {"steps_done": self._steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration start behind so many steps."""
        self._steps_done = self.start_step = int(state["steps_done"])

"""Worker processes: how many, deaf to the job's signals, and the shared memory that they fill."""

from __future__ import annotations

import atexit
import itertools
import math
import mmap
import multiprocessing
import os
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vitwarm.errors import ShardError, VitwarmError
from vitwarm.interrupts import follow_parent
from vitwarm.records import count_cpus
from vitwarm.shards.load.pixels import tell_decoder

#: Where Linux keeps shared memory; other systems have no such place, and no such limit.
_SHM = Path("/dev/shm")

#: Micro-batches that a worker makes ahead, at most.
_PREFETCH = 4
#: More than this ahead, over all workers, only costs memory.
_AHEAD_BYTES = 1 << 30
#: Micro-batches that the main process may hold and still get the next without new memory.
_IN_USE = 3

_running: weakref.WeakSet[Any] = weakref.WeakSet()


class Item(NamedTuple):
    """A micro-batch that a worker is asked for."""

    positions: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray
    slab: int | None = None
    """Where its pixels go; None: into memory of their own."""


class Shipped(NamedTuple):
    """What a worker returns. Only the pixels are a tensor: each costs a file descriptor."""

    images: Tensor | Lent
    labels: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    epochs: np.ndarray
    n_unreadable: int


class Failure(NamedTuple):
    """What went wrong in a worker, as it crosses to the main process.

    Not the exception itself: a frame that holds it and raises it is a cycle with its traceback, and
    a loader that goes away in a cycle cannot say goodbye to its workers.
    """

    kind: type[VitwarmError]
    text: str


class Work(NamedTuple):
    """Who makes the batches of a loader."""

    workers: int
    """Processes; 0: this one."""
    pin_memory: bool
    start_method: str


def plan_work(
    workers: int | None, world_size: int, pin_memory: bool, start_method: str | None
) -> Work:
    """Fills in what is not asked for: a worker per core of this process, the best start method."""
    n_workers = count_workers(world_size) if workers is None else workers
    return Work(n_workers, pin_memory, start_method or choose_start())


def count_workers(world_size: int = 1) -> int:
    """Returns loader processes per training process: the cores of the job, shared out, at least 1.

    From the CPU affinity and the container's quota; under srun every task has cores of its own,
    under torchrun and alike the processes of a node share them.

    Args:
        world_size: training processes; those of this node where the launcher says.
    """
    cores = float(count_cpus())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or `max`: no quota
        pass
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE") or 0)
    own = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if not sharing and own.isdigit():
        return max(1, min(int(cores), int(own)))
    return max(1, int(cores) // max(1, sharing or world_size))


def choose_start() -> str:
    """Returns how worker processes start: fork on Linux, which costs nothing, spawn elsewhere.

    macOS can fork, but its own libraries may not be used in the child.
    """
    can_fork = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    return "fork" if can_fork else "spawn"


def make_data_loader(
    dataset: Dataset[Any],
    items: Iterable[Item] | None,
    *,
    work: Work,
    size: tuple[int, int, int],
) -> DataLoader[Any]:
    """Returns torch's loader over items that are whole micro-batches.

    Args:
        items: what workers are asked for, again and again; they put pixels into `dataset.slabs`.
            None: the data set iterates by itself, and its workers end with an iteration.
        size: images of an item, at most, and their height and width.
    Raises: ShardError: too little shared memory for one item per worker.
    """
    tell_decoder()
    how: dict[str, Any] = {}
    if work.workers:
        ahead = _prefetch(work.workers, 3 * math.prod(size))
        if items is not None and work.start_method == "fork":
            slabs = Slabs(work.workers * ahead + _IN_USE, size[0], size[1:])
            dataset.slabs = slabs  # type: ignore[attr-defined]
            items = _Lending(items, slabs)
        how = {
            "num_workers": work.workers,
            "persistent_workers": items is not None,
            "prefetch_factor": ahead,
            "worker_init_fn": _start_worker,
            "multiprocessing_context": work.start_method,
        }
    with _any_number():
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=items,
            pin_memory=work.pin_memory,
            collate_fn=_as_it_is,
            **how,
        )


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Returns an iterator over a loader; the workers start now if they have not yet."""
    with _any_number():
        iterator = iter(loader)
    if loader.num_workers and iterator not in _running:
        _running.add(iterator)
        atexit.register(_stop_workers, weakref.ref(iterator))
    return iterator


def empty_images(n: int, sides: tuple[int, int]) -> Tensor:
    """Returns uint8 [n, 3, height, width] for pixels, in a worker right in shared memory.

    A tensor made elsewhere would be copied there when it is shipped.
    """
    if get_worker_info() is None:
        return torch.empty((n, 3, *sides), dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(n * 3 * math.prod(sides))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(n, 3, *sides)


class Slabs:
    """Shared memory for micro-batches of pixels, lent out and taken back over and over.

    New pages for every batch would cost a tenth of what decoding it costs, and their first use in
    the main process as much again as a copy. The main process lends a slab with each item; it comes
    back when the last tensor on it is gone. For whoever keeps many batches there is other memory.
    """

    def __init__(self, n: int, n_images: int, sides: tuple[int, int]) -> None:
        """Takes `n` slabs of `n_images` images; processes that are forked from here share them."""
        self._number = next(_NUMBERS)
        _ALL[self._number] = self
        memory = mmap.mmap(-1, n * n_images * 3 * math.prod(sides))
        self._pixels = np.frombuffer(memory, np.uint8).reshape(n, n_images, 3, *sides)
        self._free = list(range(n))
        self._lent: set[int] = set()

    def lend(self) -> int | None:
        """Returns a slab that nobody uses, for an item on its way; None: there is none."""
        if not self._free:
            return None
        slab = self._free.pop()  # the one that came back last is the one still in a cache
        self._lent.add(slab)
        return slab

    def recall(self) -> None:
        """Takes back what items hold that will never arrive; their workers must be done."""
        self._free += self._lent
        self._lent.clear()

    def pixels(self, slab: int, n: int) -> np.ndarray:
        """Returns the first images of a slab, uint8 [n, 3, h, w]."""
        return self._pixels[slab, :n]

    def ship(self, slab: int, n: int) -> Lent:
        """Returns what crosses to the main process in place of `n` images."""
        return Lent(self._number, slab, n)

    def receive(self, lent: Lent) -> Tensor:
        """Returns images that have arrived; with their last tensor the slab becomes free."""
        self._lent.discard(lent.slab)
        images = self.pixels(lent.slab, lent.n)  # which the tensor's storage keeps alive
        weakref.finalize(images, self._free.append, lent.slab).atexit = False
        return torch.from_numpy(images)


@dataclass(frozen=True, slots=True)
class Lent:  # no NamedTuple: torch below 2.12 pins those field by field, past `pin_memory`
    """Images that lie in a slab, as they cross from a worker: their address alone."""

    slabs: int
    slab: int
    n: int

    def receive(self) -> Tensor:
        """Returns uint8 [n, 3, h, w]; once, and in the main process."""
        return _ALL[self.slabs].receive(self)

    def pin_memory(self) -> Tensor:
        """Returns a pinned copy; torch's thread for that calls it."""
        return self.receive().pin_memory()


@dataclass
class _Lending:
    """Adds a slab to every item that a worker is asked for."""

    items: Iterable[Item]
    slabs: Slabs

    def __iter__(self) -> Iterator[Item]:
        self.slabs.recall()  # torch asks for the first item when workers are done with older ones
        for item in self.items:
            yield item._replace(slab=self.slabs.lend())


#: The slabs of this process by the number under which workers ship them.
_ALL: weakref.WeakValueDictionary[int, Slabs] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def _stop_workers(iterator: Callable[[], Any]) -> None:
    """At exit multiprocessing would send workers a SIGTERM, which they pass over, and wait on."""
    alive = iterator()
    if alive is not None:
        alive._shutdown_workers()


def _any_number() -> warnings.catch_warnings[None]:
    """torch warns of more workers than cores; the number is the user's, or that of the cores."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _prefetch(workers: int, batch_bytes: int) -> int:
    """Returns how many micro-batches each worker makes ahead: one at least has to fit."""
    ahead = max(2, min(_PREFETCH, _AHEAD_BYTES // max(1, workers * batch_bytes)))
    try:
        free = os.statvfs(_SHM)
    except (OSError, AttributeError):  # no such place on this system; torch finds its own
        return ahead
    room = free.f_bavail * free.f_frsize
    fits = room // max(1, workers * batch_bytes)
    if fits < 1:
        raise ShardError(
            f"run.workers is {workers}, and a micro-batch of pixels has {batch_bytes / 1e6:.0f} "
            f"MB, but {_SHM} has only {room / 1e6:.0f} MB free. Give the container more "
            "(docker run --shm-size=8g), or use fewer workers or a smaller train.micro_batch_size."
        )
    return int(min(ahead, fits))


def _start_worker(worker: int) -> None:
    """The main process decides when to stop: a signal to the whole job must not end its workers.

    Only the first SIGTERM is passed over. The main process sends one too, at its very end, to
    workers that did not hear of it, and would wait for them for ever.
    """
    torch.set_num_threads(1)
    follow_parent()  # torch's own watch takes whoever adopts an orphan for its parent
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):  # Windows has only the first
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _pass_over_once)


def _pass_over_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _as_it_is(item: Any) -> Any:
    return item

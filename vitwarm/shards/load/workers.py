"""Worker processes: how many, with how much shared memory, and deaf to the job's signals."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vitwarm.errors import ShardError, VitwarmError
from vitwarm.interrupts import follow_parent
from vitwarm.records import count_cpus
from vitwarm.shards.load.decode import tell_decoder

#: Where Linux keeps shared memory; other systems have no such place, and no such limit.
_SHM = Path("/dev/shm")

#: Micro-batches that a worker makes ahead, at most.
_PREFETCH = 4
#: More than this ahead, over all workers, only costs memory.
_AHEAD_BYTES = 1 << 30

_running: weakref.WeakSet[Any] = weakref.WeakSet()


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


def make_data_loader(
    dataset: Dataset[Any],
    *,
    items: Iterable[Any] | None,
    work: Work,
    batch_bytes: int,
    persistent: bool = True,
) -> DataLoader[Any]:
    """Returns torch's loader over items that are whole batches.

    Args:
        items: what workers are asked for; None: the data set iterates by itself.
        batch_bytes: pixels of one item, which cross through shared memory.
        persistent: workers outlive an iteration.
    Raises: ShardError: too little shared memory for one item per worker.
    """
    tell_decoder()
    how: dict[str, Any] = {}
    if work.workers:
        how = {
            "num_workers": work.workers,
            "persistent_workers": persistent,
            "prefetch_factor": prefetch(work.workers, batch_bytes),
            "worker_init_fn": _start_worker,
            "multiprocessing_context": work.start_method,
        }
    with _any_number():
        return DataLoader(
            dataset,
            batch_size=None,  # an item is a whole micro-batch
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


def _stop_workers(iterator: Callable[[], Any]) -> None:
    """Ends workers that are still there when the main process exits.

    multiprocessing would send them a SIGTERM each, which they pass over, and then wait for ever.
    """
    alive = iterator()
    if alive is not None:
        alive._shutdown_workers()


def _any_number() -> warnings.catch_warnings[None]:
    """torch warns of more workers than cores; the number is the user's, or that of the cores."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def empty_images(n: int, sides: tuple[int, int]) -> Tensor:
    """Returns uint8 [n, 3, height, width] for pixels, in a worker right in shared memory.

    A tensor made elsewhere would be copied there when it is shipped.
    """
    if get_worker_info() is None:
        return torch.empty((n, 3, *sides), dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(n * 3 * math.prod(sides))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(n, 3, *sides)


def prefetch(workers: int, batch_bytes: int) -> int:
    """Returns how many micro-batches each worker makes ahead.

    Raises: ShardError: too little shared memory for one per worker.
    """
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


class Failure(NamedTuple):
    """What went wrong in a worker, as it crosses to the main process.

    Not the exception itself: a frame that holds it and raises it is a cycle with its traceback, and
    a loader that goes away in a cycle cannot say goodbye to its workers.
    """

    kind: type[VitwarmError]
    text: str

    @classmethod
    def of(cls, error: VitwarmError) -> Failure:
        """Packs an exception."""
        return cls(type(error), str(error))


def _as_it_is(item: Any) -> Any:
    return item

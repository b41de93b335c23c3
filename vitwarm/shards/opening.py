"""Shards on a disk or a stream: the source decides, here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from vitwarm.shards.read.index import ShardIndex
from vitwarm.shards.read.labels import LabelOptions
from vitwarm.shards.read.sources import is_streamed
from vitwarm.shards.stream.index import StreamIndex

if TYPE_CHECKING:
    from vitwarm.shards.choose.order import Order
    from vitwarm.shards.load.batch import EvalLoader, TrainLoader
    from vitwarm.shards.load.crops import EvalCrop, TrainCrop


def open_shards(
    source: str | Path,
    *,
    cache: str | Path | None = None,
    allow_pipe: bool = False,
    **how: Unpack[LabelOptions],
) -> ShardIndex:
    """Returns the index of a source: of all headers on a disk, of what is known of a stream.

    Args:
        source: as `ShardIndex.open` takes it; or an http(s) address or `pipe:` command, which is
            streamed and promises less.
        cache: as `ShardIndex.open`.
        allow_pipe: permits `pipe:` sources, which run a shell command.
        how: labels are read.
    Raises: ShardError: as `ShardIndex.open` and `StreamIndex.open_stream`.
    """
    if is_streamed(str(source)):
        return StreamIndex.open_stream(str(source), allow_pipe=allow_pipe, **how)
    return ShardIndex.open(source, cache=cache, **how)


def make_train_loader(
    index: ShardIndex,
    order: Order,
    *,
    crop: TrainCrop,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    n_steps: int,
    workers: int | None = None,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> TrainLoader:
    """Returns the micro-batches of one process.

    Step s takes the positions [s * batch_size, (s + 1) * batch_size), rank r its contiguous part.

    Args:
        seed: of the crops; the order has its own.
        batch_size: images per step over all processes and accumulation; divides by world_size
            times micro_batch_size.
        start_step, n_steps: first step, and the step before which it ends.
        workers: processes; None: the cores of this job; 0: in this process.
        start_method: of the workers: fork, spawn or forkserver; None: the best here.
    Raises: ShardError: a batch that does not divide, or no room in shared memory.
    """
    from vitwarm.shards.load.batch import Share, TrainLoader
    from vitwarm.shards.load.loader import order_loader
    from vitwarm.shards.load.workers import plan_work
    from vitwarm.shards.stream.loader import stream_loader

    share = Share(batch_size, micro_batch_size, rank, world_size)
    share.check()
    work = plan_work(workers, world_size, pin_memory, start_method)
    if isinstance(index, StreamIndex):  # of the order only the seed counts
        begin = stream_loader(index, share, crop=crop, seed=order.seed, work=work)
    else:
        begin = order_loader(index, order, share, crop=crop, seed=seed, n_steps=n_steps, work=work)
    return TrainLoader(share, begin, start_step=start_step, n_steps=n_steps)


def make_val_loader(
    index: ShardIndex,
    *,
    crop: EvalCrop,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> EvalLoader:
    """Returns this rank's part of all images, in order, each once; the last batch may be short.

    Args: as `make_train_loader`.
    Raises: ShardError: no room in shared memory.
    """
    from vitwarm.shards.load.loader import index_loader
    from vitwarm.shards.load.workers import plan_work
    from vitwarm.shards.stream.loader import stream_val_loader

    work = plan_work(workers, world_size, pin_memory, start_method)
    share: Any = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "work": work}
    if isinstance(index, StreamIndex):
        return stream_val_loader(index, crop=crop, **share)
    return index_loader(index, crop=crop, **share)

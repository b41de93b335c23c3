"""Every image once per epoch, in one order, whatever reads it."""

from __future__ import annotations

import gc
import hashlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_maker import sample, tiny_set, write_set, write_tar
from torch.utils.data._utils.pin_memory import pin_memory

from vitwarm.errors import ShardError
from vitwarm.shards import (
    EvalCrop,
    ImageBatch,
    Order,
    ShardIndex,
    TrainCrop,
    choose_fraction,
    decode_all,
    make_train_loader,
    make_val_loader,
)
from vitwarm.shards.load import workers as worker_module
from vitwarm.shards.load.workers import Shipped, Slabs
from vitwarm.shards.loaders import unpack
from vitwarm.shards.read.fastwalk import scan_plain
from vitwarm.shards.read.rows import read_shard
from vitwarm.shards.write.checking import check_shards

__all__ = ["tiny_set"]

CROP = TrainCrop(16)
N = 32


@pytest.fixture
def index(tiny_set: Path) -> ShardIndex:
    return ShardIndex.open(tiny_set)


@pytest.fixture(params=["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How workers start: as on Linux, and as on macOS and Windows."""
    if request.param == "spawn":
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
        assert worker_module.choose_start() == "spawn"
    return str(request.param)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away what only Linux, or all but Windows, has."""
    for name in ("sched_getaffinity", "pread", "preadv", "posix_fadvise", "statvfs", "O_CLOEXEC"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    for name in ("SIGUSR1", "SIGUSR2"):
        monkeypatch.delattr(signal, name, raising=False)


def read(
    index: ShardIndex, *, world: int = 1, workers: int = 0, micro: int = 4, start: int = 0,
    n_steps: int = 4, batch: int = 24, mode: str = "windows", rows: np.ndarray | None = None,
    start_method: str | None = None,
) -> list[ImageBatch]:  # fmt: skip
    """All micro-batches of all ranks, step by step."""
    rows = np.arange(index.n_images) if rows is None else rows
    order = Order(index, rows, seed=1, mode=mode, window_shards=1)  # type: ignore[arg-type]
    loaders = [
        make_train_loader(
            index, order, crop=CROP, seed=2, batch_size=batch, micro_batch_size=micro, rank=rank,
            world_size=world, start_step=start, n_steps=n_steps, workers=workers,
            start_method=start_method,
        )
        for rank in range(world)
    ]  # fmt: skip
    ranks = [list(loader) for loader in loaders]
    assert all(len(b) == len(loader) for b, loader in zip(ranks, loaders, strict=True))
    per_step = batch // world // micro
    steps = range(n_steps - start)
    return [
        ranks[r][s * per_step + m] for s in steps for r in range(world) for m in range(per_step)
    ]


def hashes(batches: list[ImageBatch]) -> list[tuple[int, str]]:
    """Position and pixels of every image."""
    return [
        (int(p), hashlib.sha256(image.numpy().tobytes()).hexdigest())
        for batch in batches
        for p, image in zip(batch.positions, batch.images, strict=True)
    ]


@pytest.mark.parametrize("mode", ["windows", "full"])
def test_every_image_once_per_epoch(index: ShardIndex, mode: str) -> None:
    order = Order(index, np.arange(N), seed=0, mode=mode, window_shards=1)  # type: ignore[arg-type]
    epochs, rows = order.rows_at(np.arange(5 * N))
    assert epochs.tolist() == np.repeat(np.arange(5), N).tolist()
    for epoch in range(5):
        assert sorted(rows[epoch * N : (epoch + 1) * N].tolist()) == list(range(N))
    assert rows[:N].tolist() != rows[N : 2 * N].tolist()
    again = Order(index, np.arange(N), seed=0, mode=mode, window_shards=1)  # type: ignore[arg-type]
    assert again.rows_at(np.array([77, 3, 150]))[1].tolist() == rows[[77, 3, 150]].tolist()


def test_windows_keep_reads_together(tmp_path: Path) -> None:
    index = ShardIndex.open(write_set(tmp_path, n_shards=6, per_shard=5))
    order = Order(index, np.arange(30), seed=0, window_shards=2)
    shards = index.shard_of[order.epoch(0)]
    assert [len(set(shards[k : k + 10].tolist())) for k in (0, 10, 20)] == [2, 2, 2]
    assert sorted(set(shards.tolist())) == list(range(6))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_ranks_and_workers_share_the_set_without_repeats(
    index: ShardIndex, world: int, workers: int
) -> None:
    batches = read(index, world=world, workers=workers, micro=1 if world == 8 else 4)
    assert [p for p, _ in hashes(batches)] == list(range(96))
    rows = torch.cat([batch.rows for batch in batches])
    assert all(sorted(rows[k : k + N].tolist()) == list(range(N)) for k in (0, 32, 64))
    assert hashes(batches) == hashes(read(index))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == index.labels[rows.numpy()].tolist()


def test_nothing_needs_a_call_that_other_systems_lack(tmp_path: Path, foreign: None) -> None:
    """Both walks over a tar, the reader, the workers and the resident images."""
    assert not hasattr(os, "pread")
    index = ShardIndex.open(write_set(tmp_path, bad=(5,)))
    for path in index.paths:
        fast, slow = (read_shard(path, fast=fast) for fast in (True, False))
        assert fast.offsets.tolist() == slow.offsets.tolist()
    assert scan_plain(index.paths[0]) is not None
    assert hashes(read(index, workers=1)) == hashes(read(index))
    assert decode_all(index, np.arange(N)).unreadable.tolist() == [5]
    assert worker_module.count_workers() >= 1
    assert check_shards(str(tmp_path), workers=1).n_decoded == 31


def test_no_start_by_fork_where_it_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_module.choose_start() == "fork"
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert worker_module.choose_start() == "spawn"


def test_spawned_workers_make_the_same_batches(index: ShardIndex) -> None:
    spawned = read(index, workers=1, n_steps=1, start_method="spawn")
    assert hashes(spawned) == hashes(read(index, n_steps=1))


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_resume_goes_on_as_if_nothing_had_been(index: ShardIndex, start: int) -> None:
    """In the middle of an epoch and at its edge, with another world, workers, accumulation."""
    rows = choose_fraction(index, 0.75, seed=0).rows  # 24 images: step 1 is the edge of an epoch
    whole = hashes(read(index, rows=rows, batch=24 if start == 1 else 20, n_steps=4))
    batch = 24 if start == 1 else 20
    for world, micro in ((1, 4), (2, 2)):
        part = read(index, rows=rows, batch=batch, start=start, world=world, micro=micro)
        assert hashes(part) == whole[start * batch :]


def test_the_state_counts_steps_that_were_handed_out(index: ShardIndex, start: str) -> None:
    order = Order(index, np.arange(N), seed=0)
    how = {"crop": CROP, "seed": 0, "batch_size": 8, "micro_batch_size": 4, "n_steps": 3}
    loader = make_train_loader(index, order, workers=1, **how)  # type: ignore[arg-type]
    whole = hashes(list(loader))
    assert loader.state_dict() == {"steps_done": 3}
    some = iter(loader)  # from the start again
    next(some)
    assert loader.state_dict() == {"steps_done": 0}  # half of a step is no step
    next(some)
    assert loader.state_dict() == {"steps_done": 1}  # though workers have made more
    other = make_train_loader(index, order, workers=0, **how)  # type: ignore[arg-type]
    other.load_state_dict(loader.state_dict())
    assert len(other) == 4
    assert hashes(list(other)) == whole[8:]
    assert hashes(list(other)) == whole[8:]
    assert hashes(list(loader)) == whole  # an abandoned iteration leaves nothing behind


def test_batches_that_do_not_divide_are_refused(index: ShardIndex) -> None:
    order = Order(index, np.arange(N), seed=0)
    for world, micro in ((3, 2), (1, 3)):
        with pytest.raises(ShardError, match=r"train\.batch_size is 16; it must divide"):
            make_train_loader(
                index, order, crop=CROP, seed=0, batch_size=16, micro_batch_size=micro,
                world_size=world, n_steps=1, workers=0,
            )  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 3, 8, 40])
def test_validation_is_cut_without_padding(index: ShardIndex, world: int) -> None:
    rows, labels = [], []
    for rank in range(world):
        loader = make_val_loader(
            index, crop=EvalCrop(16), batch_size=5, rank=rank, world_size=world, workers=0
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        rows += [row for batch in batches for row in batch.rows.tolist()]
        labels += [label for batch in batches for label in batch.labels.tolist()]
    assert rows == list(range(N))
    assert labels == index.labels.tolist()


def test_unreadable_images_are_counted_and_replaced_by_the_same_neighbour(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: str
) -> None:
    index = ShardIndex.open(write_set(tmp_path, bad=(5, 6, 31)))
    with caplog.at_level(logging.WARNING, "vitwarm"):
        batches = read(index, batch=32, n_steps=1)
    assert sum(int(batch.unreadable) for batch in batches) == 3
    assert "im00005" in caplog.text
    assert str(tmp_path) in caplog.text
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    first = torch.cat([batch.images for batch in batches])[:, 0, 0, 0].tolist()
    shown = {5: 7, 6: 7, 31: 0}  # 5 and 6 become 7; the last becomes the first
    for row, label, pixel in zip(rows, labels, first, strict=True):
        really = shown.get(row, row)
        assert pixel == really
        assert label == index.labels[really]
    assert hashes(read(index, batch=32, n_steps=1, workers=2)) == hashes(batches)
    whole = decode_all(index, np.arange(N))
    assert whole.unreadable.tolist() == [5, 6, 31]
    assert whole.images[[5, 6, 31], 0, 0, 0].tolist() == [7, 7, 0]
    assert whole.labels[[5, 6, 31]].tolist() == index.labels[[7, 7, 0]].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_of_nothing_but_bad_images_stop_with_a_sentence(
    tmp_path: Path, workers: int, start: str
) -> None:
    index = ShardIndex.open(write_set(tmp_path, bad=tuple(range(32))))
    with pytest.raises(ShardError, match=r"those after it do not decode") as caught:
        read(index, workers=workers)
    assert "Traceback" not in str(caught.value)


def test_a_shard_that_goes_away_stops_with_a_sentence(
    tmp_path: Path, start: str, new_children: Callable[[], set[BaseProcess]]
) -> None:
    index = ShardIndex.open(write_set(tmp_path))
    (tmp_path / "tiny-0001.tar").unlink()
    with pytest.raises(ShardError, match=r"tiny-0001\.tar cannot be read") as caught:
        read(index, workers=1)
    del caught
    gc.collect()
    began = time.monotonic()
    assert not new_children()  # they heard of the end
    assert time.monotonic() - began < 4


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitwarm.shards.load.reader._most_open", lambda: 4)
    index = ShardIndex.open(write_set(tmp_path, n_shards=20, per_shard=2))
    if not os.path.isdir("/dev/fd"):
        pytest.skip("this system does not list what is open")
    before = len(os.listdir("/dev/fd"))
    order = Order(index, np.arange(40), seed=0, mode="full")
    loader = make_train_loader(
        index, order, crop=CROP, seed=0, batch_size=8, micro_batch_size=8, n_steps=10, workers=0
    )
    for _ in loader:
        assert len(os.listdir("/dev/fd")) <= before + 5


def test_workers_outlive_a_signal_to_the_whole_job(index: ShardIndex, start: str) -> None:
    order = Order(index, np.arange(N), seed=0)
    loader = make_train_loader(
        index, order, crop=CROP, seed=0, batch_size=4, micro_batch_size=4, n_steps=30, workers=1
    )
    batches = iter(loader)
    next(batches)
    (process,) = loader.loader._iterator._workers  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    assert len(list(batches)) == 29


def test_the_number_of_workers_is_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "read_text", lambda self, **how: "max 100000")
    assert worker_module.count_workers() == 12
    assert worker_module.count_workers(4) == 3
    assert worker_module.count_workers(100) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # 8 processes on 4 nodes
    assert worker_module.count_workers(8) == 6
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert worker_module.count_workers(8) == 6
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    monkeypatch.setattr(Path, "read_text", lambda self, **how: "400000 100000")
    assert worker_module.count_workers() == 4


def test_too_little_shared_memory_is_said_before_a_bus_error(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.statvfs_result((4096, 4096, 16, 2, 2, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: room, raising=False)
    order = Order(index, np.arange(N), seed=0)
    with pytest.raises(ShardError, match=r"/dev/shm has only 0 MB free.*--shm-size"):
        make_train_loader(
            index,
            order,
            crop=CROP,
            seed=0,
            batch_size=32,
            micro_batch_size=32,
            n_steps=1,
            workers=2,
        )


def test_class_sorted_shards_get_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(4):
        write_tar(tmp_path / f"s-{k}.tar", [m for j in range(8) for m in sample(f"{k}-{j}", k)])
    index = ShardIndex.open(tmp_path)
    with caplog.at_level(logging.WARNING, "vitwarm"):
        Order(index, np.arange(32), seed=0, mode="full")
        assert not caplog.text
        Order(index, np.arange(32), seed=0, window_shards=2)
    assert "sorted by class" in caplog.text
    assert "data.order=full" in caplog.text


def test_images_of_several_sizes_cannot_be_resident(tmp_path: Path) -> None:
    write_set(tmp_path, n_shards=1, name="a", size=8)
    write_set(tmp_path / "b", n_shards=2, name="b", size=9)
    (tmp_path / "b" / "b-0001.tar").rename(tmp_path / "c.tar")
    index = ShardIndex.open(f"{tmp_path}/*.tar")
    with pytest.raises(ShardError, match=r"data\.resident: image .* 9 x 9 pixels, others 8 x 8"):
        decode_all(index, np.arange(32))
    assert decode_all(index, np.arange(32), 8).images.shape == (32, 3, 8, 8)


def test_a_slab_comes_back_with_its_last_tensor() -> None:
    slabs = Slabs(2, 4, (8, 8))
    first = slabs.lend()
    assert first is not None
    slabs.pixels(first, 3)[:] = 7
    images = slabs.ship(first, 3).receive()
    assert images.shape == (3, 3, 8, 8)
    assert (images == 7).all()
    second = slabs.lend()
    assert slabs.lend() is None
    view = images[1:]
    del images
    assert slabs.lend() is None
    del view
    assert slabs.lend() == first
    slabs.recall()  # neither has arrived
    assert {slabs.lend(), slabs.lend()} == {first, second}


def test_pinned_copies_free_their_slab_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    slabs = Slabs(1, 2, (8, 8))
    slab = slabs.lend()
    assert slab is not None
    slabs.pixels(slab, 2)[:] = 5
    none = np.zeros(2, np.int64)
    shipped = pin_memory(Shipped(slabs.ship(slab, 2), none, none, none, none, 0))
    assert slabs.lend() == slab
    assert (unpack(shipped).images == 5).all()


@pytest.mark.skipif(worker_module.choose_start() != "fork", reason="slabs are for forked workers")
def test_batches_share_memory_in_turns(index: ShardIndex) -> None:
    order = Order(index, np.arange(N), seed=0)
    how = {"crop": CROP, "seed": 0, "batch_size": 4, "micro_batch_size": 4, "n_steps": 24}
    loader = make_train_loader(index, order, workers=1, **how)  # type: ignore[arg-type]
    places = [batch.images.data_ptr() for batch in loader]
    assert len(set(places)) < 8  # made ahead, shown, and on its way
    some = iter(loader)
    next(some)
    assert {batch.images.data_ptr() for batch in loader} <= set(places)  # none was lost with it


@pytest.mark.slow
def test_a_script_that_keeps_its_loader_comes_to_an_end(tiny_set: Path) -> None:
    """Globals live until the interpreter exits, which used to wait for the workers for ever."""
    code = (
        "import sys, numpy as np\n"
        "from vitwarm.shards import Order, ShardIndex, TrainCrop, make_train_loader\n"
        "index = ShardIndex.open(sys.argv[1])\n"
        "loader = make_train_loader(index, Order(index, np.arange(32), seed=0), crop=TrainCrop(8),"
        " seed=0, batch_size=4, micro_batch_size=4, n_steps=4, workers=1)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
    )
    run = [sys.executable, "-c", code, str(tiny_set)]
    assert subprocess.run(run, check=False, timeout=60).returncode == 0

"""Fractals: the chaos game against an independent one; shards that do not depend on who drew."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vitwarm.cli import main
from vitwarm.shards import EvalCrop, ShardIndex, make_val_loader
from vitwarm.shards.write import fractals
from vitwarm.shards.write.fractals import FractalSet, cover, draw_fractal, find_system, walk
from vitwarm.shards.write.pool import _bounded

#: Half way to one of three corners: attracts the points whose binary digits are never both 1.
SIERPINSKI = np.array(
    [[0.5, 0, 0, 0.5, e, f, 1 / 3] for e, f in ((0, 0), (0.5, 0), (0, 0.5))], np.float64
)


def slow_walk(maps: np.ndarray, start: int, n: int) -> np.ndarray:
    """The chaos game with Python's integers, as its description has it."""
    mask = (1 << 64) - 1
    x = y = 0.0
    points = []
    for k in range(n + 100):
        start = (start + 0x9E3779B97F4A7C15) & mask
        z = ((start ^ (start >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        u = ((z ^ (z >> 31)) >> 11) / 2**53
        chosen = 0
        while chosen < len(maps) - 1 and u >= maps[chosen, 6]:
            u -= maps[chosen, 6]
            chosen += 1
        a, b, c, d, e, f, _ = maps[chosen].tolist()
        x, y = a * x + b * y + e, c * x + d * y + f
        if k >= 100:
            points.append((x, y))
    return np.array(points).T


def test_the_walk_is_the_chaos_game() -> None:
    maps, _ = find_system(3, 5)
    for system in (SIERPINSKI, maps):
        points = np.empty((2, 500))
        assert walk(system, np.uint64(2**64 - 7), points)
        assert np.array_equal(points, slow_walk(system, 2**64 - 7, 500))


def test_the_walk_finds_the_sierpinski_triangle() -> None:
    points = np.empty((2, 40_000))
    assert walk(SIERPINSKI, np.uint64(1), points)
    cells = np.floor(points * 64).astype(int)
    assert not (cells[0] & cells[1]).any()
    assert len(np.unique(cells, axis=1).T) == 3**6  # of 4^6 cells: dimension log 3 / log 2
    which = np.floor(points * 2).astype(int)  # which corner came last, each a third of the time
    shares = [((which[0] == i) & (which[1] == j)).mean() for i, j in ((0, 0), (1, 0), (0, 1))]
    assert np.allclose(shares, 1 / 3, atol=0.01)


def test_a_walk_that_strays_is_none() -> None:
    grows = np.array([[1.5, 0, 0, 1.5, 1, 1, 1.0]])
    assert not walk(grows, np.uint64(1), np.empty((2, 1000)))
    still = np.array([[0.0, 0, 0, 0, 1, 1, 1.0]])
    points = np.empty((2, 1000))
    assert walk(still, np.uint64(1), points)
    assert cover(points, 64) == 0


def test_systems_are_drawn_and_accepted_as_published() -> None:
    for label in range(4):
        maps, attempts = find_system(0, label)
        assert 2 <= len(maps) <= 7
        assert (np.abs(maps[:, :6]) <= 1).all()
        areas = np.abs(maps[:, 0] * maps[:, 3] - maps[:, 1] * maps[:, 2])
        assert np.allclose(maps[:, 6], areas / areas.sum())
        points = np.empty((2, 100_000))
        assert walk(maps, np.uint64(99), points)  # another walk of the same system
        low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
        pixels = np.floor((points - low) / (high - low) * (512 - 13) + 6)
        share = len(np.unique(pixels, axis=1).T) / 512**2
        assert share > 0.18
        assert cover(points, 512) == pytest.approx(share, abs=1e-4)
        assert attempts >= 1
    assert not np.array_equal(find_system(0, 1)[0], find_system(1, 1)[0])


def test_an_image_depends_on_seed_class_and_number_alone() -> None:
    small, large = FractalSet(size=64, points=5000), FractalSet(9, 9, 9, size=64, points=5000)
    maps = find_system(0, 2)[0]
    images = [draw_fractal(small, maps, 2, number) for number in range(12)]
    for number, image in enumerate(images):
        assert image.shape == (64, 64)
        assert image.dtype == np.uint8
        assert set(np.unique(image)) == {0, fractals.GREY}
        assert not image[:4].any()  # the margin
        assert not image[:, -4:].any()
        assert np.array_equal(image, draw_fractal(large, maps, 2, number))
    assert len({image.tobytes() for image in images}) == 12
    again = draw_fractal(small, maps, 2, 1000)  # the combinations come again, drawn anew
    assert not np.array_equal(again, images[0])


def test_the_first_thousand_images_are_every_variation_once() -> None:
    order = fractals._combinations(0, 7)
    assert sorted(order.tolist()) == list(range(1000))
    assert fractals.N_VARIATIONS == 25
    maps = find_system(0, 0)[0]
    changed = []
    for variation in range(25):
        factor = fractals.scaled(maps, variation)[:, :6] / maps[:, :6]
        columns = np.flatnonzero(~np.isclose(factor, 1).all(axis=0))
        changed.append((tuple(columns), *np.round(factor[0, columns], 9)))
    assert changed[0] == ((),)
    assert len(set(changed)) == 25
    assert {len(columns) for columns, *_ in changed[1:]} == {1}
    assert {scale for _, *scales in changed for scale in scales} == {0.2, 0.6, 1.4, 1.8}


def test_a_variation_that_strays_is_drawn_as_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = find_system(0, 0)[0]
    seen = []

    def spy(system: np.ndarray, start: np.uint64, points: np.ndarray) -> bool:
        seen.append(system)
        return len(seen) > 2 and bool(walk(system, start, points))

    monkeypatch.setattr(fractals, "walk", spy)
    assert draw_fractal(FractalSet(size=64, points=2000), maps, 0, 3).any()
    assert len(seen) == 3
    assert all(np.array_equal(system, maps) for system in seen[1:])


def test_fractals_are_ordinary_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["shards", "fractals", str(out), "--classes", "3", "--per-class", "7", "--size", "48"]
    words += ["--points", "3000", "--val-per-class", "2", "--images-per-shard", "10"]
    assert main([*words, "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert f"train: 21 images, data.train={out}/train" in said
    assert f"validation: 6 images, data.val={out}/validation" in said
    assert main(["shards", "check", f"{out}/train"]) == 0
    assert "21 images of 3 classes in 2 shards, 21 decoded: 0 problems" in capsys.readouterr().out
    train, val = (ShardIndex.open(f"{out}/{split}") for split in ("train", "validation"))
    assert np.bincount(train.labels).tolist() == [7, 7, 7]
    assert np.bincount(val.labels).tolist() == [2, 2, 2]
    assert not set(train.keys[:]) & set(val.keys[:])
    assert train.classes == ("fractal00000", "fractal00001", "fractal00002")
    assert not train.is_class_sorted
    facts = json.loads((out / "fractals.json").read_text())
    what = FractalSet(3, 7, 2, size=48, points=3000)
    loader = make_val_loader(val, crop=EvalCrop(48, crop_pct=1.0), batch_size=6, workers=0)
    (batch,) = loader
    for image, label, row in zip(batch.images, batch.labels, batch.rows, strict=True):
        number = int(val.keys[int(row)].partition("_")[2])
        maps = np.array(facts["classes"][int(label)]["maps"])  # all that is needed to draw it
        assert np.array_equal(image[0].numpy(), draw_fractal(what, maps, int(label), number))
    assert main([*words, "--workers", "1"]) == 2
    assert "holds shards already" in capsys.readouterr().err


def test_few_results_are_on_their_way_at_a_time() -> None:
    """Else those of a million images would pile up behind the one that writes them."""
    taken = []
    with ThreadPoolExecutor(2) as pool:
        items = (taken.append(k) or k for k in range(100))  # type: ignore[func-returns-value]
        results = _bounded(pool, 8, lambda k: k * k, items)  # type: ignore[arg-type]
        for k in range(100):
            assert next(results) == k * k
            assert len(taken) <= k + 8
    assert taken == list(range(100))


@pytest.mark.slow
def test_many_processes_write_the_same_bytes(tmp_path: Path) -> None:
    what = FractalSet(3, 40, size=48, points=3000)
    for workers in (1, 2):
        fractals.write_fractals(tmp_path / str(workers), what, workers=workers)
    files = [sorted((tmp_path / str(workers)).iterdir()) for workers in (1, 2)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def alive(group: int) -> list[str]:
    """Processes of a group that are no zombies."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True)
    words = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [args for pgid, stat, args in words if int(pgid) == group and stat[0] != "Z"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ps"), reason="no ps here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_ends_its_processes(number: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["shards", "fractals", str(out), "--classes", "2", "--per-class", "100000"]
    words += ["--size", "64", "--points", "2000", "--workers", "2"]
    run = subprocess.Popen([sys.executable, "-m", "vitwarm.cli", *words], start_new_session=True)
    deadline = time.monotonic() + 60
    while not any(out.glob(".*/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(alive(run.pid)) >= 3
    run.send_signal(number)
    code = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[signal.Signals(number)]
    assert run.wait(60) == code
    deadline = time.monotonic() + 60
    while alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(run.pid)
    if number != signal.SIGKILL:
        assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--classes", "1"], "--classes is 1; it must lie from 2 to 16,777,216"),
        (["--per-class", "0"], "--per-class is 0; it must lie from 1"),
        (["--val-per-class", "-1"], "--val-per-class is -1; it must lie from 0"),
        (["--size", "8"], "--size is 8; it must lie from 32 to 2,048"),
        (["--points", "10"], "--points is 10; it must lie from 1,000"),
        (["--workers", "0"], "--workers is 0; it must lie from 1"),
        (["--images-per-shard", "0"], "--images-per-shard is 0; it must lie from 1"),
    ],
)
def test_numbers_out_of_range_are_refused(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "fractals", str(tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

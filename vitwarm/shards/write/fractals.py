"""Labelled fractal images as shards: FractalDB, drawn anew.

A class is a system of affine maps, an image a cloud of points that the system attracts. Image k of
class c is a pure function of (seed, size, points, c, k): the same in any process and any set.

Source: Kataoka et al. 2020 (FractalDB). What it leaves open is ours: the walk's first points are
left out; the probabilities stay those of the class where a variation scales a coefficient; a
variation that does not stay bounded or draws too little is drawn as its class.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vitwarm.errors import ShardError
from vitwarm.files import write_text
from vitwarm.seeding import hash_bits, numpy_rng, shuffled
from vitwarm.shards.bars import make_bar
from vitwarm.shards.read.fastwalk import compiled
from vitwarm.shards.read.labels import MAX_CLASSES
from vitwarm.shards.write.pool import sharing
from vitwarm.shards.write.writer import Sample, check_empty, write_set

#: A class is accepted if so many points hit this share of a canvas of so many pixels.
ACCEPT_POINTS, ACCEPT_SIZE, ACCEPT_SHARE = 100_000, 512, 0.2
#: Pixels left free at each edge.
PAD = 6
#: Maps of a system, at least and at most.
N_MAPS = (2, 7)
#: A variation scales one of the six coefficients of all maps, or none.
SCALES = (0.2, 0.6, 1.4, 1.8)
N_VARIATIONS, N_FLIPS, N_PATCHES = 1 + 6 * len(SCALES), 4, 10
N_COMBINATIONS = N_VARIATIONS * N_FLIPS * N_PATCHES
#: Value of a drawn pixel on black.
GREY = 127
#: A variation that hits fewer pixels than this share is drawn as its class.
LEAST_SHARE = 0.005

_BURN_IN = 100
_LIMIT = 1e6
_ATTEMPTS = 100
_CHUNK = 32

Job = tuple[np.ndarray, int, int]
"""An image to draw: the maps of its class, the class, the number within it."""


class FractalSet(NamedTuple):
    """What a set of fractal images is."""

    n_classes: int = 1000
    per_class: int = 1000
    val_per_class: int = 0
    size: int = 362
    """Pixels of both sides."""
    points: int = 200_000
    """Of the walk, per image."""
    seed: int = 0


def write_fractals(
    out: Path, what: FractalSet, *, workers: int = 1, images_per_shard: int = 1250
) -> dict[str, int]:
    """Writes a training set, and a validation set if it is to have images, and `fractals.json`.

    Validation images are others of the same classes: those behind the training ones.

    Args:
        workers: processes that draw; 1: this one alone.
        images_per_shard: about.
    Returns: the images of each split.
    Raises: ShardError: a number out of range, or `out` holds shards or cannot be written.
    """
    for name, value, low, high in (
        ("classes", what.n_classes, 2, MAX_CLASSES),
        ("per-class", what.per_class, 1, 1 << 24),
        ("val-per-class", what.val_per_class, 0, 1 << 24),
        ("size", what.size, 32, 2048),
        ("points", what.points, 1000, 100_000_000),
        ("workers", workers, 1, 4096),
        ("images-per-shard", images_per_shard, 1, 1 << 24),
    ):
        if not low <= value <= high:
            raise ShardError(f"--{name} is {value:,}; it must lie from {low:,} to {high:,}.")
    check_empty(out, own="fractals-")
    splits = {}
    with sharing(workers) as run:
        found = run(partial(find_system, what.seed), range(what.n_classes))
        systems = list(make_bar("classes", total=what.n_classes, items=found))
        for split, first, n_each in (
            ("train", 0, what.per_class), ("validation", what.per_class, what.val_per_class),
        ):  # fmt: skip
            if n_each:
                jobs = _shuffled_jobs(what, [maps for maps, _ in systems], split, first, n_each)
                drawn = itertools.chain.from_iterable(run(partial(draw_samples, what), jobs))
                splits[split] = what.n_classes * n_each, drawn
        names = [f"fractal{label:05d}" for label in range(what.n_classes)]
        counts = write_set(out, "fractals", splits, names, images_per_shard=images_per_shard)
    plain = [{"maps": maps.tolist(), "attempts": attempts} for maps, attempts in systems]
    write_text(out / "fractals.json", json.dumps({**what._asdict(), "classes": plain}) + "\n")
    return counts


def _shuffled_jobs(
    what: FractalSet, systems: Sequence[np.ndarray], split: str, first: int, n_each: int
) -> Iterator[list[Job]]:
    """Yields all images of a split in a random order, some at a time."""
    places = np.arange(what.n_classes * n_each)
    turn = shuffled(places, what.seed, "fractals", "order", split)
    for k in range(0, len(turn), _CHUNK):
        labels, numbers = np.divmod(turn[k : k + _CHUNK], n_each)
        yield [
            (systems[label], label, first + number)
            for label, number in zip(labels.tolist(), numbers.tolist(), strict=True)
        ]


def draw_samples(what: FractalSet, jobs: list[Job]) -> list[Sample]:
    """Draws and encodes some images."""
    samples = []
    for maps, label, number in jobs:
        buffer = io.BytesIO()
        pixels = draw_fractal(what, maps, label, number)
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
        key = f"fractal{label:05d}_{number:06d}"
        samples.append(Sample(key, "png", buffer.getvalue(), label))
    return samples


def draw_fractal(what: FractalSet, maps: np.ndarray, label: int, number: int) -> np.ndarray:
    """Returns an image, uint8 [size, size], GREY on black.

    The first 1,000 numbers of a class are every variation x flip x patch once, in an order that
    depends on seed and class; from then on they come again, with other points and patches.

    Args:
        maps: of the class, from `find_system`.
        number: of the image within its class.
    """
    again, place = divmod(number, N_COMBINATIONS)
    combination = int(_combinations(what.seed, label)[place])
    variation, rest = divmod(combination, N_FLIPS * N_PATCHES)
    flip, patch = divmod(rest, N_PATCHES)
    rng = numpy_rng(what.seed, "fractals", "patch", label, patch, again)
    pattern = rng.integers(0, 2, (3, 3)).astype(np.uint8)
    pattern.reshape(-1)[rng.integers(0, 9)] = 1  # none without a pixel
    out = np.zeros((what.size, what.size), np.uint8)
    points = np.empty((2, what.points))
    for attempt in range(_ATTEMPTS):  # even a class that was accepted may once stray too far
        system, least = (maps, 0.0) if attempt else (scaled(maps, variation), LEAST_SHARE)
        start = hash_bits(what.seed, "fractals", "walk", label, number, attempt)
        if walk(system, np.uint64(start), points) and cover(points, what.size) > least:
            stamp(points, pattern, out)
            break
    return np.ascontiguousarray(out[:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]) * GREY


@cache
def _combinations(seed: int, label: int) -> np.ndarray:
    return numpy_rng(seed, "fractals", "combinations", label).permutation(N_COMBINATIONS)


def scaled(maps: np.ndarray, variation: int) -> np.ndarray:
    """Returns the maps with one coefficient of all scaled; variation 0: as they are."""
    out = maps.copy()
    if variation:
        coefficient, scale = divmod(variation - 1, len(SCALES))
        out[:, coefficient] *= SCALES[scale]
    return out


def find_system(seed: int, label: int) -> tuple[np.ndarray, int]:
    """Draws systems until one covers enough of the canvas; returns its maps and the attempts.

    Returns: float64 [n, 7]: a, b, c, d, e, f of (x, y) -> (a x + b y + e, c x + d y + f), uniform
        in [-1, 1), and the map's probability, in proportion to |a d - b c|.
    """
    points = np.empty((2, ACCEPT_POINTS))
    for attempt in itertools.count(1):
        rng = numpy_rng(seed, "fractals", "system", label, attempt)
        maps = np.empty((rng.integers(N_MAPS[0], N_MAPS[1] + 1), 7))
        maps[:, :6] = rng.uniform(-1, 1, (len(maps), 6))
        maps[:, 6] = np.abs(maps[:, 0] * maps[:, 3] - maps[:, 1] * maps[:, 2])
        maps[:, 6] /= maps[:, 6].sum()
        start = np.uint64(hash_bits(seed, "fractals", "accept", label, attempt))
        if walk(maps, start, points) and cover(points, ACCEPT_SIZE) >= ACCEPT_SHARE:
            return maps, attempt
    raise AssertionError("attempts do not end")


@compiled
def walk(maps: np.ndarray, start: np.uint64, points: np.ndarray) -> bool:
    """Plays the chaos game from the origin; fills in points [2, n]. False: it does not stay near.

    Random numbers: splitmix64 from `start` on; the same on every machine.
    """
    x, y, state = 0.0, 0.0, start
    for k in range(-_BURN_IN, points.shape[1]):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        u = np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0
        chosen = 0
        while chosen < maps.shape[0] - 1 and u >= maps[chosen, 6]:
            u -= maps[chosen, 6]
            chosen += 1
        m = maps[chosen]
        x, y = m[0] * x + m[1] * y + m[4], m[2] * x + m[3] * y + m[5]
        if not abs(x) + abs(y) < _LIMIT:
            return False
        if k >= 0:
            points[0, k], points[1, k] = x, y
    return True


@compiled
def cover(points: np.ndarray, size: int) -> float:
    """Turns points into pixels of a canvas, in place; returns the share of the canvas they hit."""
    for axis in range(2):
        low, high = points[axis].min(), points[axis].max()
        if not high > low:
            return 0.0
        scale = (size - 2 * PAD - 1) / (high - low)
        for k in range(points.shape[1]):
            points[axis, k] = np.floor((points[axis, k] - low) * scale + PAD)
    hit = np.zeros((size, size), np.bool_)
    n = 0
    for k in range(points.shape[1]):
        row, column = int(points[1, k]), int(points[0, k])
        if not hit[row, column]:
            hit[row, column] = True
            n += 1
    return n / (size * size)


@compiled
def stamp(points: np.ndarray, pattern: np.ndarray, out: np.ndarray) -> None:
    """Sets the pixels of a 3 x 3 pattern around every point to 1; points as `cover` leaves them."""
    for k in range(points.shape[1]):
        row, column = int(points[1, k]) - 1, int(points[0, k]) - 1
        for i in range(3):
            for j in range(3):
                if pattern[i, j]:
                    out[row + i, column + j] = 1

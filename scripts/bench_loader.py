"""What an image costs on its way from a shard to the model, beside timm's way and bare decoding.

    python scripts/bench_loader.py --shards DIR          # a folder of tars, or a pattern
    python scripts/bench_loader.py                       # synthetic JPEGs of 500 x 375
    python scripts/bench_loader.py --index               # instead: what building an index costs

CPU seconds, so that a busy machine does not blur them, of three that take turns in one run over the
same images in the same order:

    ours      this loader: worker processes and the one they ship to; crops, flips and resizes (the
              rest of the DeiT recipe runs per batch, see bench_augment.py)
    timm      timm's `create_transform` with the whole DeiT recipe on each Pillow image, read by the
              same reader, in one process and with nothing shipped
    decode    reading and decoding whole images as `ours` does, in one process

One JSON line per size; `over_timm` and `over_decode` above 1 mean more images per second of a core
than those. Workers that had started before a round are counted, their start is not.

`--index` writes a few shards of an ImageNet-1k that has 1,024 of 1,252 images with a .jpg, a
.cls and a .json member each (small images, every header), indexes them from nothing with warm page
caches, and multiplies the CPU seconds of one process by what is missing to 1,024.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import simplejpeg
import timm
import torch
import webdataset as wds
from PIL import Image
from timm.data import create_transform

from vitwarm.errors import VitwarmError
from vitwarm.shards import Order, ShardIndex, TrainCrop, make_train_loader
from vitwarm.shards.load.reader import ImageReader
from vitwarm.shards.write.writer import Sample, write_shards

#: Of the synthetic images: ImageNet's most frequent size.
HEIGHT, WIDTH = 375, 500
N_SYNTHETIC = 256

#: ImageNet-1k on the hub, and the share of it that --index writes.
IMAGENET_SHARDS, SHARD_IMAGES, INDEX_SHARDS = 1024, 1252, 16


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line per size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", metavar="SOURCE", help="default: synthetic JPEGs")
    parser.add_argument("--size", action="append", type=int, help="default: 224")
    parser.add_argument("--images", type=int, default=256, help="per round and contender")
    parser.add_argument("--batch", type=int, default=128, help="images per batch of the loader")
    parser.add_argument("--workers", type=int, default=1, help="processes of the loader")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--index", action="store_true", help="time building an index")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if args.index:
                print(json.dumps(bench_index(Path(folder), args.rounds)), flush=True)
                return 0
            source = args.shards or write_synthetic(Path(folder))
            index = ShardIndex.open(source, cache=folder)
            for size in args.size or [224]:
                print(json.dumps(bench(index, size, args)), flush=True)
    except VitwarmError as error:
        print(f"bench_loader: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def bench(index: ShardIndex, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times the three at one size."""
    n_steps = -(-args.images // args.batch)
    n_images = n_steps * args.batch
    order = Order(index, np.arange(index.n_images), seed=0)
    rows = order.rows_at(np.arange(n_images))[1].tolist()
    reader = ImageReader(index, order.rows)
    load_timm = deit_sample(reader, size)
    loader = make_train_loader(
        index, order, crop=TrainCrop(size), seed=0, batch_size=args.batch,
        micro_batch_size=args.batch, n_steps=n_steps, workers=args.workers,
    )  # fmt: skip
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: exhaust(loader),
        "timm": lambda: exhaust(map(load_timm, rows)),
        "decode": lambda: exhaust(map(reader.pixels, rows)),
    }
    seconds = interleave(calls, args.rounds)
    per_core = {name: [n_images / s for s in some] for name, some in seconds.items()}
    over = {
        name: [a / b for a, b in zip(per_core["ours"], per_core[name], strict=True)]
        for name in ("timm", "decode")
    }
    headers = [reader.header(row) for row in rows]
    return {
        "size": size,
        "images_per_second_per_core": round(statistics.median(per_core["ours"])),
        "images_per_second_per_core_range": spread(per_core["ours"], 0),
        "over_timm": round(statistics.median(over["timm"]), 3),
        "over_timm_range": spread(over["timm"], 3),
        "over_decode": round(statistics.median(over["decode"]), 3),
        "over_decode_range": spread(over["decode"], 3),
        "timm_images_per_second_per_core": round(statistics.median(per_core["timm"])),
        "decode_images_per_second_per_core": round(statistics.median(per_core["decode"])),
        "n_images": n_images,
        "rounds": args.rounds,
        "workers": args.workers,
        "batch": args.batch,
        "source": "synthetic" if args.shards is None else "shards",
        "median_height": int(statistics.median(image.height for image in headers)),
        "median_width": int(statistics.median(image.width for image in headers)),
        "mean_bytes": round(statistics.mean(len(image.data) for image in headers)),
        "decoder": f"simplejpeg {simplejpeg.__version__}",
        "timm": f"timm {timm.__version__}, Pillow {PIL.__version__}",
    }


def bench_index(folder: Path, rounds: int) -> dict[str, Any]:
    """Times reading the headers of some shards, extrapolated to ImageNet-1k's."""
    shards = folder / "shards"
    shards.mkdir()
    number = 0
    image = bytes(12 * 512)  # the shards are then large enough for the walk that real ones get
    for shard in range(INDEX_SHARDS):
        with wds.TarWriter(str(shards / f"imagenet1k-train-{shard:04d}.tar"), mtime=0) as writer:
            for _ in range(SHARD_IMAGES):
                label = number % 1000
                key = f"n{label:08d}_{number}"
                facts = {"label": label, "width": 500, "height": 375, "filename": f"{key}.JPEG"}
                writer.write(
                    {"__key__": key, "jpg": image, "cls": str(label).encode(),
                     "json": json.dumps(facts).encode()}
                )  # fmt: skip
                number += 1
    seconds = []
    for attempt in range(rounds + 1):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            before = cpu_seconds()
            ShardIndex.open(shards, cache=cache)
            if attempt:  # the first one fills the page cache
                seconds.append((cpu_seconds() - before) * IMAGENET_SHARDS / INDEX_SHARDS)
    return {
        "index_cpu_seconds_of_1024_shards": round(statistics.median(seconds), 2),
        "range": spread(seconds, 2),
        "shards_measured": INDEX_SHARDS,
        "members_measured": 3 * number,
        "rounds": rounds,
    }


def deit_sample(reader: ImageReader, size: int) -> Callable[[int], torch.Tensor]:
    """timm's: from a row to float32 [3, size, size], augmented, normalised and erased."""
    crop, operations, final = create_transform(
        size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3,
        interpolation="bicubic", re_prob=0.25, re_mode="pixel", separate=True,
    )  # fmt: skip

    def load(row: int) -> torch.Tensor:
        with Image.open(io.BytesIO(reader.read(row))) as opened:
            image = crop(opened.convert("RGB"))
        with suppress(ValueError):  # Pillow 13 does not posterise to 0 bits; timm does at m >= 10
            image = operations(image)
        x: torch.Tensor = final(image)
        return x

    return load


def write_synthetic(folder: Path) -> Path:
    """Writes JPEGs with ImageNet's usual size, bytes and chroma sampling; returns their folder.

    Three quarters are 4:4:4, the others 4:2:0, as in a sample of 250 of its images.
    """
    rng = np.random.default_rng(0)
    samples = []
    for k in range(N_SYNTHETIC):
        scene = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        pixels = np.asarray(scene.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        grain = Image.fromarray(rng.normal(128, 36, (HEIGHT // 2, WIDTH // 2)).astype(np.uint8))
        texture = np.asarray(grain.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(pixels + texture[:, :, None] - 128, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        sampling = "4:2:0" if k % 4 == 0 else "4:4:4"
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=90, subsampling=sampling)
        samples.append(Sample(f"synthetic{k:04d}", "jpg", buffer.getvalue(), k))
    write_shards(folder, "synthetic-train", samples, n_samples=N_SYNTHETIC, n_shards=2)
    return folder


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds per call, one figure per round; the contenders take turns within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            before = cpu_seconds()
            call()
            if number:  # the first round starts workers and fills caches
                seconds[name].append(cpu_seconds() - before)
    return seconds


def cpu_seconds() -> float:
    """CPU seconds so far of this process and of the children that live."""
    total, libc, clock = time.process_time(), ctypes.CDLL(None), ctypes.c_int()
    for child in multiprocessing.active_children():
        if libc.clock_getcpuclockid(child.pid, ctypes.byref(clock)):
            raise OSError(f"process {child.pid} has no CPU clock")
        total += time.clock_gettime(clock.value)
    return total


def exhaust(items: Iterable[object]) -> None:
    """Takes every item and keeps none."""
    deque(items, maxlen=0)


def spread(values: list[float], digits: int) -> list[float]:
    """Smallest and largest."""
    return [round(min(values), digits or None), round(max(values), digits or None)]


if __name__ == "__main__":
    sys.exit(main())

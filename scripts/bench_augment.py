"""What the per-batch augmentation costs, beside timm's per-sample one.

    python scripts/bench_augment.py --size 224 --size 32

On a CPU, interleaved rounds in one process and on one thread, from cropped uint8 images to the
batch that the model gets (operations, normalising, erasing, mixup/CutMix):

    ours    vitwarm.augment on a batch
    timm    timm's transforms on Pillow images, its FastCollateMixup, and what its PrefetchLoader
            does with the batch (normalise, erase)

On a GPU also the share of a ViT-S/16 training step (forward, backward, AdamW; bf16, blocks
compiled). One JSON line per recipe and size; `over_timm` above 1 means faster than timm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.mixup import FastCollateMixup
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2

from vitwarm.augment import Augmentation, Mixing
from vitwarm.loop.start import compile_blocks

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPES: dict[str, dict[str, Any]] = {
    "randaugment": {"aa": "rand-m9-mstd0.5-inc1", "color_jitter": None, "reprob": 0.25},
    "three": {"aa": "3a", "color_jitter": 0.3, "reprob": 0.0},
}
N_CLASSES = 1000


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line per recipe and size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", action="append", choices=tuple(RECIPES))
    parser.add_argument("--size", action="append", type=int, help="default: 224 and 32")
    parser.add_argument("--batch", type=int, help="default: 64 at 224 px, 512 at 32 px; GPU 256")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    args = parser.parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(1)
    for recipe in args.recipe or list(RECIPES):
        for size in args.size or [224, 32]:
            bench = bench_gpu if device.type == "cuda" else bench_cpu
            print(json.dumps(bench(recipe, size, args)), flush=True)
    return 0


def bench_cpu(recipe: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times both on one CPU thread."""
    n = args.batch or (64 if size > 64 else 512)
    images = make_images(n, size)
    seconds = interleave(
        {"ours": ours(recipe, images), "timm": theirs(recipe, images)}, args.rounds
    )
    ratios = [t / o for o, t in zip(seconds["ours"], seconds["timm"], strict=True)]
    return {
        "recipe": recipe,
        "size": size,
        "batch": n,
        "device": "cpu, one thread",
        "over_timm": round(statistics.median(ratios), 3),
        "over_timm_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "ms_per_image": round(1e3 * statistics.median(seconds["ours"]) / n, 4),
        "timm_ms_per_image": round(1e3 * statistics.median(seconds["timm"]) / n, 4),
    }


def bench_gpu(recipe: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times the augmentation beside a training step of ViT-S/16 (4-px patches below 64 px)."""
    n = args.batch or 256
    images = make_images(n, size).cuda()
    calls = {"ours": ours(recipe, images), "step": vit_step(images)}
    seconds = interleave(calls, args.rounds, repeat=20)
    shares = [o / s for o, s in zip(seconds["ours"], seconds["step"], strict=True)]
    return {
        "recipe": recipe,
        "size": size,
        "batch": n,
        "device": torch.cuda.get_device_name(),
        "share_of_step_percent": round(100 * statistics.median(shares), 2),
        "share_range": [round(100 * min(shares), 2), round(100 * max(shares), 2)],
        "images_per_second": round(n / statistics.median(seconds["ours"])),
        "step_images_per_second": round(n / statistics.median(seconds["step"])),
    }


def make_images(n: int, size: int) -> torch.Tensor:
    """Noise enlarged eightfold: edges and flat parts; uint8 [n, 3, size, size]."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(n, 3, max(2, size // 8), max(2, size // 8), generator=generator)
    large = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear")
    return (large * 255).byte()


def ours(recipe: str, images: torch.Tensor) -> Callable[[], object]:
    """The package's augmentation of this batch, of another epoch in each call."""
    augment = Augmentation(
        seed=0, mean=MEAN, std=STD, mixing=Mixing(mixup=0.8, cutmix=1.0), **RECIPES[recipe]
    )
    n = len(images)
    rows, labels = np.arange(n), (torch.arange(n) % N_CLASSES).to(images.device)
    epoch = iter(range(1 << 30))

    def call() -> object:
        return augment(
            images, labels, rows=rows, epochs=np.full(n, next(epoch)), positions=np.arange(n)
        )

    return call


def theirs(recipe: str, images: torch.Tensor) -> Callable[[], object]:
    """timm's: per-sample operations on Pillow images, then its collate and its prefetcher."""
    facts = RECIPES[recipe]
    size = images.shape[-1]
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    _, operations, final = create_transform(
        size, is_training=True, use_prefetcher=True, auto_augment=facts["aa"], separate=True,
        color_jitter=facts["color_jitter"], interpolation="bicubic", hflip=0.0,
    )  # fmt: skip
    collate = FastCollateMixup(0.8, 1.0, label_smoothing=0.1, num_classes=N_CLASSES)
    erasing = RandomErasing(facts["reprob"], mode="pixel", device="cpu")
    mean = torch.tensor([255 * m for m in MEAN]).view(1, 3, 1, 1)
    std = torch.tensor([255 * s for s in STD]).view(1, 3, 1, 1)

    def per_sample(image: Image.Image) -> Any:
        try:
            return final(operations(image))
        except (
            ValueError
        ):  # Pillow 13 refuses to posterise to 0 bits, which timm asks for at m >= 10
            return final(image)

    def call() -> object:
        batch = [(per_sample(image), k % N_CLASSES) for k, image in enumerate(pillow)]
        x, targets = collate(batch)
        x = x.float().sub_(mean).div_(std)
        return (erasing(x) if facts["reprob"] else x), targets

    return call


def vit_step(images: torch.Tensor) -> Callable[[], object]:
    """A training step of ViT-S on images of this size."""
    size = images.shape[-1]
    patch = 16 if size > 64 else 4
    model = timm.create_model("vit_small_patch16_224", img_size=size, patch_size=patch).cuda()
    compile_blocks(model)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, fused=True)
    x = images.float() / 255
    labels = torch.arange(len(x), device=x.device)

    def call() -> object:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return call


def interleave(
    calls: dict[str, Callable[[], object]], rounds: int, *, repeat: int = 1
) -> dict[str, list[float]]:
    """Seconds per call, one figure per round; the contenders take turns within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            before = _now()
            for _ in range(repeat):
                call()
            if number:  # the first round fills caches
                seconds[name].append((_now() - before) / repeat)
    return seconds


def _now() -> float:
    """The wall clock of a GPU, the CPU time of one thread: other processes shall not count."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    sys.exit(main())

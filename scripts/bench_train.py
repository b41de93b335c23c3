"""What Lightning, the moving average and the logging cost beside a plain timm loop.

    python scripts/bench_train.py --model vit_tiny_patch16_224 --batch 16
    python scripts/bench_train.py --shards DIR/imagenet1k-train-*.tar

Two trainings take turns in one process, on the same synthetic batches that lie on the device:

    ours    this package's module in Lightning, with moving average, metrics.jsonl and checkpoints
    plain   a loop as timm's train.py has it: forward, loss, backward, step, moving average

with the same model, precision, compilation and (fused) optimiser; on a CPU the figures are of CPU
time on one thread. With --shards the end-to-end figure stands beside it: the DeiT recipe from these
shards, decoding and augmentation included. One JSON line per model; `over_plain` above 1 means
faster than the plain loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_rounds import Rounds, Step, device_name, median_and_range, own, wall
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from vitwarm.augment import Targets
from vitwarm.config import RunConfig, TrainRun, load_config
from vitwarm.hardware import choose_device, choose_numbers
from vitwarm.loop.meters import Metrics, WaitMeter
from vitwarm.loop.plan import Cut, Schedule
from vitwarm.loop.saving import TimedCheckpoint
from vitwarm.loop.start import compile_blocks, make_trainer
from vitwarm.records import RunFolder
from vitwarm.training.data import Pictures
from vitwarm.training.module import ImageModule, ImageUpdates, TrainBatch
from vitwarm.training.plan import plan_training
from vitwarm.trunk import build_model
from vitwarm.world import World

N_CLASSES = 1000
EMA_DECAY = 0.9998


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="default: vit_tiny_patch16_224")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--batch", type=int, help="images per step (CPU 8, GPU 256)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="per round and contender (CPU 4, GPU 50)")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--compile", choices=("on", "off"), help="default: on for a GPU")
    parser.add_argument("--shards", metavar="SOURCE", help="adds the end-to-end figure")
    parser.add_argument("--workers", type=int, help="loader processes for the end-to-end figure")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU (1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for model in args.model or ["vit_tiny_patch16_224"]:
        print(json.dumps(bench(model, args)), flush=True)
    return 0


def bench(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times both loops on one model."""
    run = RunConfig(progress=False)
    device = choose_device(run)
    numbers = choose_numbers(args.precision, device)
    on_gpu = device.type == "cuda"
    n_images = args.batch or (256 if on_gpu else 8)
    n_steps = args.steps or (50 if on_gpu else 4)
    compiled = on_gpu if args.compile is None else args.compile == "on"
    size = args.model_kwargs.get("img_size", 224)
    batch = TrainBatch(
        torch.randn(n_images, 3, size, size, device=device),
        Targets(torch.arange(n_images, device=device) % N_CLASSES),
        0,
    )

    def make_vit() -> nn.Module:
        return build_model(name, seed=0, num_classes=N_CLASSES, **args.model_kwargs)

    plain = plain_step(make_vit(), batch, bf16=numbers.bf16, compiled=compiled)
    rounds = Rounds({"plain": plain}, now=own, n_steps=n_steps, n_rounds=args.rounds)
    total = n_steps * (args.rounds + 1)
    vit = make_vit()
    module = make_module(vit, total, n_images, smoothing=0.1, ema_decay=EMA_DECAY)
    if compiled:
        compile_blocks(vit)
    with tempfile.TemporaryDirectory() as folder:
        home = RunFolder(Path(folder))
        home.checkpoints.mkdir()
        metrics = Metrics(
            home, WaitMeter(()), every_steps=50, progress=False, label="", unit="images",
            samples_per_step=n_images,
        )  # fmt: skip
        saver = TimedCheckpoint(home, "bench", minutes=60)
        trainer = make_trainer(
            run, numbers=numbers, accumulate=1, callbacks=[metrics, saver, rounds]
        )
        trainer.fit(module, Repeat(batch, total))
    line = {
        "model": name,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "batch": n_images,
        "precision": numbers.precision,
        "compiled": compiled,
        **median_and_range("over_plain", rounds.ratios("plain", "ours")),
        "images_per_second": round(rounds.rate("ours", n_images), 2),
        "plain_images_per_second": round(rounds.rate("plain", n_images), 2),
    }
    if args.shards:
        line["end_to_end_images_per_second"] = end_to_end(name, args, n_images, n_steps)
    return line


def make_module(vit: nn.Module, n_steps: int, n_images: int, **options: Any) -> ImageModule:
    """The package's module around a model, on one process and without accumulation."""
    schedule = Schedule(n_steps=n_steps, ramp_steps=10, lr=1e-6)
    return ImageModule(
        vit, schedule, Cut(n_images, n_images, 1), World(0, 1), ImageUpdates(**options)
    )


def plain_step(vit: nn.Module, batch: TrainBatch, *, bf16: bool, compiled: bool) -> Step:
    """One step of a loop as timm's train.py has it, without its meters."""
    device = batch.images.device
    vit = vit.to(device).train()
    if compiled:
        compile_blocks(vit)
    optimizer = create_optimizer_v2(vit, opt="adamw", lr=1e-6, weight_decay=0.05, fused=True)
    average = ModelEmaV3(vit, decay=EMA_DECAY, use_warmup=True)
    criterion = LabelSmoothingCrossEntropy(0.1)
    steps = iter(range(1 << 30))

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = criterion(vit(batch.images), batch.targets.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(vit, step=next(steps))

    return step


def end_to_end(name: str, args: argparse.Namespace, n_images: int, n_steps: int) -> float:
    """Images per second of the DeiT recipe from shards, median over the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"data.train={args.shards}", f"data.val={args.shards}", f"run.root={folder}",
            f"data.index_cache={folder}", f"train.model={name}", f"train.batch_size={n_images}",
            f"train.precision={args.precision}", "train.aa=rand-m9-mstd0.5-inc1",
            "train.mixup=0.8", "train.cutmix=1.0", "train.reprob=0.25", "run.progress=false",
            f"train.steps={n_steps * (args.rounds + 1)}", "train.num_classes=1000",
            *([] if args.workers is None else [f"run.workers={args.workers}"]),
        ]  # fmt: skip
        fields = {"train.model_kwargs": args.model_kwargs}
        plan = plan_training(load_config(TrainRun, None, words, fields=fields))
        vit = build_model(name, seed=0, num_classes=N_CLASSES, **args.model_kwargs)
        module = make_module(vit, plan.n_steps, n_images)
        feed, _ = Pictures(plan).feed(start_step=0)
        rounds = Rounds({}, now=wall, n_steps=n_steps, n_rounds=args.rounds)
        trainer = make_trainer(
            plan.config.run, numbers=plan.numbers, accumulate=1, callbacks=[rounds]
        )
        trainer.fit(module, feed)
    return round(rounds.rate("ours", n_images), 2)


class Repeat:
    """The same batch, so many times."""

    def __init__(self, batch: TrainBatch, times: int) -> None:
        self.batch = batch
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[TrainBatch]:
        for _ in range(self.times):
            yield self.batch


if __name__ == "__main__":
    sys.exit(main())

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
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from vitwarm.augment import Targets
from vitwarm.callbacks import Metrics, TimedCheckpoint, WaitMeter
from vitwarm.config import RunConfig, TrainRun, load_config
from vitwarm.loop import choose_device, compile_blocks, make_trainer
from vitwarm.records import RunFolder
from vitwarm.training.data import Pictures
from vitwarm.training.module import ImageModule, TrainBatch
from vitwarm.training.plan import plan_training
from vitwarm.trunk import build_model

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
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
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

    plain = plain_step(make_vit(), batch, bf16=args.precision == "bf16", compiled=compiled)
    rounds = Rounds(plain, own, n_steps=n_steps, n_rounds=args.rounds)
    total = n_steps * (args.rounds + 1)
    vit = make_vit()
    module = ImageModule(
        vit, n_steps=total, ramp_steps=10, smoothing=0.1, lr=1e-6, ema_decay=EMA_DECAY
    )
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
            run, precision=args.precision, accumulate=1, callbacks=[metrics, saver, rounds]
        )
        trainer.fit(module, Repeat(batch, total))
    ratios = [p / o for o, p in zip(rounds.ours, rounds.plain, strict=True)]
    line = {
        "model": name,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "batch": n_images,
        "precision": args.precision,
        "compiled": compiled,
        "over_plain": round(statistics.median(ratios), 4),
        "over_plain_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "images_per_second": round(n_images * n_steps / statistics.median(rounds.ours), 2),
        "plain_images_per_second": round(n_images * n_steps / statistics.median(rounds.plain), 2),
    }
    if args.shards:
        line["end_to_end_images_per_second"] = end_to_end(name, args, n_images, n_steps)
    return line


def plain_step(
    vit: nn.Module, batch: TrainBatch, *, bf16: bool, compiled: bool
) -> Callable[[], None]:
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
        module = ImageModule(vit, n_steps=plan.n_steps, ramp_steps=10, lr=1e-6)
        feed, _ = Pictures(plan).feed(start_step=0)
        rounds = Rounds(None, wall, n_steps=n_steps, n_rounds=args.rounds)
        trainer = make_trainer(
            plan.config.run, precision=args.precision, accumulate=1, callbacks=[rounds]
        )
        trainer.fit(module, feed)
    return round(n_images * n_steps / statistics.median(rounds.ours), 2)


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


class Rounds(Callback):
    """Times windows of the running training, and the plain loop between the windows."""

    def __init__(
        self,
        plain: Callable[[], None] | None,
        now: Callable[[], float],
        *,
        n_steps: int,
        n_rounds: int,
    ) -> None:
        self.step = plain
        self.now = now
        self.n_steps = n_steps
        self.n_rounds = n_rounds
        self.ours: list[float] = []
        self.plain: list[float] = []
        self.began = 0.0
        self.windows = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.n_steps:
            return
        self.windows += 1
        if self.windows > 1:  # the first window compiles, allocates and fills caches
            self.ours.append(self.now() - self.began)
        if self.step is not None:
            before = self.now()
            for _ in range(self.n_steps):
                self.step()
            if self.windows > 1:
                self.plain.append(self.now() - before)
        if self.windows > self.n_rounds:
            trainer.should_stop = True
        self.began = self.now()


def wall() -> float:
    """Seconds of the clock on the wall, after what the GPU was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def own() -> float:
    """On a CPU the time of this process alone, so that others do not count; else the wall's."""
    return wall() if torch.cuda.is_available() else time.process_time()


if __name__ == "__main__":
    sys.exit(main())

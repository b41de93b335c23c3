"""How close the warm-up runs to its blocks.

    python scripts/bench_warmup.py --model vit_tiny_patch16_224 --batch 32

Three things are timed in interleaved rounds in one process, forward, backward and optimiser step:

    whole   this package's warm-up inside Lightning, its sequences generated ahead on a thread
    bare    the same timm blocks with the same fp32 parameters under the same autocast, on random
            input, and the same optimiser; never compiled
    plain   the obvious loop: fp32, torch's default AdamW, logits on every position; its sequences
            are ready in memory

One JSON line per model. Ratios are medians over rounds, with their range; the model's FLOPs are
counted by torch on the forward pass of `whole`, times three for forward and backward.
`matmul_speedup` is what the hardware offers: the first MLP product of a block, forward and
backward, its time in fp32 over that in the precision of `whole`. Where it is 2, no warm-up is 2.5
times as fast as the plain loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitwarm.config import WarmupRun, load_config
from vitwarm.loop import choose_device, compile_blocks, make_trainer
from vitwarm.masking import IGNORE, make_batch
from vitwarm.sequences import WarmupBatch
from vitwarm.warmup import WarmupPlan, make_loader, make_module, make_token_model, plan_warmup

Step = Callable[[], None]


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="default: vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32, help="sequences per step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="per round and contender (CPU 4, GPU 50)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of `whole`")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    args = parser.parse_args(argv)
    for model in args.model or ["vit_tiny_patch16_224"]:
        print(json.dumps(bench(model, args)), flush=True)
    return 0


def bench(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times the three contenders on one model."""
    config = load_config(
        WarmupRun,
        None,
        [f"warmup.model={model}", f"warmup.batch_size={args.batch}", "warmup.budget=1000000steps",
         f"warmup.precision={args.precision}", "run.progress=false"],
    )  # fmt: skip
    device = choose_device(config.run)
    n_steps = args.steps or (50 if device.type == "cuda" else 4)
    tokens = make_token_model(config)
    plan = plan_warmup(config, n_tokens=tokens.n_tokens)
    flops = count_flops(plan)
    rounds = Rounds(
        {
            "bare": bare_blocks(plan, device),
            "plain": plain_loop(plan, device),
            "matmul": mlp_product(plan, device, bf16=args.precision == "bf16"),
            "matmul_fp32": mlp_product(plan, device, bf16=False),
        },
        n_steps=n_steps,
        n_rounds=args.rounds,
        device=device,
    )
    module = make_module(plan, tokens)
    if args.compile:
        compile_blocks(tokens.model)
    trainer = make_trainer(config.run, precision=args.precision, accumulate=1, callbacks=[rounds])
    trainer.fit(module, make_loader(plan, start_step=0))
    whole, bare, plain = (rounds.seconds[name] for name in ("whole", "bare", "plain"))
    over_bare = [w / b for w, b in zip(whole, bare, strict=True)]
    over_plain = [p / w for w, p in zip(whole, plain, strict=True)]
    products = zip(rounds.seconds["matmul_fp32"], rounds.seconds["matmul"], strict=True)
    rate = args.batch * n_steps / statistics.median(whole)
    return {
        "model": model,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": args.batch,
        "n_tokens": plan.n_tokens,
        "precision": args.precision,
        "compiled": args.compile,
        "step_over_bare": round(statistics.median(over_bare), 4),
        "step_over_bare_range": [round(min(over_bare), 4), round(max(over_bare), 4)],
        "speedup_over_plain": round(statistics.median(over_plain), 3),
        "speedup_over_plain_range": [round(min(over_plain), 3), round(max(over_plain), 3)],
        "matmul_speedup": round(statistics.median(a / b for a, b in products), 3),
        "sequences_per_second": round(rate, 2),
        "bare_sequences_per_second": round(args.batch * n_steps / statistics.median(bare), 2),
        "model_tflops_per_second": round(rate * flops / 1e12, 4),
    }


class Rounds(Callback):
    """Times windows of the running warm-up, and the other contenders between the windows."""

    def __init__(
        self, others: dict[str, Step], *, n_steps: int, n_rounds: int, device: torch.device
    ) -> None:
        self.others = others
        self.n_steps = n_steps
        self.n_rounds = n_rounds
        self.device = device
        self.seconds: dict[str, list[float]] = {name: [] for name in ("whole", *others)}
        self.began = 0.0
        self.windows = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.n_steps:
            return
        self.windows += 1
        if self.windows > 1:  # the first window compiles, allocates and fills caches
            self.seconds["whole"].append(self._now() - self.began)
        for name, step in self.others.items():
            if self.windows == 1:
                step()
            before = self._now()
            for _ in range(self.n_steps):
                step()
            if self.windows > 1:
                self.seconds[name].append(self._now() - before)
        if self.windows > self.n_rounds:
            trainer.should_stop = True
        self.began = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def bare_blocks(plan: WarmupPlan, device: torch.device) -> Step:
    """Forward and backward of the blocks alone on random input, and the same optimiser step."""
    warm = plan.config.warmup
    tokens = make_token_model(plan.config)
    blocks: nn.Module = tokens.model.blocks.to(device).train()
    n_prefix = int(getattr(tokens.model, "num_prefix_tokens", 0))
    x_BTD = torch.randn(warm.batch_size, plan.n_tokens + n_prefix, tokens.width, device=device)
    grad_BTD = torch.randn_like(x_BTD)
    optimizer = create_optimizer_v2(
        list(blocks.parameters()), opt="adamw", lr=1e-6, weight_decay=0.05, fused=True
    )
    bf16 = warm.precision == "bf16"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            y_BTD = blocks(x_BTD)
        y_BTD.backward(grad_BTD.to(y_BTD.dtype))
        optimizer.step()

    return step


def plain_loop(plan: WarmupPlan, device: torch.device) -> Step:
    """The obvious warm-up: fp32, logits on every position, torch's AdamW as it comes."""
    warm = plan.config.warmup
    tokens = make_token_model(plan.config).to(device).train()
    head = nn.Linear(tokens.width, plan.rule.n_ids, device=device)
    parameters = [p for p in tokens.parameters() if p.requires_grad] + list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.05)
    batch = make_batch(
        plan.rule, seed=1, start=0, n_sequences=warm.batch_size, n_tokens=plan.n_tokens
    )
    inputs = torch.from_numpy(batch.input_ids).int().to(device)
    targets = torch.from_numpy(batch.target_ids).long().to(device)

    def step() -> None:
        optimizer.zero_grad()
        logits_BTV = head(tokens(inputs))
        loss = nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), targets.flatten(), ignore_index=IGNORE
        )
        loss.backward()
        optimizer.step()

    return step


def mlp_product(plan: WarmupPlan, device: torch.device, *, bf16: bool) -> Step:
    """The product of a block's first MLP layer on a whole micro-batch, and its two gradients."""
    width = make_token_model(plan.config).width
    dtype = torch.bfloat16 if bf16 else torch.float32
    n_rows = plan.config.warmup.batch_size * plan.n_tokens
    x_ND = torch.randn(n_rows, width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(n_rows, 4 * width, device=device, dtype=dtype)

    def step() -> None:
        x_ND.grad = weight.grad = None
        nn.functional.linear(x_ND, weight).backward(grad)

    return step


def count_flops(plan: WarmupPlan) -> float:
    """FLOPs of forward and backward for one sequence."""
    module = make_module(plan, make_token_model(plan.config)).eval()
    batch: WarmupBatch = next(iter(make_loader(plan, start_step=0)))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(batch.input_ids, batch.hidden)
    return 3.0 * float(counter.get_total_flops()) / len(batch.input_ids)


if __name__ == "__main__":
    sys.exit(main())

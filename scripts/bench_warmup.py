"""How close the warm-up runs to its blocks.

    python scripts/bench_warmup.py --model vit_tiny_patch16_224

Three things are timed in interleaved rounds in one process, forward, backward and optimiser step:

    whole   this package's warm-up inside Lightning, its sequences generated ahead on a thread
    bare    the same timm blocks with the same fp32 parameters under the same autocast, on random
            input, and the same optimiser; never compiled
    bare_compiled   with --compile: these, compiled block by block
    plain   the obvious loop: fp32, torch's default AdamW, logits on every position; its sequences
            are ready in memory

One JSON line per model. Ratios are medians over rounds, with their range; the model's FLOPs are
counted by torch on the forward pass of `whole`, times three for forward and backward.
`share_of_bare_compiled` is the compiled blocks' time over that of `whole`. `matmul_speedup` is what
the hardware offers: the first MLP product of a block, forward and backward, its time in fp32 over
that in the precision of `whole`. Where it is 2, no warm-up is 2.5 times as fast as the plain loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import torch
from bench_rounds import Rounds, Step, device_name, median_and_range, wall
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitwarm.config import WarmupRun, load_config
from vitwarm.loop.start import compile_blocks, make_trainer
from vitwarm.rules.masking import IGNORE, make_batch
from vitwarm.warmup import WarmupPlan, make_loader, make_module, make_token_model, plan_warmup
from vitwarm.warmup.sequences import WarmupBatch


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="default: vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, help="sequences per step (CPU 16, GPU 256)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="per round and contender (CPU 2, GPU 50)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of `whole`")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    args = parser.parse_args(argv)
    for model in args.model or ["vit_tiny_patch16_224"]:
        print(json.dumps(bench(model, args)), flush=True)
    return 0


def bench(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times the three contenders on one model."""
    batch = args.batch or (256 if torch.cuda.is_available() else 16)
    config = load_config(
        WarmupRun,
        None,
        [f"warmup.model={model}", f"warmup.batch_size={batch}", "warmup.budget=1000000steps",
         f"warmup.precision={args.precision}", "run.progress=false"],
    )  # fmt: skip
    tokens = make_token_model(config)
    plan = plan_warmup(config, n_tokens=tokens.n_tokens)
    device = plan.device
    n_steps = args.steps or (50 if device.type == "cuda" else 2)
    flops = count_flops(plan)
    rounds = Rounds(
        {
            "bare": bare_blocks(plan, device),
            **({"bare_compiled": bare_blocks(plan, device, compiled=True)} if args.compile else {}),
            "plain": plain_loop(plan, device),
            "matmul": mlp_product(plan, device, bf16=plan.numbers.bf16),
            "matmul_fp32": mlp_product(plan, device, bf16=False),
        },
        now=wall,
        n_steps=n_steps,
        n_rounds=args.rounds,
    )
    module = make_module(plan, tokens)
    if args.compile:
        compile_blocks(tokens.model)
    trainer = make_trainer(config.run, numbers=plan.numbers, accumulate=1, callbacks=[rounds])
    trainer.fit(module, make_loader(plan, start_step=0))
    rate = rounds.rate("ours", batch)
    of_compiled = rounds.ratios("bare_compiled", "ours") if args.compile else []
    return {
        "model": model,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "n_tokens": plan.n_tokens,
        "precision": plan.numbers.precision,
        "compiled": args.compile,
        **median_and_range("step_over_bare", rounds.ratios("ours", "bare")),
        "share_of_bare_compiled": round(statistics.median(of_compiled), 4) if of_compiled else None,
        **median_and_range("speedup_over_plain", rounds.ratios("plain", "ours")),
        "matmul_speedup": round(statistics.median(rounds.ratios("matmul_fp32", "matmul")), 3),
        "sequences_per_second": round(rate, 2),
        "bare_sequences_per_second": round(rounds.rate("bare", batch), 2),
        "model_tflops_per_second": round(rate * flops / 1e12, 4),
    }


def bare_blocks(plan: WarmupPlan, device: torch.device, *, compiled: bool = False) -> Step:
    """Forward and backward of the blocks alone on random input, and the same optimiser step."""
    warm = plan.config.warmup
    tokens = make_token_model(plan.config)
    blocks: nn.Module = tokens.model.blocks.to(device).train()
    if compiled:
        compile_blocks(tokens.model)
    n_prefix = int(getattr(tokens.model, "num_prefix_tokens", 0))
    x_BTD = torch.randn(warm.batch_size, plan.n_tokens + n_prefix, tokens.width, device=device)
    grad_BTD = torch.randn_like(x_BTD)
    optimizer = create_optimizer_v2(
        list(blocks.parameters()), opt="adamw", lr=1e-6, weight_decay=0.05, fused=True
    )
    bf16 = plan.numbers.bf16

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

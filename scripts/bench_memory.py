"""What a micro-batch of a warm-up keeps in memory, and what `grad_checkpointing` makes of it.

    python scripts/bench_memory.py --model vit_large_patch16_224 --micro-batch 1 2 4 8
    python scripts/bench_memory.py --model vit_giant_patch14_224 --no-optimizer

One JSON line for each micro-batch, with and without, each in a process of its own: forward,
backward and optimiser step of the warm-up's own module in fp32 on the CPU, twice, so that gradients
and the optimiser's state are there while the second pass keeps its activations.

    peak_gib      the most that the whole process had resident, Python and torch included
    weights_gib   resident once the model was built
    cpu_seconds   of the second forward and backward pass; CPU seconds, so that a busy machine does
                  not blur them

A process that grows beyond `--most-gib` is killed and reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GIB = 2**30


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line per case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--model-kwargs", default="{}", help="timm's, as YAML: {img_size: 224}")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--no-optimizer", action="store_true", help="forward and backward alone")
    parser.add_argument("--most-gib", type=float, default=14.0)
    parser.add_argument("--case", choices=("true", "false"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.case:
        print(json.dumps(measure(args, args.micro_batch[0], args.case)))
        return 0
    for micro_batch in args.micro_batch:
        for case in ("false", "true"):
            print(json.dumps(in_a_process(args, micro_batch, case)), flush=True)
    return 0


def in_a_process(args: argparse.Namespace, micro_batch: int, case: str) -> dict[str, Any]:
    """Measures one case in a process of its own, and ends it if it grows too large."""
    words = [sys.executable, __file__, "--case", case, "--micro-batch", str(micro_batch)]
    words += ["--model", args.model, "--model-kwargs", args.model_kwargs]
    words += ["--no-optimizer"] if args.no_optimizer else []
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    while child.poll() is None:
        if resident(child.pid) > args.most_gib * GIB:
            child.kill()
            child.wait()
            asked = {"micro_batch": micro_batch, "grad_checkpointing": case == "true"}
            return {"model": args.model, **asked, "peak_gib": f"over {args.most_gib:g}"}
        time.sleep(0.05)
    out, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found


def resident(pid: int) -> int:
    """Returns the bytes that a process has resident; 0: it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure(args: argparse.Namespace, micro_batch: int, case: str) -> dict[str, Any]:
    """Two steps of a warm-up with one micro-batch each, in this process."""
    import torch

    from vitwarm.config import WarmupRun, load_config
    from vitwarm.warmup import make_loader, make_module, make_token_model, plan_warmup

    config = load_config(
        WarmupRun,
        None,
        [f"warmup.model={args.model}", f"warmup.model_kwargs={args.model_kwargs}",
         f"warmup.grad_checkpointing={case}", f"warmup.batch_size={micro_batch}",
         "warmup.budget=2steps", "warmup.precision=fp32", "run.device=cpu"],
    )  # fmt: skip
    tokens = make_token_model(config)
    plan = plan_warmup(config, n_tokens=tokens.n_tokens)
    module = make_module(plan, tokens).train()
    weights = resident(os.getpid())
    optimizer = None if args.no_optimizer else module.make_optimizer()
    seconds = 0.0
    for step in range(2):
        (batch,) = make_loader(plan, start_step=step).step(step)
        began = time.process_time()
        module.training_step(batch, 0).backward()
        seconds = time.process_time() - began
        if optimizer is not None:
            optimizer.step()
    return {
        "model": args.model,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "tokens": tokens.n_tokens,
        "micro_batch": micro_batch,
        "grad_checkpointing": case == "true",
        "optimizer": not args.no_optimizer,
        "threads": torch.get_num_threads(),
        "weights_gib": round(weights / GIB, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2),
        "cpu_seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    sys.exit(main())

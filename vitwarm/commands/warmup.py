"""Warm up a trunk on token sequences of a rule.

    vitwarm warmup --rule dyck --budget 0.01
    vitwarm warmup --config configs/warmup/vit_base_dyck.yaml warmup.micro_batch_size=64

The same command again resumes; a finished run is not run again unless --fresh is given.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; words of the form section.field=value override the config."""
    parser.add_argument("--config", metavar="FILE", help="a recipe (configs/warmup/*.yaml)")
    parser.add_argument("--rule", metavar="NAME", help="dyck, shuffled:dyck, ... (vitwarm rules)")
    parser.add_argument(
        "--budget",
        metavar="B",
        help="share of the image training's samples (0.01), or 15000steps, 3.84Msamples",
    )
    parser.add_argument(
        "--until",
        choices=("budget", "saturated"),
        help="saturated: stop once 99 %% of the hidden tokens are right (default: budget)",
    )
    parser.add_argument("--model", metavar="NAME", help="a timm model name")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument("--out", metavar="DIR", help="folder of run folders (default: runs)")
    parser.add_argument("--fresh", action="store_true", help="throw away an earlier execution")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")


def run(args: argparse.Namespace) -> int:
    """Runs (or plans) the warm-up that the arguments describe."""
    from vitwarm.config import WarmupRun, find_recipe, load_config

    path = find_recipe(args.config) if args.config else None
    words = list(args.overrides)
    for field, value in (
        ("rule.name", args.rule),
        ("warmup.budget", args.budget),
        ("warmup.until", args.until),
        ("warmup.model", args.model),
        ("seed", args.seed),
        ("run.root", args.out),
    ):
        if value is not None:
            words.append(f"{field}={value}")
    config = load_config(WarmupRun, path, words)

    from vitwarm.warmup import run_warmup, show_plan

    if args.dry_run:
        print(show_plan(config))
    else:
        run_warmup(config, fresh=args.fresh)
    return 0

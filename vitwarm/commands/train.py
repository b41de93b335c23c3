"""Train or fine-tune an image model on shards.

    vitwarm train --config train/cifar100_vit_tiny_224 --fraction 0.1 --trunk RUN
    vitwarm train --config train/finetune_small --init RUN/export data.train=DIR data.val=DIR

The same command again resumes; a finished run is not run again unless --fresh is given.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; words of the form section.field=value override the config."""
    parser.add_argument("--config", metavar="FILE", help="a recipe (configs/train/*.yaml)")
    parser.add_argument("--fraction", type=float, help="share of the training images, in (0, 1]")
    parser.add_argument(
        "--trunk", metavar="TRUNK", help="trunk file, run folder or shipped name to start from"
    )
    parser.add_argument(
        "--init", metavar="MODEL", help="export folder or timm tag to fine-tune (all weights)"
    )
    parser.add_argument("--model", metavar="NAME", help="a timm model name")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument("--out", metavar="DIR", help="folder of run folders (default: runs)")
    parser.add_argument("--fresh", action="store_true", help="throw away an earlier execution")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")


def run(args: argparse.Namespace) -> int:
    """Runs (or plans) the training that the arguments describe."""
    from vitwarm.config import TrainRun, find_recipe, load_config

    path = find_recipe(args.config) if args.config else None
    words = list(args.overrides)
    for field, value in (
        ("data.fraction", args.fraction),
        ("handoff.trunk", args.trunk),
        ("handoff.init", args.init),
        ("train.model", args.model),
        ("seed", args.seed),
        ("run.root", args.out),
    ):
        if value is not None:
            words.append(f"{field}={value}")
    config = load_config(TrainRun, path, words)

    from vitwarm.training import run_training, show_plan

    if args.dry_run:
        print(show_plan(config))
    else:
        run_training(config, fresh=args.fresh)
    return 0

"""Warm up a trunk on token sequences of a rule.

    vitwarm warmup --rule dyck --budget 0.01
    vitwarm warmup --config configs/warmup/vit_base_dyck64.yaml warmup.micro_batch_size=64

The same command again resumes; a finished run is not run again unless --fresh is given.
"""

from __future__ import annotations

import argparse

from vitwarm.commands.shared import add_run_arguments, describe_fields, read_config
from vitwarm.config import WarmupRun

#: Named at the end of the help.
OFTEN = (
    "rule.name", "rule.params", "warmup.budget", "warmup.base_images", "warmup.base_epochs",
    "warmup.model_kwargs", "warmup.batch_size", "warmup.micro_batch_size", "warmup.lr",
    "warmup.precision", "warmup.until", "run.workers", "run.logger",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; words of the form section.field=value override the config."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="a recipe (configs/warmup/*.yaml)")
    add("--rule", metavar="NAME", help="dyck, shuffled:dyck, ... (vitwarm rules)")
    budget = "share of the image training's samples (0.01), or 15000steps, 3.84Msamples"
    add("--budget", metavar="B", help=budget)
    until = "saturated: stop once 99 %% of the hidden tokens are right (default: budget)"
    add("--until", choices=("budget", "saturated"), help=until)
    add_run_arguments(parser)
    parser.epilog = describe_fields("warmup", OFTEN)


def run(args: argparse.Namespace) -> int:
    """Runs (or plans) the warm-up that the arguments describe."""
    flags = {"rule.name": args.rule, "warmup.budget": args.budget, "warmup.until": args.until}
    config = read_config(WarmupRun, args, "warmup", flags)
    from vitwarm.warmup import run_warmup, show_plan

    if args.dry_run:
        print(show_plan(config))
    else:
        run_warmup(config, fresh=args.fresh)
    return 0

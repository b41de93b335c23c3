"""Train or fine-tune an image model on shards.

    vitwarm train --config train/cifar100_vit_tiny_224 --fraction 0.1 --trunk RUN
    vitwarm train --config train/finetune_small --init RUN/export data.train=DIR data.val=DIR

The same command again resumes; a finished run is not run again unless --fresh is given.
"""

from __future__ import annotations

import argparse

from vitwarm.commands.shared import (
    add_run_arguments,
    describe_fields,
    read_config,
    refuse_idle_handoff,
)
from vitwarm.config import TrainRun
from vitwarm.errors import ConfigError

#: Named at the end of the help.
OFTEN = (
    "data.train", "data.val", "data.fraction", "handoff.scope", "train.epochs", "train.steps",
    "train.batch_size", "train.micro_batch_size", "train.img_size", "train.lr",
    "train.weight_decay", "train.aa", "train.mixup", "train.cutmix", "train.drop_path",
    "train.model_ema", "train.precision", "train.evaluations", "run.workers", "run.logger",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; words of the form section.field=value override the config."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="a recipe (configs/train/*.yaml)")
    add("--fraction", metavar="SHARE", help="of the training images: 0.1 or 10%%")
    trunk = "to start from: trunk file, run folder, shipped name or hf-hub:OWNER/NAME"
    add("--trunk", metavar="TRUNK", help=trunk)
    weights = "to fine-tune (all weights): export folder, file of weights or timm tag"
    add("--init", metavar="MODEL", help=weights)
    add_run_arguments(parser)
    parser.epilog = describe_fields("train", OFTEN)


def run(args: argparse.Namespace) -> int:
    """Runs (or plans) the training that the arguments describe."""
    _check_braces(args.overrides)
    flags = {"data.fraction": args.fraction, "handoff.trunk": args.trunk, "handoff.init": args.init}
    config = read_config(TrainRun, args, "train", flags)
    refuse_idle_handoff(config)
    from vitwarm.training import run_training, show_plan

    if args.dry_run:
        print(show_plan(config))
    else:
        run_training(config, fresh=args.fresh)
    return 0


def _check_braces(words: list[str]) -> None:
    """Refuses a pattern that the shell has expanded: the last shard would be taken for the set."""
    for field in ("data.train", "data.val"):
        values = [word for word in words if word.startswith(f"{field}=")]
        if len(values) > 1:
            raise ConfigError(
                f"{field} is given {len(values):,} times, {values[-1]} last; only one would count. "
                "If it was a pattern, the shell has expanded its braces: quote it, "
                f"'{field}=DIR/imagenet1k-train-{{0000..1023}}.tar'."
            )

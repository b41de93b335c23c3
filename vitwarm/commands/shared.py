"""What the commands of a single run have in common."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, TypeVar

from vitwarm.config import TrainRun, WarmupRun, find_recipe, load_config

Run = TypeVar("Run", WarmupRun, TrainRun)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every single run, and words of the form section.field=value."""
    parser.add_argument("--model", metavar="NAME", help="a timm model name")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument("--out", metavar="DIR", help="folder of run folders (default: runs)")
    parser.add_argument("--fresh", action="store_true", help="throw away an earlier execution")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")


def read_config(
    kind: type[Run], args: argparse.Namespace, section: str, flags: Mapping[str, Any]
) -> Run:
    """Returns the config of a run: its recipe, then the flags, then the words.

    Args:
        section: of the config, whose `model` --model is.
        flags: field of the config -> what the command line says of it, None: nothing.
    Raises: ConfigError: see `load_config`.
    """
    path = find_recipe(args.config) if args.config else None
    given = {**flags, f"{section}.model": args.model, "seed": args.seed, "run.root": args.out}
    named: list[str] = [f"{field}={value}" for field, value in given.items() if value is not None]
    return load_config(kind, path, [*named, *args.overrides])

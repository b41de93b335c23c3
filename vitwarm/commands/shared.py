"""What the commands of a single run have in common."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from vitwarm.config import HandoffConfig, TrainRun, WarmupRun, find_recipe, load_config
from vitwarm.config.fields import SCHEMAS, fields_of
from vitwarm.errors import ConfigError

Run = TypeVar("Run", WarmupRun, TrainRun)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines whose columns are aligned, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def describe_fields(command: str, names: Sequence[str]) -> str:
    """Returns the end of a command's help: fields with their defaults and what they mean."""
    every = {facts.name: facts for facts in fields_of(SCHEMAS[command])}
    shorten = partial(textwrap.shorten, width=56, placeholder=" ...")
    rows = [
        (name, every[name].default or "to be given", shorten(every[name].meaning)) for name in names
    ]
    return (
        f"fields changed most, as section.field=value, with their defaults:\n{columns(rows)}\n\n"
        f"all {len(every)} fields: vitwarm configs fields; recipes: vitwarm configs list"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every single run, and words of the form section.field=value."""
    parser.add_argument("--model", metavar="NAME", help="a timm model name")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument("--out", metavar="DIR", help="folder of run folders (default: runs)")
    parser.add_argument("--fresh", action="store_true", help="discard an earlier run")
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


def refuse_idle_handoff(config: TrainRun) -> None:
    """Refuses fields of the hand-off where nothing is handed off; a sweep's cold arms have them.

    Raises: ConfigError: the first such field.
    """
    start = config.handoff
    usual = HandoffConfig()
    for name in () if start.trunk else ("scope", "blocks"):
        value = getattr(start, name)
        if value != getattr(usual, name):
            raise ConfigError(
                f"handoff.{name} is {value!r}, but handoff.trunk is not given: nothing is carried. "
                "Give --trunk, or leave the field out."
            )

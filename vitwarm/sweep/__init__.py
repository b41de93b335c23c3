"""Arms x fractions x paired seeds: plan them, run what is missing, here or on a cluster.

    vitwarm sweep --config configs/sweep/quickstart.yaml --dry-run
    vitwarm sweep --config configs/sweep/quickstart.yaml run.root=runs slots=2

The same command again resumes: rows with a record are not run a second time, rows that failed are
tried again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitwarm.config import SweepConfig
    from vitwarm.sweep.board import SweepResult
    from vitwarm.sweep.stages import Stages


def run_sweep(
    config: SweepConfig, *, recipe: str | Path | None = None, stages: Stages | None = None,
    say: Callable[[str], None] = print,
) -> SweepResult:  # fmt: skip
    """Plans a sweep and runs every row that has no result yet.

    Args:
        recipe: the file that `config` came from; `base` and the arms' recipes are relative to it.
        stages: stand-ins for the other stages (tests).
        say: takes the lines for people.
    Returns: what became of every row; `exit_code` is 1 if any has no result. With
        `executor=slurm`: what is done before the jobs start.
    Raises: ConfigError and what the other stages refuse, before anything has run; Stopped after a
        signal, once the runs in progress have saved.
    """
    from vitwarm.sweep.board import Board, SweepResult
    from vitwarm.sweep.execute import run_plan
    from vitwarm.sweep.launch import submit_slurm, write_slurm
    from vitwarm.sweep.plan import make_plan
    from vitwarm.sweep.stages import Stages

    stages = stages or Stages()
    plan = make_plan(config, recipe=Path(recipe) if recipe else None, stages=stages)
    if config.executor == "local":
        return run_plan(plan, run=config.run, slots=config.slots, stages=stages, say=say)
    settled, left = Board(plan, stages).settle(plan.rows)
    if left:
        submission = write_slurm(plan, config, left)
        say(
            f"{submission.n_jobs} of {len(plan.rows)} rows to run; scripts in {plan.home / 'slurm'}"
        )
        say(submit_slurm(submission))
    return SweepResult(plan.home, settled)


def show_plan(
    config: SweepConfig, *, recipe: str | Path | None = None, stages: Stages | None = None
) -> str:
    """Returns the sweep's plan in words: rows, steps, samples, what is done, an estimate."""
    from vitwarm.sweep.plan import make_plan
    from vitwarm.sweep.show import describe_plan
    from vitwarm.sweep.stages import Stages

    stages = stages or Stages()
    plan = make_plan(config, recipe=Path(recipe) if recipe else None, stages=stages)
    return describe_plan(plan, config, stages)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `vitwarm sweep`."""
    parser.add_argument("--config", metavar="FILE", help="a recipe (configs/sweep/*.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--plan", metavar="FILE", help="a plan.json, for --row")
    parser.add_argument("--row", metavar="KEY", help="run one row of --plan, as array jobs do")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")


def run(args: argparse.Namespace) -> int:
    """Runs (or plans) the sweep, and lists at the end what failed."""
    from vitwarm.config import SweepConfig, find_recipe, load_config
    from vitwarm.errors import ConfigError

    if args.plan or args.row:
        return _run_alone(args.plan, args.row)
    if not args.config:
        raise ConfigError(
            "--config is not given; a sweep needs a recipe: --config configs/sweep/quickstart.yaml."
        )
    recipe = find_recipe(args.config)
    config = load_config(SweepConfig, recipe, args.overrides)
    if args.dry_run:
        print(show_plan(config, recipe=recipe))
        return 0
    result = run_sweep(config, recipe=recipe)
    for one in result.failed:
        from vitwarm.sweep.rows import describe_row

        print(f"{one.state.upper():<8} {describe_row(one.row)}: {one.reason}", file=sys.stderr)
    n_done = sum(one.state == "finished" for one in result.done)
    print(f"{n_done} of {len(result.done)} rows have their result. Next:")
    print(f"vitwarm report {result.folder} --out {result.folder / 'report'}")
    return result.exit_code


def _run_alone(plan: str | None, row: str | None) -> int:
    from vitwarm.errors import ConfigError
    from vitwarm.sweep.execute import run_alone
    from vitwarm.sweep.rows import load_plan

    if not plan or not row:
        raise ConfigError("--plan and --row belong together: --plan .../plan.json --row KEY.")
    done = run_alone(load_plan(Path(plan)), row)
    if done.state != "finished":
        print(f"{done.state}: {done.reason}", file=sys.stderr)
        return 1
    return 0


__all__ = ["add_arguments", "run", "run_sweep", "show_plan"]

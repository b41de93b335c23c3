"""Arms x fractions x paired seeds: plan them, run what is missing, here or on a cluster.

    vitwarm sweep --config configs/sweep/quickstart.yaml --dry-run
    vitwarm sweep --config configs/sweep/quickstart.yaml run.root=runs slots=2

The same command again resumes: rows with a record are not run a second time, rows that failed are
tried again. With one of these in addition it looks at the sweep, or steers it:

    --status          every row: waiting, running, finished, failed; where, and how far it is
    --watch           the same, until nothing waits or runs; then 0 if all rows have their result
    --cancel          end it; the runs in progress save, the command without it goes on
    --retry-failed    run the rows that failed, and no others
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from vitwarm.config import SweepConfig, find_recipe, load_config
from vitwarm.errors import ConfigError
from vitwarm.sweep.execute import Board, SweepResult, run_plan
from vitwarm.sweep.jobs import refuse_beside_slurm, run_alone, submit
from vitwarm.sweep.plan import make_plan
from vitwarm.sweep.rows import describe_row, home_of, load_plan
from vitwarm.sweep.show import describe_plan
from vitwarm.sweep.stages import REAL, Stages, choose_stages
from vitwarm.sweep.status import describe_status, read_status, to_json
from vitwarm.sweep.steer import cancel, pick_failed, watch
from vitwarm.units import count_of


def run_sweep(
    config: SweepConfig, *, recipe: str | Path | None = None, stages: Stages = REAL,
    say: Callable[[str], None] = print, only_failed: bool = False,
) -> SweepResult:  # fmt: skip
    """Plans a sweep and runs every row that has no result yet.

    Args:
        recipe: the file that `config` came from; `base` and the arms' recipes are relative to it.
        stages: stand-ins for the other stages (tests).
        say: takes the lines for people.
        only_failed: run the rows that failed, and what these need; no others.
    Returns: what became of every row; `exit_code` is 1 if any has no result. With
        `executor=slurm`: what needs no job.
    Raises: ConfigError and what the other stages refuse, before anything has run; RunError: another
        process runs this sweep; Stopped after a signal, once the runs in progress have saved.
    """
    stages = choose_stages(config, stages)
    plan = make_plan(config, recipe=Path(recipe) if recipe else None, stages=stages)
    rows = pick_failed(plan) if only_failed else plan.rows
    if not rows:
        return SweepResult(plan.home)
    if config.executor == "slurm":
        return submit(plan, config, rows, stages=stages, say=say)
    refuse_beside_slurm(plan.home)
    return run_plan(plan, rows=rows, run=config.run, slots=config.slots, stages=stages, say=say)


def show_plan(
    config: SweepConfig, *, recipe: str | Path | None = None, stages: Stages = REAL
) -> str:
    """Returns the sweep's plan in words: rows, steps, samples, what is done, an estimate."""
    stages = choose_stages(config, stages)
    plan = make_plan(config, recipe=Path(recipe) if recipe else None, stages=stages)
    settled, left = Board(plan, stages, writes=False).settle(plan.rows)
    return describe_plan(plan, config, settled, left)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `vitwarm sweep`."""
    parser.add_argument("--config", metavar="FILE", help="a recipe (configs/sweep/*.yaml)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    how.add_argument("--status", action="store_true", help="show the state of every row")
    how.add_argument("--watch", action="store_true", help="the same, until the sweep has ended")
    how.add_argument("--cancel", action="store_true", help="end the sweep, here or in SLURM")
    how.add_argument("--retry-failed", action="store_true", help="run only the rows that failed")
    parser.add_argument("--json", action="store_true", help="with --status: one JSON object")
    parser.add_argument("--plan", metavar="FILE", help="a plan.json, for --row")
    parser.add_argument("--row", metavar="KEY", help="run one row of --plan, as array jobs do")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")


def run(args: argparse.Namespace) -> int:
    """Runs (or plans) the sweep, and lists at the end what failed."""
    others = ("config", "overrides", "dry_run", "status", "watch", "cancel", "retry_failed", "json")
    if args.plan or args.row:
        if any(getattr(args, name) for name in others):
            raise ConfigError(
                "--plan and --row run one row as it was planned; nothing else goes with them."
            )
        return _run_alone(args.plan, args.row)
    if args.json and not args.status:
        raise ConfigError("--json is given without --status, whose output it is. Add --status.")
    if not args.config and args.overrides and "=" not in args.overrides[0]:
        args.config = args.overrides.pop(0)  # `vitwarm sweep --status FILE`
    if not args.config:
        raise ConfigError(
            "--config is not given; a sweep needs a recipe: --config configs/sweep/quickstart.yaml."
        )
    recipe = find_recipe(args.config)
    config = load_config(SweepConfig, recipe, args.overrides)
    if args.dry_run:
        print(show_plan(config, recipe=recipe))
        return 0
    if args.watch:
        return watch(home_of(config))
    if args.cancel:
        cancel(home_of(config))
        return 0
    if args.status:
        status = read_status(home_of(config))
        print(to_json(status) if args.json else "\n".join(describe_status(status)))
        return 0
    result = run_sweep(config, recipe=recipe, only_failed=args.retry_failed)
    return _tell(result, shlex.join(["vitwarm", "sweep", "--config", args.config, *args.overrides]))


def _tell(result: SweepResult, command: str) -> int:
    """Says what came of a sweep, and what to do next."""
    for one in result.failed:
        print(f"{one.state.upper():<8} {describe_row(one.row)}: {one.reason}", file=sys.stderr)
    n_rows = len(result.done) + result.n_left
    n_done, of = sum(one.state == "finished" for one in result.done), count_of(n_rows, "row")
    if not n_rows:
        print("No row has failed: there is nothing to run again.")
    elif result.n_left and not result.n_submitted:
        print(f"Nothing was submitted. To look:\n{command} --status")
    elif result.n_left:
        are = "is" if result.n_left == 1 else "are"
        print(f"{n_done} of {of} have their result, {result.n_left} {are} SLURM's. To look:")
        print(f"{command} --status")
    else:
        print(f"{n_done} of {of} have their result. Next:")
        out = str(result.folder / "report")
        print(shlex.join(["vitwarm", "report", str(result.folder), "--out", out]))
    return result.exit_code


def _run_alone(plan: str | None, row: str | None) -> int:
    if not plan or not row:
        raise ConfigError("--plan and --row belong together: --plan .../plan.json --row KEY.")
    done = run_alone(load_plan(Path(plan)), row)
    if done.state != "finished":
        print(f"{done.state}: {done.reason}", file=sys.stderr)
        return 1
    return 0


__all__ = ["add_arguments", "run", "run_sweep", "show_plan"]

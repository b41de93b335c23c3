"""The whole road in minutes on two cores: python scripts/quickstart.py

Digits become shards; trunks are warmed up on bracket sequences and on their shuffled control; each
receives a fresh patch embedding and trains on fractions of the digits beside a cold start, three
seeds each; a report compares them. Everything lies in --out and can be deleted; the same command
again does only what is missing. --smoke runs every stage at the smallest size.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from vitwarm.config import SweepConfig, find_recipe, load_config
from vitwarm.errors import VitwarmError
from vitwarm.units import format_seconds


def main(argv: list[str] | None = None) -> int:
    """Runs the quickstart and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="quickstart", help="folder for everything it makes")
    parser.add_argument("--smoke", action="store_true", help="every stage at the smallest size")
    parser.add_argument("--fresh", action="store_true", help="throw away an earlier quickstart")
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    args = parser.parse_args(argv)
    try:
        return quickstart(Path(args.out), smoke=args.smoke, fresh=args.fresh)
    except VitwarmError as error:
        if args.debug:
            raise
        print(f"quickstart: {error}", file=sys.stderr)
        return error.exit_code


def quickstart(out: Path, *, smoke: bool, fresh: bool) -> int:
    """Digits to shards, warm-ups, the sweep, the report."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{format_seconds(time.monotonic() - began):>6}] {text}", flush=True)

    root = out / ("smoke" if smoke else "full")
    if fresh and root.exists():
        shutil.rmtree(root)
    say("1/3 digits to webdataset shards")
    from vitwarm.shards.digits import write_digits

    shards = out / "shards"
    if not (shards / "_info.json").exists():
        write_digits(shards)
    name = "quickstart_smoke" if smoke else "quickstart"
    recipe = find_recipe(f"sweep/{name}.yaml")
    config = load_config(
        SweepConfig,
        recipe,
        [
            f"set.data.train={shards}/digits-train-*.tar",
            f"set.data.val={shards}/digits-validation-*.tar",
            f"run.root={root / 'runs'}",
        ],
    )
    say("2/3 warm-ups, then arms x fractions x seeds")
    from vitwarm.sweep import run_sweep

    result = run_sweep(config, recipe=recipe)
    say("3/3 the report")
    from vitwarm.report import run_report
    from vitwarm.report.tables import terminal_table

    paths = run_report([result.folder], root / "report", title="vitwarm quickstart: digits")
    print(terminal_table(paths.analyses))
    print(
        "\nThe quickstart shows the tool, not a promise: 8x8 digits are no natural images, and "
        "whatever sign came out above was not tuned for."
    )
    say("done")
    print(paths.page.resolve())
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())

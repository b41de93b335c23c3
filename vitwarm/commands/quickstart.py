"""The whole road in minutes on two CPU cores, in any folder.

    vitwarm quickstart

Writes scikit-learn's digits as shards, warms a small ViT up on bracket sequences and on their
shuffled control, gives each a fresh patch embedding, trains them beside a cold start (eight paired
seeds on a tenth of the digits, three on all), and compares them in a report. Everything lies in
--out and can be deleted; the same command again does only what is missing.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from vitwarm.units import format_seconds

NEXT_STEPS = """\
Next, with your own images (FOLDER/CLASS/*.jpg, or the webdataset tars you have):
  vitwarm shards make FOLDER shards --val-share 0.1
  vitwarm warmup --rule dyck --budget 0.01
  vitwarm train --trunk runs/warmup-... data.train=shards/train data.val=shards/validation"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `vitwarm quickstart`."""
    parser.add_argument(
        "--out", type=Path, default=Path("quickstart"), help="folder for everything it makes"
    )
    parser.add_argument("--smoke", action="store_true", help="every stage at the smallest size")
    parser.add_argument("--fresh", action="store_true", help="discard an earlier quickstart")


def run(args: argparse.Namespace) -> int:
    """Digits to shards, warm-ups, the sweep, the report; returns the exit code."""
    from vitwarm.config import SweepConfig, find_recipe, load_config
    from vitwarm.report import run_report
    from vitwarm.report.tables import terminal_table
    from vitwarm.shards.write.digits import write_digits
    from vitwarm.sweep import run_sweep

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{format_seconds(time.monotonic() - began):>6}] {text}", flush=True)

    root, shards = args.out / ("smoke" if args.smoke else "full"), args.out / "shards"
    for made in ("runs", "report") if args.fresh else ():
        shutil.rmtree(root / made, ignore_errors=True)
    say("1/3 digits to webdataset shards")
    if not (shards / "_info.json").exists():
        write_digits(shards)
    recipe = find_recipe(f"sweep/quickstart{'_smoke' if args.smoke else ''}.yaml")
    data = {"data.train": f"{shards}/train", "data.val": f"{shards}/validation"}
    fields = {"set": data, "run.root": str(root / "runs")}
    config = load_config(SweepConfig, recipe, fields=fields)
    say("2/3 two warm-ups, then the trainings")
    result = run_sweep(config, recipe=recipe)
    say("3/3 the report")
    paths = run_report(
        [result.folder], root / "report", title="vitwarm quickstart: digits", figures=False
    )
    print(
        f"\n{terminal_table(paths.analyses)}\n\nDigits of 8 x 8 pixels show how the tool works, "
        f"not what a warm-up does for your images.\n{NEXT_STEPS}\n"
    )
    say(f"done: {paths.page.resolve()}")
    return result.exit_code

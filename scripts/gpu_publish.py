"""Tables for configs/RESULTS.md from what scripts/gpu_legs.py brought back.

    python scripts/gpu_publish.py OUT             # prints the lines
    python scripts/gpu_publish.py OUT --trunk     # and puts the finished trunk into data/trunks

Every number is read from records and legs.jsonl; nothing is typed in.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_legs import HOME, TRUNKS, read_lines, unpack

from vitwarm.errors import TrunkError, VitwarmError
from vitwarm.records import Record, read_records
from vitwarm.report.curves import Interval, mean_interval, paired_differences
from vitwarm.trunk import load_trunk


def main(argv: list[str] | None = None) -> int:
    """Prints the lines; 2 where there is nothing to tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder that gpu_legs.py filled")
    parser.add_argument("--trunk", action="store_true", help="copy the finished trunk")
    parser.add_argument(
        "--home", type=Path, default=HOME / "data" / "trunks", help="to this folder"
    )
    args = parser.parse_args(argv)
    if not (args.out / "legs.jsonl").is_file():
        print(f"{args.out} holds no legs.jsonl; give the --out of gpu_legs.py.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        unpack(args.out, work)
        (work / "runs").mkdir(exist_ok=True)
        print("\n".join([*facts_lines(read_lines(work)), *row_lines(read_records(work / "runs"))]))
    if args.trunk:
        try:
            print(f"\n{publish_trunk(args.out, args.home)}")
        except VitwarmError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    return 0


def facts_lines(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the card, the speeds and the warm-ups, the latest figure of each."""
    for one in [line for line in lines if "versions" in line][-1:]:
        versions = ", ".join(f"{name} {v}" for name, v in one["versions"].items() if v)
        card = one["card"] or "no GPU"
        yield f"{card}, Python {one['python']}, {versions}; {one['code_version']}."
    benches = {
        (line["words"], line.get("model"), line.get("size")): line
        for line in lines
        if "bench" in line
    }
    skipped = {"leg", "bench", "words"}
    for (words, *_), line in benches.items():
        told = ", ".join(f"{name} {value}" for name, value in line.items() if name not in skipped)
        yield f"- `{words}`: {told}"
    for line in [line for line in lines if "tests" in line][-1:]:
        yield f"`pytest -m gpu`: {line['tests']}"
    for name in TRUNKS:
        for line in [line for line in lines if line.get("trunk") == name][-1:]:
            told = ", ".join(
                f"{key} {value}" for key, value in line.items() if key not in ("leg", "trunk")
            )
            yield f"- `{name}`: {told}"


def row_lines(records: list[Record]) -> Iterator[str]:
    """Yields a table of every arm and number of images, with paired differences to `default`."""
    trained = [r for r in records if r.stage == "train" and r.top1_percent is not None]
    if not trained:
        yield "\nNo image training is finished."
        return
    yield "\n| images | arm | n | top-1 %, mean (sd) | paired difference | images/s | s |"
    yield "|---|---|---|---|---|---|---|"
    for n_images in sorted({r.n_train_images or 0 for r in trained}):
        here = [r for r in trained if r.n_train_images == n_images]
        cold = {str(r.pair): float(r.top1_percent or 0) for r in here if r.arm == "default"}
        for arm in dict.fromkeys(["default", *sorted(str(r.arm) for r in here)]):
            runs = [r for r in here if r.arm == arm]
            if not runs:
                continue
            top1 = {str(r.pair): float(r.top1_percent or 0) for r in runs}
            found = mean_interval(list(top1.values()))
            spread = "" if found.sd is None else f" ({found.sd:.2f})"
            pairs = list(paired_differences(top1, cold)[0].values())
            paired = _paired(mean_interval(pairs)) if pairs and arm != "default" else ""
            rate = mean_interval([r.images_per_second or 0.0 for r in runs]).mean
            seconds = mean_interval([r.wall_seconds or 0.0 for r in runs]).mean
            yield (
                f"| {n_images:,} | {arm} | {found.n} | {found.mean:.2f}{spread} | {paired} "
                f"| {rate:,.0f} | {seconds:.0f} |"
            )
    versions = ", ".join(sorted({r.code_version for r in trained}))
    yield f"\nCode {versions}. images/s and seconds are a run's own, beside its neighbours."


def _paired(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f} (n = {found.n}: no interval)"
    return f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}), n = {found.n}"


def publish_trunk(out: Path, home: Path) -> Path:
    """Copies the trunk of the finished warm-up, and returns where it lies now.

    Raises: TrunkError: it is damaged, not there, or not finished.
    """
    path = out / f"{TRUNKS[0]}.safetensors"
    if not path.is_file() or load_trunk(path).metadata.get("status") != "finished":
        raise TrunkError(
            f"{path} is not there or not finished, so it is not published. Give {out} as --state "
            "to another visit of gpu_legs.py."
        )
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, home / path.name)
    return home / path.name


if __name__ == "__main__":
    sys.exit(main())

"""Make, check and look at image shards.

  vitwarm shards make FOLDER OUT [--val FOLDER]      an image folder (or ImageNet's tars) to shards
  vitwarm shards info SOURCE                         counts, classes, sizes
  vitwarm shards check SOURCE                        everything that is wrong with them
  vitwarm shards materialise SOURCE OUT --fraction F a fraction as new tars

SOURCE is what data.train may be: a folder of tars, DIR/SPLIT, or a pattern such as
DIR/imagenet1k-train-{0000..1023}.tar.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitwarm.errors import ShardError
from vitwarm.files import write_text
from vitwarm.shards.bars import Bar, make_bar
from vitwarm.shards.sources import is_streamed

if TYPE_CHECKING:
    from vitwarm.shards.fraction import Subset
    from vitwarm.shards.index import ShardIndex


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands of `vitwarm shards`."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    make = commands.add_parser("make", help="write shards from an image folder")
    add_make_arguments(make)
    info = commands.add_parser("info", help="counts, classes, sizes")
    check = commands.add_parser("check", help="find everything that is wrong with shards")
    check.add_argument("--no-decode", action="store_true", help="headers and labels only")
    check.add_argument("--workers", type=int, help="processes that decode; default: all cores")
    part = commands.add_parser("materialise", help="write a fraction as new tars")
    for one in (info, check):
        one.add_argument("source", help="a folder of tars, DIR/SPLIT or a pattern")
        one.add_argument("--json", action="store_true", help="one JSON object instead of text")
    part.add_argument("source", help="a folder of tars, DIR/SPLIT or a pattern")
    part.add_argument("out", type=Path, help="folder for the new tars")
    which = part.add_mutually_exclusive_group(required=True)
    which.add_argument("--fraction", type=float, help="share of the images, such as 0.1")
    which.add_argument("--list", type=Path, dest="image_list", help="a file of keys, one a line")
    part.add_argument("--seed", type=int, default=0, help="data.subset_seed of the fraction")
    part.add_argument("--split", default="train", help="name of the split in the new _info.json")
    for one in (info, check, part):
        one.add_argument("--label-key", help="field of KEY.json that is the label")


def add_make_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `vitwarm shards make`, which scripts/make_shards.py has too."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="FOLDER OUT",
        help="ROOT/CLASS/*.jpg, ROOT/{train,val}/CLASS/*.jpg or a tar of tars; then where to write",
    )
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits; only OUT")
    parser.add_argument("--val", type=Path, help="validation images, as FOLDER or as a plain tar")
    parser.add_argument(
        "--val-labels", type=Path, help="lines NAME CLASS for a --val without folders"
    )
    parser.add_argument(
        "--val-share", type=float, default=0.0, help="share of FOLDER to validate on"
    )
    parser.add_argument("--name", help="what the tars are called; default: the folder's name")
    parser.add_argument("--images-per-shard", type=int, default=1250)
    parser.add_argument("--seed", type=int, default=0, help="of the order they are written in")


def run(args: argparse.Namespace) -> int:
    """Runs one subcommand. Returns 0; 1 where a check found problems."""
    if args.command == "make":
        return run_make(args)
    if is_streamed(args.source):
        raise ShardError(
            f"{args.source!r} is streamed; `vitwarm shards {args.command}` reads shards on a disk. "
            "Copy them there first."
        )
    if args.command == "check":
        return _run_check(args)
    from vitwarm.shards.index import ShardIndex

    index = ShardIndex.open(args.source, label_key=args.label_key)
    return _run_info(index, args) if args.command == "info" else _run_materialise(index, args)


def run_make(args: argparse.Namespace) -> int:
    """Writes shards from an image folder, or from the digits. Raises: ShardError."""
    *sources, out = args.paths
    if args.digits:
        if sources:
            raise ShardError(f"--digits needs only the folder to write to; given: {args.paths}.")
        from vitwarm.shards.digits import write_digits

        write_digits(out)
        print(f"digits: 1,297 training and 500 validation images in {out}")
        return 0
    if len(sources) != 1:
        raise ShardError(
            "Two paths are needed, the images and where to write, but "
            f"{' '.join(map(str, args.paths))} is given. Use FOLDER OUT, or --digits OUT."
        )
    from vitwarm.shards.make import make_shards

    counts = make_shards(
        sources[0],
        out,
        name=args.name,
        val=args.val,
        val_labels=args.val_labels,
        val_share=args.val_share,
        images_per_shard=args.images_per_shard,
        seed=args.seed,
    )
    for split, n in counts.items():
        print(f"{split}: {n:,} images, data.{'train' if split == 'train' else 'val'}={out}/{split}")
    if "validation" not in counts:
        print("no validation images: give --val FOLDER or --val-share 0.1 to have some")
    return 0


def _run_info(index: ShardIndex, args: argparse.Namespace) -> int:
    from vitwarm.shards.checking import describe

    facts = describe(index)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        shown = " to ".join(f"{v:,}" for v in value) if isinstance(value, list) else value
        is_count = isinstance(value, int) and not isinstance(value, bool)
        print(f"{name.replace('_', ' '):<18} {f'{shown:,}' if is_count else shown}")
    return 0


def _run_check(args: argparse.Namespace) -> int:
    from vitwarm.shards.checking import check_shards

    cores = len(os.sched_getaffinity(0))
    findings = check_shards(
        args.source,
        label_key=args.label_key,
        decode=not args.no_decode,
        workers=cores if args.workers is None else args.workers,
        progress=_Bars(),
    )
    if args.json:
        print(json.dumps(dataclasses.asdict(findings)))
        return 1 if findings.problems else 0
    for note in findings.notes:
        print(f"note: {note}")
    for problem in findings.problems:
        print(f"PROBLEM: {problem}")
    print(
        f"{findings.n_images:,} images of {findings.n_classes:,} classes in {findings.n_shards:,} "
        f"shards, {findings.n_decoded:,} decoded: {len(findings.problems) or 'no'} problem(s)"
    )
    return 1 if findings.problems else 0


def _run_materialise(index: ShardIndex, args: argparse.Namespace) -> int:
    from vitwarm.shards.fraction import choose_fraction, choose_list

    if args.image_list is not None:
        subset = choose_list(index, args.image_list)
    else:
        subset = choose_fraction(index, args.fraction, seed=args.seed)
    materialise(index, subset, args.out, split=args.split)
    print(
        f"{len(subset):,} of {index.n_images:,} images, data.train={args.out}/{args.split}\n"
        f"subset sha256 {subset.sha256}"
    )
    return 0


def materialise(index: ShardIndex, subset: Subset, out: Path, *, split: str = "train") -> None:
    """Writes some images of an index as new tars, bytes as they are, in random order.

    Keys stay, so that smaller fractions of the new shards are those of the old ones. The keys lie
    in `subset.txt`; `_info.json` and `classes.txt` are written too.

    Raises: ShardError: `out` holds shards already or cannot be written.
    """
    import numpy as np

    from vitwarm.seeding import hash_bits, mix_u64
    from vitwarm.shards.make import IMAGES_PER_SHARD
    from vitwarm.shards.reader import ImageReader
    from vitwarm.shards.writer import Sample, check_empty, write_info, write_shards

    check_empty(out)
    reader = ImageReader(index, subset.rows)
    hashes = np.asarray(index.key_hashes)[subset.rows]
    rows = subset.rows[np.argsort(mix_u64(hashes, hash_bits(0, "materialise")))]

    def samples() -> Any:
        for row in rows.tolist():
            data = reader.read(row)
            ending = "png" if data[:4] == b"\x89PNG" else "webp" if data[8:12] == b"WEBP" else "jpg"
            yield Sample(index.keys[row], ending, data, int(index.labels[row]))

    n_shards = max(1, round(len(rows) / IMAGES_PER_SHARD))
    name = out.resolve().name or "subset"
    lengths = write_shards(
        out, f"{name}-{split}", samples(), n_samples=len(rows), n_shards=n_shards
    )
    classes = index.paths[0].parent / "classes.txt"
    names = classes.read_text(encoding="utf-8").splitlines() if classes.is_file() else []
    if len(names) != index.n_classes:
        names = [str(label) for label in range(index.n_classes)]
    write_text(out / "subset.txt", "".join(f"{index.keys[row]}\n" for row in subset.rows))
    write_info(out, name, {split: lengths}, names)


class _Bars:
    """A progress bar per kind of work."""

    def __init__(self) -> None:
        self.bars: dict[str, tuple[Bar, int]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        bar, before = self.bars.get(what) or (make_bar(what, total=total, unit=""), 0)
        bar.update(done - before)
        self.bars[what] = bar, done
        if done >= total:
            bar.close()

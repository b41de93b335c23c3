"""Make, check and look at image shards.

  vitwarm shards make FOLDER OUT [--val FOLDER]      an image folder (or ImageNet's tars) to shards
  vitwarm shards info SOURCE                         counts, classes, sizes
  vitwarm shards check SOURCE                        what is wrong with them, tar by tar
  vitwarm shards materialise SOURCE OUT --fraction F a fraction, a list or some classes as new tars
  vitwarm shards fractals OUT                        labelled fractal images (FractalDB), drawn anew
  vitwarm shards voc VOCdevkit/VOC2012 OUT           Pascal VOC with masks and boxes, for the probe

SOURCE is what data.train may be: a folder of tars, DIR/SPLIT, or a pattern such as
DIR/imagenet1k-train-{0000..1023}.tar.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vitwarm.config.ranges import whole_number
from vitwarm.errors import ShardError
from vitwarm.records import count_cpus
from vitwarm.shards.read.sources import is_streamed
from vitwarm.shards.write.pool import terminable
from vitwarm.units import count_of, read_number

if TYPE_CHECKING:
    from vitwarm.shards.read.index import ShardIndex
    from vitwarm.shards.read.labels import LabelOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands of `vitwarm shards`."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_make(commands.add_parser("make", help="write shards from an image folder"))
    info = commands.add_parser("info", help="counts, classes, sizes")
    check = commands.add_parser("check", help="find what is wrong with shards, tar by tar")
    check.add_argument("--no-decode", action="store_true", help="headers and labels only")
    check.add_argument(
        "--workers", type=_read_count, help="processes that decode; default: all cores"
    )
    part = commands.add_parser("materialise", help="write a fraction as new tars")
    for one in (info, check, part):
        one.add_argument("source", help="a folder of tars, DIR/SPLIT or a pattern")
    for one in (info, check):
        one.add_argument("--json", action="store_true", help="one JSON object instead of text")
    part.add_argument("out", type=Path, help="folder for the new tars")
    which = part.add_mutually_exclusive_group()
    which.add_argument("--fraction", type=_share, help="of the images: 0.1 or 10%%")
    which.add_argument("--list", type=Path, dest="image_list", help="a file of keys, one a line")
    part.add_argument(
        "--classes",
        help="only these classes, relabelled from 0 in their old order: names of classes.txt or "
        "labels, with commas between, or a file with one a line (ImageNet-100's)",
    )
    of_fraction = "data.subset_seed of the fraction"
    part.add_argument("--seed", type=whole_number(), default=0, help=of_fraction)
    part.add_argument("--split", default="train", help="name of the split in the new _info.json")
    for one in (info, check, part):
        one.add_argument(
            "--label-from",
            choices=("cls", "json", "folder", "text"),
            help="where labels are: KEY.cls, KEY.json, the key's folder, or KEY.txt",
        )
        one.add_argument("--label-key", help="field of KEY.json that is the label")
        one.add_argument(
            "--class-names",
            help="file with the classes' names in the order of their labels, one a line (data."
            "classes); default: _info.json or classes.txt beside the shards",
        )
    fractals = commands.add_parser("fractals", help="draw labelled fractals (FractalDB)")
    fractals.add_argument("out", type=Path, help="folder for the new tars")
    for name, default, text in (
        ("classes", 1000, "systems of maps, each a class"),
        ("per-class", 1000, "training images of each"),
        ("val-per-class", 0, "validation images of each, others of the same classes"),
        ("size", 362, "pixels of both sides"),
        ("points", 200_000, "points per image"),
        ("seed", 0, "of everything"),
        ("images-per-shard", 1250, "about"),
    ):
        fractals.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default:,})")
    fractals.add_argument("--workers", type=int, help="processes that draw; default: all cores")
    voc = commands.add_parser("voc", help="write Pascal VOC with its masks and boxes")
    voc.add_argument("source", type=Path, help="a folder such as VOCdevkit/VOC2012")
    voc.add_argument("out", type=Path, help="folder for the new tars")
    voc.add_argument("--masked-only", action="store_true", help="images with masks alone")
    voc.add_argument("--images-per-shard", type=int, default=1250)


def _add_make(parser: argparse.ArgumentParser) -> None:
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
        "--val-share", type=_share, default=0.0, help="of FOLDER to validate on: 0.1 or 10%%"
    )
    parser.add_argument("--name", help="what the tars are called; default: the folder's name")
    parser.add_argument("--images-per-shard", type=int, default=1250)
    order = "of the order they are written in"
    parser.add_argument("--seed", type=whole_number(), default=0, help=order)


def _read_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; write 1 or more")
    return int(text)


def _share(text: str) -> float:
    number = read_number(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 0.1 or 10%")
    return number


@terminable()
def run(args: argparse.Namespace) -> int:
    """Runs one subcommand. Returns 0; 1 where a check found problems."""
    makes = {"make": _run_make, "fractals": _run_fractals, "voc": _run_voc}
    if args.command in makes:
        return makes[args.command](args)
    if is_streamed(args.source):
        raise ShardError(
            f"{args.source!r} is streamed; `vitwarm shards {args.command}` reads shards on a disk. "
            "Copy them there first."
        )
    if args.command == "check":
        return _run_check(args)
    from vitwarm.shards.read.index import ShardIndex

    index = ShardIndex.open(args.source, **_labels(args))
    return _run_info(index, args) if args.command == "info" else _run_materialise(index, args)


def _labels(args: argparse.Namespace) -> LabelOptions:
    if args.label_key and args.label_from not in (None, "json"):
        raise ShardError(
            f"--label-key is {args.label_key!r}, a field of KEY.json, and --label-from is "
            f"{args.label_from!r}. Leave one out."
        )
    return {"label_key": args.label_key, "label_from": args.label_from, "classes": args.class_names}


def _run_make(args: argparse.Namespace) -> int:
    *sources, out = args.paths
    if args.digits:
        if sources:
            raise ShardError(f"--digits needs only the folder to write to; given: {args.paths}.")
        if args.val or args.val_labels or args.val_share or args.name:
            raise ShardError("--digits takes no --val, --val-labels, --val-share or --name.")
        from vitwarm.shards.write.digits import write_digits

        write_digits(out)
        print(f"digits: 1,297 training and 500 validation images in {out}")
        return 0
    if len(sources) != 1:
        raise ShardError(
            "Two paths are needed, the images and where to write, but "
            f"{' '.join(map(str, args.paths))} is given. Use FOLDER OUT, or --digits OUT."
        )
    from vitwarm.shards.write.make import make_shards

    named = ("name", "val", "val_labels", "val_share", "images_per_shard", "seed")
    counts = make_shards(sources[0], out, **{name: getattr(args, name) for name in named})
    _print_counts(counts, out)
    if "validation" not in counts:
        print("no validation images: give --val FOLDER or --val-share 0.1 to have some")
    return 0


def _print_counts(counts: dict[str, int], out: Path) -> None:
    for split, n in counts.items():
        field = "train" if split == "train" else "val"
        print(f"{split}: {n:,} images, data.{field}={out}/{split}")


def _run_fractals(args: argparse.Namespace) -> int:
    from vitwarm.shards.write.fractals import FractalSet, write_fractals

    of_class = args.per_class, args.val_per_class
    what = FractalSet(args.classes, *of_class, args.size, args.points, args.seed)
    workers = count_cpus() if args.workers is None else args.workers
    began = time.monotonic()
    counts = write_fractals(args.out, what, workers=workers, images_per_shard=args.images_per_shard)
    rate = sum(counts.values()) / (time.monotonic() - began)
    _print_counts(counts, args.out)
    print(f"{rate:,.0f} images/s with {count_of(workers, 'process', 'es')}, classes included")
    return 0


def _run_voc(args: argparse.Namespace) -> int:
    from vitwarm.shards.write.voc import make_voc_shards

    how = {"masked_only": args.masked_only, "images_per_shard": args.images_per_shard}
    _print_counts(make_voc_shards(args.source, args.out, **how), args.out)
    return 0


def _run_info(index: ShardIndex, args: argparse.Namespace) -> int:
    from vitwarm.shards.write.checking import describe

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
    from vitwarm.shards.write.checking import check_shards

    findings = check_shards(
        args.source,
        **_labels(args),
        decode=not args.no_decode,
        workers=count_cpus() if args.workers is None else args.workers,
    )
    if args.json:
        print(json.dumps(dataclasses.asdict(findings)))
        return 1 if findings.problems else 0
    for note in findings.notes:
        print(f"note: {note}")
    for problem in findings.problems:
        print(f"PROBLEM: {problem}")
    n, n_decoded = findings.n_images, findings.n_decoded
    decoded = f"{n:,} decoded" if n_decoded == n else f"{n_decoded:,} of {n:,} decoded"
    print(
        f"{n:,} images of {findings.n_classes:,} classes in "
        f"{count_of(findings.n_shards, 'shard')}, "
        f"{'none decoded (--no-decode)' if args.no_decode else decoded}: "
        f"{count_of(len(findings.problems), 'problem')}"
    )
    return 1 if findings.problems else 0


def _run_materialise(index: ShardIndex, args: argparse.Namespace) -> int:
    from vitwarm.shards.choose.fraction import (
        choose_all,
        choose_classes,
        choose_fraction,
        choose_list,
        find_labels,
    )
    from vitwarm.shards.write.writer import materialise

    if args.image_list is None and args.fraction is None and args.classes is None:
        raise ShardError(
            "materialise needs to know which images to write. Give --fraction 0.1, --list FILE or "
            "--classes NAMES."
        )
    labels = find_labels(index, args.classes) if args.classes is not None else None
    subset = choose_all(index) if labels is None else choose_classes(index, labels)
    if args.image_list is not None:
        subset = choose_list(index, args.image_list, among=subset)
    elif args.fraction is not None:
        subset = choose_fraction(index, args.fraction, seed=args.seed, among=subset)
    materialise(index, subset, args.out, split=args.split, labels=labels)
    print(
        f"{len(subset):,} of {index.n_images:,} images, data.train={args.out}/{args.split}\n"
        f"subset sha256 {subset.sha256}"
    )
    return 0

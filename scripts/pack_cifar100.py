"""Packs CIFAR-100 shards into three small files: python scripts/pack_cifar100.py SHARDS OUT

    part1.tgz   5,000 training images (50 of each class: the fraction 0.1 of seed 0) and the whole
                validation set
    part2.tgz   half of the other training images
    part3.tgz   the other half

Each holds folders of ordinary shards; `scripts/gpu_legs.py --data` takes one or all of them. Tars
of small images are a third padding, which the compression takes away.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from vitwarm.errors import VitwarmError
from vitwarm.shards import ShardIndex, Subset, choose_fraction, open_shards
from vitwarm.shards.choose.fraction import choose_all
from vitwarm.shards.write.writer import materialise


def main(argv: list[str] | None = None) -> int:
    """Writes the three parts and prints their sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, help="folder with splits train and validation")
    parser.add_argument("out", type=Path)
    parser.add_argument("--fraction", type=float, default=0.1, help="of part 1 (0.1)")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for path in pack(args.shards, args.out, fraction=args.fraction):
            print(f"{path} {path.stat().st_size / 2**20:.1f} MiB")
    except VitwarmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def pack(shards: Path, out: Path, *, fraction: float) -> list[Path]:
    """Writes part1.tgz to part3.tgz and returns them. Raises: ShardError: shards that are bad."""
    made = []
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        train = open_index(shards / "train", home)
        first = choose_fraction(train, fraction, seed=0)
        rest = np.setdiff1d(np.arange(train.n_images), first.rows)
        for number, rows in enumerate((first.rows, rest[0::2], rest[1::2]), start=1):
            part = home / f"part{number}"  # tars that are joined need names of their own
            per_class = np.bincount(np.asarray(train.labels)[rows], minlength=train.n_classes)
            materialise(train, Subset(rows, "", per_class), part / f"{part.name}-train")
            if number == 1:
                val = open_index(shards / "validation", home)
                materialise(
                    val, choose_all(val), part / f"{part.name}-validation", split="validation"
                )
            path = out / f"part{number}.tgz"
            with tarfile.open(path, "w:gz", compresslevel=6) as tar:
                for folder in sorted(part.iterdir()):
                    tar.add(folder, arcname=folder.name)
            made.append(path)
    return made


def open_index(source: Path, cache: Path) -> ShardIndex:
    """Opens a split of shards; the index is kept out of their folder."""
    index = open_shards(str(source), cache=str(cache / "index"))
    assert isinstance(index, ShardIndex)
    return index


if __name__ == "__main__":
    sys.exit(main())

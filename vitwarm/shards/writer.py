"""Writing shards with webdataset's own writer, in the layout of imagenet1k-*-wds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import webdataset as wds

from vitwarm.errors import ShardError
from vitwarm.files import write_text


class Sample(NamedTuple):
    """One labelled image, encoded."""

    key: str
    ending: str
    """jpg, jpeg, png or webp."""
    data: bytes
    label: int


def write_shards(
    folder: Path, prefix: str, samples: Iterable[Sample], *, n_samples: int, n_shards: int
) -> dict[str, int]:
    """Writes `<prefix>-0000.tar` and so on; returns the samples of each tar by its name.

    Raises: ShardError: a key with a dot, which every reader cuts off there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    per_shard = math.ceil(n_samples / n_shards)
    lengths: dict[str, int] = {}
    pattern = str(folder / f"{prefix}-%04d.tar")
    with wds.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for sample in samples:
            if "." in sample.key:
                raise ShardError(f"the key {sample.key!r} holds a dot; keys end at the first dot.")
            writer.write(
                {
                    "__key__": sample.key,
                    sample.ending: sample.data,
                    "cls": str(sample.label).encode(),
                }
            )
            name = Path(writer.fname).name
            lengths[name] = lengths.get(name, 0) + 1
    return lengths


def write_info(
    folder: Path, name: str, splits: dict[str, dict[str, int]], classes: Sequence[str]
) -> None:
    """Writes `_info.json`, which timm's `wds/` reader and ours read, and `classes.txt`."""
    plain = {
        "name": name,
        "num_classes": len(classes),
        "splits": {
            split: {
                "name": split,
                "filenames": list(lengths),
                "shard_lengths": list(lengths.values()),
                "num_samples": sum(lengths.values()),
            }
            for split, lengths in splits.items()
        },
    }
    write_text(folder / "_info.json", json.dumps(plain, indent=1) + "\n")
    write_text(folder / "classes.txt", "\n".join(classes) + "\n")

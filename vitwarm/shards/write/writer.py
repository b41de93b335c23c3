"""Writing shards with webdataset's own writer, in the layout of imagenet1k-*-wds."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import webdataset as wds

from vitwarm.errors import ShardError
from vitwarm.files import write_text
from vitwarm.seeding import shuffled
from vitwarm.shards.bars import make_bar
from vitwarm.shards.choose.fraction import Subset, class_names
from vitwarm.shards.load.reader import ImageReader
from vitwarm.shards.read.index import ShardIndex

log = logging.getLogger("vitwarm")

#: As many as the hub's ImageNet shards have.
IMAGES_PER_SHARD = 1250


class Sample(NamedTuple):
    """One labelled image, encoded."""

    key: str
    ending: str
    """jpg, png or webp: what timm's reader looks for."""
    data: bytes
    label: int
    beside: Mapping[str, bytes] | None = None
    """Other members of its key by their endings, such as `mask.png`."""


def write_set(
    folder: Path,
    name: str,
    splits: Mapping[str, tuple[int, Iterable[Sample]]],
    classes: Sequence[str],
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> dict[str, int]:
    """Writes the shards of every split, `<name>-<split>-0000.tar` and so on, and what lies beside.

    Args:
        splits: how many samples a split has, and those.
        classes: names in the order of the labels.
        images_per_shard: about.
    Returns: the images of each split.
    Raises: ShardError: as `write_shards`.
    """
    lengths = {}
    for split, (n, samples) in splits.items():
        shown = make_bar(split, total=n, unit="image", items=samples)
        n_shards = max(1, round(n / images_per_shard))
        lengths[split] = write_shards(
            folder, f"{name}-{split}", shown, n_samples=n, n_shards=n_shards
        )
    write_info(folder, name, lengths, classes)
    return {split: sum(some.values()) for split, some in lengths.items()}


def write_shards(
    folder: Path, prefix: str, samples: Iterable[Sample], *, n_samples: int, n_shards: int
) -> dict[str, int]:
    """Writes `<prefix>-0000.tar` and so on, whole or not at all; older ones of that name go.

    The same samples give the same bytes: members carry no time.

    Args:
        n_samples: of `samples`, to spread them evenly.
    Returns: the samples of each tar by its name.
    Raises: ShardError: a key with a dot behind its folders, which every reader cuts off there; a
        folder that cannot be written, or a full disk.
    """
    lengths: dict[str, int] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{prefix}.*"):
            log.warning("%s is left of an earlier attempt; remove it if none runs", left)
        scratch = Path(tempfile.mkdtemp(prefix=f".{prefix}.", dir=folder.resolve()))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        pattern = str(scratch / prefix).replace("%", "%%") + "-%04d.tar"
        per_shard = max(1, math.ceil(n_samples / n_shards))
        with wds.ShardWriter(pattern, maxcount=per_shard, verbose=0, mtime=0) as writer:
            for sample in samples:
                if "." in sample.key.rpartition("/")[2]:
                    raise ShardError(
                        f"The key {sample.key!r} holds a dot; a key ends at its first dot. Use "
                        f"{sample.key.replace('.', '_')!r}."
                    )
                label = str(sample.label).encode()
                members = {sample.ending: sample.data, "cls": label, **(sample.beside or {})}
                writer.write({"__key__": sample.key, **members})
                name = Path(writer.fname).name
                lengths[name] = lengths.get(name, 0) + 1
        for name in lengths:
            (scratch / name).replace(folder / name)
        for old in folder.glob(f"{prefix}-[0-9][0-9][0-9][0-9].tar"):
            if old.name not in lengths:
                old.unlink()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return lengths


def materialise(
    index: ShardIndex,
    subset: Subset,
    out: Path,
    *,
    split: str = "train",
    labels: Sequence[int] | None = None,
) -> None:
    """Writes some images of an index as new tars, bytes as they are, in random order.

    Keys stay, and lie in `subset.txt` too, beside what `write_set` writes. Where classes are
    of one size, smaller fractions of the new shards are those of the old; else their order, which
    hangs on the classes' sizes, is another.

    Args:
        labels: the classes to keep, numbered anew from 0 in this order; none: all, as they are.
    Raises: ShardError: `out` holds shards already or cannot be written.
    """
    check_empty(out)
    kept = range(index.n_classes) if labels is None else labels
    new_label = {old: new for new, old in enumerate(kept)}
    reader = ImageReader(index, subset.rows)
    rows = subset.rows[shuffled(np.asarray(index.key_hashes)[subset.rows], 0, "materialise")]

    def samples() -> Iterator[Sample]:
        for row in rows.tolist():
            data = reader.read(row)
            ending = "png" if data[:4] == b"\x89PNG" else "webp" if data[8:12] == b"WEBP" else "jpg"
            yield Sample(index.keys[row], ending, data, new_label[int(index.labels[row])])

    names = class_names(index)
    splits = {split: (len(rows), samples())}
    write_set(out, out.resolve().name or "subset", splits, [names[label] for label in kept])
    write_text(out / "subset.txt", "".join(f"{index.keys[row]}\n" for row in subset.rows))


def check_empty(folder: Path, *, own: str | None = None) -> None:
    """Refuses to mix new shards with others.

    Args:
        own: what the new ones are called; of that name may be what a killed execution left.
    Raises: ShardError: the folder holds shards.
    """
    tars = [path for path in folder.glob("*.tar") if not own or not path.name.startswith(own)]
    others = [*folder.glob("_info.json"), *tars]
    if others:
        raise ShardError(
            f"{folder} holds shards already ({min(others).name}). Choose another folder, or remove "
            "them first."
        )


def write_info(
    folder: Path, name: str, splits: dict[str, dict[str, int]], classes: Sequence[str]
) -> None:
    """Writes `_info.json`, which timm's `wds/` reader and ours read, and `classes.txt`.

    Args:
        splits: the samples of each tar, by the name of the split.
        classes: names in the order of the labels.
    Raises: RunError: the folder cannot be written.
    """
    plain: dict[str, Any] = {"name": name, "num_classes": len(classes), "splits": {}}
    for split, lengths in splits.items():
        plain["splits"][split] = {
            "name": split,
            "filenames": list(lengths),
            "shard_lengths": list(lengths.values()),
            "num_samples": sum(lengths.values()),
        }
    write_text(folder / "classes.txt", "\n".join(classes) + "\n")
    write_text(folder / "_info.json", json.dumps(plain, indent=1) + "\n")


def _cannot_write(folder: Path, error: OSError) -> ShardError:
    return ShardError(
        f"{folder} cannot be written: {error.strerror or error}. Existing files are unchanged; "
        "free some space or choose another folder."
    )

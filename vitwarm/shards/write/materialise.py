"""Some images of an index as tars of their own: a fraction, a list, or some classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitwarm.errors import ShardError, nearest
from vitwarm.files import write_text
from vitwarm.seeding import shuffled
from vitwarm.shards.choose.fraction import Subset
from vitwarm.shards.load.reader import ImageReader
from vitwarm.shards.read.index import ShardIndex
from vitwarm.shards.read.labels import Labels
from vitwarm.shards.write.writer import Sample, check_empty, write_set


def find_labels(index: ShardIndex, text: str) -> list[int]:
    """Returns the labels that `--classes` names, ascending.

    Args:
        text: names or numbers with commas between, or a file with one a line.
    Raises: ShardError: a class that is not there, or is named again.
    """
    try:
        words = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except OSError:  # no file, or a list too long to be the name of one
        words = text.split(",")
    except ValueError as error:
        raise ShardError(f"--classes is {text!r}, not a text file. Give another.") from error
    words = [word.strip() for word in words if word.strip() and not word.startswith("#")]
    names = _class_names(index)
    label_of = {str(label): label for label in range(index.n_classes)}
    label_of |= Labels(names=tuple(names)).number_of
    labels: list[int] = []
    for line in words:
        word = line if line in label_of else line.split()[0].rstrip(",")
        if word not in label_of:
            raise ShardError(
                f"--classes names {word!r}, which is not a class here.{nearest(word, label_of)} "
                f"Give names of {index.paths[0].parent / 'classes.txt'}, or labels below "
                f"{index.n_classes}."
            )
        if label_of[word] in labels:
            raise ShardError(f"--classes names {word!r} twice. Take one of the two out.")
        labels.append(label_of[word])
    if not labels:
        raise ShardError(f"--classes is {text!r}, which names no class.")
    return sorted(labels)


def materialise(
    index: ShardIndex,
    subset: Subset,
    out: Path,
    *,
    split: str = "train",
    labels: Sequence[int] | None = None,
) -> None:
    """Writes some images of an index as new tars, bytes as they are, in random order.

    Keys stay, so that smaller fractions of the new shards are those of the old ones. The keys lie
    in `subset.txt`; `_info.json` and `classes.txt` are written too.

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

    names = _class_names(index)
    name = out.resolve().name or "subset"
    splits = {split: (len(rows), samples())}
    write_set(out, name, splits, [names[label] for label in kept])
    write_text(out / "subset.txt", "".join(f"{index.keys[row]}\n" for row in subset.rows))


def _class_names(index: ShardIndex) -> list[str]:
    if len(index.classes) == index.n_classes:
        return list(index.classes)
    return [str(label) for label in range(index.n_classes)]

"""What `data.train` and `data.val` may say, and what `_info.json` beside the shards says."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from braceexpand import braceexpand

from vitwarm.errors import ShardError, nearest
from vitwarm.shards.read.labels import LabelOptions, Labels, differ, merely_counts, read_names

INFO_NAMES = ("_info.json", "info.json")
HOW = (
    "Give a folder of tars, a split of a folder with an _info.json (DIR/train), or a pattern such "
    "as DIR/imagenet1k-train-{0000..1023}.tar."
)


@dataclass(frozen=True)
class Info:
    """The content of `_info.json`, as the hub's webdataset sets and timm's reader have it."""

    splits: dict[str, list[str]] = field(default_factory=dict)
    """File names by split, relative to its folder."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Samples by file name; of several info files, by whole path or address."""
    label_keys: dict[str, str] = field(default_factory=dict)
    """`alt_label` by the same, where there is one: the field of KEY.json that is the label."""
    n_classes: int | None = None
    """From `num_classes`, or the number of `classes`."""
    classes: tuple[str, ...] = ()
    """From `classes`, or the lines of a `classes.txt` beside it; empty: not known."""
    discord: str = ""
    """Where the lists of classes of several folders disagree."""

    def labels(self, files: Sequence[str], **how: Unpack[LabelOptions]) -> Labels:
        """Returns how the labels of some tars are read; what is not asked for, the info file says.

        Raises: ShardError: a file of classes that cannot be read; joined tars whose lists of
            classes disagree, or whose labels are said to stand in different fields.
        """
        label_key, label_from = how.get("label_key"), how.get("label_from")
        classes = how.get("classes")
        if self.discord and classes is None:
            raise ShardError(
                f"The lists of classes of joined shards disagree: {self.discord}. Fix one "
                "(classes.txt or _info.json), or give data.classes=FILE, which counts for all."
            )
        if label_key is None and label_from in (None, "json"):
            stated = {self.label_keys.get(file): file for file in files}
            if len(stated) > 1:
                (one, at), (other, there) = list(stated.items())[:2]
                raise ShardError(
                    f"The info files say that the label is alt_label={one!r} for {at} and "
                    f"{other!r} for {there}. Give data.label_key=FIELD or data.label_from, which "
                    "count for all."
                )
            label_key = next(iter(stated), None)
        if classes is None:
            return Labels(label_from, label_key, self.classes, self.n_classes)
        names = read_names(Path(classes).expanduser())
        return Labels(label_from, label_key, names, len(names))


@dataclass(frozen=True)
class Source:
    """The shards that somebody asked for."""

    text: str
    paths: list[Path]
    info: Info
    """What the info files beside them say together, by whole paths."""
    n_expected: int | None
    """Images, where the source says so itself: PATTERN|COUNT."""

    def miscounts(self, counts: Mapping[Path, int]) -> Iterator[str]:
        """Says where the images of each tar that could be read are more or fewer than stated."""
        for path, n in counts.items():
            stated = self.info.lengths.get(str(path), n)
            if stated != n:
                yield (
                    f"{path} holds {n:,} labelled images, but the info file beside it says "
                    f"{stated:,}. Fetch the shard again, or mend or take away the info file."
                )
        n_found = sum(counts.values())
        if self.n_expected not in (None, n_found):
            yield (
                f"{self.text!r} states {self.n_expected:,} images, but the shards hold "
                f"{n_found:,}. Fix the number, or fetch what is missing."
            )


def is_streamed(source: str) -> bool:
    """Whether a source cannot be read at random places: http(s), or the output of a command."""
    return source.lstrip().startswith("pipe:") or "://" in source


def find_shards(source: str) -> Source:
    """Returns the tars that a source means, in order.

    Args:
        source: a folder of tars; DIR/SPLIT where DIR/_info.json has that split; a brace or glob
            pattern; several of these joined by `::`; `|COUNT` behind them states their images.
    Raises: ShardError: nothing there, files missing, or a folder that mixes splits.
    """
    text, bar, count = source.rpartition("|")
    if not bar:
        text, count = source, ""
    elif not count.strip().isdigit():
        raise ShardError(
            f"{source!r}: after | comes {count!r}; it must be the number of images. {HOW}"
        )
    words = [text] if os.path.exists(os.path.expanduser(text)) else text.split("::")
    paths = [path for word in words for path in _find(word.strip())]
    if not paths:
        raise ShardError(f"{source!r}: the info file there lists no shards. {HOW}")
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ShardError(f"{source!r} names {twice} twice. Name each shard once.")
    folders = map(_home_of_info, dict.fromkeys(path.parent for path in paths))
    infos = {str(folder): read_info(folder) for folder in folders}
    info = join_infos(infos, lambda folder, file: str(Path(folder, file)))
    return Source(source, paths, info, int(count) if bar else None)


def join_infos(infos: Mapping[str, Info], place: Callable[[str, str], str]) -> Info:
    """Returns what the info files of several folders say together.

    Args:
        infos: by their folders.
        place: (folder, file name there) -> the whole path or address.
    """
    first, discord = "", ""
    classes: tuple[str, ...] = ()
    for folder, info in infos.items():
        if info.classes and classes and not discord:
            discord = differ(classes, info.classes, first, folder) or ""
        if info.classes and merely_counts(classes):
            first, classes = folder, info.classes
    each = infos.items()
    return Info(
        lengths={place(f, name): n for f, info in each for name, n in info.lengths.items()},
        label_keys={place(f, name): k for f, info in each for name, k in info.label_keys.items()},
        n_classes=max((info.n_classes or 0 for info in infos.values()), default=0) or None,
        classes=classes,
        discord=discord,
    )


def read_info(folder: Path) -> Info:
    """Reads `_info.json` and `classes.txt` of a folder; an empty Info where there are none.

    Raises: ShardError: an info file that is no valid JSON, or not of that form.
    """
    listed = folder / "classes.txt"
    classes = read_names(listed) if listed.is_file() and listed.stat().st_size else ()
    for name in INFO_NAMES:
        path = folder / name
        if path.is_file():
            try:
                return parse_info(json.loads(path.read_text(encoding="utf-8")), classes=classes)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                raise ShardError(
                    f"{path} is not an info file of shards ({type(error).__name__}: {error}). Fix "
                    "or remove it; the shards can be read without it."
                ) from error
    return Info(n_classes=len(classes) or None, classes=classes)


def parse_info(plain: Any, *, classes: tuple[str, ...] = ()) -> Info:
    """Builds an Info from parsed JSON. Raises: KeyError, TypeError, ValueError: another form."""
    if isinstance(plain.get("classes"), list):
        classes = tuple(str(name) for name in plain["classes"])
    stated = plain.get("num_classes")
    n_classes = int(stated) if stated is not None else len(classes) or None
    info = Info(n_classes=n_classes, classes=classes)
    for name, split in plain.get("splits", {}).items():
        files = info.splits[name] = [str(file) for file in split["filenames"]]
        info.lengths.update(zip(files, map(int, split.get("shard_lengths", ())), strict=False))
        if split.get("alt_label"):
            info.label_keys.update(dict.fromkeys(files, str(split["alt_label"])))
    return info


def _home_of_info(folder: Path) -> Path:
    """Returns the folder whose info file speaks of the tars of a folder: it, or the one above."""
    if any((folder / name).is_file() for name in (*INFO_NAMES, "classes.txt")):
        return folder
    listed = (file for files in read_info(folder.parent).splits.values() for file in files)
    return folder.parent if any(Path(f).parent.name == folder.name for f in listed) else folder


def _find(word: str) -> list[Path]:
    path = Path(os.path.expanduser(word))
    if path.parent.name in ("", ".."):  # the folder above may hold what is said of this one
        path = Path(os.path.abspath(path))
    if os.path.isdir(path):
        return _complete(_of_folder(path))
    may_be_split = not os.path.exists(path) and os.path.isdir(path.parent) and path.suffix != ".tar"
    if may_be_split and (split := _of_split(path.parent, path.name)):
        return _complete(split)
    try:
        texts = list(braceexpand(str(path))) if "{" in word else [str(path)]
    except ValueError as error:
        raise ShardError(f"{word!r} has unbalanced braces. {HOW}") from error
    found: list[Path] = []
    for one in map(Path, texts):
        if any(character in str(one) for character in "*?[") and not os.path.exists(one):
            some = sorted(map(Path, glob.glob(str(one))))
            if not some:
                raise ShardError(f"No file matches {one}. {HOW}")
            found += some
        else:
            found.append(one)
    return _complete(found)


def _of_folder(folder: Path) -> list[Path]:
    splits = read_info(folder).splits
    if len(splits) == 1:
        return [folder / name for name in next(iter(splits.values()))]
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        packed = sorted(folder.glob("*.tar.*")) or sorted(folder.glob("*.tgz"))
        if packed:
            raise ShardError(
                f"{folder} holds only compressed tars ({packed[0].name}). Unpack them first "
                "(gunzip); images are read at their place in a plain tar."
            )
        raise ShardError(
            f"{folder} holds no tars. {HOW} `vitwarm shards make` makes some of folders of images."
        )
    named = {frozenset(_SPLITS & set(re.split(r"[^a-z]+", p.name.lower()))) for p in tars}
    mixed = sorted(" ".join(sorted(words)) for words in named if words)
    if len(splits) > 1 or len(mixed) > 1:
        which = ", ".join(splits or mixed)
        raise ShardError(
            f"{folder} holds shards of several splits ({which}); one is needed. Give "
            f"{folder / next(iter(splits), 'NAME-train-*.tar')}, or a pattern of its tars."
        )
    return tars


#: Words of file names by which splits are told apart.
_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


def _of_split(folder: Path, split: str) -> list[Path]:
    """The shards of a split of a folder's info file; `val` stands for `validation` too."""
    splits = read_info(folder).splits
    name = "validation" if split == "val" and split not in splits else split
    if splits and name not in splits:
        raise ShardError(
            f"{folder / split}: the info file there has the splits {', '.join(splits)}."
            f"{nearest(split, splits)} {HOW}"
        )
    return [folder / file for file in splits.get(name, ())]


def _complete(paths: list[Path]) -> list[Path]:
    missing = [path for path in paths if not (path.is_file() or path.is_dir())]
    if not missing:
        return paths
    first = missing[0]
    if len(paths) > 1:
        raise ShardError(
            f"{len(missing):,} of {len(paths):,} shards are not there, {first} first. Fetch them, "
            "or give a pattern of those that are."
        )
    names = (path.name for path in first.parent.glob("*"))  # none where there is no such folder
    raise ShardError(f"There is no {first}.{nearest(first.name, names)} {HOW}")

"""What `data.train` and `data.val` may say, and what `_info.json` beside the shards says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from vitwarm.errors import ShardError, nearest

INFO_NAMES = ("_info.json", "info.json")
HOW = (
    "Give a folder of tars, a split of a folder with an _info.json (DIR/train), or a pattern such "
    "as DIR/imagenet1k-train-{0000..1023}.tar."
)


@dataclass(frozen=True)
class Info:
    """The content of `_info.json`, as the hub's webdataset sets and timm's reader have it."""

    splits: dict[str, list[str]] = field(default_factory=dict)
    """File names by split."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Samples by file name."""
    label_keys: dict[str, str] = field(default_factory=dict)
    """`alt_label` by file name, where there is one: the field of KEY.json that is the label."""
    n_classes: int | None = None
    """From `num_classes`, or the lines of a `classes.txt` beside it."""


@dataclass(frozen=True)
class Source:
    """The shards that somebody asked for."""

    text: str
    paths: list[Path]
    info: Info
    n_expected: int | None
    """Images, where the source says so itself: PATTERN|COUNT."""

    @property
    def label_key(self) -> str | None:
        """The field of KEY.json that `_info.json` names as the label."""
        return self.info.label_keys.get(self.paths[0].name)


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
            f"{source!r}: behind | stands {count!r}; it must be the number of images. {HOW}"
        )
    words = [text] if Path(text).expanduser().exists() else text.split("::")
    paths = [path for word in words for path in _find(word.strip())]
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ShardError(f"{source!r} names {twice} twice. Name each shard once.")
    info = read_info(paths[0].parent)
    return Source(source, paths, info, int(count) if bar else None)


def read_info(folder: Path) -> Info:
    """Reads `_info.json` and `classes.txt` of a folder; an empty Info where there are none.

    Raises: ShardError: an info file that is no valid JSON, or not of that form.
    """
    plain: Any = {}
    for name in INFO_NAMES:
        path = folder / name
        if path.is_file():
            try:
                plain = json.loads(path.read_text(encoding="utf-8"))
                return parse_info(plain, classes=_count_lines(folder / "classes.txt"))
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                raise ShardError(
                    f"{path} is no info file of shards ({type(error).__name__}: {error}). Mend it "
                    "or take it away; the shards are readable without."
                ) from error
    return Info(n_classes=_count_lines(folder / "classes.txt"))


def parse_info(plain: Any, *, classes: int | None) -> Info:
    """Builds an Info from parsed JSON. Raises: KeyError, TypeError, ValueError: another form."""
    splits: dict[str, list[str]] = {}
    lengths: dict[str, int] = {}
    label_keys: dict[str, str] = {}
    for name, split in plain.get("splits", {}).items():
        files = [str(file) for file in split["filenames"]]
        splits[name] = files
        lengths.update(zip(files, map(int, split.get("shard_lengths", ())), strict=False))
        if split.get("alt_label"):
            label_keys.update(dict.fromkeys(files, str(split["alt_label"])))
    stated = plain.get("num_classes")
    n_classes = int(stated) if stated is not None else classes
    return Info(splits, lengths, label_keys, n_classes)


def _find(word: str) -> list[Path]:
    path = Path(word).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if not path.exists() and path.parent.is_dir() and path.suffix != ".tar":
        split = _of_split(path.parent, path.name)
        if split:
            return split
    try:
        texts = list(braceexpand(str(path))) if "{" in word else [str(path)]
    except ValueError as error:
        raise ShardError(f"{word!r} has unbalanced braces. {HOW}") from error
    found: list[Path] = []
    missing: list[Path] = []
    for one in map(Path, texts):
        if any(character in str(one) for character in "*?[") and not one.exists():
            some = sorted(one.parent.glob(one.name))
            if not some:
                raise ShardError(f"No file matches {one}. {HOW}")
            found += some
        else:
            (found if one.is_file() else missing).append(one)
    if missing:
        raise _missing(missing, len(texts))
    return found


def _of_folder(folder: Path) -> list[Path]:
    splits = read_info(folder).splits
    if len(splits) == 1:
        return _complete([folder / name for name in next(iter(splits.values()))])
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        packed = sorted(folder.glob("*.tar.*")) or sorted(folder.glob("*.tgz"))
        if packed:
            raise ShardError(
                f"{folder} holds only compressed tars ({packed[0].name}). Unpack them first "
                "(gunzip); images are read at their place in a plain tar."
            )
        raise ShardError(f"{folder} holds no tars. {HOW} scripts/make_shards.py makes some.")
    names = [path.name for path in tars]
    if len(splits) > 1 or (any("train" in n for n in names) and any("val" in n for n in names)):
        which = ", ".join(splits) or "training and validation"
        raise ShardError(
            f"{folder} holds shards of several splits ({which}); one is needed. Give "
            f"{folder / next(iter(splits), 'NAME-train-*.tar')}, or a pattern of its tars."
        )
    return tars


def _of_split(folder: Path, split: str) -> list[Path]:
    """The shards of a split of a folder's info file; `val` stands for `validation` too."""
    splits = read_info(folder).splits
    name = "validation" if split == "val" and split not in splits else split
    if splits and name not in splits:
        raise ShardError(
            f"{folder / split}: the info file there has the splits {', '.join(splits)}."
            f"{nearest(split, splits)} {HOW}"
        )
    return _complete([folder / file for file in splits.get(name, ())])


def _complete(paths: Sequence[Path]) -> list[Path]:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise _missing(missing, len(paths))
    return list(paths)


def _missing(missing: Sequence[Path], n: int) -> ShardError:
    first = missing[0]
    if n > 1:
        return ShardError(
            f"{len(missing):,} of {n:,} shards are not there, {first} first. Fetch them, or give a "
            "pattern of those that are."
        )
    near = (
        nearest(first.name, (p.name for p in first.parent.glob("*")))
        if first.parent.is_dir()
        else ""
    )
    return ShardError(f"There is no {first}.{near} {HOW}")


def _count_lines(path: Path) -> int | None:
    if not path.is_file():
        return None
    return sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip()) or None

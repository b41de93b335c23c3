"""What label an image has: where it stands in a tar, and which number the name of a class is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

from vitwarm.errors import ShardError, nearest

LabelFrom = Literal["cls", "json", "folder", "text"]
#: Where a label may stand beside its image, by the ending of that member; which comes first counts.
LABEL_ENDINGS = ("cls", "json", "txt")
#: A label beyond it is a mistake (a wnid's number, a hash), and would ask for such a head.
MAX_CLASSES = 1 << 24

_NAMES = (
    "If that is the name of a class, give data.classes=FILE: the names in the order of their "
    "labels, one a line."
)
ELSEWHERE = (
    "If it is elsewhere, say where: data.label_from=cls | json | folder | text "
    "(data.label_key names the field of KEY.json; vitwarm shards takes --label-from, --label-key "
    "and --class-names)."
)


class NoLabel(ValueError):
    """A text that is no label: a sentence whose subject the caller knows.

    It begins with `holds` where a member is that subject, else it speaks of the image.
    """

    def about(self, key: str, ending: str) -> str:
        """Returns the whole sentence."""
        holds = str(self).startswith("holds")
        return f"{key}.{ending} {self}" if holds else f"image {key!r} {self}"


class LabelOptions(TypedDict, total=False):
    """What a user may say of labels; what is left out or None, the info file or a default says."""

    label_key: str | None
    """Field of KEY.json that is the label; None: the one that `_info.json` names, else `label`."""
    label_from: LabelFrom | None
    """Where the label stands: `cls`, `json`, `folder` (of the key) or `text` (KEY.txt); None:
    KEY.cls, else KEY.json."""
    classes: str | Path | None
    """A file with the names of the classes in the order of their labels, one a line, or an
    `_info.json`; None: what lies beside the shards. A label may be such a name."""


@dataclass(frozen=True)
class Labels:
    """How the labels of a source are read.

    In `KEY.cls`, `KEY.txt` and `KEY.json` a whole number is the label itself, whatever the classes
    are called; anything else, and every folder's name where names are known, is a class's name.
    """

    come_from: LabelFrom | None = None
    """None: KEY.cls, else KEY.json."""
    field: str | None = None
    """Of KEY.json; None: `label`."""
    names: tuple[str, ...] = ()
    """Of the classes, in the order of the labels; empty: not known."""
    n_classes: int | None = dataclasses.field(default=None, compare=False)
    """As something states it."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the members that may hold the label, best first; none for folders."""
        if self.come_from == "folder":
            return ()
        if self.come_from is None:
            return ("json",) if self.field else ("cls", "json")
        return ("txt" if self.come_from == "text" else self.come_from,)

    def missing(self, key: str) -> str:
        """Returns the sentence about an image that has no label where it is looked for."""
        field = f" with a field {self.field!r}" if self.field else ""
        return (
            f"image {key!r} has no label; there is no {key}.{self.endings[0]}{field} right beside "
            f"it. Label it. {ELSEWHERE}"
        )

    @property
    def digest(self) -> list[str | None]:
        """What tells these labels from others of the same images."""
        names = "\n".join(self.names).encode("utf-8", "surrogateescape")
        return [self.come_from, self.field, hashlib.sha256(names).hexdigest()[:16]]

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Names, and their first words (`n01440764 tench, Tinca tinca`), as far as unique."""
        words = [(name.split() or [name])[0].rstrip(",") for name in self.names]
        found: dict[str, int] = {}
        for texts in (words, self.names):
            times = Counter(texts)
            found |= {text: k for k, text in enumerate(texts) if times[text] == 1}
        return found

    def read(self, ending: str, content: bytes) -> int:
        """Returns the label that a member's content is. Raises: NoLabel."""
        digits = content.strip()
        if digits.isdigit() and len(digits) < 8 and ending != "json":  # nearly always, and quick
            return int(digits)
        try:
            if ending == "json":
                plain = json.loads(content)
                if not isinstance(plain, dict):
                    raise ValueError("it holds no object")
                value = plain[self.field or "label"]
            else:
                value = content.decode("utf-8").strip()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._no_number(ending, f"{type(error).__name__}: {str(error)[:60]}") from None
        number = self.number(value)
        if number is None:
            raise self._no_number(ending, repr(value)[:60])
        return number

    def of_folder(self, key: bytes) -> int:
        """Returns the label that the folder of a key is. Raises: NoLabel."""
        folder = key.rpartition(b"/")[0].rpartition(b"/")[2].decode("utf-8", "surrogateescape")
        if not folder:
            raise NoLabel(f"lies in no folder, which data.label_from=folder needs. {ELSEWHERE}")
        number = self._named(folder) if self.names else self.number(folder)
        if number is None:
            raise NoLabel(f"lies in the folder {folder[:60]!r}, which is not a number. {_NAMES}")
        return number

    def number(self, value: Any) -> int | None:
        """Returns the label that a number or a name is; None: it is neither. Raises: NoLabel."""
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < MAX_CLASSES:
                raise NoLabel(
                    f"has the label {value}; labels count from 0 to {MAX_CLASSES:,} at most. Fix "
                    "it and write the shard again."
                )
            return value
        return self._named(value) if isinstance(value, str) and self.names else None

    def _named(self, name: str) -> int:
        number = self.number_of.get(name)
        if number is None:
            of = f"is of the class {name[:60]!r}, which is"
            if name in self.names:
                raise NoLabel(f"{of} in the list of classes more than once. Rename one of them.")
            raise NoLabel(
                f"{of} none of the {len(self.names):,} classes ({self.names[0]!r} first)."
                f"{nearest(name, self.names)} Fix the list (data.classes, or classes.txt beside "
                f"the shards). {ELSEWHERE}"
            )
        return number

    def _no_number(self, ending: str, why: str) -> NoLabel:
        where = f" in its field {self.field or 'label'!r}" if ending == "json" else ""
        return NoLabel(f"holds no whole number as label{where} ({why}). {_NAMES} {ELSEWHERE}")


def differ(ours: Sequence[str], theirs: Sequence[str], here: str, there: str) -> str | None:
    """Says where two lists of classes disagree, so that a label would mean two things.

    Args:
        here, there: where the lists come from.
    Returns: None: nowhere; nor do names disagree with mere numbers.
    """
    if ours == theirs:
        return None
    if len(ours) != len(theirs):
        return f"{len(ours):,} classes in {here} and {len(theirs):,} in {there}"
    if merely_counts(ours) or merely_counts(theirs):
        return None
    k = next(k for k, (one, two) in enumerate(zip(ours, theirs, strict=True)) if one != two)
    return f"class {k} is {ours[k]!r} in {here} and {theirs[k]!r} in {there}"


def merely_counts(names: Sequence[str]) -> bool:
    """Whether the names of classes are their labels, as tools write them that know no names."""
    return all(name == str(label) for label, name in enumerate(names))


def read_names(path: Path) -> tuple[str, ...]:
    """Reads the names of classes: one a line, or the list `classes` of an `_info.json`.

    Raises: ShardError: no such file, or no names in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            plain = json.loads(text)
            lines = plain["classes"] if isinstance(plain, dict) else plain
            names = [str(name).strip() for name in lines]
        else:
            names = [line.strip() for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise ShardError(
            f"data.classes is {str(path)!r}, which cannot be read: {error.strerror}. Give a file "
            "with the names of the classes in the order of their labels, one a line."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path} holds no class names ({type(error).__name__}: {str(error)[:60]}). Give "
            "one name a line, or in an _info.json a list `classes`."
        ) from error
    if not names or not all(names):
        raise ShardError(f"{path} holds no class names. Give one name a line.")
    return tuple(names)

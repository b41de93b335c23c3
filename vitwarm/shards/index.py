"""One pass over the tar headers of a set of shards, cached: where each image lies and its label.

webdataset 1.0 streams; exact epochs, fractions without rewriting, exact validation counts and
resuming in the middle of an epoch need random access, hence an index of our own. Nothing in a tar
is ever executed or unpickled: members are read by an allow-list of endings.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand

from vitwarm.errors import RunError, ShardError
from vitwarm.files import replacing, write_text

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp"})
LABEL_ENDINGS = frozenset({"cls", "json"})

#: Larger members are refused: no labelled photograph needs as much.
MAX_MEMBER_BYTES = 256 << 20

FORMAT = 1
_BLOCK = 512
_ARRAYS = ("shard_of", "offsets", "sizes", "labels", "keys", "key_hashes")


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int
    size: int


class ShardIndex:
    """The images of a set of shards, row by row, in the order in which they lie in the tars.

    Attributes:
        paths: the tars.
        shard_of: int32 [n], which tar a row lies in.
        offsets, sizes: int64 [n], where its image lies, in bytes.
        labels: int64 [n].
        key_hashes: uint64 [n], of the key, for orders that depend on keys alone.
        n_classes: from `_info.json` or `classes.txt` beside the shards, or the largest label + 1.
        sha256: of shard sizes, keys and labels: what an order and a result depend on.
    """

    def __init__(
        self, paths: list[Path], arrays: dict[str, np.ndarray], *, n_classes: int | None
    ) -> None:
        self.paths = paths
        self.shard_of = arrays["shard_of"]
        self.offsets = arrays["offsets"]
        self.sizes = arrays["sizes"]
        self.labels = arrays["labels"]
        self.key_hashes = arrays["key_hashes"]
        self._keys = arrays["keys"]
        largest = int(self.labels.max()) + 1
        if n_classes is not None and largest > n_classes:
            row = int(self.labels.argmax())
            raise ShardError(
                f"{self.paths[self.shard_of[row]]}: image {self.key(row)!r} has label {largest - 1}"
                f", but the set has {n_classes} classes. Mend the label, or the info file."
            )
        self.n_classes = n_classes or largest
        self._sha256: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_images(self) -> int:
        return len(self.labels)

    @property
    def shard_names(self) -> list[str]:
        return [path.name for path in self.paths]

    @property
    def keys(self) -> list[str]:
        """All keys as text; for a million images a list of a hundred megabytes."""
        return [key.decode() for key in self._keys.tolist()]

    def key(self, row: int) -> str:
        """Returns the key of one row."""
        return bytes(self._keys[row]).decode()

    @property
    def sha256(self) -> str:
        if self._sha256 is None:
            digest = hashlib.sha256()
            counts = np.bincount(self.shard_of, minlength=len(self.paths))
            for array in (counts.astype("<i8"), np.asarray(self.labels, "<i8"), self._keys):
                digest.update(np.ascontiguousarray(array).tobytes())
            self._sha256 = digest.hexdigest()
        return self._sha256

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        cache: str | Path | None = None,
        label_key: str | None = None,
        allow_pipe: bool = False,
    ) -> ShardIndex:
        """Reads the headers of all shards, or what is cached of those that did not change.

        Args:
            source: a folder of tars, a brace or glob pattern, or several of them after one another.
            cache: folder for the index; None: beside the shards, or the user's cache folder.
            label_key: field of KEY.json that is the label; None: KEY.cls, or `label` in KEY.json.
            allow_pipe: has no effect here; sources that cannot seek are streamed (stream.py).
        Raises: ShardError: no shards, a tar cut short, an image without a label, two images with
            one key, a label that is none.
        """
        paths = find_shards(str(source))
        arrays = _load_or_scan(paths, cache=cache, label_key=label_key)
        if not len(arrays["labels"]):
            raise ShardError(f"{source}: the {len(paths)} tar(s) there hold no labelled images.")
        _refuse_twins(arrays, paths)
        return cls(paths, arrays, n_classes=_stated_classes(paths[0].parent))


def find_shards(source: str) -> list[Path]:
    """Returns the tars that a source means, sorted within each part.

    Raises: ShardError: nothing there, or a source that has to be streamed.
    """
    found: list[Path] = []
    for word in source.split():
        if word.startswith("pipe:") or "://" in word:
            raise ShardError(
                f"{word!r} cannot be read at random places; it can only be streamed. Copy the "
                "shards to a disk, or see vitwarm/shards/stream.py."
            )
        for text in braceexpand(word):
            path = Path(text).expanduser()
            if path.is_dir():
                found += sorted(path.glob("*.tar"))
            elif any(c in text for c in "*?["):
                found += sorted(path.parent.glob(path.name))
            elif path.is_file():
                found.append(path)
            else:
                raise ShardError(
                    f"There is no shard {path}. Give a folder of tars, or a pattern such as "
                    "DIR/imagenet1k-train-{0000..1023}.tar."
                )
    if not found:
        raise ShardError(
            f"{source!r} holds no tars. Give a folder of *.tar files, or make some with "
            "scripts/make_shards.py."
        )
    return found


def read_members(path: Path) -> Iterator[Member]:
    """Yields the regular files of a tar from its headers alone.

    Raises: ShardError: a tar that is cut short or is none.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        try:
            yield from _scan(file.fileno(), size)
        except _NeedsTarfile:
            yield from _slow_members(path)
        except ValueError as error:
            raise ShardError(
                f"{path} is damaged: {error}. Fetch or write this shard again."
            ) from None


class _NeedsTarfile(Exception):
    """A header that only the standard library's reader should interpret."""


def _scan(fd: int, size: int) -> Iterator[Member]:
    place = 0
    members: list[Member] = []
    while True:
        header = os.pread(fd, _BLOCK, place)
        if len(header) < _BLOCK:
            raise ValueError(f"it ends after {place:,} bytes without an end-of-archive block")
        if header == b"\0" * _BLOCK:
            break
        kind, prefix = header[156:157], header[345:500]
        ustar = header[257:262] == b"ustar"
        if kind not in (b"0", b"\0", b"5") or (ustar and prefix[0:1] != b"\0"):
            raise _NeedsTarfile
        if header[124] & 0x80:
            raise _NeedsTarfile
        digits = header[124:136].strip(b" \0")
        try:
            length = int(digits or b"0", 8)
            stated = int(header[148:156].strip(b" \0") or b"0", 8)
        except ValueError:
            raise ValueError(f"the header at byte {place:,} is no tar header") from None
        if sum(header[:148]) + 8 * 32 + sum(header[156:]) != stated:
            raise ValueError(f"the header at byte {place:,} is no tar header")
        start = place + _BLOCK
        if start + length > size:
            raise ValueError(f"its last member needs {start + length - size:,} bytes more")
        if kind != b"5":
            members.append(Member(header[:100].split(b"\0", 1)[0].decode(), start, length))
        place = start + -(-length // _BLOCK) * _BLOCK
    yield from members


def _slow_members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.offset_data + info.size > size:
                    missing = info.offset_data + info.size - size
                    raise ShardError(f"{path} is damaged: {info.name} lacks {missing:,} bytes.")
                if info.isreg():
                    yield Member(info.name, info.offset_data, info.size)
            end = tar.offset  # behind the last member
    except tarfile.TarError as error:
        raise ShardError(f"{path} is damaged: {error}. Fetch or write it again.") from error
    with open(path, "rb") as file:
        tail = os.pread(file.fileno(), _BLOCK, max(end - _BLOCK, 0))
    if b"\0" * _BLOCK not in (tail,) and end >= size:
        raise ShardError(f"{path} is damaged: it has no end-of-archive block. Fetch it again.")


def _scan_shard(path: Path, label_key: str | None) -> dict[str, np.ndarray]:
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    for member in read_members(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        ending = ending.lower()
        key = f"{folder}/{stem}" if folder not in ("", ".") else stem
        if ending in IMAGE_ENDINGS:
            if member.size > MAX_MEMBER_BYTES:
                raise ShardError(
                    f"{path}: {member.name} has {member.size:,} bytes; at most "
                    f"{MAX_MEMBER_BYTES:,} are read. Take it out of the shard."
                )
            if key in images:
                raise ShardError(f"{path}: two images have the key {key!r}. Rename one.")
            images[key] = member
        elif ending == ("json" if label_key else "cls") or (ending == "json" and key not in labels):
            labels[key] = member
    with open(path, "rb") as file:
        fd = file.fileno()
        found = {key: _read_label(path, fd, key, labels.get(key), label_key) for key in images}
    keys = [key.encode() for key in images]
    return {
        "offsets": np.array([m.offset for m in images.values()], np.int64),
        "sizes": np.array([m.size for m in images.values()], np.int64),
        "labels": np.array(list(found.values()), np.int64),
        "keys": np.array(keys, dtype=f"S{max(map(len, keys), default=1)}"),
        "key_hashes": np.array([_hash(key) for key in keys], np.uint64),
    }


def _hash(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def _read_label(path: Path, fd: int, key: str, member: Member | None, label_key: str | None) -> int:
    if member is None:
        raise ShardError(
            f"{path}: image {key!r} has no label member. Shards need KEY.cls beside KEY.jpg, or a "
            "label in KEY.json (data.label_key=...)."
        )
    text = os.pread(fd, min(member.size, 1 << 20), member.offset)
    try:
        if member.name.lower().endswith(".json"):
            label = int(json.loads(text)[label_key or "label"])
        else:
            label = int(text)
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path}: {member.name} holds no integer label ({str(error)[:60]}). Mend it, or name "
            "the field: data.label_key=..."
        ) from None
    if label < 0:
        raise ShardError(f"{path}: {member.name} holds the label {label}; labels start at 0.")
    return label


def _refuse_twins(arrays: dict[str, np.ndarray], paths: list[Path]) -> None:
    order = np.argsort(arrays["key_hashes"], kind="stable")
    hashes = arrays["key_hashes"][order]
    for k in np.flatnonzero(hashes[1:] == hashes[:-1]):
        a, b = order[k], order[k + 1]
        if arrays["keys"][a] == arrays["keys"][b]:
            where = [paths[arrays["shard_of"][row]].name for row in (a, b)]
            raise ShardError(
                f"{where[0]} and {where[1]} both have an image with the key "
                f"{arrays['keys'][a].decode()!r}; keys must be unique. Leave one shard out."
            )


def _stated_classes(folder: Path) -> int | None:
    listed = folder / "classes.txt"
    if listed.is_file():
        return sum(1 for line in listed.read_text().splitlines() if line.strip()) or None
    for name in ("_info.json", "info.json"):
        if (folder / name).is_file():
            try:
                info: Any = json.loads((folder / name).read_text())
            except json.JSONDecodeError:
                continue
            for field in ("num_classes", "n_classes"):
                if isinstance(info, dict) and isinstance(info.get(field), int):
                    return int(info[field])
    return None


def _print_of(path: Path) -> list[Any]:
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def _load_or_scan(
    paths: list[Path], *, cache: str | Path | None, label_key: str | None
) -> dict[str, np.ndarray]:
    prints = [_print_of(path) for path in paths]
    name = hashlib.sha256(
        json.dumps([str(paths[0].parent.resolve()), [p[0] for p in prints], label_key]).encode()
    ).hexdigest()[:16]
    homes = [Path(cache)] if cache else [paths[0].parent / ".vitwarm-index", _user_cache()]
    old: dict[str, dict[str, np.ndarray]] = {}
    for home in homes:
        arrays, stored = _load(home / name)
        if arrays is not None and stored == prints:
            return arrays
        if arrays is not None and stored is not None:
            for k, fingerprint in enumerate(stored):
                rows = np.flatnonzero(arrays["shard_of"] == k)
                old[json.dumps(fingerprint)] = {
                    a: arrays[a][rows] for a in _ARRAYS if a != "shard_of"
                }
            break
    parts = [
        old.get(json.dumps(fingerprint)) or _scan_shard(path, label_key)
        for path, fingerprint in zip(paths, prints, strict=True)
    ]
    arrays = {a: np.concatenate([p[a] for p in parts]) for a in _ARRAYS if a != "shard_of"}
    lengths = [len(part["labels"]) for part in parts]
    arrays["shard_of"] = np.repeat(np.arange(len(paths), dtype=np.int32), lengths)
    for home in homes:
        if _save(home / name, arrays, prints):
            break
    return arrays


def _user_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "vitwarm" / "index"


def _load(folder: Path) -> tuple[dict[str, np.ndarray] | None, list[Any] | None]:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["format"] != FORMAT:
            return None, None
        arrays = {a: np.load(folder / f"{a}.npy", mmap_mode="r") for a in _ARRAYS}
    except (OSError, ValueError, KeyError):
        return None, None
    return arrays, meta["shards"]


def _save(folder: Path, arrays: dict[str, np.ndarray], prints: list[Any]) -> bool:
    try:
        (folder / "meta.json").unlink(missing_ok=True)
        for name, array in arrays.items():
            with replacing(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, array)
        write_text(folder / "meta.json", json.dumps({"format": FORMAT, "shards": prints}))
    except (OSError, RunError):
        return False  # a read-only folder: the next home, or none
    return True

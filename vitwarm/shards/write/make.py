"""Shards out of what people have: image folders, or ImageNet's original tars."""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitwarm.errors import ShardError, nearest
from vitwarm.seeding import hash_bits, shuffled
from vitwarm.shards.choose.fraction import fraction_order
from vitwarm.shards.read.rows import IMAGE_ENDINGS, hash_keys, is_litter, tell_litter
from vitwarm.shards.read.walk import read_at
from vitwarm.shards.write.writer import IMAGES_PER_SHARD, Sample, check_empty, write_set

log = logging.getLogger("vitwarm")

_WRITTEN_AS = {"jpeg": "jpg"}  # timm's reader knows jpg, png and webp


class ImageFile(NamedTuple):
    """An image as it lies on the disk, by itself or inside a tar."""

    name: str
    """Relative path within its class."""
    class_name: str
    path: Path
    offset: int
    size: int | None
    """Bytes from `offset` on; None: the whole file."""

    def read(self) -> bytes:
        """Returns the encoded image."""
        if self.size is None:
            return self.path.read_bytes()
        with open(self.path, "rb") as file:
            return read_at(file.fileno(), self.size, self.offset)


def make_shards(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    val: Path | None = None,
    val_labels: Path | None = None,
    val_share: float = 0.0,
    images_per_shard: int = IMAGES_PER_SHARD,
    seed: int = 0,
) -> dict[str, int]:
    """Writes the shards of a training and a validation set, in random order, and `_info.json`.

    Args:
        source: a folder with one folder per class (or with such folders `train` and `val`), or a
            tar of tars, one per class (ILSVRC2012_img_train.tar).
        val: the same for validation, or a plain tar or folder of images with `val_labels`.
        val_labels: lines of image name and class (or label), by comma or space.
        val_share: share of `source` that becomes the validation set, class-balanced, where there
            is no other.
        images_per_shard: about.
    Returns: the images of each split.
    Raises: ShardError: no images, a class in validation that training lacks, `out` holds shards.
    """
    if images_per_shard < 1:
        raise ShardError(f"--images-per-shard is {images_per_shard}; it must be at least 1.")
    if not 0 <= val_share < 1:
        raise ShardError(f"--val-share is {val_share}; it must be at least 0 and below 1.")
    name = _choose_name(source, name)
    check_empty(out, own=f"{name}-")
    source, val = _find_parts(source, val)
    if val is not None and val_share:
        raise ShardError(
            f"--val-share is {val_share}, but {val} is the validation set. Leave it out, or give "
            f"{source} alone to split that."
        )
    if val is None and val_labels is not None:
        raise ShardError("--val-labels is given, but there is no validation set; give --val too.")
    train = find_images(source)
    classes = sorted({image.class_name for image in train})
    for one in classes:
        if one != one.encode(errors="replace").decode():
            raise ShardError(f"{source}: the class folder {one!r} has no UTF-8 name. Rename it.")
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[ImageFile]] = {"train": train}
    if val is not None:
        splits["validation"] = find_images(val, labels=val_labels, classes=classes)
        _check_classes(splits["validation"], label_of, val)
    elif val_share:
        splits = _split(train, label_of, val_share, seed)
    samples = {}
    for split, images in splits.items():
        keys = make_keys(images)
        turn = shuffled(hash_keys(map(os.fsencode, keys)), seed, "make", split).tolist()
        mixed = [(keys[k], images[k]) for k in turn]
        samples[split] = len(images), _samples(mixed, label_of)
    return write_set(out, name, samples, classes, images_per_shard=images_per_shard)


def find_images(
    source: Path, *, labels: Path | None = None, classes: Sequence[str] = ()
) -> list[ImageFile]:
    """Lists the images of a folder or tar with their classes, by class and name.

    Args:
        labels: a file of names and classes, for images that do not lie in folders of classes.
        classes: known class names; a number in `labels` is an index into them.
    Raises: ShardError: nothing there, or images without a class.
    """
    if not source.exists():
        raise ShardError(f"There is no {source}. Give a folder of class folders, or a tar of tars.")
    every = _of_folder(source) if source.is_dir() else _of_tar(source)
    images = [image for image in every if _ending(image.name) in IMAGE_ENDINGS]
    others = [image.name for image in every if _ending(image.name) not in IMAGE_ENDINGS]
    if others:
        log.warning(
            "%d file(s) under %s are no JPEG, PNG or WebP by name and were left out, %s first",
            len(others),
            source,
            others[0],
        )
    if labels is not None:
        images = _with_labels(images, labels, classes)
    loose = next((image for image in images if not image.class_name), None)
    if loose is not None:
        raise ShardError(
            f"{source}: image {loose.name} is in no class folder. Give ROOT/CLASS/*.jpg, or "
            "a file of names and classes (--val-labels)."
        )
    if not images:
        raise ShardError(
            f"{source} holds no images. Give a folder of class folders ({', '.join(IMAGE_ENDINGS)})"
            " or a tar of tars."
        )
    return sorted(images, key=lambda image: (image.class_name, image.name))


def make_keys(images: Sequence[ImageFile]) -> list[str]:
    """Returns a unique key per image: its base name, with class and ending if need be."""
    ways: tuple[Callable[[ImageFile], str], ...] = (
        lambda image: _stem(Path(image.name).name),
        lambda image: f"{image.class_name}_{_stem(image.name)}",
        lambda image: f"{image.class_name}_{image.name}",
    )
    for way in ways:
        keys = [re.sub(r"[./\\]", "_", way(image)) for image in images]
        if len(set(keys)) == len(keys):
            return keys
    key, n = Counter(keys).most_common(1)[0]
    raise ShardError(f"{n} images would have the key {key!r}. Rename them.")


def _samples(images: Sequence[tuple[str, ImageFile]], label_of: dict[str, int]) -> Iterator[Sample]:
    for key, image in images:
        ending = _ending(image.name)
        try:
            data = image.read()
        except OSError as error:
            raise ShardError(f"{image.path} cannot be read: {error.strerror}.") from error
        yield Sample(key, _WRITTEN_AS.get(ending, ending), data, label_of[image.class_name])


def _choose_name(source: Path, name: str | None) -> str:
    if name is None:
        home = Path(os.path.abspath(source))
        return _plain_name((home.parent if home.name == "train" else home).name.partition(".")[0])
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ShardError(
            f"--name is {name!r}; it begins the tars' names, so it may hold letters, digits, "
            f"'_', '-' and '.' only. Use {_plain_name(name)!r}."
        )
    return name


def _plain_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_") or "images"


def _find_parts(source: Path, val: Path | None) -> tuple[Path, Path | None]:
    """Looks for `train` and `val` inside a folder; `train` can be the name of a class, too.

    Raises: ShardError: it cannot be told which it is.
    """
    if not (source / "train").is_dir():
        return source, val
    own = [path for path in (source / "val", source / "validation") if path.is_dir()]
    inside, beside = _folders(source / "train"), _folders(source) - {"train", "test"}
    if own or (inside and not beside):
        return source / "train", val or next(iter(own), None)
    if inside:
        raise ShardError(
            f"{source} holds train, with folders in it, beside {min(beside)}: is it a split or a "
            f"class? Give {source / 'train'}, or rename it."
        )
    return source, val


def _folders(home: Path) -> set[str]:
    return {path.name for path in home.iterdir() if path.is_dir() and not _is_hidden(path.name)}


def _is_hidden(name: str) -> bool:
    """Folders that systems add: thumbnails, what macOS and Synology keep beside files."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _of_folder(root: Path) -> list[ImageFile]:
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not _is_hidden(name))
        for link in (Path(folder, name) for name in inner):
            if link.is_symlink() and any(
                above.resolve().is_relative_to(link.resolve())
                for above in link.parents
                if above.is_relative_to(root)
            ):
                raise ShardError(f"{link} leads back to {link.resolve()}. Remove the link.")
        parts = Path(folder).relative_to(root).parts
        class_name, rest = (parts[0], parts[1:]) if parts else ("", ())
        for file in sorted(names):
            if not file.startswith("."):
                name = "/".join([*rest, file])
                found.append(ImageFile(name, class_name, Path(folder) / file, 0, None))
    return found


def _of_tar(path: Path) -> list[ImageFile]:
    """Images of a tar: in tars named as their class, in folders of classes, or loose."""
    found: list[ImageFile] = []
    plain: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []
    litter: list[str] = []

    def files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in tar:
            if is_litter(os.fsencode(member.name)):
                litter.append(member.name)
            elif member.isfile():
                yield member

    try:
        with tarfile.open(path, "r:") as outer:
            for member in files(outer):
                place = member.offset_data
                if member.name.endswith(".tar"):
                    with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                        kind = Path(member.name).stem
                        found += [
                            ImageFile(one.name, kind, path, place + one.offset_data, one.size)
                            for one in files(inner)
                        ]
                else:
                    plain.append((Path(member.name.lstrip("/")).parts, member))
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path} is not a readable tar ({error}). Fetch it again.") from error
    if litter:
        tell_litter(path, len(litter))
    homes = ["/".join(parts[:-2]) for parts, _ in plain]
    above = Path(os.path.commonpath(homes or [""])).parts
    tops = {parts[len(above)] for parts, _ in plain if len(parts) > len(above) + 1}
    if "train" in tops and tops & {"val", "validation", "test"}:
        raise ShardError(
            f"{path} holds {' and '.join(sorted(tops))}. Unpack it, and give the folder."
        )
    for parts, member in plain:
        *folders, name = parts[len(above) :]
        kind, rest = (folders[0], folders[1:]) if folders else ("", [])
        place = member.offset_data
        found.append(ImageFile("/".join([*rest, name]), kind, path, place, member.size))
    return found


def _with_labels(
    images: Sequence[ImageFile], labels: Path, classes: Sequence[str]
) -> list[ImageFile]:
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise ShardError(
            f"{labels} cannot be read: {why}. Give a text file of lines NAME CLASS."
        ) from error
    class_of: dict[str, str] = {}
    for line in lines:
        words = [word.strip() for word in line.split("," if "," in line else None, 1)]
        if len(words) == 2 and words[1]:
            # Names may hold blanks; LOC_val_solution.csv goes on behind the class with a box.
            name = words[1] if words[1] in classes else re.split(r"[\s,]", words[1])[0]
            known = name.isdigit() and name not in classes and int(name) < len(classes)
            class_of[_stem(words[0])] = classes[int(name)] if known else name
    found = []
    for image in images:
        stem = _stem(Path(image.name).name)
        if stem not in class_of:
            raise ShardError(
                f"{labels} has no line for the image {image.name}. Lines read NAME CLASS, or "
                "NAME,CLASS as in LOC_val_solution.csv."
            )
        found.append(image._replace(class_name=class_of[stem]))
    return found


def _check_classes(images: Sequence[ImageFile], label_of: dict[str, int], val: Path) -> None:
    for image in images:
        if image.class_name not in label_of:
            raise ShardError(
                f"{val}: the class {image.class_name!r} is not one of the {len(label_of):,} "
                f"training classes.{nearest(image.class_name, label_of)} Use those."
            )


def _split(
    images: Sequence[ImageFile], label_of: dict[str, int], share: float, seed: int
) -> dict[str, list[ImageFile]]:
    labels = np.array([label_of[image.class_name] for image in images])
    hashes, own_seed = hash_keys(map(os.fsencode, make_keys(images))), hash_bits(seed, "validation")
    order = fraction_order(hashes, labels, seed=own_seed).tolist()
    n = round(share * len(images))
    if not 0 < n < len(images):
        raise ShardError(
            f"--val-share is {share}: {n} of {len(images)} images for validation leaves one of the "
            "two sets empty. Choose another share."
        )
    chosen = set(order[:n])
    for label in np.setdiff1d(labels, labels[order[n:]]):  # one of each class stays for training
        chosen.remove(next(k for k in order if labels[k] == label))
    return {
        "train": [image for k, image in enumerate(images) if k not in chosen],
        "validation": [images[k] for k in sorted(chosen)],
    }


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _stem(name: str) -> str:
    return name.rpartition(".")[0] if _ending(name) in IMAGE_ENDINGS else name

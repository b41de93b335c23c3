"""Tiny shards, whole and damaged, for the tests of the reading side."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encode(pixels: np.ndarray, ending: str = "jpg", **how: object) -> bytes:
    """Returns an image file of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    name = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[ending]
    Image.fromarray(pixels).save(buffer, format=name, **how)
    return buffer.getvalue()


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a picture with soft forms and a few edges, as photographs have them; uint8."""
    small = rng.uniform(0, 255, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(picture)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    pixels[top : top + height // 3, left : left + width // 3] //= 2
    return pixels


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], *,
    form: int = tarfile.USTAR_FORMAT, **facts: object,
) -> Path:  # fmt: skip
    """Writes members as they are given."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(
    key: str, label: int, image: bytes = b"", ending: str = "jpg"
) -> list[tuple[str, bytes]]:
    """Returns the two members of a labelled image."""
    return [(f"{key}.{ending}", image or b"no image"), (f"{key}.cls", str(label).encode())]


def write_set(
    folder: Path, *, n_shards: int = 2, per_shard: int = 16, n_classes: int = 4, size: int = 32,
    name: str = "tiny", info: bool = False, bad: tuple[int, ...] = (),
) -> Path:  # fmt: skip
    """Writes shards of PNGs whose first pixel is their number, so that pixels tell what came."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {}
    for shard in range(n_shards):
        members = []
        for k in range(shard * per_shard, (shard + 1) * per_shard):
            pixels = np.full((size, size, 3), (k % 256, k // 256, 7), np.uint8)
            data = encode(pixels, "png")
            members += sample(
                f"im{k:05d}", k * 7 % n_classes, data[:30] if k in bad else data, "png"
            )
        file = f"{name}-{shard:04d}.tar"
        write_tar(folder / file, members)
        lengths[file] = per_shard
    if info:
        split = {
            "filenames": list(lengths),
            "shard_lengths": list(lengths.values()),
            "name": "train",
        }
        plain = {"splits": {"train": {**split, "num_samples": sum(lengths.values())}}}
        (folder / "_info.json").write_text(json.dumps(plain))
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of 16 images of 32 px, 4 classes."""
    return write_set(tmp_path_factory.mktemp("tiny"))

"""Tiny labelled shards for the tests of the image training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from vitwarm.shards.write.writer import Sample, write_info, write_shards


def write_tiny_shards(
    folder: Path, *, n_train: int = 64, n_val: int = 27, n_classes: int = 4, size: int = 8,
    bad: tuple[int, ...] = (), seed: int = 0, ending: str = "png",
) -> str:  # fmt: skip
    """Writes two training tars and two for validation; returns overrides that name them.

    A class is a colour and an edge under noise, learnable in tens of steps.

    Args:
        bad: training images that are cut short.
        ending: `png`, or `jpg` for JPEGs as ImageNet's are.
    """
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 216, (n_classes, 3))
    lengths = {}
    for split, n in (("train", n_train), ("validation", n_val)):
        samples = []
        for k in range(n):
            label = k % n_classes
            pixels = rng.normal(0, 25, (size, size, 3)) + colours[label]
            pixels[: (label + 1) * size // (n_classes + 1)] += 60
            buffer = io.BytesIO()
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
                buffer, format={"png": "PNG", "jpg": "JPEG"}[ending]
            )
            data = buffer.getvalue()
            cut = split == "train" and k in bad
            samples.append(Sample(f"{split}{k:04d}", ending, data[:40] if cut else data, label))
        turn = rng.permutation(n)
        lengths[split] = write_shards(
            folder, f"tiny-{split}", [samples[k] for k in turn], n_samples=n, n_shards=2
        )
    write_info(folder, "tiny", lengths, [f"class {k}" for k in range(n_classes)])
    return str(folder)

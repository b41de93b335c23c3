"""scikit-learn's digits as shards: 1,297 training and 500 validation images of 8 x 8 pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vitwarm.errors import ShardError
from vitwarm.seeding import numpy_rng
from vitwarm.shards.write.writer import Sample, write_info, write_shards

N_VALIDATION = 500


def write_digits(folder: Path) -> None:
    """Writes the digits as `digits-train-*.tar` and `digits-validation-*.tar`.

    The split is seeded and as balanced over the classes as 500 of 1,797 images allow.

    Raises: ShardError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ShardError(
            'the digits come with scikit-learn, which is missing: pip install ".[quickstart]".'
        ) from error
    digits = load_digits()
    labels = np.asarray(digits.target)
    rng = numpy_rng(0, "digits")
    turn = rng.permutation(len(labels))
    ranks = np.empty(len(labels))
    for label in range(10):
        rows = turn[labels[turn] == label]
        ranks[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    by_rank = np.lexsort((turn, ranks))
    splits = {"train": by_rank[N_VALIDATION:], "validation": by_rank[:N_VALIDATION]}

    def samples(rows: np.ndarray) -> Iterator[Sample]:
        for row in rng.permutation(rows).tolist():
            pixels = np.round(digits.images[row] * (255 / 16)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert("RGB").save(buffer, format="PNG")
            yield Sample(f"digit{row:04d}", "png", buffer.getvalue(), int(labels[row]))

    lengths = {
        split: write_shards(
            folder, f"digits-{split}", samples(rows), n_samples=len(rows), n_shards=4
        )
        for split, rows in splits.items()
    }
    write_info(folder, "digits", lengths, [str(digit) for digit in range(10)])

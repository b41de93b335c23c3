"""The images that models are probed on: chosen once, decoded once for each size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitwarm.errors import ConfigError, ShardError
from vitwarm.shards import ShardIndex, decode_all
from vitwarm.shards.choose.fraction import choose_rows, fraction_order
from vitwarm.shards.read.sources import is_streamed

#: Share of the images that linear probes and neighbours learn from; the others test them.
FIT_SHARE = 0.75
LEAST_IMAGES = 8


class ProbeImages:
    """Some images of a set of shards, whole ones squeezed into a square.

    Nothing is cut off, so boxes and masks keep their meaning: the overlap of two boxes does not
    change where one axis is scaled.

    Attributes:
        rows: int64 [n], of the index, ascending.
        is_fit: bool [n]; the others are for tests.
        labels: int64 [n].
    """

    def __init__(self, source: str | Path, *, n_images: int, seed: int) -> None:
        """Chooses a class-balanced prefix of the global order that `data.fraction` uses as well.

        Raises:
            ConfigError: fewer images asked for than a probe needs.
            ShardError: as `ShardIndex.open`; a streamed source, or too few images there.
        """
        if n_images < LEAST_IMAGES:
            raise ConfigError(f"--images is {n_images}; a probe needs at least {LEAST_IMAGES}.")
        if is_streamed(str(source)):
            raise ShardError(f"{source!r} is streamed; copy the shards to a disk to probe on them.")
        self.source = str(source)
        self.index = ShardIndex.open(source)
        if self.index.n_images < LEAST_IMAGES:
            raise ShardError(
                f"{source} holds {self.index.n_images} image(s); a probe needs {LEAST_IMAGES}."
            )
        labels = np.asarray(self.index.labels)
        order = fraction_order(np.asarray(self.index.key_hashes), labels, seed=seed)[:n_images]
        self.rows = np.sort(order)
        self.is_fit = np.isin(self.rows, order[: round(FIT_SHARE * len(order))])
        self.labels = labels[self.rows].astype(np.int64)
        self._decoded: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def facts(self) -> dict[str, Any]:
        """Returns what the JSON says of them; the hash is that of a subset of these keys."""
        return {
            "source": self.source,
            "n": len(self),
            "n_fit": int(self.is_fit.sum()),
            "n_classes": len(np.unique(self.labels)),
            "n_unknown": int((~np.isin(self.labels, self.labels[self.is_fit])).sum()),
            "subset_sha256": choose_rows(self.index, self.rows).sha256,
        }

    def pixels(self, size: int) -> Tensor:
        """Returns uint8 [n, 3, size, size]."""
        if size not in self._decoded:
            decoded = decode_all(self.index, self.rows, size)
            if len(decoded.unreadable):
                raise ShardError(
                    f"{self.source}: image {self.index.keys[decoded.unreadable[0]]!r} does not "
                    "decode. `vitwarm shards check` lists what is damaged; take it out."
                )
            self._decoded[size] = decoded.images
        return self._decoded[size]

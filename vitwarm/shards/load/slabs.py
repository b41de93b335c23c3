"""Shared memory for batches of pixels that outlives them: a batch asks for no new pages."""

from __future__ import annotations

import itertools
import math
import mmap
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Slabs:
    """Shared memory for micro-batches of pixels, lent out and taken back over and over.

    New pages for every batch would cost a tenth of what decoding it costs, and their first use in
    the main process as much again as a copy. The main process lends a slab with each item; it comes
    back when the last tensor on it is gone. For whoever keeps many batches there is other memory.
    """

    def __init__(self, n: int, n_images: int, sides: tuple[int, int]) -> None:
        """Takes `n` slabs of `n_images` images; a page is there once it is written to.

        The memory has no name: processes that are forked from here share it, others do not.
        """
        self._number = next(_NUMBERS)
        _ALL[self._number] = self
        memory = mmap.mmap(-1, n * n_images * 3 * math.prod(sides))
        self._pixels = np.frombuffer(memory, np.uint8).reshape(n, n_images, 3, *sides)
        self._free = list(range(n))
        self._lent: set[int] = set()

    def lend(self) -> int | None:
        """Returns a slab that nobody uses, for an item on its way; None: there is none."""
        if not self._free:
            return None
        slab = self._free.pop()  # the one that came back last is the one still in a cache
        self._lent.add(slab)
        return slab

    def recall(self) -> None:
        """Takes back what items hold that will never arrive; their workers must be done."""
        self._free += self._lent
        self._lent.clear()

    def pixels(self, slab: int, n: int) -> np.ndarray:
        """Returns the first images of a slab, uint8 [n, 3, h, w]."""
        return self._pixels[slab, :n]

    def ship(self, slab: int, n: int) -> Lent:
        """Returns what crosses to the main process in place of `n` images."""
        return Lent(self._number, slab, n)

    def receive(self, lent: Lent) -> Tensor:
        """Returns images that have arrived; with their last tensor the slab becomes free."""
        self._lent.discard(lent.slab)
        images = self.pixels(lent.slab, lent.n)  # which the tensor's storage keeps alive
        weakref.finalize(images, self._free.append, lent.slab).atexit = False
        return torch.from_numpy(images)


@dataclass(frozen=True, slots=True)
class Lent:  # no NamedTuple: torch below 2.12 pins those field by field, past `pin_memory`
    """Images that lie in a slab, as they cross from a worker: their address alone."""

    slabs: int
    slab: int
    n: int

    def receive(self) -> Tensor:
        """Returns uint8 [n, 3, h, w]; once, and in the main process."""
        return _ALL[self.slabs].receive(self)

    def pin_memory(self) -> Tensor:
        """Returns a pinned copy; torch's thread for that calls it."""
        return self.receive().pin_memory()


class Lending:
    """Adds a slab to every item that a worker is asked for."""

    def __init__(self, items: Iterable[Any], slabs: Slabs) -> None:
        self.items = items
        self.slabs = slabs

    def __iter__(self) -> Iterator[Any]:
        self.slabs.recall()  # torch asks for the first item when workers are done with older ones
        for item in self.items:
            yield item._replace(slab=self.slabs.lend())


#: The slabs of this process by the number under which workers ship them.
_ALL: weakref.WeakValueDictionary[int, Slabs] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()

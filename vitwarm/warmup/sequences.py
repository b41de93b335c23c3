"""Micro-batches of masked sequences, generated ahead of the training on a thread.

Every process generates the whole global batch (a millisecond for 256 x 196 tokens) and keeps its
share: so each knows how many tokens are hidden in the batch of all processes, without a collective.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitwarm.rules import Rule
from vitwarm.rules.masking import IGNORE, Masked, make_batch

#: Steps generated ahead.
AHEAD = 8

#: Shapes grow in this many hidden tokens, so that a rare long batch compiles once.
ROUND = 64


class WarmupBatch(NamedTuple):
    """One micro-batch: b sequences of T tokens, K places for hidden tokens."""

    input_ids: Tensor
    """int32 [b, T], the mask id where hidden."""
    hidden: Tensor
    """int64 [K], flat positions in [0, b * T); 0 in the places that are not used."""
    targets: Tensor
    """int64 [K], the hidden ids; IGNORE in the places that are not used."""
    n_hidden: Tensor
    """float32 scalar: tokens hidden in the whole batch, over accumulation and processes."""


def pack(
    input_ids: np.ndarray, target_ids: np.ndarray, *, n_hidden: int, places: int
) -> WarmupBatch:
    """Lists the hidden tokens of a micro-batch in a fixed number of places.

    Args:
        input_ids, target_ids: [b, T], as `make_batch` returns them.
        n_hidden: tokens hidden in the whole batch.
        places: length of the lists; more hidden tokens than that take the next multiple of ROUND.
    """
    flat = target_ids.reshape(-1)
    found = np.flatnonzero(flat != IGNORE)
    size = places if len(found) <= places else math.ceil(len(found) / ROUND) * ROUND
    hidden = np.zeros(size, dtype=np.int64)
    targets = np.full(size, IGNORE, dtype=np.int64)
    hidden[: len(found)] = found
    targets[: len(found)] = flat[found]
    return WarmupBatch(
        input_ids=torch.from_numpy(input_ids.astype(np.int32)),
        hidden=torch.from_numpy(hidden),
        targets=torch.from_numpy(targets),
        n_hidden=torch.tensor(float(max(n_hidden, 1))),
    )


@dataclass(eq=False)
class SequenceLoader:
    """The micro-batches of one process, from one step to another; iterable again from the start.

    Step s takes the sequences [s * batch_size, (s + 1) * batch_size); rank r its contiguous share.
    """

    rule: Rule
    _: KW_ONLY
    seed: int
    n_tokens: int
    batch_size: int
    micro_batch_size: int
    start_step: int
    n_steps: int
    """The step before which it ends."""
    rank: int = 0
    world_size: int = 1
    hide_share: float | None = None
    pin_memory: bool = False

    def __post_init__(self) -> None:
        """Finds a number of places that nearly no micro-batch exceeds: the mean plus six deviations
        of what 1,024 sequences of the stream itself hide.
        """
        self.local = self.batch_size // self.world_size
        n, counts = self.micro_batch_size, self._make(0, 1024).hidden.sum(axis=1)
        wanted = n * counts.mean() + 6 * math.sqrt(n) * counts.std()
        self.places = int(min(math.ceil(wanted / ROUND) * ROUND, n * self.n_tokens))

    def _make(self, start: int, n_sequences: int) -> Masked:
        return make_batch(
            self.rule,
            seed=self.seed,
            start=start,
            n_sequences=n_sequences,
            n_tokens=self.n_tokens,
            hide_share=self.hide_share,
        )

    def __len__(self) -> int:
        return (self.n_steps - self.start_step) * (self.local // self.micro_batch_size)

    def step(self, step: int) -> Iterator[WarmupBatch]:
        """Yields the micro-batches of one step."""
        whole = self._make(step * self.batch_size, self.batch_size)
        n_hidden, first = int(whole.hidden.sum()), self.rank * self.local
        for begin in range(first, first + self.local, self.micro_batch_size):
            part = slice(begin, begin + self.micro_batch_size)
            batch = pack(
                whole.input_ids[part], whole.target_ids[part], n_hidden=n_hidden, places=self.places
            )
            if self.pin_memory:
                batch = WarmupBatch(*(tensor.pin_memory() for tensor in batch))
            yield batch

    def __iter__(self) -> Iterator[WarmupBatch]:
        ahead: deque[Future[list[WarmupBatch]]] = deque()
        thread = ThreadPoolExecutor(1, thread_name_prefix="sequences")
        try:
            for step in range(self.start_step, self.n_steps):
                ahead.append(thread.submit(list, self.step(step)))
                if len(ahead) > AHEAD:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)

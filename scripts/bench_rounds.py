"""Interleaved rounds, for the benchmarks of the two stages: ours inside Lightning, others between.

Machines are shared and their speed drifts; contenders that take turns in one process drift alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback

Step = Callable[[], None]


class Rounds(Callback):
    """Times windows of the running training (`ours`), and other contenders between the windows."""

    def __init__(
        self, others: Mapping[str, Step], *, now: Callable[[], float], n_steps: int, n_rounds: int
    ) -> None:
        self.others = others
        self.now = now
        self.n_steps = n_steps
        self.n_rounds = n_rounds
        self.seconds: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
        self.began = 0.0
        self.windows = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.n_steps:
            return
        self.windows += 1
        if self.windows > 1:  # the first window compiles, allocates and fills caches
            self.seconds["ours"].append(self.now() - self.began)
        for name, step in self.others.items():
            if self.windows == 1:
                step()
            before = self.now()
            for _ in range(self.n_steps):
                step()
            if self.windows > 1:
                self.seconds[name].append(self.now() - before)
        if self.windows > self.n_rounds:
            trainer.should_stop = True
        self.began = self.now()

    def ratios(self, over: str, under: str) -> list[float]:
        """Returns the time of one contender over that of another, round by round."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return [a / b for a, b in pairs]

    def rate(self, name: str, samples_per_step: int) -> float:
        """Returns a contender's samples per second, of its median round."""
        return samples_per_step * self.n_steps / statistics.median(self.seconds[name])


def median_and_range(name: str, ratios: Sequence[float]) -> dict[str, Any]:
    """Returns the two fields of a JSON line that give a ratio."""
    middle = round(statistics.median(ratios), 4)
    return {name: middle, f"{name}_range": [round(min(ratios), 4), round(max(ratios), 4)]}


def device_name() -> str:
    """Returns the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def wall() -> float:
    """Seconds of the clock on the wall, after what the GPU was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def own() -> float:
    """On a CPU the time of this process alone, so that others do not count; else the wall's."""
    return wall() if torch.cuda.is_available() else time.process_time()

"""What a warm-up tells and asks while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer

from vitwarm.callbacks import (
    Metrics,
)
from vitwarm.records import RunFolder
from vitwarm.units import format_seconds
from vitwarm.verdict import is_solved

#: Steps between two looks of `until: saturated`, whatever the log's: they decide when it ends.
SATURATION_STEPS = 50

#: An estimate above this on a CPU names the quickstart.
LONG_SECONDS = 2 * 3600.0


class Estimate(Callback):
    """Says once, after ten seconds, how long the run will take on this machine."""

    def __init__(self, say: Callable[[str], None], *, after_seconds: float = 10.0) -> None:
        self.say = say
        self.after_seconds = after_seconds
        self.began: float | None = None
        self.began_step = 0
        self.said = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.said or not pl_module.at_step_end(batch_idx):
            return
        now, step = time.monotonic(), pl_module.steps_done
        if self.began is None:  # the first step holds compilation and warm caches
            self.began, self.began_step = now, step
        elif now - self.began >= self.after_seconds:
            self.said = True
            rate = (step - self.began_step) / (now - self.began)
            left = (pl_module.n_steps - step) / rate
            self.say(f"estimate  {format_seconds(left)} to the end ({rate:.2f} steps/s)")
            if left > LONG_SECONDS and pl_module.device.type == "cpu":
                self.say(
                    "          This is a long run for a CPU. It can be stopped and resumed at any "
                    "time;\n          python scripts/quickstart.py shows every stage in minutes."
                )


class StopWhenSaturated(Callback):
    """Ends the training at the second log line in a row above 99 % on hidden tokens."""

    def __init__(self, metrics: Metrics, run: RunFolder) -> None:
        self.metrics = metrics
        self.run = run

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.at_step_end(batch_idx) or self.metrics.marked_step != pl_module.steps_done:
            return
        if is_solved(self.run):
            trainer.should_stop = True

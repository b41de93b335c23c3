"""What a warm-up tells and asks while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer

from vitwarm.loop import Metrics, StepCallback
from vitwarm.records import RunFolder
from vitwarm.units import format_seconds
from vitwarm.warmup.verdict import is_solved

#: Steps between two looks of `until: saturated`, whatever the log's: they decide when it ends.
SATURATION_STEPS = 50

#: An estimate above this on a CPU names the quickstart.
LONG_SECONDS = 2 * 3600.0


class Estimate(StepCallback):
    """Says once, after ten seconds, how long the run will take on this machine."""

    def __init__(self, say: Callable[[str], None], *, after_seconds: float = 10.0) -> None:
        self.say = say
        self.after_seconds = after_seconds
        self.began: float | None = None
        self.began_step = 0
        self.said = False

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        if self.said:
            return
        now, step = time.monotonic(), module.steps_done
        if self.began is None:  # the first step holds compilation and warm caches
            self.began, self.began_step = now, step
        elif now - self.began >= self.after_seconds:
            self.said = True
            rate = (step - self.began_step) / (now - self.began)
            left = (module.n_steps - step) / rate
            self.say(f"estimate  {format_seconds(left)} to the end ({rate:.2f} steps/s)")
            if left > LONG_SECONDS and module.device.type == "cpu":
                self.say(
                    "          This is a long run for a CPU. It can be stopped and resumed at any "
                    "time;\n          python scripts/quickstart.py shows every stage in minutes."
                )


class StopWhenSaturated(StepCallback):
    """Ends the training at the second log line in a row above 99 % on hidden tokens."""

    def __init__(self, metrics: Metrics, run: RunFolder) -> None:
        self.metrics = metrics
        self.run = run

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        if self.metrics.marked_step == module.steps_done and is_solved(self.run):
            trainer.should_stop = True

"""What a running training shows: meters read every N steps, a bar, and the wait for data.

Lightning's bars and meters call `.item()` on every batch; these synchronise with the device only
where a line is logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

from lightning.pytorch import Trainer
from tqdm.auto import tqdm

from vitwarm.informing import in_notebook, informs, shows_bars
from vitwarm.loop.module import StepCallback
from vitwarm.records import RunFolder
from vitwarm.units import format_seconds

#: Seconds after which a run's length is estimated.
ESTIMATE_SECONDS = 10.0

#: An estimate above this on a CPU names the quickstart.
LONG_SECONDS = 2 * 3600.0


@dataclass(eq=False)
class Metrics(StepCallback):
    """Reads the module's meters every N steps (the only host sync), logs them, drives the bar."""

    run: RunFolder
    waits: WaitMeter
    _: KW_ONLY
    every_steps: int
    progress: bool
    label: str
    samples_per_step: int
    unit: str

    def __post_init__(self) -> None:
        self.bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.marked, self.marked_step = time.perf_counter(), pl_module.steps_done
        self.waits.take()
        if self.progress and trainer.is_global_zero:
            self.bar = Progress(self.label, total=pl_module.n_steps, done=pl_module.steps_done)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        step = module.steps_done
        values: dict[str, float] = {}
        if step % self.every_steps == 0 or step == module.n_steps:
            values = self._interval(module, step)
            if trainer.is_global_zero:
                self.run.append_metrics(kind="train", step=step, **values)
        if self.bar:
            self.bar.advance(step, values)

    def on_end(self) -> None:
        if self.bar:
            self.bar.close()
            self.bar = None

    def _interval(self, module: Any, step: int) -> dict[str, float]:
        module.check_finite()
        values: dict[str, float] = module.read_meters()
        now = time.perf_counter()
        seconds = max(now - self.marked, 1e-9)
        steps = max(step - self.marked_step, 1)
        values["lr"] = module.schedule.lr_at(step - 1)
        values[f"{self.unit}_per_second"] = steps * self.samples_per_step / seconds
        values["wait_seconds_per_step"] = self.waits.take() / steps
        values["step_seconds"] = seconds / steps
        self.marked, self.marked_step = now, step
        return values


class Estimate(StepCallback):
    """Says once, after ten seconds, how long the run will take on this machine."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.began: tuple[int, float] | None = None
        self.said = False

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        step, now = module.steps_done, time.monotonic()
        first, at = self.began = self.began or (step, now)  # it holds compilation and warm caches
        if not self.said and now - at >= ESTIMATE_SECONDS:
            self.said = True
            rate = (step - first) / (now - at)
            left = (module.n_steps - step) / rate
            self.say(f"estimate  {format_seconds(left)} to the end ({rate:.2f} steps/s)")
            if left > LONG_SECONDS and module.device.type == "cpu":
                self.say(
                    "          This is a long run for a CPU. It can be stopped and resumed at any "
                    "time;\n          python scripts/quickstart.py shows every stage in minutes."
                )


class WaitMeter:
    """Wraps a loader and adds up the seconds that the training loop waited for it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.seconds = 0.0
        self.total = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - before
            yield batch

    def take(self) -> float:
        """Returns the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        self.total += seconds
        return seconds


class Progress:
    """A bar on a terminal; elsewhere a plain line at most every 30 seconds."""

    QUIET_SECONDS = 30.0

    def __init__(self, label: str, *, total: int, done: int = 0) -> None:
        self.label, self.total, self.first = label, total, done
        self.began = self.spoke = time.monotonic()
        self.text = ""
        self.bar: Any = self._open_bar() if shows_bars() else None

    @informs
    def _open_bar(self) -> Any:
        bar = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} "
        return tqdm(
            total=self.total, initial=self.first, desc=self.label, dynamic_ncols=True,
            mininterval=0.2,
            bar_format=None if in_notebook() else f"{bar}[{{elapsed}}<{{remaining}}] {{postfix}}",
        )  # fmt: skip

    @informs
    def advance(self, done: int, values: dict[str, float]) -> None:
        """Moves to `done` and, if there are any, shows new values."""
        if values:
            self.text = " ".join(
                f"{name} {value:.4g}"
                for name, value in values.items()
                if name in ("loss", "hidden_accuracy_percent", "top1_percent")
                or name.endswith("_per_second")
            )
        if self.bar is not None:
            if values:
                self.bar.set_postfix_str(self.text, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.spoke >= self.QUIET_SECONDS:
            self.spoke = now
            rate = (done - self.first) / (now - self.began)
            left = format_seconds((self.total - done) / rate) if rate > 0 else "unknown"
            print(f"{self.label} {done:,}/{self.total:,} {self.text}, {left} left", flush=True)

    @informs
    def close(self) -> None:
        """Ends the bar's line."""
        if self.bar is not None:
            self.bar.close()

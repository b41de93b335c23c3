"""What a running training shows: meters read every N steps, a bar, and the wait for data.

Lightning's bars and meters call `.item()` on every batch; these synchronise with the device only
where a line is logged. `module` and `pl_module` are a `SteppedModule`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from tqdm.auto import tqdm

from vitwarm.informing import in_notebook, informs, shows_bars
from vitwarm.loop.callback import StepCallback
from vitwarm.records import RunFolder
from vitwarm.units import format_seconds


class Metrics(StepCallback):
    """Reads the module's meters every N steps (the only host sync), logs them, drives the bar."""

    def __init__(
        self,
        run: RunFolder | None,
        waits: WaitMeter,
        *,
        every_steps: int,
        progress: bool,
        label: str,
        samples_per_step: int,
        unit: str,
    ) -> None:
        self.run = run
        self.waits = waits
        self.every_steps = every_steps
        self.samples_per_step = samples_per_step
        self.unit = unit
        self.label = label
        self.progress = progress
        self.bar: Progress | None = None
        self.started = self.marked = time.perf_counter()
        self.marked_step = 0
        self.first_values: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.marked = self.started = time.perf_counter()
        self.marked_step = pl_module.steps_done
        self.waits.take()
        if self.progress and trainer.is_global_zero:
            self.bar = Progress(self.label, total=pl_module.n_steps, done=pl_module.steps_done)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        step = module.steps_done
        values: dict[str, float] = {}
        if step % self.every_steps == 0 or step == module.n_steps:
            values = self._interval(module, step)
            if self.run is not None and trainer.is_global_zero:
                self.run.append_metrics(kind="train", step=step, **values)
        if self.bar:
            self.bar.advance(step, values)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

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

    def _close(self) -> None:
        if self.bar:
            self.bar.close()
            self.bar = None


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
        self.label = label
        self.total = total
        self.first = done
        self.began = time.monotonic()
        self.spoke = self.began
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

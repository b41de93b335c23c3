"""What a person sees of a sweep: one bar for all of it, or a plain line per finished row."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from vitwarm.informing import in_notebook, informs, shows_bars
from vitwarm.records import Record
from vitwarm.sweep.rows import Done, Plan, Row, describe_row
from vitwarm.units import count_of, format_seconds


class SweepProgress:
    """One bar for the whole sweep on a terminal; elsewhere a plain line per finished row."""

    def __init__(self, plan: Plan, say: Callable[[str], None], *, progress: bool) -> None:
        self.n_rows = len(plan.rows)
        self.n_told = self.n_failed = 0
        self.print = say
        self.progress = progress
        self.bar: Any = None
        self.began = time.monotonic()
        self.samples_left = self.samples_done = 0.0
        self.n_finished = 0
        self.n_slots = 1

    @informs
    def begin(self, waiting: list[Row], n_slots: int) -> None:
        """Says what there is to do."""
        self.began = time.monotonic()
        self.n_slots = n_slots
        self.samples_left = float(sum(row.samples for row in waiting))
        before = self.n_rows - len(waiting)
        done = f", {before} {'is' if before == 1 else 'are'} done" if before else ""
        self.say(
            f"{len(waiting)} of {count_of(self.n_rows, 'row')} to run{done}; {n_slots} at a time"
        )
        if self.progress and shows_bars():
            self.bar = tqdm(
                total=self.n_rows, initial=before, unit="run", dynamic_ncols=True,
                bar_format=None if in_notebook()
                else "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} {postfix}",
            )  # fmt: skip

    @informs
    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if not self.progress:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            self.print(text)

    @informs
    def tell(self, done: Done, seconds: float) -> None:
        """Says how a row ended; rows that were done before are only counted."""
        self.n_told += 1
        self.n_failed += done.state in ("failed", "refused")
        self.samples_left = max(0.0, self.samples_left - done.row.samples)
        if done.before:
            return
        text = f"[{self.n_told:>{len(str(self.n_rows))}}/{self.n_rows}] {describe_row(done.row)}"
        if done.state == "finished":
            self.samples_done += done.row.samples
            self.n_finished += 1
            text += f" · {describe_result(done.record)} · {format_seconds(seconds)}"
        else:
            text += f" · {done.state.upper()}: {done.reason}"
        self.say(f"{text}{self._left()}")
        if self.bar is not None:
            self.bar.update(self.n_told - self.bar.n)

    @informs
    def refresh(self, n_running: int) -> None:
        """Brings the bar's words up to date."""
        if self.bar is not None:
            failed = f", {self.n_failed} failed" if self.n_failed else ""
            self.bar.set_postfix_str(f"{n_running} running{failed}{self._left()}")

    @informs
    def end(self) -> None:
        """Ends the bar's line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _left(self) -> str:
        """An estimate from what this call has run so far: samples are what takes time.

        None before every slot has run two rows, which hold the imports; none from initialisers
        alone, which see no samples.
        """
        seconds = time.monotonic() - self.began
        if self.n_finished < 2 * self.n_slots or not self.samples_left or not self.samples_done:
            return ""
        left = self.samples_left * seconds / self.samples_done
        return f" · about {format_seconds(left)} left"


def describe_result(record: Record | None) -> str:
    """Returns what a finished row reached, in a few words; None: an initialiser's file."""
    if record is None:
        return "written"
    if record.stage == "warmup":
        accuracy = record.hidden_accuracy_percent
        right = "" if accuracy is None else f", held-out accuracy {accuracy:.1f} %"
        return f"{record.verdict or 'finished'}{right}"
    return "no top-1" if record.top1_percent is None else f"top-1 {record.top1_percent:.2f} %"

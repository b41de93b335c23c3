"""A progress bar where somebody looks: on a terminal, and only if the work takes some seconds."""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Bar(Protocol):
    """What is used of tqdm."""

    def update(self, n: float | None = 1) -> Any: ...
    def close(self) -> Any: ...


class _NoBar:
    """tqdm starts a thread even for a bar that it does not show; workers are forked later."""

    def update(self, n: float | None = 1) -> None:
        return None

    def close(self) -> None:
        return None


def make_bar(what: str, *, total: int, unit: str) -> Bar:
    """Returns a bar that appears after three seconds, or one that does nothing."""
    if not sys.stderr.isatty():
        return _NoBar()
    from tqdm import tqdm

    bar: Bar = tqdm(desc=what, total=total, unit=unit, delay=3, leave=False)
    return bar

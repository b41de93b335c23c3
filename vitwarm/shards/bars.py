"""A progress bar where somebody looks, and only if the work takes some seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from vitwarm.informing import shows_bars


class Bar(tqdm):
    """Without tqdm's thread, which it starts even for a bar that it does not show."""

    monitor_interval = 0


def make_bar(what: str, *, total: int, unit: str = "", items: Iterable[Any] | None = None) -> Any:
    """Returns a bar that appears after three seconds, or never where nobody looks.

    It counts `items` as it is iterated over; without them it is updated by hand.
    """
    how: dict[str, Any] = {"delay": 3, "leave": False, "disable": not shows_bars()}
    return Bar(items, desc=what, total=total, unit=unit, **how)

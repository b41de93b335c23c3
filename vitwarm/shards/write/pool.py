"""Processes that share a long piece of work out among themselves, and end with whoever asked."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from vitwarm.interrupts import follow_parent

#: Pieces per process that are being worked on or wait to be taken.
_AHEAD = 4


@contextmanager
def sharing(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yields a `map` over so many processes; over this one alone where 1 is asked for.

    Whatever ends the block ends the processes: what nobody has begun is dropped.
    """
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield partial(_bounded, pool, _AHEAD * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _bounded(
    pool: ProcessPoolExecutor, most: int, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Maps in order with so many results on their way; pool.map would begin with all at once."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM end a block as an exception does, so that half-made files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _start_worker() -> None:
    """Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()

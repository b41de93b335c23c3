"""Ctrl-C and SIGTERM: noted at once, answered in words within a second, obeyed at a safe moment.

Python runs a signal's handler only between two of its own instructions, which one long operation
of torch can put off for minutes. So a thread answers: the interpreter writes each signal's number
into a pipe at once, and the thread reads it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

#: Signals so close behind the first are its echo: a terminal and a launcher both pass Ctrl-C on.
ECHO_SECONDS = 0.5

#: So long a process that was asked to end has for its last words; Slurm asks twice at times.
LAST_WORDS_SECONDS = 10.0


def _forget_in_child() -> None:
    """A forked process must not write its own signals into its parent's pipe."""
    with contextlib.suppress(ValueError):  # forked by another thread than the main one
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class Interrupts:
    """Notes signals while it is entered; the first is answered, the second ends the process.

    A process that was asked to end is not cut short after that either: for ten seconds a further
    signal, Ctrl-C apart, changes nothing.

    Outside the main thread, which alone may listen for signals, it notes none.
    """

    def __init__(
        self,
        signums: Sequence[int],
        *,
        answer: str,
        before_leaving: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            signums: what to listen for.
            answer: said on stderr when the first arrives; `{signal}` is its name.
            before_leaving: called when a second arrives, before the process ends at once.
        """
        self.signums = signums
        self.answer = answer
        self.before_leaving = before_leaving
        self.first: int | None = None
        self._at = 0.0
        self._before: dict[int, object] = {}
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._fd_before = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread() or self._ends:
            return self
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        self._ends[0].setblocking(True)
        self._fd_before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
        for signum in self.signums:
            self._before[signum] = signal.signal(signum, self._note)
        self._thread = threading.Thread(target=self._listen, args=(self._ends[0],), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if not self._ends:
            return
        for signum, handler in self._before.items():
            leaves = self.first is not None and signum != signal.SIGINT
            signal.signal(signum, _once_more() if leaves else handler)  # type: ignore[arg-type]
        self._before.clear()
        signal.set_wakeup_fd(self._fd_before)
        ours, theirs = self._ends
        self._ends = None
        theirs.send(b"\0")  # the end of the pipe alone would not do: forked processes hold it open
        theirs.close()
        if self._thread is not None:
            self._thread.join()
        ours.close()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        """Python's handler: exists so that the signal is caught; the thread may have been first."""
        self.first = self.first or signum

    def _listen(self, pipe: socket.socket) -> None:
        while data := pipe.recv(64):
            for signum in data:
                if signum in self.signums:
                    self._arrived(signum)
            if 0 in data:
                return

    def _arrived(self, signum: int) -> None:
        now = time.monotonic()
        if not self._at:
            self.first, self._at = self.first or signum, now
            _say(self.answer.format(signal=signal.Signals(signum).name))
        elif now - self._at > ECHO_SECONDS:
            _say(f"{signal.Signals(signum).name} again: leaving now.")
            try:
                if self.before_leaving:
                    self.before_leaving()
            finally:
                os._exit(128 + signum)


def _once_more() -> Callable[[int, FrameType | None], None]:
    """A handler for a process that is about to leave: the default one would cut its words off."""
    until = time.monotonic() + LAST_WORDS_SECONDS

    def handler(signum: int, frame: FrameType | None) -> None:
        if time.monotonic() > until:
            os._exit(128 + signum)

    return handler


def follow_parent(leave: Callable[[], object] = lambda: os._exit(1)) -> None:
    """Makes a process that multiprocessing started end with its parent, however that ends.

    A daemon is told only where its parent ends by itself; killed, it leaves processes that wait
    for their next piece of work for ever.

    Args:
        leave: called in a thread of its own when the parent is gone.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            leave()

    threading.Thread(target=wait, daemon=True).start()


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return

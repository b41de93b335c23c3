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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

#: Signals so close behind the first are its echo: a terminal and a launcher both pass Ctrl-C on.
ECHO_SECONDS = 0.5

#: So long a process that was asked to end has for its last words; Slurm asks twice at times.
LAST_WORDS_SECONDS = 10.0


#: Signals that ask a process to end; Ctrl-C goes on to mean what it means to the user.
_LEAVING = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n)]
#: Until when signals change nothing more; None: this process was not asked to end.
_until: float | None = None


def _forget_in_child() -> None:
    """A forked process must not write its own signals into its parent's pipe."""
    with contextlib.suppress(ValueError):  # forked by another thread than the main one
        signal.set_wakeup_fd(-1)
        for signum in _LEAVING:
            if signal.getsignal(signum) is _let_leave:
                signal.signal(signum, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@dataclass(eq=False)
class Interrupts:
    """Notes signals while it is entered; the first is answered, the second ends the process.

    A process that was asked to end is not cut short after that either: for ten seconds a further
    signal, Ctrl-C apart, changes nothing.

    Outside the main thread, which alone may listen for signals, it notes none.
    """

    signums: Sequence[int]
    """What to listen for."""
    answer: str
    """Said on stderr when the first arrives; `{signal}` is its name."""
    before_leaving: Callable[[], None] | None = None
    """Called when a second arrives, before the process ends at once."""
    first: int | None = field(default=None, init=False)
    _at: float = field(default=0.0, init=False)
    _before: dict[int, object] = field(default_factory=dict, init=False)
    _ends: tuple[socket.socket, socket.socket] | None = field(default=None, init=False)
    _fd_before: int = field(default=-1, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

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

    def __exit__(self, *error: object) -> None:
        if not self._ends:
            return
        for signum, handler in self._before.items():
            leaves = self.first is not None and signum in _LEAVING
            signal.signal(signum, _let_leave if leaves else handler)  # type: ignore[arg-type]
        self._before.clear()
        if self.first is not None:
            _begin_to_leave()
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


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Around all that may be asked to end: a further signal does not cut its last words off.

    Lightning puts back, as a training ends, the handlers that it found when it began; the default
    ones would end the process between its saved checkpoint and the sentence about it.
    """
    global _until
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _until = None
    before = {signum: signal.getsignal(signum) for signum in _LEAVING}
    for signum, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(signum, _let_leave)
    try:
        yield
    finally:
        if _until is None:
            for signum, handler in before.items():
                if signal.getsignal(signum) is _let_leave:
                    signal.signal(signum, handler)


def _begin_to_leave() -> None:
    global _until
    _until = time.monotonic() + LAST_WORDS_SECONDS


def _let_leave(signum: int, frame: FrameType | None) -> None:
    """The handler of a process that is about to leave, or was not asked to yet."""
    if _until is None:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    elif time.monotonic() > _until:
        os._exit(128 + signum)


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

"""Nothing that only informs may end a run: displays, estimates, log lines, metrics, terminals.

What goes wrong there is said once and forgotten; what a run computes and saves is not guarded here.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SAID: set[str] = set()


def informs(function: Callable[P, R]) -> Callable[P, R | None]:
    """Decorates what only informs: an error inside is said once on stderr, and None returned."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return attempt(function.__qualname__, function, *args, **kwargs)

    return guarded


def attempt(what: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """Calls what only informs, as `informs` does; `what` names it where it fails."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # whatever it is, it is not worth a run
        _say_once(what, error)
        return None


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which shows bars without a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def shows_bars() -> bool:
    """Whether somebody looks at stderr while it is written: on a terminal, or in a notebook."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _say_once(what: str, error: Exception) -> None:
    if what in _SAID:
        return
    _SAID.add(what)
    try:
        print(
            f"note: {what} failed ({type(error).__name__}: {error}); this only informs, so the run "
            "continues.",
            file=sys.stderr,
            flush=True,
        )
    except Exception:  # there is nobody left to tell
        return


class _Forgiving:
    """A text stream whose reader may go away, whose disk may be full: what is lost is lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Lets the stream write nowhere, so that Python's end finds nothing to complain of."""
        with self._lock:
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
                self._stream.flush()
            except (OSError, ValueError):
                return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_streams() -> None:
    """Makes stdout and stderr of this process forgiving: a run outlives its terminal and its pipe.

    Characters that the terminal's encoding lacks are replaced.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _Forgiving):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace" if name == "stderr" else "replace")
        setattr(sys, name, _Forgiving(stream))

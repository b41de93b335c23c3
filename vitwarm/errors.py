"""One exception family: every message says where, what was given, what is allowed, what to do.

A user's mistake ends with exit code 2 and one sentence; a run that had to stop keeps what it made
and ends with a code of its own (see `EXIT_CODES`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: What the shell sees. 128 + n: ended by signal n after saving (130 Ctrl-C, 143 SIGTERM).
EXIT_CODES = {"finished": 0, "failed": 1, "user mistake": 2, "out of time, resumable": 75}


class VitwarmError(Exception):
    """The base of everything this package raises on purpose; a user's mistake by default."""

    exit_code = 2


class ConfigError(VitwarmError):
    """A config field, override or recipe file that cannot be used."""


class RuleError(VitwarmError):
    """A rule that does not exist, or parameters that describe no usable language."""


class ModelError(VitwarmError):
    """A timm model that does not exist or cannot be used for what was asked."""


class TrunkError(VitwarmError):
    """A file that is no trunk, or a trunk that cannot be read or written."""


class HandoffError(VitwarmError):
    """A trunk and an image model that do not fit."""


class ShardError(VitwarmError):
    """Shards that are missing, damaged, or say something impossible."""


class RunError(VitwarmError):
    """A run folder that is in use, belongs to another config, or cannot be written."""


class ReportError(VitwarmError):
    """Records from which the asked report cannot be made."""


class TrainingFailed(VitwarmError):
    """A run that went wrong: a loss that is not a number, too many unreadable images."""

    exit_code = 1


class Stopped(VitwarmError):
    """A run that was asked to stop and saved its state; the same command goes on from there."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says without its full stop; else its class's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def nearest(word: str, known: Iterable[str], *, n: int = 3) -> str:
    """Returns ` Did you mean a, b?` for the known words most like `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=n, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""

"""Files that are either whole or not there: write beside, flush to disk, rename."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vitwarm.errors import RunError

#: What `replacing` names the files that it has not finished; a killed process leaves them behind.
HALF_WRITTEN = ".*.part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on error it is gone.

    Raises: RunError: the folder is read-only or the disk is full; what stood at `path` still does.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{path} cannot be written: {reason}. "
            "Nothing there was changed; free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically. Raises: RunError: as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically; names that are no UTF-8 keep their bytes.

    Raises: RunError: as `replacing`.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file's content as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

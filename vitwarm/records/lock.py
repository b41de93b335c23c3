"""One process writes in a folder: on one machine, or on many that share the disk.

Two locks. The kernel's (`flock` on `.lock`) goes with its process, however that ends; but on shared
disks it may hold on one machine alone, or not exist, and which it is cannot be told from here. So
there is a claim beside it: the file `.claim`, made with O_EXCL, which shared disks make for one who
asks and no other, and touched as long as its process lives.

A killed process leaves its claim behind. On its own machine the process is looked for, and the
claim is free at once. Elsewhere its claim is watched: one that nobody touches for `SILENT_SECONDS`
is taken over, and that is said. No clocks are compared. A process that was stopped for so long and
goes on finds its claim taken, and ends at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from vitwarm.errors import RunError

try:
    import fcntl
except ImportError:  # Windows: the claim alone
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("vitwarm")

#: The files of a folder's lock, which outlive what else is cleared there.
LOCK, CLAIM, HEIR = LOCK_FILES = ".lock", ".claim", ".claim.next"

#: A claim is touched so often, and looked at so often by who waits for it.
BEAT_SECONDS, LOOK_SECONDS = 5.0, 1.0
#: A claim of another machine that nobody touches for so long is nobody's. The other ranks of a run
#: wait meanwhile for rank zero, and give up after 60 s.
SILENT_SECONDS = 45.0


@dataclass(frozen=True)
class Claim:
    """What a claim says of the process that made it."""

    pid: int
    host: str
    machine: str
    """The same for processes that see each other by their ids; empty: none do."""
    started: str | None
    """Tells it from a later process with its id."""
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_near(self) -> bool:
        """Whether its process can be looked for from here."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended."""
        return self.is_near and (self.started is None or _started(self.pid) != self.started)


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock ends with it, however it ends.

    Waits up to `SILENT_SECONDS` where a process of another machine may have left the folder.

    Raises: RunError: another process holds it, or the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (held while yielding)
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        try:
            _take(file)
        except BlockingIOError:
            file.seek(0)
            raise _busy(path, file.read().strip() or "another process") from None
        except OSError as error:
            log.debug("%s has no kernel's lock (%s)", path, error)
        try:
            own = _claim(path)
        except OSError as error:
            raise _unwritable(path, error) from error
        file.truncate(0)
        file.write(str(own))
        file.flush()
        with _held(path, own):
            yield


def lock_holder(path: Path) -> str | None:
    """Returns who holds a folder's lock, `process 12 on host`; None: nobody, as far as is known."""
    try:
        with open(path / LOCK, encoding="utf-8", errors="replace") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:  # no such folder, or a file system without locks
        pass
    with contextlib.suppress(OSError):
        claim, touched = _read(path / CLAIM)
        silent = time.time() - touched / 1e9
        live = not claim.is_dead if claim.is_near else silent < SILENT_SECONDS
        return str(claim) if live else None
    return None


def _take(file: TextIO) -> None:
    """Takes a lock, waiting out `lock_holder`, which has it for a moment while it looks."""
    for seconds in (0.02, 0.1, 0.5, None) if fcntl is not None else ():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if seconds is None:
                raise
            time.sleep(seconds)


def _claim(path: Path) -> Claim:
    """Makes the claim of this process, taking the place of one that nobody is behind.

    Raises: RunError: somebody is. OSError: from the disk.
    """
    pid = os.getpid()
    own = Claim(pid, socket.gethostname(), _machine(), _started(pid), uuid.uuid4().hex)
    while True:
        try:
            _create(path / CLAIM, own)
            return own
        except FileExistsError:
            pass
        try:
            found = _read(path / CLAIM)
            if not found[0].is_dead:
                _watch(path, found)
            if _inherit(path, found, own):
                return own
        except FileNotFoundError:  # given back meanwhile
            continue


def _watch(path: Path, found: tuple[Claim, int]) -> None:
    """Waits until a claim was not touched for `SILENT_SECONDS`.

    Raises: RunError: its process lives. FileNotFoundError: it was given back.
    """
    claim = found[0]
    if claim.is_near:
        raise _busy(path, str(claim))
    text = "%s is held by %s or was left by it; watching for %.0f s whether that lives."
    log.warning(text, path, claim, SILENT_SECONDS)
    # Looks are counted, not seconds: while the disk is away, nobody can touch anything.
    for _ in range(round(SILENT_SECONDS / LOOK_SECONDS)):
        time.sleep(LOOK_SECONDS)
        if _read(path / CLAIM) != found:
            raise _busy(path, str(_read(path / CLAIM)[0]))


def _inherit(path: Path, found: tuple[Claim, int], own: Claim) -> bool:
    """Puts a claim in the place of one that is nobody's; False: another one was quicker.

    Of several that want to, one makes the file that is then renamed. It is there for milliseconds;
    one that stays longer was left by an heir that was killed in these.

    Raises: FileNotFoundError: the claim was given back.
    """
    heir = path / HEIR
    with contextlib.suppress(FileNotFoundError):
        before = _read(heir)
        time.sleep(LOOK_SECONDS)
        if _read(heir) == before:
            heir.unlink()
    try:
        _create(heir, own)
    except FileExistsError:
        return False
    if _read(path / CLAIM) != found:
        heir.unlink()
        return False
    os.replace(heir, path / CLAIM)
    log.warning("%s was left by %s, which has ended; going on in its place.", path, found[0])
    return True


@contextmanager
def _held(path: Path, own: Claim) -> Iterator[None]:
    """Touches a claim as long as the block runs, and gives it back."""
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, own, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            if _read(path / CLAIM)[0] == own:
                (path / CLAIM).unlink()


def _beat(path: Path, own: Claim, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # while the disk is away, it is so for the others too
            found, _ = _read(path / CLAIM)
            if found == own:
                os.utime(path / CLAIM)
                continue
            print(
                f"{path} was taken over by {found} while this process stood still. It ends at "
                "once, so that two never write there.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


def _create(path: Path, claim: Claim) -> None:
    with open(path, "x", encoding="utf-8") as file:
        json.dump(asdict(claim), file)


def _read(path: Path) -> tuple[Claim, int]:
    """Returns a claim and when it was touched, in ns of the disk's clock.

    Opened for every look: that is when NFS asks its server.
    """
    with open(path, encoding="utf-8") as file:
        touched = os.fstat(file.fileno()).st_mtime_ns
        try:
            return Claim(**json.load(file)), touched
        except (ValueError, TypeError):  # it is being written
            return Claim(0, "a machine unknown", "", None, ""), touched


@functools.cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers do not see each other
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}" if os.name == "posix" else ""


def _started(pid: int) -> str | None:
    """Returns what tells a process of this machine from later ones; None: it has ended."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else numbers[18]
    except FileNotFoundError:
        if os.name != "posix" or Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


def _busy(path: Path, holder: str) -> RunError:
    return RunError(f"{path} is being worked on by {holder}. Wait for it, or end it first.")


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be written: {error.strerror}. Choose another run.root=...")

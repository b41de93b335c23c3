"""Run folders: one per execution, readable by a person, safe to kill at any moment.

runs/<name>-<8 hex of the config hash>/
  config.yaml  env.json  metrics.jsonl  checkpoints/  <what the stage makes>
  record.json   written last and atomically: its presence means finished
  failure.json  where the run failed, in its place
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from vitwarm import __version__
from vitwarm.config import save_config
from vitwarm.errors import RunError
from vitwarm.files import HALF_WRITTEN, write_text
from vitwarm.informing import informs
from vitwarm.records.lock import LOCK, LOCK_FILES, lock_folder
from vitwarm.records.record import FORMAT, Record, read_json, to_record


class RunFolder:
    """One run's folder. Made by `open_run`; every write is atomic or an append of whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        #: Told every line of metrics.jsonl as it is appended.
        self.watchers: list[Callable[[dict[str, Any]], None]] = []

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def record(self) -> Record | None:
        """The record of a finished run, else None."""
        plain = read_json(self.path / "record.json")
        try:
            return None if plain is None else to_record(plain)
        except RunError as error:
            raise RunError(f"{self.path / 'record.json'}: {error} Move the folder away.") from error

    @property
    def has_begun(self) -> bool:
        """Whether any work was done in it: metrics, checkpoints, or a record."""
        known = (self.path / "metrics.jsonl", self.path / "record.json")
        return any(p.exists() for p in known) or any(self.checkpoints.glob("*"))

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint; 0: there is none."""
        names = [path.name for path in self.checkpoints.glob("step*.pt")]
        return max((int(re.sub(r"\D", "", name)) for name in names), default=0)

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @informs
    def append_metrics(self, *, kind: str, step: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl; numbers that are not finite are written as null.

        A line that cannot be written is lost, said once, and ends no run.
        """
        clean = {k: None if _is_bad(v) else v for k, v in values.items()}
        line = {"kind": kind, "step": step, **clean}
        for watcher in self.watchers:
            watcher(line)
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file into the folder, atomically."""
        write_text(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

    def write_record(self, record: Record) -> None:
        """Ends the run: writes record.json, and removes a failure of an earlier attempt."""
        plain = {k: None if _is_bad(v) else v for k, v in dataclasses.asdict(record).items()}
        self.write_json("record.json", {"format": FORMAT, **plain})
        (self.path / "failure.json").unlink(missing_ok=True)

    def write_failure(self, error: BaseException, **facts: Any) -> None:
        """Says why the run failed; a later attempt that finishes removes it."""
        self.write_json(
            "failure.json",
            {"error": type(error).__name__, "message": str(error), "time": _now(), **facts},
        )


@contextmanager
def open_run(
    root: str | Path, name: str, config: Any, digest: str, *, fresh: bool = False,
    writer: bool = True,
) -> Iterator[RunFolder]:  # fmt: skip
    """Opens (or makes) the folder of a run and holds its lock for as long as the block runs.

    Args:
        root: the folder of all runs.
        name: first part of the folder's name.
        config: the resolved config, written to config.yaml.
        digest: the config's hash; the same digest opens the same folder again.
        fresh: throw away what an earlier execution of the same config left there.
        writer: False on ranks above zero, which neither write nor lock.
    Raises: RunError: another process works on it, it belongs to another config, or it cannot be
        written.
    """
    path = Path(root) / f"{name}-{digest[:8]}"
    run = RunFolder(path)
    if not writer:
        yield run
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"run.root is {str(root)!r}; no folder can be made there ({error.strerror}). "
            "Give a folder that you may write to: run.root=..."
        ) from error
    env = read_json(path / "env.json")
    if env and env.get("config_hash") != digest:
        raise RunError(
            f"{path} belongs to another config ({env.get('config_hash', '?')[:16]}, this one is "
            f"{digest[:16]}). Move it away, or give this run another name=..."
        )
    if not env and any(path.iterdir()) and not (path / LOCK).exists():
        raise RunError(
            f"{path} holds files of something else. Move it away, or give this run another name=..."
        )
    with lock_folder(path):
        if fresh:
            _clear(path)
        for half in path.rglob(HALF_WRITTEN):  # of a process that was killed as it saved
            half.unlink(missing_ok=True)
        if run.record is None:  # a finished run keeps what was true of it
            run.checkpoints.mkdir(exist_ok=True)
            save_config(config, path / "config.yaml")
            run.write_json("env.json", {"config_hash": digest, **environment()})
        yield run


def environment() -> dict[str, Any]:
    """Returns versions, host and hardware: what is needed to make sense of a run later."""
    wanted = ("torch", "torchvision", "timm", "lightning", "webdataset", "numpy", "omegaconf")
    versions: dict[str, str] = {}
    for package in wanted:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gpus: list[str] = []
    torch = sys.modules.get("torch")  # a report must not import it
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "time": _now(),
        "code_version": code_version(),
        "python": platform.python_version(),
        "versions": versions,
        "host": socket.gethostname(),
        "processor": name_processor(),
        "cpus": count_cpus(),
        "gpus": gpus,
        "command": sys.argv,
    }


def name_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the CPU's name; with family and model, where Linux tells them: a virtual machine's
    name (`AMD EPYC`) hides the generation.
    """
    facts: dict[str, str] = {}
    with suppress(OSError):
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.MULTILINE))
    if len(facts) < 3:
        return platform.processor() or platform.machine()
    return f"{facts['model name']}, family {facts['cpu family']}, model {facts['model']}"


def count_cpus() -> int:
    """Returns the CPU cores that this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def code_version() -> str:
    """Returns the package's version, with the commit (and `.changes`) in a git checkout."""
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return __version__

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(home), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=9", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "vitwarm")
    return f"{__version__}+g{commit}{'.changes' if changed else ''}" if commit else __version__


def _clear(path: Path) -> None:
    for item in path.iterdir():
        if item.name not in LOCK_FILES:
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def _is_bad(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

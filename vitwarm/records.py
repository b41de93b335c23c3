"""Run folders: one per execution, readable by a person, safe to kill at any moment.

runs/<name>-<8 hex of the config hash>/
  config.yaml  env.json  metrics.jsonl  checkpoints/  <what the stage makes>
  record.json   written last and atomically: its presence means finished
  failure.json  where the run failed, in its place
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from vitwarm import __version__
from vitwarm.config import save_config
from vitwarm.errors import RunError
from vitwarm.files import write_text

log = logging.getLogger("vitwarm")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The facts of one finished run. Fields carry their unit; None: a stage has no such fact."""

    stage: Literal["warmup", "train"]
    name: str
    seed: int
    config_hash: str
    """64 hex digits; the run folder's name ends with the first eight."""
    code_version: str
    arm: str | None = None
    """Label of the initialisation: `default`, `dyck`, ..."""
    pair: str | None = None
    """Runs that share it share data order and fresh tensors, whatever their arm."""
    match: Literal["steps", "epochs"] | None = None
    """What the sweep held equal across fractions."""
    model: str | None = None
    status: Literal["finished", "unfinished"] = "finished"
    steps: int | None = None
    epochs: float | None = None
    wall_seconds: float | None = None
    """Time spent training, over all resumptions."""
    images_per_second: float | None = None
    data_wait_percent: float | None = None
    """Share of the wall time in which the device waited for data."""
    # image training
    fraction: float | None = None
    n_train_images: int | None = None
    n_val_images: int | None = None
    n_classes: int | None = None
    images_seen: int | None = None
    top1_percent: float | None = None
    """On the whole validation set, after the last step."""
    top5_percent: float | None = None
    top1_weights: Literal["raw", "ema"] | None = None
    """Which weights `top1_percent` belongs to."""
    val_loss: float | None = None
    """In nats per image."""
    train_loss: float | None = None
    best_top1_percent: float | None = None
    """The best evaluation: selected on the evaluated set, not comparable with top1_percent."""
    unreadable_images: int | None = None
    """Images that did not decode and were replaced, over the whole run."""
    subset_sha256: str | None = None
    trunk_sha256: str | None = None
    """None: the default arm."""
    # warm-up, and what an image training inherits from it
    rule: dict[str, Any] | None = None
    warmup_samples: int | None = None
    warmup_tokens: int | None = None
    warmup_seed: int | None = None
    hidden_accuracy_percent: float | None = None
    """Accuracy on hidden tokens of held-out sequences."""
    chance_percent: float | None = None
    """Accuracy of always answering the most frequent hidden id."""
    order_blind_percent: float | None = None
    """Accuracy that can be reached without the order of the tokens: the shuffled control's."""
    hidden_loss: float | None = None
    """In nats per hidden token."""
    hidden_accuracy_by: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """By `match_distance` and `depth`, in octaves: `n` hidden tokens and `accuracy_percent`."""
    saturated_at_step: int | None = None
    """First step from which the hidden tokens were solved (99 %), if they were."""
    verdict: Literal["learned", "not learned", "saturated early"] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """What a later version or a stage adds; kept as it was read."""


@dataclass(frozen=True)
class FoundRun:
    """A run folder as `read_runs` found it."""

    path: Path
    record: Record | None
    """None: not finished."""
    failure: dict[str, Any] | None
    """The content of failure.json, where the run failed."""


def to_record(plain: dict[str, Any]) -> Record:
    """Builds a record from JSON. Fields that this version does not know go to `extra`."""
    known = {item.name for item in dataclasses.fields(Record)}
    facts = {key: value for key, value in plain.items() if key in known}
    unknown = {key: value for key, value in plain.items() if key not in known}
    facts["extra"] = {**facts.get("extra", {}), **unknown}
    return Record(**facts)


def read_runs(*roots: str | Path) -> list[FoundRun]:
    """Finds every run folder at or below the roots, by path.

    Raises: RunError: a root that does not exist, or a record that is no JSON.
    """
    found: dict[Path, FoundRun] = {}
    for root in map(Path, roots):
        if not root.exists():
            raise RunError(f"There is no folder {root}. Give a run folder, or a folder of runs.")
        for config in sorted(root.rglob("config.yaml")):
            run = config.parent
            if (run / "env.json").exists():
                record = _read_json(run / "record.json")
                found[run.resolve()] = FoundRun(
                    path=run,
                    record=to_record(record) if record else None,
                    failure=_read_json(run / "failure.json"),
                )
    return sorted(found.values(), key=lambda run: str(run.path))


def read_records(*roots: str | Path) -> list[Record]:
    """Returns the records of all finished runs at or below the roots, ordered by path.

    Raises: RunError: as `read_runs`.
    """
    return [run.record for run in read_runs(*roots) if run.record is not None]


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, oldest first.

    A line cut short by a kill is left out, and where a resumed run wrote a step again, only the
    later line of that step and kind is returned.
    """
    path = Path(run) / "metrics.jsonl"
    lines: dict[tuple[Any, Any], dict[str, Any]] = {}
    if not path.exists():
        return []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        lines.pop((line.get("kind"), line.get("step")), None)
        lines[line.get("kind"), line.get("step")] = line
    return sorted(lines.values(), key=lambda line: line.get("step", 0))


class RunFolder:
    """One run's folder. Made by `open_run`; every write is atomic or an append of whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def record(self) -> Record | None:
        """The record of a finished run, else None."""
        plain = _read_json(self.path / "record.json")
        return to_record(plain) if plain else None

    @property
    def has_begun(self) -> bool:
        """Whether any work was done in it: metrics, checkpoints, or a record."""
        known = (self.path / "metrics.jsonl", self.path / "record.json")
        return any(p.exists() for p in known) or any(self.checkpoints.glob("*"))

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def append_metrics(self, *, kind: str, step: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl; numbers that are not finite are written as null."""
        clean = {k: None if _is_bad(v) else v for k, v in values.items()}
        line = json.dumps({"kind": kind, "step": step, **clean})
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunError(
                f"{self.path / 'metrics.jsonl'} cannot be written: {error.strerror}. "
                "Free some space and give the same command again; it resumes."
            ) from error

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file into the folder, atomically."""
        write_text(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

    def write_record(self, record: Record) -> None:
        """Ends the run: writes record.json, and removes a failure of an earlier attempt."""
        plain = {k: None if _is_bad(v) else v for k, v in dataclasses.asdict(record).items()}
        self.write_json("record.json", plain)
        (self.path / "failure.json").unlink(missing_ok=True)

    def write_failure(self, error: BaseException, **facts: Any) -> None:
        """Says why the run failed; a later attempt that finishes removes it."""
        self.write_json(
            "failure.json",
            {"error": type(error).__name__, "message": str(error), "time": _now(), **facts},
        )


@contextmanager
def open_run(
    root: str | Path,
    name: str,
    config: Any,
    digest: str,
    *,
    fresh: bool = False,
    writer: bool = True,
) -> Iterator[RunFolder]:
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
    env = _read_json(path / "env.json")
    if env and env.get("config_hash") != digest:
        raise RunError(
            f"{path} belongs to another config ({env.get('config_hash', '?')[:16]}, this one is "
            f"{digest[:16]}). Move it away, or give this run another name=..."
        )
    if not env and any(path.iterdir()) and not (path / ".lock").exists():
        raise RunError(
            f"{path} holds files of something else. Move it away, or give this run another name=..."
        )
    with _lock(path):
        if fresh:
            _clear(path)
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
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
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
        "processor": platform.processor() or platform.machine(),
        "cpus": count_cpus(),
        "gpus": gpus,
        "command": sys.argv,
    }


def count_cpus() -> int:
    """Returns the CPU cores that this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def code_version() -> str:
    """Returns the package's version, with the commit (and `+changes`) in a git checkout."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return __version__

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(home), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=9", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "vitwarm")
    return f"{__version__}+g{commit}{'.changes' if changed else ''}" if commit else __version__


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds `.lock` for this process; the kernel lets go of it however the process ends."""
    try:
        file = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held while yielding)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}. Choose another run.root=..."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{path} is being worked on by {file.read().strip() or 'another process'}. "
                "Wait for it, or end it first."
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s); start no second run there.", path, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _clear(path: Path) -> None:
    for item in path.iterdir():
        if item.name != ".lock":
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is no valid JSON ({error}). Move the folder away.") from error
    return plain if isinstance(plain, dict) else None


def _is_bad(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


__all__ = [
    "FoundRun",
    "Record",
    "RunFolder",
    "code_version",
    "environment",
    "open_run",
    "read_metrics",
    "read_records",
    "read_runs",
    "to_record",
]

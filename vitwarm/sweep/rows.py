"""The rows of a sweep, and the two files that hold them: plan.json to run from, manifest.json to
label a report with. What became of a row stands in a small file of its own, `rows/<key>.json`,
written by whoever ran it, so that jobs on many machines never write one file. Who runs a sweep
without a cluster stands in sweep.json; the lock beside it says whether that process is alive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from vitwarm.config import SweepConfig, TrainRun, WarmupRun, to_plain
from vitwarm.config.ranges import MOST_LETTERS
from vitwarm.errors import ConfigError, RunError
from vitwarm.files import write_text
from vitwarm.records import Record, lock_holder, read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = Literal["warmup", "init", "train"]
ArmKind = Literal["cold", "init", "warm", "longer"]

#: Prefix in an initialiser's parameters that stands for the trunk of another arm's warm-up.
ARM_PREFIX = "arm:"

RunT = TypeVar("RunT", bound="DataclassInstance")

#: `unfinished`: stopped after saving; `refused`: its warm-up learned nothing.
State = Literal["running", "finished", "unfinished", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """A trunk file that an initialiser writes."""

    name: str
    path: str
    model: str
    model_kwargs: dict[str, Any]
    seed: int
    params: dict[str, Any]


Config = WarmupRun | TrainRun | InitConfig
_SCHEMAS: dict[Kind, type] = {"warmup": WarmupRun, "init": InitConfig, "train": TrainRun}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run of a sweep."""

    key: str
    kind: Kind
    config: Config
    """Without what `needs` will give: the trunk's path, and samples that a warm-up really saw."""
    needs: tuple[str, ...] = ()
    """Keys of the rows whose trunk file this row starts from, or whose samples it adds."""
    seed: int
    arms: tuple[str, ...]
    """The arms that use it; a training has one."""
    arm_kind: ArmKind | None = None
    trunk_of: str | None = None
    """Key of the row whose trunk the training starts from."""
    extra_of: str | None = None
    """Key of the warm-up whose samples are added to the image budget (train longer)."""
    extra_samples_of: str | None = None
    """Label of the arm with that warm-up."""
    setting: dict[str, Any] = field(default_factory=dict)
    fraction: float | None = None
    n_images: int | None = None
    steps: int | None = None
    """Planned; a warm-up that stops early changes its trainings' extra samples."""
    samples: int
    """Planned: sequences, or images seen."""
    tokens: int | None = None
    """Planned, of a warm-up."""
    folder: Path | None = None
    """Of a warm-up; an initialiser's file; a training's is known once its trunk exists."""


@dataclass(frozen=True)
class Plan:
    """All rows of a sweep, in the order in which they are started."""

    name: str
    match: Literal["steps", "epochs"]
    warmup_seeds: Literal["shared", "paired"]
    home: Path
    """`<run.root>/sweeps/<name>`: manifest, row states, logs, initialisers' trunk files."""
    rows: list[Row]

    def row(self, key: str) -> Row:
        """Returns the row of a key. Raises: ConfigError: the plan has no such row."""
        for row in self.rows:
            if row.key == key:
                return row
        raise ConfigError(
            f"--row is {key!r}; {self.home / 'plan.json'} has no such row. Write the plan again."
        )


@dataclass(frozen=True)
class Done:
    """What became of a row."""

    row: Row
    state: State
    reason: str = ""
    record: Record | None = None
    before: bool = False
    """It was finished before this sweep was started."""

    @property
    def folder(self) -> Path | None:
        """Where its result is, or would be."""
        return self.row.folder


@dataclass(frozen=True)
class LocalSweep:
    """The process that runs a sweep on one machine."""

    pid: int
    host: str
    begun: float
    """Seconds since 1970."""
    rows: list[str]
    """Keys of the rows that it runs, or that had their result before."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def home_of(config: SweepConfig) -> Path:
    """Returns a sweep's own folder."""
    return Path(config.run.root) / "sweeps" / config.name


def make_key(kind: Kind, *facts: Any) -> str:
    """Returns a row's key: its kind and twelve hex digits of what it computes."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def make_label(label: str, fields: Mapping[str, Any]) -> str:
    """Returns an arm's label with what `over` changed about it, a plain name: `dyck, n_kinds=16`.

    Letters that no name of a folder may have become a dash (`|` a plus); what is too long ends in
    eight digits.
    """
    words = [f"{name.split('.')[-1]}={_say(value)}" for name, value in fields.items()]
    text = ", ".join([label, *words])
    plain = re.sub(r'[/\\:*?"<>]', "-", text.replace("|", "+")).rstrip(". ")
    if len(plain) > MOST_LETTERS:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        plain = f"{plain[: MOST_LETTERS - 9]} {digest}"
    return plain


def _say(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_say(one)}" for key, one in value.items())
    return json.dumps(value) if isinstance(value, list) else str(value)


def save_plan(plan: Plan) -> Path:
    """Writes plan.json (all configs) and manifest.json (what a report needs) into the sweep's home.

    Returns: the path of plan.json.
    """
    head: dict[str, Any] = {"format": 1, "name": plan.name}
    head |= {"match": plan.match, "warmup_seeds": plan.warmup_seeds}
    rows = [
        {**vars(row), "config": to_plain(row.config), "folder": row.folder and str(row.folder)}
        for row in plan.rows
    ]
    path = plan.home / "plan.json"
    write_text(path, json.dumps({**head, "home": str(plan.home), "rows": rows}, indent=1) + "\n")
    settings = [row.setting for row in plan.rows if row.kind == "train"]
    settings = [one for place, one in enumerate(settings) if one not in settings[:place]]
    for row in rows:
        del row["config"]
        row["arm"], row["settings"] = row["arms"][0] if row["arms"] else None, settings
        row["folder"] = os.path.relpath(row["folder"], plan.home) if row["folder"] else None
    write_text(plan.home / "manifest.json", json.dumps({**head, "rows": rows}, indent=1) + "\n")
    return path


def load_plan(path: Path) -> Plan:
    """Reads a plan that `save_plan` wrote. Raises: ConfigError: no such file, or another layout."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            Row(**{**row, "needs": tuple(row["needs"]), "arms": tuple(row["arms"]),
                   "folder": Path(row["folder"]) if row["folder"] else None,
                   "config": _from_plain(_SCHEMAS[row["kind"]], row["config"])})
            for row in plain["rows"]
        ]  # fmt: skip
        home = Path(plain["home"])
        return Plan(plain["name"], plain["match"], plain["warmup_seeds"], home, rows)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--plan is {str(path)!r}, which is not a plan of this version ({error}). "
            "Start the sweep from its recipe; it writes a new one."
        ) from error


def write_state(
    plan: Plan, key: str, state: State, *, reason: str = "", folder: Path | None
) -> None:
    """Writes what became of a row; the folder is kept relative, so that runs can be moved."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    plain = {
        "state": state,
        "reason": reason,
        "folder": os.path.relpath(folder, plan.home) if folder else None,
        "time": time.time(),
        "host": socket.gethostname(),
        "job": f"{array}_{task}" if array else None,
    }
    # On one line, and letters as they are: the job's script reads it with sed.
    text = json.dumps(plain, ensure_ascii=False)
    write_text(plan.home / "rows" / f"{key}.json", text + "\n")


def read_state(home: Path, key: str) -> dict[str, Any]:
    """Returns what `write_state` wrote of a row; empty: nothing that can be read."""
    try:
        return read_json(home / "rows" / f"{key}.json") or {}
    except RunError:
        return {}


def note_sweep(home: Path, rows: Iterable[Row]) -> None:
    """Writes that this process, which holds the lock of the sweep's home, runs these rows."""
    own = LocalSweep(os.getpid(), socket.gethostname(), time.time(), [row.key for row in rows])
    write_text(home / "sweep.json", json.dumps(vars(own)) + "\n")


def find_sweep(home: Path) -> LocalSweep | None:
    """Returns the process that is running a sweep without a cluster; None: there is none."""
    if lock_holder(home) is None:
        return None
    try:
        return LocalSweep(**(read_json(home / "sweep.json") or {}))
    except (RunError, TypeError):  # it has only just begun
        return None


def set_fields(config: RunT, changes: Mapping[str, Any]) -> RunT:
    """Returns a copy with dotted fields replaced, where the values are known to be right.

    A user's values go through `with_overrides`, which checks their types and takes 40 ms.
    """
    for name, value in changes.items():
        section, _, rest = name.partition(".")
        if rest:
            value = set_fields(getattr(config, section), {rest: value})
        config = dataclasses.replace(config, **{section: value})
    return config


def describe_row(row: Row) -> str:
    """Returns a row in a few words: `dyck · 389 images · seed 1`."""
    if row.kind != "train":
        what = "warm-up" if row.kind == "warmup" else "init"
        return f"{what} {' and '.join(row.arms) or 'for its samples'} · seed {row.seed}"
    setting = "".join(f" · {name.split('.')[-1]}={v}" for name, v in row.setting.items())
    return f"{row.arms[0]}{setting} · {row.n_images or 0:,} images · seed {row.seed}"


def _from_plain(schema: type, plain: dict[str, Any]) -> Any:
    """Builds a config from values that were checked before they were written."""
    hints = get_type_hints(schema)
    sections = {name for name in plain if dataclasses.is_dataclass(hints[name])}
    return schema(**{k: _from_plain(hints[k], v) if k in sections else v for k, v in plain.items()})

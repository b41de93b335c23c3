"""What a finished run says of itself, and how it is read back: damage never passes for a fact."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from vitwarm.errors import RunError

#: Version of record.json's layout. A higher one was written by a later version of the code.
FORMAT = 1

_UNIONS = (types.UnionType, typing.Union)

#: What a record that this package wrote holds, of any run and of a training.
_NEEDED = ("status", "model", "steps")
_NEEDED_OF_A_TRAINING = ("top1_percent", "n_train_images", "n_val_images")
_ABOVE_ZERO = ("fraction", "n_train_images", "n_val_images", "n_classes")


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
    """Accuracy that nothing exceeds without the order of the tokens: the shuffled control's."""
    seen_percent: float | None = None
    """Of the held-out sequences, the share that the training saw too, as the rule has few."""
    hidden_loss: float | None = None
    """In nats per hidden token."""
    hidden_accuracy_by: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """By `match_distance` and `depth`, in octaves: `n` hidden tokens and `accuracy_percent`."""
    saturated_at_step: int | None = None
    """First step from which the hidden tokens were solved (99 %), if they were."""
    verdict: Literal["learned", "not learned", "saturated early"] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """What a later version or a stage adds; kept as it was read."""

    @property
    def folder_name(self) -> str:
        """The run folder's name below `run.root`."""
        return f"{self.name}-{self.config_hash[:8]}"


@dataclass(frozen=True)
class FoundRun:
    """A run folder as `read_runs` found it."""

    path: Path
    record: Record | None
    """None: not finished, or damaged."""
    failure: dict[str, Any] | None
    """The content of failure.json, where the run failed."""
    damage: str = ""
    """Why its record cannot be used, in one sentence; empty where nothing is wrong."""


def to_record(plain: dict[str, Any]) -> Record:
    """Builds a record from JSON. Fields that this version does not know go to `extra`.

    Raises: RunError: a field that is missing, of another type or out of range, or a later format.
    """
    version = plain.get("format", FORMAT)
    if version != FORMAT:
        raise RunError(
            f"format is {version!r}; this version reads format {FORMAT}. "
            "Update vitwarm, or leave the run out."
        )
    hints = _hints()
    facts = {key: value for key, value in plain.items() if key in hints}
    for item in dataclasses.fields(Record):
        if item.name in facts:
            _check(item.name, facts[item.name], hints[item.name])
        elif item.default is item.default_factory is dataclasses.MISSING:
            raise RunError(f"the field {item.name} is missing.")
    for name in _NEEDED + (_NEEDED_OF_A_TRAINING if facts["stage"] == "train" else ()):
        if facts.get(name) is None:
            raise RunError(f"the field {name} is missing.")
    unknown = {key: value for key, value in plain.items() if key not in {*hints, "format"}}
    facts["extra"] = {**facts.get("extra", {}), **unknown}
    return Record(**facts)


def read_runs(*roots: str | Path) -> list[FoundRun]:
    """Finds every run folder at or below the roots, by path.

    A record that cannot be used leaves its run without one; `damage` says why.

    Raises: RunError: a root that does not exist.
    """
    found: dict[Path, FoundRun] = {}
    for root in map(Path, roots):
        if not root.exists():
            raise RunError(f"There is no folder {root}. Give a run folder, or a folder of runs.")
        for home, _, files in os.walk(root):
            if {"config.yaml", "env.json"} <= set(files) or "record.json" in files:
                found[Path(home).resolve()] = _read_run(Path(home))
    return sorted(found.values(), key=lambda run: str(run.path))


def _read_run(path: Path) -> FoundRun:
    record, failure, damage = None, None, ""
    try:
        plain = read_json(path / "record.json")
        record = None if plain is None else to_record(plain)
    except RunError as error:
        damage = str(error)
    try:
        failure = read_json(path / "failure.json")
    except RunError as error:
        failure = {"message": str(error)}
    return FoundRun(path, record, failure, damage)


def read_records(*roots: str | Path) -> list[Record]:
    """Returns the sound records of all finished runs at or below the roots, ordered by path.

    Raises: RunError: as `read_runs`.
    """
    return [run.record for run in read_runs(*roots) if run.record is not None]


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, oldest first.

    What is no line of metrics (one cut short by a kill, say) is left out, and where a resumed run
    wrote a step again, only the later line of that step and kind is returned.
    """
    path = Path(run) / "metrics.jsonl"
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    if not path.is_file():
        return []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            key = str(line["kind"]), int(line["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        lines.pop(key, None)
        lines[key] = line
    return [lines[key] for key in sorted(lines, key=lambda key: key[1])]


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None where there is no file.

    Raises: RunError: it cannot be read, or holds something else.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is not valid JSON ({error}). Move the folder away.") from error
    if not isinstance(plain, dict):
        raise RunError(f"{path} holds no JSON object. Move the folder away.")
    return plain


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Record)


def _check(name: str, value: Any, hint: Any) -> None:
    """Raises: RunError: the value is not what the field holds."""
    if not _fits(value, hint):
        raise RunError(f"{name} is {repr(value)[:60]}; it must be {_words(hint)}.")
    if isinstance(value, int | float):
        is_share = name.endswith("_percent") and name != "data_wait_percent"  # of measured times
        high = 100 if is_share else 1 if name == "fraction" else 2**63
        if not 0 <= value <= high + 1e-6:
            raise RunError(f"{name} is {value}; it must lie between 0 and {high}.")
        if value == 0 and name in _ABOVE_ZERO:
            raise RunError(f"{name} is 0; it must lie above 0.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a field's type; numbers that are not finite are of none."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in _UNIONS:
        return any(_fits(value, part) for part in parts)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    if isinstance(value, bool):
        return hint is Any
    if hint is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if hint is str:
        return isinstance(value, str) and value.isprintable()  # it stands in tables and terminals
    return hint is Any or isinstance(value, hint)


def _words(hint: Any) -> str:
    """What a field holds, in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in _UNIONS:
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is dict:
        return "an object" if get_args(hint)[1] is Any else "an object of numbers by bin"
    words = {
        str: "text on one line",
        int: "a whole number",
        float: "a number",
        types.NoneType: "null",
    }
    return words[hint]

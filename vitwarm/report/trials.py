"""What a report compares: image trainings and warm-ups, finished or not, in sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitwarm.records import FoundRun, Record

State = Literal[
    "finished", "unfinished", "failed", "refused", "missing", "unreadable", "left out"
]  # fmt: skip
Kind = Literal["cold", "init", "warm", "longer"]


@dataclass(kw_only=True)
class Trial:
    """One image training that should be in a section, whether it finished or not."""

    arm: str
    kind: Kind
    seed: int
    fraction: float | None
    n_images: int | None
    """Distinct images of its fraction."""
    state: State
    reason: str = ""
    """Why it is not finished, or left out."""
    folder: Path | None = None
    record: Record | None = None
    longer_than: str | None = None
    """For `longer`: the arm whose warm-up's samples were added to the images seen."""
    verdict: str | None = None
    """On the warm-up that it starts from."""


@dataclass(kw_only=True)
class Warmup:
    """One warm-up, and the arms that start from it."""

    arms: list[str]
    seed: int
    state: State
    reason: str = ""
    folder: Path | None = None
    record: Record | None = None


@dataclass(kw_only=True)
class Section:
    """Runs that may be compared: one sweep at one setting, or runs of equal configs."""

    title: str
    match: Literal["steps", "epochs"] | None
    warmup_seeds: Literal["shared", "paired"] | None
    setting: dict[str, Any] = field(default_factory=dict)
    """What this section of a sweep holds fixed and its sisters do not."""
    trials: list[Trial] = field(default_factory=list)
    warmups: list[Warmup] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    compared: bool = True
    """False: runs of different configs in one table, none compared with another."""


def to_warmup(row: dict[str, Any], run: FoundRun | None) -> Warmup:
    """Makes a warm-up of a row of a manifest and the run that it names.

    Raises: KeyError, TypeError, ValueError: a row that no sweep wrote; so does `to_trial`.
    """
    state, reason = _state_of(run, row)
    return Warmup(
        arms=[str(arm) for arm in row["arms"]],
        seed=int(row["seed"]),
        state=state,
        reason=reason,
        folder=run.path if run else None,
        record=run.record if run else None,
    )


def to_trial(row: dict[str, Any], run: FoundRun | None) -> Trial:
    """Makes an image training of a row of a manifest and the run that it names."""
    state, reason = _state_of(run, row)
    record = run.record if run else None
    n_images = None if row.get("n_images") is None else int(row["n_images"])
    if n_images is not None and n_images < 1:
        raise ValueError(f"n_images is {n_images}")
    return Trial(
        arm=str(row["arm"]),
        kind=row["arm_kind"],
        seed=int(row["seed"]),
        fraction=_number(row.get("fraction")),
        n_images=n_images,
        state=state,
        reason=reason,
        folder=run.path if run else None,
        record=record,
        longer_than=row.get("extra_samples_of"),
        verdict=record.verdict if record else None,
    )


def _state_of(run: FoundRun | None, row: dict[str, Any]) -> tuple[State, str]:
    if run is not None and run.damage:
        return "unreadable", run.damage
    if run is not None and run.record is not None:
        if run.record.status == "finished":
            return "finished", ""
        return "unfinished", "stopped before its end"
    if run is not None and run.failure is not None:
        message = str(run.failure.get("message", "failed"))
        return "failed", message.encode("utf-8", "replace").decode()
    state, reason = row.get("state", "waiting"), str(row.get("reason") or "")
    if state in ("failed", "refused"):
        return state, reason
    if run is not None:
        return "unfinished", reason or "started, not finished"
    return "missing", reason or "not started"


def _number(value: Any) -> float | None:
    return None if value is None else float(value)

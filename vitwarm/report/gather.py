"""Which runs belong together: run folders and sweep manifests in, sections of comparable runs out.

A section holds one sweep at one setting, so that everything in it may stand in one figure. Runs of
no sweep are put together when their configs agree in all but arm, seed, fraction and steps. Labels
come from the sweep's manifest where there is one, else from the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from vitwarm.errors import ReportError
from vitwarm.records import FoundRun, Record, read_runs

State = Literal["finished", "unfinished", "failed", "refused", "missing", "left out"]
Kind = Literal["cold", "init", "warm", "longer"]

#: Fields of a training's config in which the runs of one section may differ.
FREE_FIELDS = ("name", "extends", "seed", "arm", "match", "handoff", "run")


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


def gather(roots: Sequence[str | Path]) -> list[Section]:
    """Reads everything at or below the roots.

    Args:
        roots: folders of runs, single run folders, or a sweep's folder.
    Returns: at least one section that holds an image training or a warm-up.
    Raises: RunError: a root that does not exist. ReportError: nothing there to report on.
    """
    runs = {run.path.resolve(): run for run in read_runs(*roots)}
    sections: list[Section] = []
    claimed: set[Path] = set()
    for path in _find_manifests(roots):
        sections += _read_sweep(path, runs, claimed)
    rest = [run for path, run in runs.items() if path not in claimed]
    sections += _group_others(rest)
    if not any(section.trials or section.warmups for section in sections):
        raise ReportError(
            f"There are no runs in {', '.join(map(str, roots))}. "
            "Give the folder that `vitwarm sweep` or `vitwarm train` wrote to (run.root)."
        )
    for section in sections:
        _leave_out_doubles(section)
    return sections


def arm_of(record: Record) -> str:
    """Returns the label of a run that no manifest names."""
    if record.arm:
        return record.arm
    return f"trunk {record.trunk_sha256[:8]}" if record.trunk_sha256 else "default"


def _find_manifests(roots: Iterable[str | Path]) -> list[Path]:
    found = {path for root in roots for path in Path(root).resolve().rglob("manifest.json")}
    return sorted(path for path in found if path.parent.parent.name == "sweeps")


def _read_sweep(path: Path, runs: dict[Path, FoundRun], claimed: set[Path]) -> list[Section]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        rows = [_with_state(path.parent, row) for row in manifest["rows"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ReportError(
            f"{path} is no sweep manifest ({error}). Start the sweep again; it writes a new one "
            "and runs nothing twice."
        ) from error
    sections: dict[str, Section] = {}

    def section_of(setting: dict[str, Any]) -> Section:
        words = [f"{name.split('.')[-1]} = {value}" for name, value in setting.items()]
        return sections.setdefault(
            json.dumps(setting, sort_keys=True),
            Section(
                title=" · ".join([manifest["name"], *words]),
                match=manifest["match"],
                warmup_seeds=manifest["warmup_seeds"],
                setting=setting,
            ),
        )

    verdicts: dict[str, str | None] = {}
    for row in rows:  # warm-ups stand before the trainings that start from them
        run = _find_run(path.parent, row.get("folder"), runs)
        if run is not None:
            claimed.add(run.path.resolve())
        if row["kind"] == "warmup":
            warmup = _to_warmup(row, run)
            verdicts[str(row.get("key"))] = warmup.record.verdict if warmup.record else None
            for setting in row.get("settings") or [{}]:
                section_of(setting).warmups.append(warmup)
        elif row["kind"] == "train":
            trial = _to_trial(row, run)
            trial.verdict = trial.verdict or verdicts.get(str(row.get("trunk_of")))
            section_of(row.get("setting") or {}).trials.append(trial)
    return list(sections.values())


def _to_warmup(row: dict[str, Any], run: FoundRun | None) -> Warmup:
    state, reason = _state_of(run, row)
    return Warmup(
        arms=list(row["arms"]),
        seed=row["seed"],
        state=state,
        reason=reason,
        folder=run.path if run else None,
        record=run.record if run else None,
    )


def _to_trial(row: dict[str, Any], run: FoundRun | None) -> Trial:
    state, reason = _state_of(run, row)
    record = run.record if run else None
    return Trial(
        arm=row["arm"],
        kind=row["arm_kind"],
        seed=row["seed"],
        fraction=row.get("fraction"),
        n_images=row.get("n_images"),
        state=state,
        reason=reason,
        folder=run.path if run else None,
        record=record,
        longer_than=row.get("extra_samples_of"),
        verdict=record.verdict if record else None,
    )


def _with_state(home: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Adds what became of a row: its folder, state and reason stand in a file of their own."""
    path = home / "rows" / f"{row.get('key')}.json"
    if not path.is_file():
        return row
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is no valid JSON ({error}). Delete it.") from error
    return {**row, **{name: value for name, value in state.items() if value is not None}}


def _find_run(beside: Path, folder: str | None, runs: dict[Path, FoundRun]) -> FoundRun | None:
    if not folder:
        return None
    path = (beside / folder).resolve()
    if path not in runs and path.is_dir():
        runs.update({run.path.resolve(): run for run in read_runs(path)})
    return runs.get(path)


def _state_of(run: FoundRun | None, row: dict[str, Any]) -> tuple[State, str]:
    if run is not None and run.record is not None:
        if run.record.status == "finished":
            return "finished", ""
        return "unfinished", "stopped before its end"
    if run is not None and run.failure is not None:
        return "failed", str(run.failure.get("message", "failed"))
    state, reason = row.get("state", "waiting"), str(row.get("reason") or "")
    if state in ("failed", "refused"):
        return state, reason
    if run is not None:
        return "unfinished", reason or "started, not finished"
    return "missing", reason or "not started"


def _group_others(runs: list[FoundRun]) -> list[Section]:
    """Puts runs of no sweep together by what their configs say."""
    sections: dict[str, Section] = {}
    warmups: list[Warmup] = []
    for run in runs:
        plain = _read_config(run.path)
        state, reason = _state_of(run, {})
        record = run.record
        if "warmup" in plain:
            warmups.append(
                Warmup(
                    arms=[], seed=int(plain.get("seed", 0)), state=state, reason=reason,
                    folder=run.path, record=record,
                )
            )  # fmt: skip
            continue
        if "train" not in plain:
            continue
        match = plain.get("match")
        model = plain["train"].get("model")
        key = json.dumps([match, _comparable(plain)], sort_keys=True, default=str)
        section = sections.setdefault(
            key, Section(title=f"{plain.get('name')} · {model}", match=match, warmup_seeds=None)
        )
        kind: Kind = "cold"
        if record is not None and record.trunk_sha256:
            kind = "warm" if record.warmup_samples else "init"
        section.trials.append(
            Trial(
                arm=arm_of(record) if record else str(plain.get("arm") or "unnamed"), kind=kind,
                seed=int(plain.get("seed", 0)), fraction=plain.get("data", {}).get("fraction"),
                n_images=record.n_train_images if record else None, state=state, reason=reason,
                folder=run.path, record=record, verdict=record.verdict if record else None,
            )
        )  # fmt: skip
    found = list(sections.values())
    _number_titles(found)
    if warmups:
        found.append(
            Section(title="Warm-ups of no sweep", match=None, warmup_seeds=None, warmups=warmups)
        )
    return found


def _comparable(plain: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in plain.items() if name not in FREE_FIELDS}
    data = {k: v for k, v in plain["data"].items() if k not in ("fraction", "index_cache")}
    train = {k: v for k, v in plain["train"].items() if k not in ("steps", "checkpoint_minutes")}
    return {**kept, "data": data, "train": train}


def _number_titles(sections: list[Section]) -> None:
    titles = [section.title for section in sections]
    for number, section in enumerate(sections, 1):
        if titles.count(section.title) > 1:
            section.title = f"{section.title} · config {number}"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    except Exception as error:  # yaml and OmegaConf raise families of their own
        first = str(error).splitlines()[0]
        raise ReportError(
            f"{folder / 'config.yaml'} is no valid YAML: {first}. Move that folder away."
        ) from error
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _leave_out_doubles(section: Section) -> None:
    """Never averages two finished runs of one cell and seed: says so and leaves both out."""
    cells: dict[tuple[str, int | None, int], list[Trial]] = {}
    for trial in section.trials:
        if trial.state == "finished":
            cells.setdefault((trial.arm, trial.n_images, trial.seed), []).append(trial)
    for (arm, n_images, seed), same in cells.items():
        if len(same) == 1:
            continue
        one_config = len({trial.record.config_hash for trial in same if trial.record}) == 1
        for trial in same[1:] if one_config else same:
            trial.state = "left out"
            trial.reason = "a second copy of one run" if one_config else "not the only one"
        if not one_config:
            section.problems.append(
                f"{len(same)} finished runs claim arm {arm}, {n_images} images, seed {seed} "
                f"({', '.join(t.folder.name for t in same if t.folder)}); none is counted. "
                "Tell them apart with arm=..., or report on their folders one at a time."
            )

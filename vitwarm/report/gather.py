"""Which runs belong together: run folders and sweep manifests in, sections of comparable runs out.

A section holds one sweep at one setting, so that everything in it may stand in one figure. Runs of
no sweep are put together when their configs agree in all but arm, seed, fraction and steps. Labels
come from the sweep's manifest where there is one, else from the record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from vitwarm.errors import ReportError, RunError
from vitwarm.records import FoundRun, read_json, read_runs
from vitwarm.report.facts import Section, State, Trial, Warmup, as_percent, say_setting

#: What reading a file that somebody else wrote, or that is damaged, may raise.
NOT_OURS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, OverflowError,
    RecursionError,
)  # fmt: skip
#: Fields of a row's state that hold text, where they hold anything.
_WORDS_OF_A_STATE = ("state", "reason", "folder", "host", "job")
#: Runs that agree with no other from which on they share one table instead of a section each.
MANY_ALONE = 8
#: Fields of a training's config in which the runs of one section may differ.
FREE_FIELDS = ("name", "extends", "seed", "arm", "match", "handoff", "run")


def gather(roots: Sequence[str | Path]) -> list[Section]:
    """Reads everything at or below the roots.

    What is damaged, or not of this project, is named in a last section and otherwise left out.

    Args:
        roots: folders of runs, single run folders, or a sweep's folder.
    Returns: at least one section that holds an image training or a warm-up.
    Raises: RunError: a root that does not exist. ReportError: nothing there to report on.
    """
    runs = {run.path.resolve(): run for run in read_runs(*roots)}
    sections: list[Section] = []
    claimed: set[Path] = set()
    damage: list[str] = []
    manifests = {path for root in roots for path in Path(root).resolve().rglob("manifest.json")}
    for path in sorted(path for path in manifests if path.parent.parent.name == "sweeps"):
        try:
            found, mine = _read_sweep(path, runs, damage)
        except NOT_OURS as error:
            damage.append(
                f"{path} is not a sweep manifest ({_first_line(error)}). Start the sweep again; it "
                "writes a new one and runs nothing twice."
            )
            continue
        sections += found
        claimed |= mine
    sections += _group_others([run for path, run in runs.items() if path not in claimed], damage)
    for run in runs.values():
        record = f"{run.path / 'record.json'}"
        if run.damage:
            known = run.damage.startswith(record)
            damage.append(run.damage if known else f"{record}: {run.damage}")
    if not any(section.trials or section.warmups for section in sections):
        if damage:
            raise ReportError(f"There is nothing to report on: {' '.join(damage)}")
        raise ReportError(
            f"There are no runs in {', '.join(map(str, roots))}. "
            "Give the folder that `vitwarm sweep` or `vitwarm train` wrote to (run.root)."
        )
    for section in sections:
        if section.compared:
            _leave_out_doubles(section)
    return [*sections, Section(title="Left out", problems=damage)] if damage else sections


def _read_sweep(
    path: Path, runs: dict[Path, FoundRun], damage: list[str]
) -> tuple[list[Section], set[Path]]:
    """Returns a sweep's sections, and the folders that belong to it."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    rows = [_with_state(path.parent, row, damage) for row in manifest["rows"]]
    _check_text([manifest, rows])
    match, seeds = manifest["match"], manifest["warmup_seeds"]
    claimed: set[Path] = set()
    sections: dict[str, Section] = {}

    def section_of(setting: dict[str, Any]) -> Section:
        return sections.setdefault(
            json.dumps(setting, sort_keys=True),
            Section(
                title=f"{manifest['name']}{say_setting(setting)}",
                match=match if match in ("steps", "epochs") else None,
                warmup_seeds=seeds if seeds in ("shared", "paired") else None,
                setting=setting,
            ),
        )

    verdicts: dict[str, str | None] = {}
    for row in rows:  # warm-ups stand before the trainings that start from them
        folder = (path.parent / row["folder"]).resolve() if row.get("folder") else None
        if folder is not None and folder not in runs and folder.is_dir():
            runs.update({run.path.resolve(): run for run in read_runs(folder)})
        run = runs.get(folder) if folder else None
        if run is not None:
            claimed.add(run.path.resolve())
        if row["kind"] == "warmup":
            warmup = _to_warmup(row, run)
            verdicts[str(row.get("key"))] = warmup.verdict
            for setting in row.get("settings") or [{}]:
                section_of(setting).warmups.append(warmup)
        elif row["kind"] == "train":
            trial = _to_trial(row, run)
            trial.verdict = trial.verdict or verdicts.get(str(row.get("trunk_of")))
            section_of(row.get("setting") or {}).trials.append(trial)
    return list(sections.values()), claimed


def _with_state(home: Path, row: dict[str, Any], damage: list[str]) -> dict[str, Any]:
    """Adds what became of a row: its folder, state and reason stand in a file of their own."""
    path = home / "rows" / f"{row.get('key')}.json"
    try:
        state = {k: v for k, v in (read_json(path) or {}).items() if v is not None}
        if any(not isinstance(state.get(name, ""), str) for name in _WORDS_OF_A_STATE):
            raise RunError(f"{path} is not the state of a row.")
        _check_text(state)
    except (RunError, UnicodeEncodeError) as error:
        damage.append(f"{str(error).removesuffix(' Move the folder away.')} Its row counts as new.")
        return row
    return {**row, **state}


def _to_warmup(row: dict[str, Any], found: FoundRun | None) -> Warmup:
    """Raises: KeyError, TypeError, ValueError: a row that no sweep wrote; so does `_to_trial`."""
    state, reason = _state_of(found, row)
    record = found.record if found else None
    ceiling = record.extra.get("ceiling") if record else None
    high = ceiling.get("high_percent") if isinstance(ceiling, dict) else None
    warmup = Warmup(
        arms=[str(arm) for arm in row["arms"]],
        seed=int(row["seed"]),
        state=state,
        reason=reason,
        found=found,
        rule=_rule_text(record.rule if record else None),
        samples=record.warmup_samples if record else None,
        verdict=record.verdict if record else None,
        ceiling_percent=as_percent(high),
        hidden_accuracy_by=record.hidden_accuracy_by if record else {},
    )
    warmup.probes = warmup.metrics("eval")
    for step, percent in warmup.curve("train", "hidden_accuracy_percent"):
        warmup.curve_steps.append(step)
        warmup.curve_percent.append(percent)
    return warmup


def _rule_text(rule: Any) -> str:
    """`dyck`, or `shuffled (dyck)`: names only; the parameters stand in the record."""
    names: list[str] = []
    while isinstance(rule, dict) and "name" in rule:
        names.append(str(rule["name"]) if not names else f"({rule['name']})")
        params = rule.get("params")
        rule = params.get("of") if isinstance(params, dict) else None
    return " ".join(names)


def _to_trial(row: dict[str, Any], found: FoundRun | None) -> Trial:
    state, reason = _state_of(found, row)
    fraction, n_images = row.get("fraction"), row.get("n_images")
    if n_images is not None and int(n_images) < 1:
        raise ValueError(f"n_images is {n_images}")
    return Trial(
        arm=str(row["arm"]),
        kind=row["arm_kind"],
        seed=int(row["seed"]),
        state=state,
        reason=reason,
        found=found,
        fraction=None if fraction is None else float(fraction),
        n_images=None if n_images is None else int(n_images),
        longer_than=row.get("extra_samples_of"),
        verdict=found.record.verdict if found and found.record else None,
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


def _group_others(runs: list[FoundRun], damage: list[str]) -> list[Section]:
    """Puts runs of no sweep together by what their configs say; names those that say nothing."""
    sections: dict[str, Section] = {}
    warmups: list[Warmup] = []
    for run in runs:
        try:
            plain = _read_config(run.path)
            if "warmup" in plain:
                warmups.append(_to_warmup({"arms": [], "seed": plain.get("seed", 0)}, run))
            elif "train" in plain:
                key, section, trial = _place(plain, run)
                sections.setdefault(key, section).trials.append(trial)
        except NOT_OURS as error:
            if not run.damage:
                damage.append(f"{run.path}: config.yaml cannot be used ({_first_line(error)}).")
    found = _together(list(sections.values()))
    times = Counter(section.title for section in found)
    for number, section in enumerate(found, 1):
        if times[section.title] > 1:
            section.title = f"{section.title} · config {number}"
    return [*found, Section(title="Warm-ups of no sweep", warmups=warmups)] if warmups else found


def _place(plain: dict[str, Any], run: FoundRun) -> tuple[str, Section, Trial]:
    """Returns what tells the section of a run of no sweep, that section, and the run's trial."""
    record, title = run.record, f"{plain.get('name')} · {plain['train'].get('model')}"
    match = plain.get("match") if plain.get("match") in ("steps", "epochs") else None
    key = json.dumps([match, _comparable(plain)], sort_keys=True, default=str)
    handoff = plain.get("handoff") or {}
    start = "unnamed" if handoff.get("trunk") or handoff.get("init") else "default"
    arm, kind = str(plain.get("arm") or start), "cold"
    if record is not None:
        trunk = record.trunk_sha256
        arm = record.arm or (f"trunk {trunk[:8]}" if trunk else "default")
        kind = "cold" if not trunk else "warm" if record.warmup_samples else "init"
    row = {
        "arm": arm, "arm_kind": kind, "seed": plain.get("seed", 0),
        "fraction": plain["data"].get("fraction"),
        "n_images": record.n_train_images if record else None,
    }  # fmt: skip
    return key, Section(title=title, match=match), _to_trial(row, run)


def _comparable(plain: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in plain.items() if name not in FREE_FIELDS}
    data = {k: v for k, v in plain["data"].items() if k not in ("fraction", "index_cache")}
    train = {k: v for k, v in plain["train"].items() if k not in ("steps", "checkpoint_minutes")}
    return {**kept, "data": data, "train": train}


def _together(sections: list[Section]) -> list[Section]:
    """Puts many sections of one run each into one that compares nothing."""
    alone = [section for section in sections if len(section.trials) == 1]
    if len(alone) < MANY_ALONE:
        return sections
    trials = [trial for section in alone for trial in section.trials]
    one = Section(title="Runs without a counterpart", trials=trials, compared=False)
    return [section for section in sections if len(section.trials) > 1] + [one]


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    except Exception as error:  # yaml and OmegaConf raise families of their own
        raise ValueError(_first_line(error)) from error
    _check_text(plain)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _check_text(plain: Any) -> None:
    """Raises: UnicodeEncodeError (a ValueError): half a character, which no file can hold."""
    json.dumps(plain, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")


def _first_line(error: Exception) -> str:
    # YAML says in several lines what is wrong and where; what it is made of holds addresses.
    is_plain = isinstance(error, ValueError | OSError | yaml.YAMLError)
    text = str(error) if is_plain else repr(error)
    return " ".join(text.split()) or type(error).__name__


def _leave_out_doubles(section: Section) -> None:
    """Never averages two finished runs of one cell and seed: says so and leaves both out."""
    cells: dict[tuple[str, int | None, int], list[Trial]] = {}
    for trial in section.trials:
        if trial.state == "finished":
            cells.setdefault((trial.arm, trial.n_images, trial.seed), []).append(trial)
    for (arm, n_images, seed), same in cells.items():
        if len(same) == 1:
            continue
        one_config = len({trial.fact("config_hash") for trial in same}) == 1
        for trial in same[1:] if one_config else same:
            trial.state = "left out"
            trial.reason = "a second copy of one run" if one_config else "not the only one"
        if not one_config:
            section.problems.append(
                f"{len(same)} finished runs claim arm {arm}, {n_images} images, seed {seed} "
                f"({', '.join(t.folder for t in same)}); none is counted. "
                "Tell them apart with arm=..., or report on their folders one at a time."
            )

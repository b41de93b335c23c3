"""Whatever a run folder holds, the report names it, leaves it out, and reports the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_manifest, write_run, write_sweep, write_training, write_warmup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitwarm.errors import ReportError, RunError
from vitwarm.records import FORMAT, Record, read_metrics, read_records, read_runs, to_record
from vitwarm.report import run_report
from vitwarm.report.analyse import analyse
from vitwarm.report.gather import gather

FIELDS = [item.name for item in dataclasses.fields(Record)]
#: Values that hardly a field takes; some fields take some of them.
ODD = [None, "high", "", True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, [], [1], {}]
ODD += [{"a": 1}, {"a": {"b": {"accuracy_percent": "much"}}}, {"a": {"b": {}}}, "\ud800"]
ODD += [{"match_distance": {"2": {}, "x": {"accuracy_percent": 1e308}}}, {"name": 3, "params": 4}]
ODD += [{"ceiling": {"high_percent": "much"}}, {"ceiling": 3}]


def change(folder: Path, **facts: Any) -> None:
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        for arm, top1 in (("default", 50.0), ("dyck", 52.0)):
            samples = 100 if arm == "dyck" else None
            write_training(tmp_path, arm=arm, seed=seed, top1=top1 + seed, warmup_samples=samples)
    write_warmup(tmp_path, arm="dyck")
    return tmp_path


@pytest.mark.parametrize("value", [*ODD, KeyError], ids=lambda value: repr(value)[:20])
def test_no_field_of_a_record_can_end_the_report(runs: Path, value: Any) -> None:
    """For every field a training and a warm-up in which it is odd, or missing; six are sound."""
    train, warm = runs / "toy-dyck-100-1", runs / "warm-dyck-0"
    for field in FIELDS:
        for source in (train, warm):
            plain = json.loads((source / "record.json").read_text())
            plain["seed"], plain["pair"] = 100 + FIELDS.index(field), field
            seed = plain["seed"]
            plain[field] = value
            if value is KeyError:
                del plain[field]
            config = json.loads((source / "config.yaml").read_text()) | {"seed": seed}
            write_run(runs, f"odd-{field}-{source.name}", plain, config=json.dumps(config))
            if (source / "metrics.jsonl").exists():
                shutil.copy(source / "metrics.jsonl", runs / f"odd-{field}-{source.name}")
    paths = run_report([runs], runs / "out")
    page = paths.page.read_text()
    for run in (run for run in read_runs(runs) if run.damage):
        field = run.path.name.split("-")[1]
        assert field in run.damage
        assert f"{run.path.name}/record.json" in page
    done = [line for one in paths.analyses for line in one.runs if line.state == "finished"]
    assert len([line for line in done if line.folder.startswith("toy")]) == 6
    json.loads(paths.json.read_text())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "not valid JSON"),
        ('{"stage": "train"', "not valid JSON"),
        ("[1, 2]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("{}", "stage is missing"),
        ('{"hello": "world"}', "stage is missing"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff\xfe", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_record_is_named(
    runs: Path, content: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitwarm.cli import main

    (runs / "toy-dyck-100-1" / "record.json").write_bytes(content.encode("latin-1"))
    assert main(["report", str(runs), "--out", str(runs / "out")]) == 0
    told = capsys.readouterr().out
    assert "toy-dyck-100-1" in told
    assert why in told
    assert len(read_records(runs)) == 6


def test_the_reason_says_field_value_and_what_is_allowed(runs: Path) -> None:
    folder = runs / "toy-dyck-100-1"
    for facts, why in (
        ({"top1_percent": "high"}, "top1_percent is 'high'; it must be a number or null."),
        ({"top1_percent": 101}, "top1_percent is 101; it must lie between 0 and 100."),
        ({"stage": "eval"}, "stage is 'eval'; it must be one of 'warmup', 'train'."),
        ({"extra": None}, "extra is None; it must be an object."),
        ({"val_loss": float("nan")}, "val_loss is nan; it must be a number or null."),
        ({"format": FORMAT + 1}, f"format is {FORMAT + 1}; this version reads format {FORMAT}."),
    ):
        text = (folder / "record.json").read_text()
        change(folder, **facts)
        (damaged,) = [run for run in read_runs(runs) if run.damage]
        assert damaged.damage.startswith(why)
        sections = gather([runs])
        assert why in sections[-1].problems[0]
        assert [t.state for t in sections[0].trials].count("unreadable") == 1
        (folder / "record.json").write_text(text)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*FIELDS, "format", "x"]), inner, max_size=6)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_record_or_is_refused_in_words(tmp_path: Path, content: Any) -> None:
    whole = {"stage": "train", "name": "a", "seed": 0, "config_hash": "0", "code_version": "0"}
    plain = whole | content if isinstance(content, dict) else content
    if isinstance(plain, dict):
        with contextlib.suppress(RunError):
            assert isinstance(to_record(plain), Record)


def test_damage_beside_the_record_is_named_too(runs: Path) -> None:
    (runs / "toy-dyck-100-1" / "config.yaml").write_text("a: [1")
    (runs / "toy-dyck-100-2" / "config.yaml").write_text('{"train": 3}')
    (runs / "toy-default-100-2" / "config.yaml").unlink()
    (runs / "toy-default-100-1" / "failure.json").write_text("[")
    lines = ["3", '{"kind": "eval"}', '{"kind": "eval", "step": "x"}', "[{}]", '{"step": 1}']
    lines += ['{"kind": "eval", "step": 4, "top1_percent": "high"}', '{"kind": "eval", "step": 7}']
    (runs / "toy-default-100-0" / "metrics.jsonl").write_text("\n".join(lines))
    assert [line["step"] for line in read_metrics(runs / "toy-default-100-0")] == [4, 7]
    foreign = runs / "sweeps" / "other"
    foreign.mkdir(parents=True)
    (foreign / "manifest.json").write_text('{"rows": [{"kind": "train"}]}')
    paths = run_report([runs], runs / "out")
    (left_out,) = [one for one in paths.analyses if one.title == "Left out"]
    for name in ("dyck-100-1", "dyck-100-2", "default-100-2", "other/manifest.json"):
        assert any(name in text for text in left_out.problems)
    assert len(left_out.problems) == 4
    assert any("line 1, column 4" in text for text in left_out.problems)  # of `a: [1`
    assert not any(" at 0x" in text for text in left_out.problems)
    done = [line for one in paths.analyses for line in one.runs if line.state == "finished"]
    assert len(done) == 3


def test_a_sweeps_damaged_run_is_missing_from_its_cell(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms={"default": lambda n: 50.0, "dyck": lambda n: 55.0}, sizes=(100,))
    change(tmp_path / "toy-dyck-100-1", top1_percent="high")
    sections = gather([tmp_path])
    cell = analyse(sections[0]).cell("dyck", 100)
    assert cell is not None
    assert [point.seed for point in cell.points] == [0, 2]
    assert cell.missing[0].startswith("seed 1: unreadable (top1_percent is 'high'")
    shutil.rmtree(tmp_path / "toy-dyck-100-1")
    (tmp_path / "sweeps" / "toy" / "rows").mkdir()
    write_manifest(tmp_path, [{"kind": "train", "arm": "a", "arm_kind": "cold", "seed": "x"}])
    assert "is not a sweep manifest" in gather([tmp_path])[-1].problems[0]


ROW = ["arm", "arm_kind", "seed", "fraction", "n_images", "folder", "state", "reason"]
ROW += ["setting", "settings", "arms", "kind"]


def _report_on_odd_manifests(tmp_path: Path, value: Any, fields: list[str]) -> None:
    write_sweep(tmp_path, arms={"default": lambda n: 50.0, "dyck": lambda n: 51.0}, sizes=(100,))
    path = tmp_path / "sweeps" / "toy" / "manifest.json"
    plain = json.loads(path.read_text())
    for field in fields:
        for place in (0, 2):  # a warm-up, a training
            odd = json.loads(json.dumps(plain))
            odd["rows"][place][field] = value
            odd["match" if place else "name"] = value
            path.write_text(json.dumps(odd))
            run_report([tmp_path], tmp_path / "out")


@pytest.mark.parametrize("value", ["high", None], ids=repr)
def test_no_row_of_a_manifest_can_end_the_report(tmp_path: Path, value: Any) -> None:
    _report_on_odd_manifests(tmp_path, value, ROW)


@pytest.mark.slow
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_no_odd_value_in_a_manifest_can_end_the_report(tmp_path: Path, value: Any) -> None:
    _report_on_odd_manifests(tmp_path, value, ROW)


def test_nothing_but_damage_is_refused_with_its_reasons(tmp_path: Path) -> None:
    write_run(tmp_path, "a", {"stage": 1}, config="3")
    with pytest.raises(ReportError, match=r"nothing to report on: .*stage is 1"):
        run_report([tmp_path], tmp_path / "out")


@pytest.mark.slow
def test_two_hundred_unrelated_runs_take_seconds_and_draw_nothing(tmp_path: Path) -> None:
    """Of the processor's time, which a busy machine does not lengthen as it does the clock's."""
    for i in range(200):
        folder = write_training(tmp_path / "runs", seed=i, top1=40 + i / 10, name=f"run-{i}")
        plain = json.loads((folder / "config.yaml").read_text())
        plain["train"]["lr"] = 1e-4 * (i + 1)
        (folder / "config.yaml").write_text(json.dumps(plain))
    began = time.process_time()
    paths = run_report([tmp_path / "runs"], tmp_path / "out")
    assert time.process_time() - began < 20
    assert paths.figures == []
    assert sum(len(one.runs) for one in paths.analyses) == 200
    assert paths.page.stat().st_size < 500_000


@pytest.mark.parametrize(
    "missing", ["status", "model", "steps", "top1_percent", "n_train_images", "n_val_images"]
)
def test_a_training_without_what_is_compared_is_left_out(runs: Path, missing: str) -> None:
    path = runs / "toy-dyck-100-1" / "record.json"
    plain = json.loads(path.read_text())
    del plain[missing]
    path.write_text(json.dumps(plain))
    paths = run_report([runs], runs / "out")
    assert f"toy-dyck-100-1/record.json: the field {missing} is missing" in paths.page.read_text()
    assert "do not compare" not in paths.page.read_text()


def test_a_label_that_would_break_a_table_or_colour_a_terminal_is_no_label(runs: Path) -> None:
    change(runs / "toy-dyck-100-1", arm="a\nb\x1b[31mred")
    (found,) = [run for run in read_runs(runs) if run.damage]
    assert found.damage == "arm is 'a\\nb\\x1b[31mred'; it must be text on one line or null."


@pytest.mark.parametrize("state", ["null", "[]", '{"state": [1], "folder": 5}', "{", "\udcff"])
def test_the_damaged_state_of_one_row_costs_no_other(tmp_path: Path, state: str) -> None:
    home = write_sweep(tmp_path, arms={"default": lambda n: 50.0, "dyck": lambda n: 53.0})
    manifest = json.loads((home / "manifest.json").read_text())
    for number, row in enumerate(manifest["rows"]):
        row["key"] = f"k{number}"
    (home / "manifest.json").write_text(json.dumps(manifest))
    (home / "rows").mkdir()
    (home / "rows" / "k3.json").write_text(state, errors="surrogateescape")
    paths = run_report([tmp_path], tmp_path / "out")
    done = [run for one in paths.analyses for run in one.runs if run.state == "finished"]
    assert len(done) == 18
    assert "rows/k3.json" in paths.page.read_text()

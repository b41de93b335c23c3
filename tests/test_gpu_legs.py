"""The legs of a visit to a GPU, rehearsed on a CPU: cut at each of them, and gone on with."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_images import write_tiny_shards

HOME = Path(__file__).resolve().parent.parent
SCRIPTS = HOME / "scripts"
MAX_FILES, MAX_BYTES = 8, 16 << 20


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import pack_cifar100
    finally:
        sys.path.remove(str(SCRIPTS))
    home = tmp_path_factory.mktemp("cifar")
    write_tiny_shards(home / "shards", n_train=80, n_val=16, ending="jpg")
    assert pack_cifar100.main([str(home / "shards"), str(home), "--fraction", "0.5"]) == 0
    return [str(home / f"part{n}.tgz") for n in (1, 2, 3)]


def visit(out: Path, parts: list[str], *words: str, stop_in: str = "") -> tuple[int, str]:
    """One execution; `stop_in` names the leg in which it is ended."""
    command = [sys.executable, str(SCRIPTS / "gpu_legs.py"), "--rehearse", "--minutes", "12",
               "--out", str(out), *words, *(["--data", *parts] if parts else [])]  # fmt: skip
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(HOME)},
    ) as child:  # fmt: skip
        log = out.with_name(out.name + "-work") / "logs" / f"{stop_in}.log"
        while stop_in and not log.exists() and child.poll() is None:
            time.sleep(0.05)
        if stop_in:
            time.sleep(0.3)  # it still imports torch, or has just begun
            child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=720)
    files = list(out.iterdir())
    assert len(files) <= MAX_FILES
    assert all(path.stat().st_size <= MAX_BYTES for path in files)
    return child.returncode, said


def lines_of(out: Path) -> list[dict[str, Any]]:
    path = out / "legs.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_visit_cut_in_each_leg_is_gone_on_with(tmp_path: Path, parts: list[str]) -> None:
    from gpu_legs import LEGS

    state: list[str] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for leg in LEGS:
        out = tmp_path / f"cut-{leg}"
        code, said = visit(out, parts, *state, stop_in=leg)
        assert code == 143, said
        done = [line["leg"] for line in lines_of(out) if line.get("state") == "finished"]
        assert done == list(LEGS)[: list(LEGS).index(leg)]
        state = ["--state", str(out)]
    out = tmp_path / "last"
    code, said = visit(out, parts, *state)
    assert code == 0, f"{said} {lines_of(out)}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor's time, which a busy machine does not lengthen as it does the clock's.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 300
    lines = lines_of(out)
    finished = [line["leg"] for line in lines if line.get("state") == "finished"]
    assert finished == list(LEGS)  # each once: what was finished was not run again
    arms = {(line["percent"], line["arm"]) for line in lines if "arm" in line}
    assert arms == {
        (p, a) for p in ("10", "100") for a in ("default", "dyck", "mimetic", "shuffled")
    }
    assert {line["bench"] for line in lines if "bench" in line} == {"warmup", "train", "augment"}

    import gpu_publish

    assert gpu_publish.main([str(out), "--trunk", "--home", str(tmp_path / "trunks")]) == 0


@pytest.mark.slow
def test_a_leg_that_fails_does_not_end_the_next(tmp_path: Path) -> None:
    code, said = visit(tmp_path / "out", [], "--legs", "row,trunk")
    assert code == 1, said
    states = {x["leg"]: x["state"] for x in lines_of(tmp_path / "out") if "state" in x}
    assert states == {"row": "failed", "trunk": "finished"}
    (failed,) = [x for x in lines_of(tmp_path / "out") if x.get("state") == "failed"]
    assert "--data holds no part 1" in failed["log"]


def test_a_warmup_cut_short_leaves_a_trunk_and_goes_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_leg
    import gpu_publish
    from gpu_legs import Mirror, read_lines, unpack

    from vitwarm.errors import TrunkError
    from vitwarm.records import read_records
    from vitwarm.trunk import load_trunk

    monkeypatch.setattr(gpu_leg, "TINY_WARMUP", [*gpu_leg.TINY_WARMUP, "warmup.budget=500steps"])
    monkeypatch.setattr("gpu_legs.PART_BYTES", 100_000)  # several parts
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    out.mkdir()
    assert gpu_leg.trunk(gpu_leg.Task("trunk", first, 11.0, True)) == 75
    Mirror(first, out).pack()
    assert len(list(out.glob("checkpoint-*.part"))) > 1
    assert not (out / "vit_tiny_dyck64.safetensors").exists()  # no room beside its checkpoint
    cut = load_trunk(first / "trunks" / "vit_tiny_dyck64.safetensors")
    assert cut.metadata["status"] == "unfinished"
    with pytest.raises(TrunkError, match="not finished"):
        gpu_publish.publish_trunk(out, tmp_path / "home")

    second.mkdir()
    unpack(out, second)
    assert gpu_leg.trunk(gpu_leg.Task("trunk", second, 300.0, True)) == 0
    Mirror(second, out).pack()
    assert not list(out.glob("checkpoint-*.part"))
    (record,) = read_records(second / "runs")
    assert record.steps == 500
    resumed, last = [x for x in read_lines(second) if "trunk" in x]
    assert 0 < resumed["steps"] < 500  # type: ignore[operator]
    assert last["status"] == "finished"

    # Behind the published name stands this trunk, in bf16, and what made it.
    path = gpu_publish.publish_trunk(out, tmp_path / "home")
    monkeypatch.setattr("vitwarm.trunk.file._trunk_homes", lambda: [tmp_path / "home"])
    named = load_trunk("vit_tiny_dyck64")
    assert named.path == path
    assert {t.dtype for t in named.tensors.values()} == {torch.bfloat16}
    assert named.facts["steps"] == 500
    assert named.facts["verdict"] == record.verdict


def test_a_checkpoint_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpu_legs import Mirror

    work, out = tmp_path / "work", tmp_path / "out"
    made = work / "runs" / "vit_tiny_shuffled64-0" / "checkpoints" / "step0000000001.pt"
    made.parent.mkdir(parents=True)
    made.write_bytes(os.urandom(2000))
    (work / "trunks").mkdir()
    (work / "trunks" / "vit_tiny_dyck64.safetensors").write_bytes(b"x" * 1000)
    out.mkdir()
    monkeypatch.setattr("gpu_legs.TOTAL_BYTES", 2500)
    Mirror(work, out).pack()
    assert sorted(p.name for p in out.iterdir()) == ["records.tgz", "vit_tiny_dyck64.safetensors"]
    assert f"{made} is left out" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_left_out(tmp_path: Path) -> None:
    from gpu_legs import Mirror, unpack

    work, out = tmp_path / "work", tmp_path / "out"
    made = work / "runs" / "vit_tiny_dyck64-0" / "checkpoints" / "step0000000001.pt"
    made.parent.mkdir(parents=True)
    made.write_bytes(b"x" * 1000)
    out.mkdir()
    Mirror(work, out).pack()
    for name, there in (("whole", True), ("damaged", False)):
        (tmp_path / name).mkdir()
        unpack(out, tmp_path / name)
        assert (tmp_path / name / made.relative_to(work)).exists() == there
        for part in out.glob("checkpoint-*.part"):
            part.write_bytes(part.read_bytes()[:-1])

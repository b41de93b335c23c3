"""Run folders: whole files or none, one owner, and records that read back as they were."""

import dataclasses
import json
import math
import os
import platform
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vitwarm.config import WarmupRun, config_hash, load_config
from vitwarm.errors import RunError
from vitwarm.files import write_text
from vitwarm.records import (
    FORMAT,
    Record,
    lock_holder,
    open_run,
    read_metrics,
    read_records,
    read_runs,
    to_record,
)
from vitwarm.records.folder import name_processor

CONFIG = load_config(WarmupRun)
DIGEST = config_hash(CONFIG)
RECORD = Record(
    stage="warmup", name="a", seed=0, config_hash=DIGEST, code_version="0", model="vit", steps=9
)  # fmt: skip


def test_a_run_folder_is_named_by_its_config_and_finished_by_its_record(tmp_path: Path) -> None:
    with open_run(tmp_path, "a", CONFIG, DIGEST) as run:
        assert run.path.name == f"a-{DIGEST[:8]}"
        assert run.record is None
        assert [found.record for found in read_runs(tmp_path)] == [None]
        run.write_failure(ValueError("no"))
        assert read_runs(tmp_path)[0].failure is not None
        run.write_record(RECORD)
    assert read_records(tmp_path) == [RECORD]
    assert read_runs(tmp_path)[0].failure is None
    assert (run.path / "config.yaml").exists()


def test_fresh_throws_the_old_execution_away(tmp_path: Path) -> None:
    with open_run(tmp_path, "a", CONFIG, DIGEST) as run:
        run.write_record(RECORD)
    with open_run(tmp_path, "a", CONFIG, DIGEST, fresh=True) as run:
        assert run.record is None


def test_another_process_may_not_write_while_this_one_does(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, "a", CONFIG, DIGEST),
        pytest.raises(RunError, match=f"process {os.getpid()}"),
        open_run(tmp_path, "a", CONFIG, DIGEST),
    ):
        pass


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal\n"
        "from vitwarm.config import WarmupRun, config_hash, load_config\n"
        "from vitwarm.records import open_run\n"
        "config = load_config(WarmupRun)\n"
        f"with open_run({str(tmp_path)!r}, 'a', config, config_hash(config)):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    with open_run(tmp_path, "a", CONFIG, DIGEST) as run:
        assert run.path.exists()


def test_who_looks_at_a_lock_sees_its_holder_and_keeps_nobody_out(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl", exc_type=ImportError)
    with open_run(tmp_path, "a", CONFIG, DIGEST) as run:
        assert lock_holder(run.path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert lock_holder(run.path) is None
    assert lock_holder(tmp_path / "nothing") is None
    with open(run.path / ".lock") as looking:  # a look that lasts while a run begins
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.3, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with open_run(tmp_path, "a", CONFIG, DIGEST):
            pass


def test_a_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path, "a", CONFIG, DIGEST) as run:
        pass
    env = json.loads((run.path / "env.json").read_text())
    (run.path / "env.json").write_text(json.dumps({**env, "config_hash": "f" * 64}))
    with (
        pytest.raises(RunError, match="belongs to another config"),
        open_run(tmp_path, "a", CONFIG, DIGEST),
    ):
        pass
    (tmp_path / f"b-{DIGEST[:8]}").mkdir()
    (tmp_path / f"b-{DIGEST[:8]}" / "thesis.tex").write_text("mine")
    with (
        pytest.raises(RunError, match="holds files of something else"),
        open_run(tmp_path, "b", CONFIG, DIGEST),
    ):
        pass


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"run\.root is"),
        open_run(tmp_path / "file", "a", CONFIG, DIGEST),
    ):
        pass


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_text(path, "old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_metrics_survive_a_kill_and_a_resume(tmp_path: Path) -> None:
    with open_run(tmp_path, "a", CONFIG, DIGEST) as run:
        run.append_metrics(kind="train", step=1, loss=2.0)
        run.append_metrics(kind="train", step=2, loss=float("nan"))
        run.append_metrics(kind="eval", step=2, top1_percent=1.0)
        run.append_metrics(kind="train", step=2, loss=1.5)  # the resumed run does step 2 again
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "train", "st')  # killed while writing
    lines = read_metrics(run.path)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1),
        ("eval", 2),
        ("train", 2),
    ]
    assert lines[2]["loss"] == 1.5


def test_fields_of_a_later_version_are_kept_apart() -> None:
    plain = {**RECORD.__dict__, "flops": 3, "extra": {"a": 1}}
    assert to_record(plain).extra == {"a": 1, "flops": 3}


def test_there_is_a_sentence_for_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no folder"):
        read_runs(tmp_path / "nowhere")


def test_every_own_record_reads_back(tmp_path: Path) -> None:
    """What a stage may write, at its ends: waits longer than a tiny run, losses that were nan."""
    odd = dataclasses.replace(
        RECORD,
        seed=2**63 - 1,
        data_wait_percent=250.0,
        top1_percent=100.0,
        val_loss=math.nan,
        fraction=1.0,
    )
    with open_run(tmp_path, "a", CONFIG, DIGEST) as run:
        run.write_record(odd)
        assert run.record == dataclasses.replace(odd, val_loss=None)
        assert json.loads((run.path / "record.json").read_text())["format"] == FORMAT
        (run.path / "record.json").write_text('{"stage": "warmup"}')
        with pytest.raises(RunError, match=r"record\.json: the field name is missing"):
            _ = run.record


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\n"
            "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n",
            "AMD EPYC, family 26, model 2",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", platform.processor() or platform.machine()),
        (None, platform.processor() or platform.machine()),
    ],
)
def test_a_run_names_its_cpu(tmp_path: Path, text: str | None, name: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert name_processor(cpuinfo) == name

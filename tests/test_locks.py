"""One process writes in a folder, whatever the disk's own locks are worth, and none waits for ever.

Real processes play the machines that share a disk: each is told its own machine's name, and that
`flock` is missing, refuses, or says yes to everybody.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from vitwarm.errors import RunError
from vitwarm.records import lock, lock_folder, lock_holder, read_metrics
from vitwarm.records.lock import CLAIM, HEIR, LOCK, LOCK_FILES, Claim

#: What `flock` may be: an error by name, each machine's own, or without a module.
DISKS = ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "local", "no fcntl"]

#: argv: folder, machine, flock, seconds after which a claim is nobody's, what to do inside.
MACHINE = """
import errno, os, sys, time
from pathlib import Path
disk, machine, silent = sys.argv[2], sys.argv[3], float(sys.argv[4])
if disk == "no fcntl":
    sys.modules["fcntl"] = None
else:
    import fcntl
    def flock(file, how):
        if disk != "local":
            raise OSError(getattr(errno, disk), os.strerror(getattr(errno, disk)))
    fcntl.flock = flock
from vitwarm.errors import RunError
from vitwarm.records import lock, lock_folder
lock._machine = lambda: machine
lock.BEAT_SECONDS, lock.LOOK_SECONDS, lock.SILENT_SECONDS = 0.05, 0.05, silent
folder = Path(sys.argv[1])
"""

HOLD = """
try:
    with lock_folder(folder):
        print("mine", flush=True)
        sys.stdin.readline()
except RunError as error:
    print(error, flush=True)
print("left", flush=True)
"""

#: Takes the folder again and again; two at a time in the block would meet at the file.
TAKE_TURNS = """
n_mine, end = 0, time.monotonic() + 60
while n_mine < 8 and time.monotonic() < end:
    try:
        with lock_folder(folder):
            open(folder / "inside", "x").close()
            time.sleep(0.002)
            os.unlink(folder / "inside")
            n_mine += 1
    except RunError as error:
        assert "is being worked on by" in str(error), error
print(n_mine)
"""


def start(
    folder: Path, machine: str, code: str, *words: str, disk: str = "local", silent: float = 60
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MACHINE + code, str(folder), disk, machine, str(silent), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def held(folder: Path, machine: str, disk: str = "local") -> Iterator[subprocess.Popen[str]]:
    """A process of that machine that holds the folder; it leaves at the end, if it still lives."""
    with start(folder, machine, HOLD, disk=disk) as process:
        assert line(process) == "mine"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)  # then its stdin is closed, and it leaves


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a disk whose locks hold on one machine alone; this process is on one, `here`."""
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "_machine", lambda: "here")
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 60.0)
    return tmp_path


@pytest.mark.parametrize("machine", ["here", "there"])
@pytest.mark.parametrize("disk", DISKS)
def test_a_folder_that_is_held_is_refused_on_every_disk(
    disk: str, machine: str, shared: Path
) -> None:
    with held(shared, machine, disk) as other:
        assert lock_holder(shared) == f"process {other.pid} on {os.uname().nodename}"
        began = time.monotonic()
        with (
            pytest.raises(RunError, match=f"worked on by process {other.pid}"),
            lock_folder(shared),
        ):
            pass
        assert time.monotonic() - began < 30
    assert lock_holder(shared) is None
    with lock_folder(shared):
        pass
    assert {path.name for path in shared.iterdir()} == {LOCK}


@pytest.mark.parametrize("disk", ["ENOLCK", "local"])
def test_never_two_at_a_time(disk: str, tmp_path: Path) -> None:
    machines = [start(tmp_path, name, TAKE_TURNS, disk=disk) for name in ("n1", "n1", "n2")]
    for machine in machines:
        out, err = machine.communicate(timeout=120)
        assert (machine.returncode, out) == (0, "8\n"), err


def test_on_its_own_machine_a_killed_process_is_no_holder(shared: Path) -> None:
    with held(shared, "here") as other:
        other.kill()  # as dead as can be, and still in the process table
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert lock_holder(shared) is None
        with lock_folder(shared):
            assert lock_holder(shared) == f"process {os.getpid()} on {os.uname().nodename}"


def test_another_machines_claim_is_taken_over_in_words_once_it_is_silent(
    shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)
    with held(shared, "there") as other:
        other.kill()
        other.wait()
        began = time.monotonic()
        with lock_folder(shared):
            assert time.monotonic() - began >= 0.4
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"is held by process {other.pid} on {os.uname().nodename} or was left by it" in said[0]
    assert "which has ended; going on in its place" in said[1]
    assert {path.name for path in shared.iterdir()} == {LOCK}


def test_of_two_heirs_one_goes_on(tmp_path: Path) -> None:
    with held(tmp_path, "n1") as other:
        other.kill()
        other.wait()
        heirs = [start(tmp_path, name, HOLD, silent=3) for name in ("n2", "n3")]
        first = sorted(line(heir) for heir in heirs)
        assert first[1] == "mine"
        assert "is being worked on by" in first[0]
        for heir in heirs:
            heir.communicate("leave\n", timeout=30)


def test_who_stood_still_for_too_long_ends_at_once(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)
    with held(shared, "there") as other:
        other.send_signal(signal.SIGSTOP)
        with lock_folder(shared):
            other.send_signal(signal.SIGCONT)
            assert other.wait(timeout=30) == 1  # before its stdin is closed, at which it leaves
            out, err = other.communicate(timeout=30)
            assert out == ""
            assert f"taken over by process {os.getpid()}" in err
            assert "this process stood still. It ends at once" in err
            assert lock_holder(shared) == f"process {os.getpid()} on {os.uname().nodename}"


def test_what_a_kill_leaves_half_done_keeps_nobody_out(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim without its text, and an heir that was killed before it took the claim's place."""
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.2)
    (shared / CLAIM).touch()
    (shared / HEIR).write_text(json.dumps(asdict(Claim(1, "there", "there", "1", "a"))))
    with lock_folder(shared):
        pass
    assert {path.name for path in shared.iterdir()} == {LOCK}


def test_a_later_process_of_the_same_number_is_another(shared: Path) -> None:
    old = Claim(os.getpid(), "this", "here", "12", "a")
    (shared / CLAIM).write_text(json.dumps(asdict(old)))
    assert lock_holder(shared) is None
    with lock_folder(shared):
        pass


def test_a_status_is_told_from_any_machine(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(shared, "there") as other:
        time.sleep(0.2)
        assert lock_holder(shared) == f"process {other.pid} on {os.uname().nodename}"
        other.kill()
        other.wait()
        monkeypatch.setattr(lock, "SILENT_SECONDS", 0.2)
        time.sleep(0.3)
        assert lock_holder(shared) is None


def test_what_guards_a_folder_outlives_a_fresh_start() -> None:
    assert set(LOCK_FILES) == {LOCK, CLAIM, HEIR}


RUN = """
import vitwarm.cli, vitwarm.warmup  # the slow part, before both begin
(folder / f"ready-{machine}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
sys.exit(vitwarm.cli.main(sys.argv[5:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["local", "EOPNOTSUPP"])
def test_two_nodes_that_start_the_same_run_write_one(disk: str, tmp_path: Path) -> None:
    words = (
        "warmup", "warmup.budget=200steps", "warmup.batch_size=8", "warmup.eval_sequences=64",
        "warmup.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 2}",
        "rule.params.n_kinds=8", "run.device=cpu", "run.log_every_steps=1", "run.threads=1",
        f"run.root={tmp_path}/runs",
    )  # fmt: skip
    nodes = [start(tmp_path, name, RUN, *words, disk=disk) for name in ("n1", "n2")]
    ended = [(*node.communicate(timeout=300), node.returncode) for node in nodes]
    assert sorted(code for _, _, code in ended) == [0, 2], ended
    (refused,) = (out + err for out, err, code in ended if code == 2)
    assert "is being worked on by process" in refused
    (run,) = (tmp_path / "runs").iterdir()
    steps = [one["step"] for one in read_metrics(run) if one["kind"] == "train"]
    assert steps == list(range(1, 201))
    assert not (run / "failure.json").exists()
    assert (run / "record.json").is_file()

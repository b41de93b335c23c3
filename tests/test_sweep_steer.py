"""A sweep's status is the truth at every moment, and what steers it does what it says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_stages import FAKE
from test_sweep_execute import CONTROL, config_of, sweep_of
from tiny_images import write_tiny_shards

from vitwarm.cli import main
from vitwarm.errors import ConfigError, RunError
from vitwarm.records import lock_folder, lock_holder
from vitwarm.sweep import run_sweep
from vitwarm.sweep.plan import make_plan
from vitwarm.sweep.rows import Plan, note_sweep, save_plan, write_state
from vitwarm.sweep.status import RowStatus, describe_status, read_status, sum_up
from vitwarm.sweep.steer import cancel, watch

FAILS = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  fails: {train: {train.lr: 1e-4}}
seeds: [0]
run: {device: cpu}
slots: 1
"""


def rows_of(plan: Plan | Path) -> dict[str, RowStatus]:
    """The rows by kind and arm."""
    home = plan.home if isinstance(plan, Plan) else plan
    return {row.what.split(" · ")[0]: row for row in read_status(home).rows}


def test_what_is_told_of_an_earlier_attempt_is_not_the_state(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, FAILS)
    plan = make_plan(config, recipe=path, stages=FAKE)
    with pytest.raises(ConfigError, match="this sweep was not started yet"):
        read_status(plan.home)
    run_sweep(config, recipe=path, stages=FAKE, say=lambda text: None)
    rows = rows_of(plan)
    assert (rows["default"].state, rows["default"].note) == ("finished", "top-1 70.00 %")
    assert rows["fails"].state == "failed"
    assert "stopped being a finite number at step 7" in rows["fails"].note
    assert watch(plan.home) == 1  # it has ended, and not every row has its result
    key, folder = rows["fails"].key, Path(str(rows["fails"].folder))

    with lock_folder(plan.home):  # the sweep is run again
        assert rows_of(plan)["fails"].state == "failed"
        note_sweep(plan.home, plan.rows)
        assert rows_of(plan)["fails"].state == "waiting"
        write_state(plan, key, "running", folder=folder)
        row = rows_of(plan)["fails"]
        assert (row.state, row.node, row.step) == ("running", socket.gethostname(), None)
        write_state(plan, key, "failed", reason="again", folder=folder)
        assert (rows_of(plan)["fails"].state, rows_of(plan)["fails"].note) == ("failed", "again")
        write_state(plan, key, "running", folder=folder)
    assert rows_of(plan)["fails"].state == "stopped"  # and its process is dead
    with lock_folder(folder):  # but the run's own process was not
        assert rows_of(plan)["fails"].state == "running"
    (folder / "failure.json").write_text('{"message": "loss nan"}')
    assert (rows_of(plan)["fails"].state, rows_of(plan)["fails"].note) == ("failed", "loss nan")
    (folder / "record.json").write_text("{")
    assert rows_of(plan)["fails"].state == "failed"
    assert "not valid JSON" in rows_of(plan)["fails"].note


def test_a_runs_progress_is_what_it_wrote_last(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, FAILS)
    run_sweep(config, recipe=path, stages=FAKE, say=lambda text: None)
    plan = make_plan(config, recipe=path, stages=FAKE)
    row = rows_of(plan)["fails"]
    folder = Path(str(row.folder))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step0000000040.pt").touch()
    lines = [{"kind": "train", "step": step, "step_seconds": 0.5} for step in (100, 50, 60)]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(f'{text}\n{{"kind": "eval", "step": 70}}\n{{"kind": "tr')
    os.utime(folder / "metrics.jsonl", (time.time() - 10, time.time() - 10))
    assert (row.steps, rows_of(plan)["fails"].step) == (200, 40)
    with lock_folder(folder):
        now = rows_of(plan)["fails"]
        # The step 100 was logged before the run was resumed; the state file is newer than all.
        assert (now.step, now.seconds_left) == (40, None)
        os.utime(folder / "metrics.jsonl", (time.time() + 1, time.time() + 1))
        now = rows_of(plan)["fails"]
        assert now.step == 60
        assert now.seconds_left == pytest.approx(140 * 0.5 + 1, abs=1)
        assert "step 60 of 200 · 71 s left" in "\n".join(describe_status(read_status(plan.home)))


def test_only_what_failed_is_run_again(tmp_path: Path) -> None:
    first, _ = sweep_of(tmp_path, FAILS)
    config, path = config_of(tmp_path, FAILS)
    (finished,) = (one for one in first.done if one.state == "finished")
    (Path(str(finished.folder)) / "record.json").unlink()
    plan = make_plan(config, recipe=path, stages=FAKE)
    assert rows_of(plan)["default"].state == "not started"
    again = run_sweep(config, recipe=path, stages=FAKE, say=lambda _: None, only_failed=True)
    assert [one.row.arms[0] for one in again.done] == ["fails"]
    assert rows_of(plan)["default"].state == "not started"
    write_state(plan, again.done[0].row.key, "unfinished", folder=again.done[0].folder)
    none = run_sweep(config, recipe=path, stages=FAKE, say=lambda _: None, only_failed=True)
    assert none.done == []
    write_state(plan, again.done[0].row.key, "failed", folder=again.done[0].folder)
    config, path = config_of(tmp_path, FAILS, "set.train.epochs=9")
    with pytest.raises(ConfigError, match=r"1 row failed, and this recipe.* has none of them"):
        run_sweep(config, recipe=path, stages=FAKE, say=lambda _: None, only_failed=True)


def test_only_the_sweeps_own_process_is_signalled(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, FAILS)
    plan = make_plan(config, recipe=path, stages=FAKE)
    said: list[str] = []
    cancel(plan.home, said.append)
    assert said == ["no run of this sweep is waiting or running"]
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with lock_folder(plan.home):
            note_sweep(plan.home, plan.rows)
            told = json.loads((plan.home / "sweep.json").read_text())
            for wrong, why in (
                ({"pid": other.pid}, "does not hold the sweep's lock"),
                ({"pid": other.pid, "host": "elsewhere"}, "on elsewhere. Give the same command"),
            ):
                (plan.home / "sweep.json").write_text(json.dumps({**told, **wrong}))
                with pytest.raises(RunError, match=why):
                    cancel(plan.home)
            with (
                pytest.raises(RunError, match="is being worked on by process"),
                lock_folder(plan.home),
            ):
                pass
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


#: A start of a job that came before all that its run told.
STARTED_AT = "2020-01-01T00:00:00"


def put_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Puts commands on the PATH, before all others."""
    folder.mkdir(exist_ok=True)
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    if str(folder) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_queue_is_read_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins print what SLURM's commands do; the slow test below has the real ones."""
    bin_ = tmp_path / "bin"
    put_commands(
        bin_, monkeypatch,
        sbatch=f"echo >> {tmp_path}/n; echo $((10 + $(wc -l < {tmp_path}/n)))",
        scancel=f'echo "$@" > {tmp_path}/cancelled',
        squeue=f"cat {tmp_path}/queue",
    )  # fmt: skip
    config, path = config_of(tmp_path, CONTROL, "executor=slurm")
    said: list[str] = []
    result = run_sweep(config, recipe=path, stages=FAKE, say=said.append)
    assert (result.n_left, result.done) == (3, [])
    assert said == [f"3 of 3 rows to run; scripts in {result.folder / 'slurm'}", "\n".join(
        f"1 job as {number}: {name}" for number, name in
        ((11, "warmups"), (12, "alone"), (13, "trainings")))]  # fmt: skip
    plan = make_plan(config, recipe=path, stages=FAKE)

    (tmp_path / "queue").write_text(
        f"11|0|RUNNING|n[1-2]|None|{STARTED_AT}\n12|0|PENDING||Priority|N/A\n"
        "13|0|PENDING||Dependency|N/A\n9|0|PENDING||x|N/A\n"
    )
    rows = rows_of(plan)
    assert {name: (row.state, row.job, row.node, row.note) for name, row in rows.items()} == {
        "warm-up shuffled": ("running", "11_0", "n[1-2]", "no step logged yet"),
        "default": ("waiting", "12_0", None, "Priority"),
        "shuffled": ("waiting", "13_0", None, "Dependency"),
    }
    assert read_status(plan.home).run_by == ["SLURM job 11", "SLURM job 12", "SLURM job 13"]
    said.clear()
    run_sweep(config, recipe=path, stages=FAKE, say=said.append)
    assert said == ["3 rows have their job in the queue already"]
    cancel(plan.home, said.append)
    assert (tmp_path / "cancelled").read_text() == "11 12 13\n"
    assert said[1].startswith("cancelled SLURM job 11, 12, 13: 2 waited, 1 runs and has")
    said.clear()
    (tmp_path / "queue").write_text("13|0|PENDING||Dependency|N/A\n")
    cancel(plan.home, said.append)
    assert said == ["cancelled SLURM job 13: 1 waited"]
    (tmp_path / "queue").write_text(f"11|0|RUNNING|n[1-2]|None|{STARTED_AT}\n")

    # A row that failed in this very job has failed; what it told in an earlier one is old.
    for job, state in (("11_0", "failed"), ("7_0", "running")):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job.split("_")[0])
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        write_state(plan, rows["warm-up shuffled"].key, "failed", reason="no", folder=None)
        assert rows_of(plan)["warm-up shuffled"].state == state
    # Put back into the queue, or at work again since: that it failed is of an earlier start.
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    write_state(plan, rows["warm-up shuffled"].key, "failed", reason="no", folder=None)
    (tmp_path / "queue").write_text("11|0|PENDING||BeginTime|2099-01-01T00:00:00\n")
    row = rows_of(plan)["warm-up shuffled"]
    assert (row.state, row.note) == ("waiting", "BeginTime · its last start: no")
    (tmp_path / "queue").write_text("11|0|RUNNING|n1|None|2099-01-01T00:00:00\n")
    assert rows_of(plan)["warm-up shuffled"].state == "running"

    # Only the training that waits for the queued warm-up is held back.
    (tmp_path / "queue").write_text(f"11|0|RUNNING|n1|None|{STARTED_AT}\n")
    said.clear()
    run_sweep(config, recipe=path, stages=FAKE, say=said.append)
    assert said[0] == "1 row has its job in the queue already"
    assert said[1].startswith("1 row needs one of those, and is not")
    assert said[3] == "1 job as 14: alone"
    with pytest.raises(ConfigError, match=r"'local', but 1 row .* has its job .* \(job 11\)"):
        run_sweep(config_of(tmp_path, CONTROL)[0], recipe=path, stages=FAKE)

    put_commands(bin_, monkeypatch, squeue="echo 'slurm_load_jobs error: down' >&2; exit 1")
    status = read_status(plan.home)
    assert "squeue says 'slurm_load_jobs error: down'" in status.warning
    assert status.counts == {"failed": 1, "waiting": 2}
    with pytest.raises(ConfigError, match="unknown: squeue says"):
        cancel(plan.home)
    put_commands(
        bin_, monkeypatch,
        squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
    )  # fmt: skip
    assert sum_up(read_status(plan.home)) == "3 rows: 2 not started, 1 failed"


def test_a_training_does_not_overtake_its_warmups_new_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own job waits for the warm-up's old one, which has failed."""
    put_commands(
        tmp_path / "bin", monkeypatch,
        sbatch=f'echo "$@" >> {tmp_path}/n; echo $((10 + $(wc -l < {tmp_path}/n)))',
        scancel=f'echo "$@" > {tmp_path}/cancelled', squeue=f"cat {tmp_path}/queue",
    )  # fmt: skip
    config, path = config_of(tmp_path, CONTROL, "executor=slurm")
    run_sweep(config, recipe=path, stages=FAKE, say=lambda text: None)
    plan = make_plan(config, recipe=path, stages=FAKE)
    warmup = next(row for row in plan.rows if row.kind == "warmup")
    write_state(plan, warmup.key, "failed", reason="no", folder=None)
    (tmp_path / "queue").write_text("12|0|PENDING||Priority|N/A\n13|0|PENDING||Resources|N/A\n")
    said: list[str] = []
    result = run_sweep(config, recipe=path, stages=FAKE, say=said.append, only_failed=True)
    assert said[0].startswith("2 of 3 rows to run")
    assert said[1] == "1 job as 14: warmups\n1 job as 15: trainings"
    assert said[2].startswith("cancelled SLURM job 13_0: it waited for an earlier job")
    assert "--dependency=afterany:14 " in (tmp_path / "n").read_text().splitlines()[-1]
    assert (tmp_path / "cancelled").read_text() == "13_0\n"
    assert (result.n_left, result.n_submitted) == (2, 2)

    # While they are queued nothing is submitted, and nothing is said as if it were.
    (tmp_path / "queue").write_text("14|0|PENDING||Priority|N/A\n12|0|PENDING||Priority|N/A\n")
    training = next(row for row in plan.rows if row.needs)
    write_state(plan, training.key, "failed", reason="no", folder=None)
    capsys.readouterr()
    words = ["--config", str(path), f"run.root={tmp_path / 'runs'}", "executor=slurm"]
    monkeypatch.setattr("vitwarm.sweep.choose_stages", lambda config, stages: FAKE)
    assert main(["sweep", *words, "--retry-failed"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "1 row has its job in the queue already"
    assert told[1].startswith("1 row needs one of those")
    assert told[2] == "Nothing was submitted. To look:"
    assert len(told) == 4


def test_a_process_beside_the_sweep_is_named_and_ended(tmp_path: Path) -> None:
    """Somebody runs a row by hand, or a node's daemon died and its run lives on."""
    config, path = config_of(tmp_path, FAILS)
    plan = make_plan(config, recipe=path, stages=FAKE)
    save_plan(plan)
    folder = tmp_path / "run"
    row = plan.rows[0]
    write_state(plan, row.key, "running", folder=folder)
    code = "import sys, time; from pathlib import Path; from vitwarm.records import lock_folder\n"
    code += "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        who = f"process {other.pid} on {socket.gethostname()}"
        lines = describe_status(read_status(plan.home))
        assert (who in lines[0], "nobody" in lines[0]) == (True, False)
        assert f"by {who}" in next(line for line in lines if line.startswith("running"))
        said: list[str] = []
        cancel(plan.home, said.append)
        assert said[0].startswith(f"sent SIGTERM to {who}, which works on default")
        assert other.wait(60) == -signal.SIGTERM
    with lock_folder(folder):
        (folder / ".lock").write_text("process 1 on elsewhere")
        with pytest.raises(RunError, match="process 1 on elsewhere, which is neither"):
            cancel(plan.home)


WARM = """
rule: {name: dyck, params: {n_kinds: 8}}
warmup:
  model: vit_tiny_patch16_224
  model_kwargs: {img_size: 8, patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}
  budget: 12steps
  batch_size: 32
  eval_sequences: 64
  precision: fp32
  compile: "off"
"""
BASE = """
name: toy
train:
  model: vit_tiny_patch16_224
  model_kwargs: {patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}
  img_size: 8
  steps: 10
  batch_size: 32
  evaluations: 1
  checkpoint_minutes: 0.005
  precision: fp32
  compile: "off"
"""
SWEEP = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  long: {train: {train.steps: 250000}}
  dyck: {warmup: warm.yaml, train: {handoff.allow_failed: true}}
seeds: [0]
run: {device: cpu, threads: 1, workers: 0, log_every_steps: 10}
slots: 1
"""
HOME = Path("runs") / "sweeps" / "toy"


def until(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, (Path.cwd(), sum_up(read_status(HOME)))
        time.sleep(0.1)


def write_sweep(folder: Path, sweep: str) -> None:
    shards = write_tiny_shards(folder / "shards")
    data = f"  data.train: {shards}/tiny-train-*.tar\n  data.val: {shards}/tiny-validation-*.tar\n"
    (folder / "base.yaml").write_text(BASE)
    (folder / "warm.yaml").write_text(WARM)
    (folder / "toy.yaml").write_text(f"{sweep}set:\n{data}")


STARTED: list[subprocess.Popen[str]] = []


def start(*words: str, out: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vitwarm.cli", "sweep", "--config", "toy.yaml", *words]
    STARTED.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True))
    return STARTED[-1]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; what was started there does not outlive the test."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    while STARTED:
        process = STARTED.pop()
        process.terminate()
        process.wait(60)


def say(*words: str) -> tuple[int, str]:
    process = start(*words, out=subprocess.PIPE)
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def wait_for_long(beyond: int = 0) -> None:
    """Waits until the long row runs and is beyond a step."""

    def is_there() -> bool:
        if not (HOME / "plan.json").exists():
            return False
        row = rows_of(HOME)["long"]
        return row.state == "running" and (row.step or 0) > beyond

    until(is_there)


@pytest.mark.slow
def test_a_real_sweep_is_told_and_steered(in_folder: Path) -> None:
    write_sweep(in_folder, SWEEP)
    assert say("--status")[0] == 2

    sweep = start()
    wait_for_long()
    rows = rows_of(HOME)
    states = [row.state for row in rows.values()]
    assert states == ["finished", "finished", "running", "waiting"]
    long = rows["long"]
    assert (long.node, long.steps) == (socket.gethostname(), 250_000)
    assert read_status(HOME).run_by == [f"process {sweep.pid} on {socket.gethostname()}"]
    code, out = say("--status", "--json")
    assert (code, json.loads(out)["counts"]) == (0, {"finished": 2, "running": 1, "waiting": 1})
    code, out = say()
    assert (code, f"is being worked on by process {sweep.pid}" in out) == (2, True)

    worker = str(lock_holder(Path(str(long.folder))))
    os.kill(int(worker.split()[1]), signal.SIGKILL)
    assert sweep.wait(240) == 1
    long = rows_of(HOME)["long"]
    assert (long.state, "ended by SIGKILL" in long.note) == ("failed", True)
    assert [row.state for row in rows_of(HOME).values()].count("finished") == 3

    saved = int(long.step or 0)
    assert saved > 0
    retry = start("--retry-failed")
    wait_for_long(beyond=saved)
    ours, theirs = os.openpty()
    watching = start("--watch", out=theirs)
    shown = os.read(ours, 9999).decode()
    assert shown.startswith("\x1b[H\x1b[2Jtoy in runs/sweeps/toy, process")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 130
    os.close(ours)
    os.close(theirs)
    watching = start("--watch")
    code, out = say("--cancel")
    assert (code, f"sent SIGTERM to process {retry.pid}" in out) == (0, True)
    assert retry.wait(60) == 143
    assert watching.wait(60) == 1
    stopped = rows_of(HOME)["long"]
    assert stopped.state == "stopped"
    assert int(stopped.step or 0) > saved
    log = (HOME / "logs" / f"{long.key}.log").read_text()
    assert f"resuming after step {saved:,} of 250,000" in log
    assert say("--cancel")[1] == "no run of this sweep is waiting or running\n"

    sweep = start()
    wait_for_long(beyond=int(stopped.step or 0))
    sweep.kill()  # its worker ends with it
    sweep.wait()
    end = time.monotonic() + 30
    while read_status(HOME).run_by and time.monotonic() < end:
        time.sleep(0.2)
    assert read_status(HOME).run_by == []
    assert say("--watch")[0] == 1
    assert "running" not in read_status(HOME).counts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan", "p", "--row", "k", "--dry-run"], "nothing else goes with them"),
        (["--plan", "p", "--row", "k", "train.lr=99"], "nothing else goes with them"),
        (["--config", "quickstart", "--json"], "--json is given without --status"),
    ],
)
def test_no_word_is_ignored(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words]) == 2
    assert message in capsys.readouterr().err

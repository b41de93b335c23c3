"""The whole life of a job, on a real SLURM of two nodes that stands on this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slurm_cluster import NODES, Cluster, cluster, missing, wait_for
from tiny_images import write_tiny_shards

from vitwarm.cli import main
from vitwarm.config import SweepConfig, TrainRun, load_config
from vitwarm.records import RunFolder, lock_holder, read_metrics
from vitwarm.sweep import run_sweep
from vitwarm.sweep.execute import Board
from vitwarm.sweep.jobs import run_alone
from vitwarm.sweep.plan import make_plan
from vitwarm.sweep.rows import Plan, Row, set_fields
from vitwarm.sweep.stages import Stages
from vitwarm.sweep.status import RowStatus, read_status
from vitwarm.training import run_training

WHY_NOT = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

MODEL = "{patch_size: 2, embed_dim: 64, depth: 2, num_heads: 4}"
BASE = f"""
name: toy
train:
  model: vit_tiny_patch16_224
  model_kwargs: {MODEL}
  img_size: 8
  steps: 10
  batch_size: 32
  warmup_epochs: 15.0
  mixup: 0.8
  precision: fp32
  compile: "off"
  evaluations: 2
"""
WARM = f"""
rule: {{name: dyck, params: {{n_kinds: 8}}}}
warmup:
  model: vit_tiny_patch16_224
  model_kwargs: {MODEL.replace("{", "{img_size: 8, ")}
  budget: 100steps
  batch_size: 32
  eval_sequences: 64
  precision: fp32
  compile: "off"
"""
SWEEP = """
base: base.yaml
match: steps
warmup_seeds: shared
seeds: [0]
executor: slurm
run: {device: cpu, threads: 1, workers: 1, log_every_steps: 5}
# Two cores are all that a node has, so each runs one job at a time.
sbatch: {cpus-per-task: 2, time: 10}
"""


@pytest.fixture(scope="module")
def pace(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Images that one core of this machine trains on in a second: rows are as long as waits need.

    Of the processor's time, which other tests at work do not lengthen as they do the clock's.
    """
    folder = tmp_path_factory.mktemp("pace")
    shards = write_tiny_shards(folder / "shards")
    (folder / "base.yaml").write_text(BASE)
    words = [f"data.train={shards}/tiny-train-*.tar", f"data.val={shards}/tiny-validation-*.tar",
             f"run.root={folder}", "run.device=cpu", "run.workers=0", "run.threads=1",
             "run.progress=false", "train.steps=400"]  # fmt: skip
    config = load_config(TrainRun, folder / "base.yaml", words)
    began = time.process_time()
    run_training(config)
    return 400 * 32 / (time.process_time() - began)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """The cluster, in whose environment this process then submits."""
    with cluster() as one, pytest.MonkeyPatch.context() as patch:
        for name in one.outer_slurm_variables():
            patch.delenv(name)
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, one.env[name])
        yield one


def folder_of(plan: Plan, row: Row) -> Path:
    """The folder of a row's run, whose needs have ended."""
    board = Board(plan, Stages(), writes=False)
    board.settle([plan.row(key) for key in row.needs])
    found = board.look(row)
    assert found is not None
    assert found.folder is not None
    return found.folder


class Sweep:
    """A sweep that was handed to the cluster, and what can be known about its rows."""

    def __init__(self, slurm: Cluster, folder: Path, recipe: str, *words: str) -> None:
        folder.mkdir(exist_ok=True)
        shards = write_tiny_shards(folder / "shards")
        (folder / "base.yaml").write_text(BASE)
        (folder / "warm.yaml").write_text(WARM)
        path = folder / "toy.yaml"
        path.write_text(SWEEP + recipe)
        fields = [f"run.root={folder / 'runs'}", f"set.data.train={shards}/tiny-train-*.tar",
                  f"set.data.val={shards}/tiny-validation-*.tar"]  # fmt: skip
        self.slurm = slurm
        self.recipe = path
        self.words = ["--config", str(path), *fields, *words]
        self.config = load_config(SweepConfig, path, [*fields, *words])
        self.plan: Plan = make_plan(self.config, recipe=path)
        self.folder = folder
        run_sweep(self.config, recipe=path, say=lambda text: None)

    def row(self, kind: str, arm: str) -> Row:
        (found,) = [row for row in self.plan.rows if row.kind == kind and arm in row.arms]
        return found

    def job(self, row: Row) -> str:
        """The row's place in an array: `12_0`."""
        slurm = self.plan.home / "slurm"
        for line in (slurm / "jobs.txt").read_text().splitlines():
            number, stem = line.split()
            keys = (slurm / f"{stem}.keys").read_text().split()
            if row.key in keys:
                return f"{number}_{keys.index(row.key)}"
        raise AssertionError(f"no job runs {row}")

    def said(self, row: Row) -> str:
        """What the row's job printed, over all its starts."""
        (log,) = (self.plan.home / "logs").glob(f"*-{self.job(row)}.out")
        return log.read_text()

    def state(self, row: Row) -> tuple[str, str]:
        path = self.plan.home / "rows" / f"{row.key}.json"
        plain = json.loads(path.read_text()) if path.exists() else {"state": "", "reason": ""}
        return plain["state"], plain["reason"]

    def look(self) -> dict[str, RowStatus]:
        """What `--status` says of the rows, by key."""
        return {row.key: row for row in read_status(self.plan.home).rows}

    def holder(self, row: Row) -> int:
        """The id of the process that works on the row."""
        return int(str(lock_holder(self.run_folder(row))).split()[1])

    def run_folder(self, row: Row) -> Path:
        return folder_of(self.plan, row)

    def step(self, row: Row) -> int:
        """The last step that the row's run has logged."""
        folder = self.run_folder(row)
        return max((m["step"] for m in read_metrics(folder)), default=0) if folder.exists() else 0

    def wait_step(self, row: Row, beyond: int) -> None:
        """Waits until the row's run has logged a step beyond this one."""
        wait_for(lambda: self.step(row) > beyond, seconds=180, what=f"step {beyond} of {row.key}")

    def wait_end(self, row: Row, seconds: float = 300) -> None:
        self.slurm.wait(self.job(row), "COMPLETED", "FAILED", "CANCELLED", seconds=seconds)

    def wait_restart(self, row: Row, n: int, *, or_end: bool = False) -> None:
        """Waits until the row's job has been put back into the queue n times."""

        def is_so() -> bool:
            job = self.slurm.job(self.job(row))
            return int(job["Restarts"]) >= n or (or_end and job["JobState"] == "COMPLETED")

        wait_for(is_so, seconds=300, what=f"restart {n} of {row.key}")

    def check_no_step_was_lost(self, row: Row) -> int:
        """Every start went on after the step that the one before it saved; returns how many did."""
        said = self.said(row)
        ends = re.findall(r"Stopped by \w+ after step ([\d,]+)|(again: leaving now)", said)
        starts = re.findall(r"resuming after step ([\d,]+)", said)
        assert len(ends) >= len(starts), said
        for start, (saved, cut) in zip(starts, ends, strict=False):
            # Slurm at times sends a second signal, which is obeyed at once.
            assert start == saved or cut, said
        return len(starts)

    def check_as_if_uninterrupted(self, row: Row) -> None:
        """The same row, run here in one go, has the same weights to the bit and the same record."""
        whole = set_fields(row.config, {"run.root": str(self.folder / "whole")})
        expected = run_training(whole)
        self.wait_end(row)
        assert self.slurm.state(self.job(row)) == "COMPLETED", self.said(row)
        folder = self.run_folder(row)
        record = RunFolder(folder).record
        assert record is not None
        assert (record.steps, record.top1_percent) == (expected.steps, expected.top1_percent)
        (theirs,) = (self.folder / "whole").glob("toy-*/export/model.safetensors")
        a, b = load_file(folder / "export" / "model.safetensors"), load_file(theirs)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def check_nothing_is_left(slurm: Cluster) -> None:
    """Nothing in the queue, and no process of a job."""
    wait_for(lambda: not slurm.queue(), seconds=30, what="an empty queue")
    wait_for(lambda: not slurm.steps(), seconds=30, what="no process of a job")


def test_a_time_limit_a_cancel_and_a_failed_warmup(
    slurm: Cluster, tmp_path: Path, pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep with warm-ups, initialisers and a graft, whose longest row does not fit in its limit.

    Slurm tells of the limit up to 30 s before it was asked to: after 30 to 60 s here. At the limit
    itself it sends SIGTERM, to which a run that has one already leaves at once.
    """
    monkeypatch.setenv("SBATCH_SIGNAL", "B:USR1@60")
    sweep = Sweep(
        slurm, tmp_path / "life",
        f"""
arms:
  default: {{train: {{train.steps: {90 * pace / 48:.0f}, train.batch_size: 48}}}}
  cancelled: {{train: {{train.steps: 100000}}}}
  dyck: {{warmup: warm.yaml, train: {{handoff.allow_failed: true}}}}
  broken: {{warmup: warm.yaml, set: {{warmup.lr: 1000.0, warmup.opt: sgd}}}}
  mimetic: {{init: mimetic}}
  scrambled:
    init: weights_shuffled_in_heads
    init_params: {{trunk: "arm:dyck"}}
    train: {{handoff.allow_failed: true}}
""",
        "sbatch.time=2",
    )  # fmt: skip
    long, cancelled = sweep.row("train", "default"), sweep.row("train", "cancelled")
    sweep.wait_step(cancelled, 0)
    slurm.run("scancel", sweep.job(cancelled))
    sweep.wait_end(cancelled)
    sweep.wait_step(long, 0)
    slurm.end("slurmctld")
    slurm.start_controller()
    # More often it would come back only where other tests take the machine's time.
    sweep.wait_restart(long, 2, or_end=True)
    slurm.run("scontrol", "update", f"jobid={sweep.job(long)}", "timelimit=30", code=None)
    sweep.check_as_if_uninterrupted(long)
    assert 1 <= sweep.check_no_step_was_lost(long) <= 3, sweep.said(long)

    for row in sweep.plan.rows:
        sweep.wait_end(row)
    broken = [sweep.row("warmup", "broken"), sweep.row("train", "broken")]
    for row in sweep.plan.rows:
        state, reason = sweep.state(row)
        if row in broken:
            assert state == "failed", sweep.said(row)
            assert ("no result" in reason) == (row.kind == "train"), reason
        elif row == cancelled:
            assert (state, "Stopped by SIGTERM" in reason) == ("unfinished", True), sweep.said(row)
        else:
            assert state == "finished", sweep.said(row)
    assert slurm.state(sweep.job(cancelled)) == "CANCELLED"
    check_nothing_is_left(slurm)


def test_requeue_preemption_and_a_node_that_dies(
    slurm: Cluster, tmp_path: Path, pace: float
) -> None:
    """All three of them, to one run; only the node's death costs steps."""
    sweep = Sweep(
        slurm, tmp_path / "ends",
        f"arms: {{default: {{train: {{train.steps: {40 * pace / 32:.0f}}}}}}}",
        "set.train.checkpoint_minutes=0.02",
    )  # fmt: skip
    (row,) = sweep.plan.rows
    job = sweep.job(row)
    sweep.wait_step(row, 0)
    slurm.run("scontrol", "requeue", job)
    sweep.wait_restart(row, 1)

    sweep.wait_step(row, sweep.step(row))
    node = slurm.job(job)["NodeList"]
    urgent = slurm.run(
        "sbatch", "--parsable", "--partition=urgent", "--exclusive", f"--nodelist={node}",
        "--output=/dev/null", "--wrap=true",
    )  # fmt: skip
    sweep.wait_restart(row, 2)
    slurm.wait(urgent, "COMPLETED")

    sweep.wait_step(row, sweep.step(row))
    assert sweep.check_no_step_was_lost(row) == 2
    node = slurm.job(job)["NodeList"]
    slurm.kill_node(node)
    sweep.wait_restart(row, 3)
    sweep.check_as_if_uninterrupted(row)
    assert {slurm.job(job)["NodeList"], node} == set(NODES)
    slurm.revive_node(node)
    check_nothing_is_left(slurm)


def test_a_run_whose_slurmd_was_killed_lives_on_and_its_job_waits(
    slurm: Cluster, tmp_path: Path
) -> None:
    """SLURM starts the job on the other node, where the run's folder is still held.

    And a run that is killed as the kernel does it, out of memory, is said to be.
    """
    sweep = Sweep(
        slurm, tmp_path / "lives", "arms: {default: {train: {train.steps: 300000}}}",
        "set.train.checkpoint_minutes=0.02",
    )  # fmt: skip
    (row,) = sweep.plan.rows
    sweep.wait_step(row, 0)
    node = slurm.job(sweep.job(row))["NodeList"]
    old = sweep.holder(row)
    slurm.end(node, signal.SIGKILL)
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=died")
    sweep.wait_restart(row, 2)  # a minute in which the folder is held, and back into the queue
    seen = sweep.look()[row.key]
    assert seen.state in ("waiting", "running"), seen
    assert f"still being worked on by process {old}" in sweep.said(row)
    assert f"still being worked on by process {old}" in sweep.state(row)[1]
    os.kill(old, signal.SIGKILL)
    slurm.revive_node(node)
    wait_for(lambda: "resuming after step" in sweep.said(row), seconds=180, what="a resume")
    os.kill(sweep.holder(row), signal.SIGKILL)
    sweep.wait_end(row)
    seen = sweep.look()[row.key]
    assert (seen.state, "ended by SIGKILL (out of memory?)" in seen.note) == ("failed", True)
    check_nothing_is_left(slurm)


def test_a_node_of_two_dies(slurm: Cluster, tmp_path: Path, pace: float) -> None:
    """The process on the other node ends in words, and the row waits until both are there."""
    recipe = f"arms: {{default: {{train: {{train.steps: {15 * pace / 32:.0f}}}}}}}"
    sweep = Sweep(
        slurm, tmp_path / "two", recipe, "run.nodes=2", "run.devices=1",
        "set.train.checkpoint_minutes=0.02",
    )  # fmt: skip
    (row,) = sweep.plan.rows
    run = RunFolder(sweep.run_folder(row))
    wait_for(lambda: run.saved_step > 0, seconds=180, what="a checkpoint")
    slurm.kill_node(NODES[1], told=False)

    def waits() -> bool:
        seen = sweep.look()[row.key]
        assert seen.state in ("running", "waiting"), seen
        return seen.state == "waiting" and "its last start: Another process" in seen.note

    wait_for(waits, seconds=120, what="a job that waits")
    slurm.revive_node(NODES[1])
    wait_for(lambda: "resuming after step" in sweep.said(row), seconds=180, what="a resume")
    said = sweep.said(row)
    assert "Another process of this run has ended (" in said
    sweep.wait_end(row)
    assert slurm.state(sweep.job(row)) == "COMPLETED", sweep.said(row)
    check_nothing_is_left(slurm)


def test_a_signal_after_the_result_takes_nothing_back(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the row's job goes on, as it would not behind one that failed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, signal\n"
        "if 'SLURM_PROCID' in os.environ:\n"
        "    atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    recipe = "arms: {default: {train: {train.steps: 5}}}"
    sweep = Sweep(slurm, tmp_path / "late", recipe)
    (row,) = sweep.plan.rows
    sweep.wait_end(row)
    assert "Terminated" in sweep.said(row)
    assert slurm.state(sweep.job(row)) == "COMPLETED", sweep.said(row)
    assert sweep.state(row)[0] == "finished"
    check_nothing_is_left(slurm)


def test_a_job_whose_nodes_keep_dying_is_not_put_back_for_ever(
    slurm: Cluster, tmp_path: Path
) -> None:
    """Twice the node dies before the first checkpoint; the third start says so and is the last."""
    sweep = Sweep(slurm, tmp_path / "still", "arms: {default: {train: {train.steps: 300000}}}")
    (row,) = sweep.plan.rows
    starts = sweep.run_folder(row) / "starts.json"
    for n in (1, 2):
        wait_for(
            lambda n=n: starts.exists() and len(json.loads(starts.read_text())["steps"]) == n,
            seconds=120, what=f"start {n}",
        )  # fmt: skip
        node = slurm.job(sweep.job(row))["NodeList"]
        slurm.kill_node(node)
        sweep.wait_restart(row, n)
        slurm.revive_node(node)
    sweep.wait_end(row)
    assert slurm.state(sweep.job(row)) == "FAILED", sweep.said(row)
    state, reason = sweep.state(row)
    assert state == "failed"
    assert "back into the queue 2 times and made no progress past step 0" in reason
    check_nothing_is_left(slurm)


def test_a_sweep_is_seen_and_steered(
    slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(
        slurm, tmp_path / "seen",
        """
arms:
  default: {train: {train.steps: 300000}}
  second: {train: {train.steps: 290000}}
  third: {train: {train.steps: 280000}}
  broken: {warmup: warm.yaml, set: {warmup.lr: 1000.0, warmup.opt: sgd}}
""",
        "set.train.checkpoint_minutes=0.02", "slots=1",  # of an array: the other node is free
    )  # fmt: skip
    broken = {sweep.row("warmup", "broken").key, sweep.row("train", "broken").key}
    others = [sweep.row("train", arm) for arm in ("default", "second", "third")]

    def ended() -> bool:
        rows = sweep.look()
        assert {row.state for row in rows.values()} <= {"waiting", "running", "failed"}, rows
        return all(rows[key].state == "failed" and not rows[key].job for key in broken)

    wait_for(ended, seconds=240, what="two failures")
    working = next(row for row in others if sweep.look()[row.key].state == "running")
    sweep.wait_step(working, 0)
    for row in others:
        seen, job = sweep.look()[row.key], slurm.job(sweep.job(row))
        assert seen.job == sweep.job(row)
        assert (seen.state == "running") == (job["JobState"] == "RUNNING"), (seen, job)
        assert seen.node == (job["NodeList"] if seen.state == "running" else None)
    assert sweep.look()[working.key].steps in (300000, 290000, 280000)
    assert int(sweep.look()[working.key].step or 0) > 0

    capsys.readouterr()
    assert main(["sweep", *sweep.words, "--retry-failed"]) == 0
    said = capsys.readouterr().out
    assert "2 of 5 rows to run" in said
    assert said.splitlines()[-1] == shlex.join(["vitwarm", "sweep", *sweep.words, "--status"])
    before = {row.key: sweep.look()[row.key].job for row in others}
    assert before == {row.key: sweep.job(row) for row in others}  # theirs are the old ones
    assert all(sweep.look()[key].state in ("waiting", "running") for key in broken)

    slurm.end("slurmctld")
    status = read_status(sweep.plan.home)
    assert "squeue" in status.warning
    assert sweep.look()[working.key].state == "running"
    slurm.start_controller()

    assert main(["sweep", *sweep.words, "--cancel"]) == 0
    assert "cancelled SLURM job" in capsys.readouterr().out
    check_nothing_is_left(slurm)
    rows = sweep.look()
    assert (rows[working.key].state, bool(rows[working.key].step)) == ("stopped", True)
    assert {row.state for row in rows.values()} <= {"stopped", "not started", "failed"}
    assert main(["sweep", *sweep.words, "--cancel"]) == 0
    assert capsys.readouterr().out == "no run of this sweep is waiting or running\n"


@pytest.mark.parametrize("devices", [1, 2])
def test_two_nodes_are_one_process(
    slurm: Cluster, tmp_path: Path, pace: float, devices: int
) -> None:
    """A warm-up and a training over two nodes, with one or two processes on each.

    With one, the warm-up is also told of its time limit, as Slurm does it, and comes back.
    """
    # Larger batches, not more steps: so the warm-up lasts, and rounding does not add up.
    batch = f"set: {{warmup.batch_size: {2 * round(0.075 * pace)}}}, " if devices == 1 else ""
    recipe = f"""
arms:
  default: {{warmup: warm.yaml, {batch}train: {{handoff.allow_failed: true}}}}
"""
    words = "set.train.steps=24", "run.nodes=2", f"run.devices={devices}"
    sweep = Sweep(slurm, tmp_path / "nodes", recipe, *words, f"sbatch.cpus-per-task={2 // devices}")
    warmup, training = sweep.plan.rows
    if devices == 1:
        sweep.wait_step(warmup, 0)
        slurm.run("scancel", "--batch", "--signal=USR1", sweep.job(warmup))
    one = in_one_process(sweep)
    for row in (warmup, training):
        sweep.wait_end(row)
        assert slurm.state(sweep.job(row)) == "COMPLETED", sweep.said(row)
    if devices == 1:
        assert sweep.check_no_step_was_lost(warmup) == 1
    assert f"= {2 * devices} processes x" in sweep.said(training)

    folders = [[folder_of(plan, row) for row in plan.rows] for plan in (one, sweep.plan)]
    a, b = (RunFolder(training).record for _, training in folders)
    assert a is not None
    assert b is not None
    assert (a.top1_percent, a.images_seen) == (b.top1_percent, b.images_seen)
    assert b.val_loss == pytest.approx(a.val_loss, rel=1e-4)
    ours, theirs = (load_file(warmup / "trunk.safetensors") for warmup, _ in folders)
    assert ours.keys() == theirs.keys()
    a_all, b_all = (torch.cat([one[name].ravel() for name in ours]) for one in (ours, theirs))
    off = (a_all - b_all).abs() > 5e-4 + 1e-3 * a_all.abs()
    # AdamW makes whole steps of tiny gradients, so that rounding moves single numbers by more.
    assert off.float().mean() < 1e-3
    torch.testing.assert_close(b_all, a_all, rtol=0.01, atol=5e-3)
    check_nothing_is_left(slurm)


def in_one_process(sweep: Sweep) -> Plan:
    """Runs the sweep's rows here, one after the other, and returns the plan they belong to."""
    run = {"run.root": str(sweep.folder / "one"), "run.nodes": 1, "run.devices": 1}
    config = set_fields(sweep.config, {**run, "run.progress": False})
    plan = make_plan(config, recipe=sweep.recipe)
    for row in plan.rows:
        assert run_alone(plan, row.key).state == "finished"
    return plan


def test_one_task_is_no_two_processes(slurm: Cluster, tmp_path: Path) -> None:
    """Without the refusal one process would train on half of every batch."""
    shards = write_tiny_shards(tmp_path / "shards")
    words = f"data.train={shards}/tiny-train-*.tar", f"data.val={shards}/tiny-validation-*.tar"
    said = slurm.run(
        "bash", "-c", 'srun --ntasks=1 "$@" 2>&1', "bash", sys.executable, "-m", "vitwarm.cli",
        "train", *words, "run.device=cpu", "run.devices=2", f"run.root={tmp_path}/runs", code=2,
    )  # fmt: skip
    assert "run.devices x run.nodes is 2 x 1, but srun started 1 process (" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_blanks_in_paths_and_names_are_kept(slurm: Cluster, tmp_path: Path) -> None:
    words = "name=two words", "sbatch.comment=to be seen"
    sweep = Sweep(slurm, tmp_path / "my folder", "", *words)
    row = sweep.row("train", "default")
    sweep.wait_end(row)
    assert sweep.state(row) == ("finished", "")
    assert "Comment=to be seen" in slurm.run("scontrol", "show", "job", sweep.job(row))

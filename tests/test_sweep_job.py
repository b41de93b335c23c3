"""The script of an array's job, with stand-ins for SLURM's commands: what it notes and requeues."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fake_stages import FAKE
from test_sweep_execute import CONTROL, config_of

from vitwarm.errors import ConfigError, Stopped
from vitwarm.records import lock_folder
from vitwarm.sweep.jobs import run_alone
from vitwarm.sweep.launch import find_lead, write_slurm
from vitwarm.sweep.plan import make_plan
from vitwarm.sweep.rows import Config, Plan, State, read_state, write_state
from vitwarm.sweep.status import read_status


class Job:
    """The job of a sweep's first row, a warm-up."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
        config, path = config_of(folder, CONTROL, "executor=slurm", *words)
        self.plan: Plan = make_plan(config, recipe=path, stages=FAKE)
        self.script = write_slurm(self.plan, config, self.plan.rows).scripts[0]
        self.row = self.plan.rows[0]
        self.run_folder = Path(str(self.row.folder))
        self.folder = folder
        self.set = monkeypatch.setenv
        names = {"ARRAY_TASK_ID": "0", "ARRAY_JOB_ID": "70", "JOB_ID": "71"}
        for name, value in names.items():
            self.set(f"SLURM_{name}", value)

    def note(self, state: State, reason: str = "") -> None:
        write_state(self.plan, self.row.key, state, reason=reason, folder=self.run_folder)

    def telling(self, state: State, reason: str) -> str:
        """Bash with which a run notes its state."""
        self.note(state, reason)
        told = self.plan.home / "rows" / f"{self.row.key}.json"
        copy = self.folder / f"{state}.told"
        copy.write_text(told.read_text())
        return f"cp {copy} {told.resolve()}; "

    def run(self, srun: str, queue: str = "RUNNING None") -> int:
        """Runs the script; `srun` is what stands for the run."""
        tools = self.folder / "bin"
        tools.mkdir(exist_ok=True)
        stand_ins = {
            "srun": f"touch {self.folder}/ran; {srun}",
            "squeue": f'echo "{queue}"',
            "scontrol": f'echo "$@" > {self.folder}/requeued',
        }
        for name, text in stand_ins.items():
            (tools / name).write_text(f"#!/bin/bash\n{text}\n")
            (tools / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        return subprocess.run(["bash", self.script], env=environment, timeout=120).returncode

    @property
    def state(self) -> tuple[str, str]:
        told = read_state(self.plan.home, self.row.key)
        return told.get("state", ""), told.get("reason", "")

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_a_run_that_was_killed_is_noted_by_its_job(job: Job) -> None:
    job.note("running")
    assert job.run("kill -9 $$") == 137
    state, reason = job.state
    assert (state, job.requeued) == ("failed", False)
    assert "ended by SIGKILL (out of memory?); see" in reason
    assert read_state(job.plan.home, job.row.key)["folder"].endswith(job.run_folder.name)
    row = read_status(job.plan.home).rows[0]  # so that --retry-failed takes it up
    assert (row.state, row.note) == ("failed", reason)


def test_a_run_that_said_nothing_is_noted_by_its_job(job: Job) -> None:
    assert job.run("exit 127") == 127
    assert job.state[0] == "failed"
    assert "ended by exit code 127" in job.state[1]
    assert job.run(job.telling("failed", "its own words") + "exit 1") == 1
    assert job.state == ("failed", "its own words")
    job.note("running")
    assert job.run("kill -9 $$", queue="COMPLETING None") == 137  # cancelled
    assert job.state == ("running", "")


def test_what_an_earlier_start_noted_is_not_how_this_one_ends(job: Job) -> None:
    job.note("failed", "an earlier one")
    assert job.run("exit 143") == 143
    assert job.requeued
    job.note("unfinished", "saved")
    assert job.run("kill -9 $$") == 137
    assert (job.state[0], "SIGKILL" in job.state[1]) == ("failed", True)


def test_one_killed_process_of_several_costs_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun ends with the highest code, and kills whoever is slower to leave."""
    job = Job(tmp_path, monkeypatch, "run.devices=2")
    job.note("running")
    assert job.run("kill -9 $$") == 137
    assert job.state == ("unfinished", "a process was ended by SIGKILL (out of memory?)")
    assert job.requeued
    (tmp_path / "requeued").unlink()
    # Rank zero had saved and left with 75; or another rank failed, and the others were killed.
    assert job.run(job.telling("unfinished", "saved") + "kill -9 $$") == 137
    assert (job.state, job.requeued) == (("unfinished", "saved"), True)
    (tmp_path / "requeued").unlink()
    assert job.run(job.telling("failed", "no") + "exit 75") == 75
    assert (job.state, job.requeued) == (("failed", "no"), False)


def test_a_start_that_finds_the_folder_held_goes_back_into_the_queue(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slurmd was killed; SLURM starts its job on another node, and the old run lives on."""
    monkeypatch.setattr("vitwarm.sweep.jobs.HELD_SECONDS", 1.0)
    job.set("SLURM_RESTART_COUNT", "1")
    with lock_folder(job.run_folder):
        with pytest.raises(Stopped, match=rf"worked on by process {os.getpid()} on") as stopped:
            run_alone(job.plan, job.row.key, FAKE)
        assert stopped.value.exit_code == 75
        assert job.state[0] == "unfinished"
        job.set("SLURM_STEP_NUM_TASKS", "2")  # whose other process would wait in vain
        monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
        with pytest.raises(Stopped):
            run_alone(job.plan, job.row.key, FAKE)
    monkeypatch.undo()
    assert run_alone(job.plan, job.row.key, FAKE).state == "finished"


def test_what_another_process_failed_of_is_the_rows_reason(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Config) -> None:
        raise ValueError("rank one's own words")

    def lose(config: Config) -> None:
        monkeypatch.setenv("SLURM_PROCID", "1")
        with pytest.raises(ValueError, match="own words"):
            run_alone(job.plan, job.row.key, replace(FAKE, run_row=fail))
        raise Stopped("Another process of this run has ended", exit_code=75)

    with pytest.raises(Stopped):
        run_alone(job.plan, job.row.key, replace(FAKE, run_row=lose))
    assert job.state == ("failed", "rank one's own words")


def test_a_job_that_never_comes_to_its_run_is_not_put_back_for_ever(job: Job) -> None:
    job.note("running")
    job.set("SLURM_RESTART_COUNT", "2")
    assert job.run("exit 143") == 143
    assert job.requeued
    (job.folder / "ran").unlink()
    job.set("SLURM_RESTART_COUNT", "3")
    assert job.run("exit 143") == 1
    assert not (job.folder / "ran").exists()
    assert job.state[0] == "failed"
    assert "put back into the queue 3 times and its run has not begun" in job.state[1]
    job.run_folder.mkdir(parents=True)
    (job.run_folder / "starts.json").write_text(json.dumps({"job": "70", "steps": [0]}, indent=1))
    assert job.run("exit 143") == 143  # from here on the run itself counts


@pytest.mark.parametrize(
    ("limit", "lead"),
    [
        (1, 15), ("2", 30), ("90", 120), ("2:00", 30), ("0:04:00", 60), ("4:00:00", 120),
        ("0-0:01", 15), ("1-12", 120), ("1-00:00:00", 120), ("UNLIMITED", 120), (None, 120),
    ],
)  # fmt: skip
def test_a_short_limit_leaves_time_to_work(limit: object, lead: int) -> None:
    assert find_lead(limit) == lead


def test_a_signal_of_ones_own_is_one_that_the_script_hears(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, CONTROL, "sbatch.time=2", "sbatch.signal=B:USR1@7")
    plan = make_plan(config, recipe=path, stages=FAKE)
    text = write_slurm(plan, config, plan.rows).scripts[0].read_text()
    assert "--signal=B:USR1@7\n" in text
    assert text.count("--signal=B") == 1
    config, _ = config_of(tmp_path, CONTROL, "sbatch.signal=TERM@60")
    with pytest.raises(ConfigError, match=r"sbatch.signal is 'TERM@60'; .* B:USR1@SECONDS"):
        write_slurm(plan, config, plan.rows)

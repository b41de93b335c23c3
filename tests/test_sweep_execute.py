"""A sweep runs what is missing, survives what fails, and says which is which."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_stages import FAKE
from test_sweep_plan import write_recipes

from vitwarm.config import RunConfig, SweepConfig, load_config
from vitwarm.errors import ConfigError
from vitwarm.records import lock_folder, read_records
from vitwarm.report.analyse import analyse
from vitwarm.report.gather import gather
from vitwarm.sweep import run_sweep, show_plan
from vitwarm.sweep.execute import SweepResult
from vitwarm.sweep.jobs import run_alone
from vitwarm.sweep.launch import write_slurm
from vitwarm.sweep.plan import make_plan
from vitwarm.sweep.rows import load_plan, save_plan
from vitwarm.sweep.worker import find_slots

SWEEP = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  dyck: {warmup: warm.yaml}
  longer: {extra_samples_of: dyck}
  mimetic: {init: mimetic}
over: {data.fraction: [0.1, 1.0]}
seeds: [0, 1]
run: {device: cpu}
slots: 2
"""


def config_of(folder: Path, sweep: str, *overrides: str) -> tuple[SweepConfig, Path]:
    path = write_recipes(folder, sweep)
    return load_config(SweepConfig, path, [f"run.root={folder / 'runs'}", *overrides]), path


def sweep_of(folder: Path, sweep: str, *overrides: str) -> tuple[SweepResult, list[str]]:
    config, path = config_of(folder, sweep, *overrides)
    said: list[str] = []
    return run_sweep(config, recipe=path, stages=FAKE, say=said.append), said


def states(result: SweepResult) -> dict[str, str]:
    return {f"{d.row.kind} {'+'.join(d.row.arms)} {d.row.seed}": d.state for d in result.done}


def test_a_sweep_runs_every_row_once_and_never_twice(tmp_path: Path) -> None:
    result, said = sweep_of(tmp_path, SWEEP)
    assert result.exit_code == 0
    assert len(result.done) == 1 + 2 + 16
    records = read_records(tmp_path / "runs")
    assert len(records) == 17
    assert {r.images_seen for r in records if r.arm == "longer"} == {10_000 + 12_800}
    assert {r.images_seen for r in records if r.arm == "dyck"} == {10_000}
    assert sum("top-1" in line for line in said) == 16
    # One single-threaded process per slot, reused from row to row.
    started = [path.read_text().split() for path in (tmp_path / "runs").glob("*/started")]
    assert len({pid for pid, _ in started}) <= 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/record.json")}
    again, said = sweep_of(tmp_path, SWEEP)
    assert all(done.before for done in again.done)
    assert said == []
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/record.json")}
    assert before == after


def test_the_report_takes_its_labels_from_the_sweep(tmp_path: Path) -> None:
    result, _ = sweep_of(tmp_path, SWEEP)
    for roots in ([result.folder], [tmp_path / "runs"]):
        sections = gather(roots)
        assert len(sections) == 1
        analysis = analyse(sections[0])
        assert [arm.label for arm in analysis.arms] == ["default", "dyck", "longer", "mimetic"]
        assert [arm.kind for arm in analysis.arms] == ["cold", "warm", "longer", "init"]
        assert {d.reference for d in analysis.matched_total} == {"longer"}
        assert {d.arm for d in analysis.matched_images} == {"dyck", "mimetic"}
        assert [line.verdict for line in analysis.warmups] == ["learned"]


def test_failures_and_crashes_do_not_stop_the_others(tmp_path: Path) -> None:
    sweep = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  fails: {train: {train.lr: 1e-4}}  # arms of equal configs would share one run
  crashes: {train: {train.lr: 2e-4}}
  dyck: {warmup: warm.yaml}
seeds: [0, 1]
run: {device: cpu}
slots: 2
"""
    result, said = sweep_of(tmp_path, sweep)
    found = states(result)
    assert result.exit_code == 1
    assert {key for key, state in found.items() if state == "finished"} == {
        "warmup dyck 0", "train default 0", "train default 1", "train dyck 0", "train dyck 1",
    }  # fmt: skip
    reasons = {done.row.arms[0]: done.reason for done in result.failed}
    assert "ended by SIGKILL; out of memory?" in reasons["crashes"]
    assert "stopped being a finite number at step 7" in reasons["fails"]
    log = Path(reasons["fails"].split("(see ")[1].rstrip(")"))
    assert "training fails" in log.read_text()
    assert any("crashes" in line and "FAILED" in line for line in said)
    # The report names both, one from its failure.json and one from the sweep's own note.
    analysis = analyse(gather([result.folder])[0])
    told = {run.arm: (run.state, run.reason) for run in analysis.runs if run.state != "finished"}
    assert told["fails"] == ("failed", "loss nan")
    assert "SIGKILL" in told["crashes"][1]
    assert {cell.arm for cell in analysis.cells if cell.missing} == {"fails", "crashes"}


CONTROL = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  shuffled: {warmup: warm.yaml, set: {rule.name: "shuffled:dyck"}}
seeds: [0]
run: {device: cpu}
slots: 1
"""


def test_a_failed_warmup_is_not_handed_off_unless_told(tmp_path: Path) -> None:
    refused, _ = sweep_of(tmp_path, CONTROL)
    assert states(refused) == {
        "warmup shuffled 0": "finished", "train default 0": "finished",
        "train shuffled 0": "refused",
    }  # fmt: skip
    assert refused.exit_code == 1
    reason = refused.failed[0].reason
    assert "held-out accuracy 13.0 %, order-blind baseline 12.5 %" in reason
    assert "arms.shuffled.train.handoff.allow_failed" in reason
    run = next(r for r in analyse(gather([refused.folder])[0]).runs if r.arm == "shuffled")
    assert run.state == "refused"
    told, _ = sweep_of(
        tmp_path, CONTROL, "arms.shuffled.train.handoff.allow_failed=true"
    )  # the default arm is not run again
    assert told.exit_code == 0
    assert {d.row.arms[0] for d in told.done if not d.before} == {"shuffled"}


END_OF_MADE = """
seeds: [0]
run: {device: cpu}
slots: 1
"""
MADE = f"""
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  dyck: {{warmup: warm.yaml}}
  shrunk: {{init: mixed, init_params: {{trunk: "arm:dyck"}}}}
{END_OF_MADE}"""


def test_what_is_made_of_a_failed_warmup_is_refused_too(tmp_path: Path) -> None:
    sweep = MADE.replace(
        "{warmup: warm.yaml}", '{warmup: warm.yaml, set: {rule.name: "shuffled:x"}}'
    )
    refused, _ = sweep_of(tmp_path, sweep)
    assert {d.row.arms[0] for d in refused.failed} == {"dyck", "shrunk"}
    assert {d.state for d in refused.failed} == {"refused"}
    config, path = config_of(tmp_path, sweep)
    text = show_plan(config, recipe=path, stages=FAKE)
    assert "3 have their result" in text  # the warm-up, what was made of it, the cold start
    assert text.count("1 done") == 1
    assert text.count("refused: its warm-up learned nothing") == 2
    told, _ = sweep_of(tmp_path, sweep, "arms.shrunk.train.handoff.allow_failed=true")
    assert {d.row.arms[0] for d in told.failed} == {"dyck"}


def test_arms_that_are_one_run_are_named_by_the_report(tmp_path: Path) -> None:
    twice = "{warmup: warm.yaml, set: {rule.params.n_kinds: 8}}"  # the recipe has 8 already
    result, _ = sweep_of(tmp_path, MADE.split("  shrunk:")[0] + f"  same: {twice}\n{END_OF_MADE}")
    (problem,) = [p for p in analyse(gather([result.folder])[0]).problems if "same runs" in p]
    assert problem.startswith("The arms dyck and same are the same runs")


def test_what_is_made_of_a_warmup_is_made_again_of_another(tmp_path: Path) -> None:
    sweep_of(tmp_path, MADE)
    (trunk,) = (tmp_path / "runs").glob("*/trunk.safetensors")
    (first,) = (tmp_path / "runs").glob("sweeps/*/inits/*.safetensors")
    again, _ = sweep_of(tmp_path, MADE)
    assert all(d.before for d in again.done)
    record = json.loads((trunk.parent / "record.json").read_text())  # as `warmup --fresh` does
    (trunk.parent / "record.json").write_text(json.dumps({**record, "trunk_sha256": "5" * 64}))
    other, _ = sweep_of(tmp_path, MADE)
    (made,) = (d for d in other.done if d.row.kind == "init")
    assert not made.before
    assert made.folder != first
    assert made.folder is not None
    assert made.folder.is_file()


def test_sweeps_share_the_runs_that_are_equal(tmp_path: Path) -> None:
    sweep_of(tmp_path, CONTROL)
    other, _ = sweep_of(tmp_path, SWEEP, "name=other", "over.data.fraction=[1.0]", "seeds=[0]")
    assert [d.row.arms[0] for d in other.done if d.before] == ["default"]
    assert len(gather([tmp_path / "runs"])) == 2


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, SWEEP.replace("slots: 2", "slots: 1"))
    plan = make_plan(config, recipe=path, stages=FAKE)
    (first,) = [row for row in plan.rows if row.kind == "warmup"]
    assert first.folder is not None

    said: list[str] = []
    taken, waits = threading.Event(), threading.Event()

    def hold() -> None:
        with lock_folder(Path(str(first.folder))):
            taken.set()
            waits.wait(60)

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("waiting"):
            waits.set()

    other = threading.Thread(target=hold)
    other.start()
    assert taken.wait(60)
    result = run_sweep(config, recipe=path, stages=FAKE, say=say)
    other.join()
    assert result.exit_code == 0
    assert [line for line in said if line.startswith("waiting")] == [
        f"waiting  warm-up dyck · seed 0: process {os.getpid()} on {socket.gethostname()} works on "
        f"{first.folder}"
    ]


def test_two_sweeps_at_once_share_their_rows(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_sweep_execute import *\n"
        "if __name__ == '__main__':\n"
        "    result, _ = sweep_of(Path(sys.argv[1]), SWEEP, f'name={sys.argv[2]}')\n"
        "    print([(d.state, d.reason) for d in result.done if d.state != 'finished'])\n"
        "    sys.exit(result.exit_code)\n"
    )
    script = tmp_path / "go.py"
    script.write_text(code)
    config_of(tmp_path, SWEEP)  # both read the same recipes
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"}
    both = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), name], env=environment,
                         stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(read_records(tmp_path / "runs")) == 17


def test_what_a_stop_leaves_is_resumed(tmp_path: Path) -> None:
    """SIGTERM to the parent: busy runs save, nothing is lost, exit code 143."""
    sweep = """
base: base.yaml
match: steps
warmup_seeds: shared
arms: {slow: {train: {train.lr: 1e-4}}}
seeds: [0]
run: {device: cpu}
slots: 1
"""
    _, path = config_of(tmp_path, sweep)
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from fake_stages import FAKE\n"
        "from vitwarm.config import SweepConfig, load_config\n"
        "from vitwarm.errors import Stopped\n"
        "from vitwarm.sweep import run_sweep\n"
        "if __name__ == '__main__':\n"
        f"    path = Path({str(path)!r})\n"
        f"    config = load_config(SweepConfig, path, ['run.root={tmp_path / 'runs'}'])\n"
        "    try:\n"
        "        run_sweep(config, recipe=path, stages=FAKE)\n"
        "    except Stopped as error:\n"
        "        print(error)\n"
        "        sys.exit(error.exit_code)\n"
    )
    script = tmp_path / "go.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not list((tmp_path / "runs").glob("*/waiting")) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "Run the same command again" in out
    assert list((tmp_path / "runs").glob("*/saved"))
    told = {run.arm: run.state for run in analyse(gather([tmp_path / "runs"])[0]).runs}
    assert told == {"default": "finished", "slow": "unfinished"}


def test_a_dry_run_writes_nothing_and_knows_what_is_done(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, SWEEP)
    text = show_plan(config, recipe=path, stages=FAKE)
    assert not (tmp_path / "runs").exists()
    assert "warm-up dyck · seed 0: 50 steps, 12,800 sequences, 2,508,800 tokens" in text
    assert "warmup_seeds: shared" in text  # the resolved config
    assert "match     steps; warm-up seeds shared; seeds 0, 1" in text
    assert "200 steps, 10,000 images seen, x 2 seeds" in text
    assert "456 steps, 22,800 images seen" in text  # train longer: 200 + 12,800 / 50
    assert "none yet" in text
    assert "rows      19: 1 warm-up, 2 initialisations, 16 image trainings; 0 have" in text
    assert "\n  init mimetic · seed 1\n" in text
    run_sweep(config, recipe=path, stages=FAKE, say=lambda text: None)
    text = show_plan(config, recipe=path, stages=FAKE)
    assert "19 have their result" in text
    assert "nothing is left to run" in text


def test_the_estimate_is_from_runs_of_the_same_shape_alone(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, SWEEP)
    run_sweep(config, recipe=path, stages=FAKE, say=lambda text: None)
    for other, says in (
        ("seeds=[7]", "samples/s, the median of 16 earlier runs"),
        ("set={train.img_size: 96}", "none yet: no run of this model at this size"),
        ("set={train.model_kwargs: {depth: 2}}", "none yet: no run of this model at this size"),
    ):
        config, _ = config_of(tmp_path, SWEEP, other)
        assert says in show_plan(config, recipe=path, stages=FAKE)


def test_slots_share_cores_or_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    cpu = RunConfig(device="cpu")
    assert [slot["OMP_NUM_THREADS"] for slot in find_slots(cpu, None)] == ["1"] * 4
    assert [slot["OMP_NUM_THREADS"] for slot in find_slots(cpu, 2)] == ["2", "2"]
    assert {slot["CUDA_VISIBLE_DEVICES"] for slot in find_slots(cpu, 2)} == {""}
    monkeypatch.setattr("vitwarm.sweep.worker._visible_gpus", lambda: ["2", "5"])
    gpu = RunConfig(device="auto")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in find_slots(gpu, None)] == ["2", "5"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in find_slots(gpu, 3)] == ["2", "5", "2"]


def test_a_cluster_gets_arrays_that_wait_for_their_warmups(tmp_path: Path) -> None:
    config, path = config_of(
        tmp_path, SWEEP, "executor=slurm", "array_limit=5", "sbatch.partition=gpu",
        "sbatch.time=04:00:00", "sbatch.exclusive=true", "sbatch.hold=false", "slots=3",
    )  # fmt: skip
    plan = make_plan(config, recipe=path, stages=FAKE)
    submission = write_slurm(plan, config, plan.rows)
    assert submission.n_jobs == 19
    keys = [
        key
        for listed in sorted((plan.home / "slurm").glob("*.keys"))
        for key in listed.read_text().split()
    ]
    assert sorted(keys) == sorted(row.key for row in plan.rows)
    for script in submission.scripts:
        text = script.read_text()
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        for line in ("--signal=B:USR1@120", "--requeue", "--partition=gpu", "--time=04:00:00"):
            assert f"#SBATCH {line}\n" in text
        size = len(Path(str(script).replace(".sh", ".keys")).read_text().split())
        assert size <= 5
        assert f"#SBATCH --array=0-{size - 1}%3\n" in text
    # sbatch itself, as a stand-in that prints a job number and notes its words.
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\nwc -l < {tmp_path}/calls\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    subprocess.run([submission.submit], check=True, env=environment, capture_output=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(submission.scripts)
    for call in calls:
        assert ("--dependency=afterany:1" in call) == ("/trainings-" in call)
    other, _ = config_of(tmp_path, SWEEP, "sbatch.array=1-2")
    with pytest.raises(ConfigError, match="sbatch has 'array'"):
        write_slurm(plan, other, plan.rows)


def test_the_rows_of_an_array_add_up_to_the_sweep(tmp_path: Path) -> None:
    graft = "arms.graft={init: weights_shuffled_in_heads, init_params: {trunk: 'arm:dyck'}}"
    config, path = config_of(tmp_path, SWEEP, "seeds=[0]", graft)
    plan = make_plan(config, recipe=path, stages=FAKE)
    loaded = load_plan(save_plan(plan))
    early = next(row for row in plan.rows if row.kind == "train" and row.needs)
    done = run_alone(loaded, early.key, FAKE)
    assert (done.state, "it has no result" in done.reason) == ("failed", True)
    for row in plan.rows:
        assert run_alone(loaded, row.key, FAKE).state == "finished"
    analysis = analyse(gather([plan.home])[0])
    assert {run.state for run in analysis.runs} == {"finished"}
    assert json.loads((plan.home / "rows" / f"{early.key}.json").read_text())["reason"] == ""
    with pytest.raises(ConfigError, match="has no such row"):
        run_alone(loaded, "train-0", FAKE)


@pytest.mark.parametrize(
    ("late", "code", "state", "requeued"),
    [
        (True, 143, "RUNNING None", True),
        (True, 143, "COMPLETING TimeLimit", True),  # it could not save in time
        (False, 143, "RUNNING None", True),  # preempted
        (False, 75, "RUNNING None", True),
        (False, 143, "COMPLETING None", False),  # cancelled, or requeued by hand
        (True, 0, "RUNNING None", False),
        (False, 2, "RUNNING None", False),
    ],
)
def test_an_arrays_job_saves_in_time_and_queues_itself_again(
    tmp_path: Path, late: bool, code: int, state: str, requeued: bool
) -> None:
    """The job's script, with stand-ins for SLURM's commands; `test_slurm` has a real one."""
    config, path = config_of(tmp_path, CONTROL, "executor=slurm")
    plan = make_plan(config, recipe=path, stages=FAKE)
    script = write_slurm(plan, config, plan.rows).scripts[0]
    tools = tmp_path / "bin"
    tools.mkdir()
    # As the real one: SIGTERM kills the run; only scancel reaches it.
    waits = f"trap 'exit 137' TERM; touch {tmp_path}/up; "
    waits += f"until [ -e {tmp_path}/saved ]; do sleep 0.02; done; "
    stand_ins = {
        "srun": f'echo "$@" > {tmp_path}/run; {waits if late else ""} exit {code}',
        # The run ends while scancel is still at work.
        "scancel": f'[ "$*" = "--signal=TERM 71.0" ] && touch {tmp_path}/saved && sleep 0.3',
        "squeue": f'[ "${{*/--jobs=70_0/}}" != "$*" ] && echo "{state}"',
        "scontrol": f'echo "$@" > {tmp_path}/requeued',
    }
    for name, text in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_ARRAY_JOB_ID": "70", "SLURM_JOB_ID": "71",
    }  # fmt: skip
    job = subprocess.Popen(["bash", script], env=environment)
    until = time.monotonic() + 120
    while late and not (tmp_path / "up").exists() and time.monotonic() < until:
        time.sleep(0.02)
    if late:
        job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=120) == code
    words = (tmp_path / "run").read_text().split()
    assert words[words.index("--row") + 1] == plan.rows[0].key
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 70_0\n"

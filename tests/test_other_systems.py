"""Without what only Linux has: the calls are gone in every process, and workers start by spawn.

Without simplejpeg, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_sweep_real import WARM
from tiny_images import write_tiny_shards

from vitwarm.records import read_records

HERE = Path(__file__).parent
#: Every Python process begins with it, spawned workers too.
GONE = """
import multiprocessing, os, signal, sys
for name in ("sched_getaffinity", "sched_setaffinity", "pread", "preadv", "posix_fadvise"):
    delattr(os, name)
sys.modules["resource"] = sys.modules["simplejpeg"] = sys.modules["fcntl"] = None
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that lacks those calls."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "sitecustomize.py").write_text(GONE)
    paths = [tmp_path / "gone", HERE.parent, HERE, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def run_python(environment: dict[str, str], *words: str, timeout: float = 240) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False,
        timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TWO_ROWS = """
import os, sys
from pathlib import Path
from fake_stages import FAKE
from test_sweep_execute import CONTROL, sweep_of

if __name__ == "__main__":
    assert not hasattr(os, "sched_getaffinity")
    sweep = CONTROL.replace("seeds: [0]", "seeds: [0, 1]").replace("slots: 1", "")
    sweep = "".join(line for line in sweep.splitlines(True) if "shuffled" not in line)
    result, _ = sweep_of(Path(sys.argv[1]), sweep.replace("arms:", "arms: {default: {}}"))
    assert result.exit_code == 0
"""


def test_a_sweep_of_two_rows(elsewhere: dict[str, str], tmp_path: Path) -> None:
    """The parent counts cores, the worker starts, and both rows have their record."""
    script = tmp_path / "go.py"
    script.write_text(TWO_ROWS)
    run_python(elsewhere, str(script), str(tmp_path))
    assert [record.seed for record in read_records(tmp_path / "runs")] == [0, 1]


SWEEP = """
base: base.yaml
match: steps
warmup_seeds: shared
set:
  train.model_kwargs: {patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}
  train.steps: 2
  train.batch_size: 8
  train.evaluations: 1
  data.resident: "off"
  train.img_size: 8
  train.warmup_epochs: 0
arms: {default: {}, dyck: {warmup: warm.yaml, train: {handoff.allow_failed: true}}}
seeds: [0]
run: {device: cpu, workers: 1}
"""


@pytest.mark.slow
def test_a_sweep_of_real_runs_with_loader_processes(
    elsewhere: dict[str, str], tmp_path: Path
) -> None:
    write_tiny_shards(tmp_path)
    (tmp_path / "base.yaml").write_text("data: {train: x, val: x}\n")
    (tmp_path / "warm.yaml").write_text(WARM)
    (tmp_path / "two.yaml").write_text(SWEEP)
    words = [
        "sweep", "--config", str(tmp_path / "two.yaml"), f"run.root={tmp_path}/runs", "slots=1",
        f"set.data.train={tmp_path}/tiny-train-*.tar", f"set.data.val={tmp_path}/tiny-val*.tar",
        "set.run.workers=1",
    ]  # fmt: skip
    run_python(elsewhere, "-m", "vitwarm.cli", *words)
    records = read_records(tmp_path / "runs")
    assert sorted(record.stage for record in records) == ["train", "train", "warmup"]
    assert {record.status for record in records} == {"finished"}
    logs = [path.read_text() for path in (tmp_path / "runs/sweeps/two/logs").glob("train-*")]
    assert sum(text.count("simplejpeg does not load") for text in logs) == 1  # one process


@pytest.mark.slow
def test_the_tests_of_loaders_locks_and_sweeps_pass(
    elsewhere: dict[str, str], tmp_path: Path
) -> None:
    files = ("test_shards_loader.py", "test_records.py", "test_sweep_execute.py")
    words = ["-n", "0", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inner", "-k"]
    # transformers, where it is installed, imports filelock, which warns of the missing fcntl.
    words[:0] = ["-W", "ignore:only soft file lock is available:UserWarning"]
    # Eight processes of four workers each take minutes to import torch; and there is a fork here.
    chosen = "not test_ranks_and_workers and not test_no_start_by_fork"
    paths = [str(HERE / file) for file in files]
    said = run_python(elsewhere, "-m", "pytest", *words, chosen, *paths, timeout=400)
    assert "passed" in said or "[100%]" in said

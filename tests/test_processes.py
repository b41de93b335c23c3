"""Several processes are one: same sequences, same loss, and a resume with another number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitwarm.records import read_metrics, read_records

ROOT = Path(__file__).parent.parent
WARMUP = [
    "scripts/warmup.py", "--rule", "dyck", "--budget", "20steps",
    "warmup.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 2}",
    "rule.params.n_kinds=8", "warmup.precision=fp32", "warmup.batch_size=16",
    "warmup.eval_sequences=64", "run.log_every_steps=4", "run.threads=1", "run.device=cpu",
]  # fmt: skip


def launch(out: Path, *words: str, processes: int = 1, code: int = 0) -> Path:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--standalone"]  # a free port each, so that tests can run side by side
    done = subprocess.run(
        [*launcher, *WARMUP, "--out", str(out), f"run.devices={processes}", *words],
        cwd=ROOT, text=True, capture_output=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # torchrun reports a worker's own exit code as 1.
    assert done.returncode == code, done.stdout + done.stderr
    (folder,) = out.iterdir()
    return folder


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if line["kind"] == "train"]


@pytest.mark.slow
def test_two_processes_equal_one_and_a_run_moves_between_them(tmp_path: Path) -> None:
    one = launch(tmp_path / "one")
    two = launch(tmp_path / "two", processes=2)
    assert len(losses(one)) == 5
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    (record,) = read_records(two)
    assert record.warmup_samples == 320

    # Begun by two processes, stopped by the time limit, gone on with by one in micro-batches.
    moved = tmp_path / "moved"
    launch(moved, "run.time_limit_minutes=1e-9", processes=2, code=1)
    folder = launch(moved, "warmup.micro_batch_size=4")
    assert losses(folder)[-2:] == pytest.approx(losses(one)[-2:], rel=1e-4)

"""Several processes are one: same sequences, same loss, and a resume with another number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitwarm.records import read_metrics, read_records
from vitwarm.trunk import load_trunk

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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_trunk(folder / "trunk.safetensors").tensors


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two trunks in any weight."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_two_processes_equal_one_and_a_run_moves_between_them(tmp_path: Path) -> None:
    """Losses and weights, whoever computes how much of a batch at once, and after a move too."""
    one = launch(tmp_path / "one")
    assert len(losses(one)) == 5
    two = launch(tmp_path / "two", processes=2)
    parts = launch(tmp_path / "parts", "warmup.micro_batch_size=2", processes=2)
    (record,) = read_records(two)
    assert record.warmup_samples == 320

    # Begun by two processes, stopped by the time limit, gone on with by one in micro-batches.
    launch(tmp_path / "fewer", "run.time_limit_minutes=1e-9", processes=2, code=1)
    fewer = launch(tmp_path / "fewer", "warmup.micro_batch_size=4")
    # And the other way round.
    launch(tmp_path / "more", "run.time_limit_minutes=1e-9", "warmup.micro_batch_size=4", code=75)
    more = launch(tmp_path / "more", "warmup.micro_batch_size=4", processes=2)

    expected = losses(one)
    for folder in (two, parts):
        assert losses(folder) == pytest.approx(expected, rel=1e-5)
    for folder in (fewer, more):  # what a stop has not logged yet is in no later line
        assert losses(folder)[-2:] == pytest.approx(expected[-2:], rel=1e-5)
    for folder in (two, parts, fewer, more):
        # One step with another gradient would move a weight by the learning rate, 2e-3.
        assert 0 < distance(weights(folder), weights(one)) < 1e-4


@pytest.mark.slow
def test_a_tied_warm_up_of_two_processes_equals_one(tmp_path: Path) -> None:
    """DDP sees each shared tensor once, as the optimiser does."""
    shape = "{embed_dim: 32, depth: 4, num_heads: 2, img_size: 8, patch_size: 2}"
    words = f"warmup.model_kwargs={shape}", "warmup.tie=0|1-2|3", "warmup.micro_batch_size=4"
    one = launch(tmp_path / "one", *words)
    two = launch(tmp_path / "two", *words, processes=2)
    assert len(losses(one)) == 5
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert 0 < distance(weights(two), weights(one)) < 1e-4
    facts = load_trunk(two / "trunk.safetensors").metadata
    assert facts["block_groups"] == "[[0], [1, 2], [3]]"

"""The command people type, killed without warning, typed again, handed off and loaded by timm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch

from vitwarm.trunk import load_trunk

ROOT = Path(__file__).parent.parent
COMMAND = [
    sys.executable, "scripts/warmup.py", "--rule", "dyck", "--budget", "60steps",
    "warmup.batch_size=4", "warmup.checkpoint_minutes=0.02", "run.threads=1", "run.device=cpu",
    "warmup.eval_sequences=16",
]  # fmt: skip


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(out: Path, *words: str) -> str:
    process = start(out, *words)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def wait_for_checkpoint(process: subprocess.Popen[str], out: Path, *, newer_than: int = 0) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        steps = [int(path.stem[4:]) for path in out.glob("*/checkpoints/step*.pt")]
        if any(step > newer_than for step in steps):
            return
        assert process.poll() is None, "the run ended before it saved"
        time.sleep(0.02)
    raise AssertionError("no checkpoint within two minutes")


@pytest.mark.slow
def test_killed_resumed_handed_off_and_loaded(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    text = finish(whole)
    assert "60 steps, 240 sequences" in text
    assert "% on hidden tokens" in text

    process = start(parts)
    wait_for_checkpoint(process, parts)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list(parts.glob("*/record.json"))

    process = start(parts)
    wait_for_checkpoint(process, parts, newer_than=10)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 143, text
    assert "Run the same command again to resume" in text
    assert "Traceback" not in text

    assert "resuming after step" in finish(parts)
    assert "is finished already" in finish(parts)
    (a,), (b,) = whole.glob("*/trunk.safetensors"), parts.glob("*/trunk.safetensors")
    one, other = load_trunk(a), load_trunk(b)
    assert one.sha256 == other.sha256
    assert other.metadata["status"] == "finished"

    folder = tmp_path / "export"
    handoff = subprocess.run(
        [sys.executable, "scripts/handoff.py", str(b.parent), "--model", "vit_tiny_patch16_224",
         "--out", str(folder), "--allow-failed"],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert handoff.returncode == 0, handoff.stderr
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in other.tensors.items())
    fresh = timm.create_model(
        "vit_tiny_patch16_224", checkpoint_path=str(folder / "model.safetensors")
    )
    assert torch.equal(fresh.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"])

"""A sweep for SLURM is planned and handed over where there is no GPU; one machine refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_images import write_tiny_shards

from vitwarm.config import SweepConfig, load_config
from vitwarm.errors import ConfigError
from vitwarm.sweep import run_sweep, show_plan
from vitwarm.sweep.rows import load_plan

MODEL = "{patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2, img_size: 8}"


def sweep(folder: Path, *words: str) -> tuple[SweepConfig, Path]:
    """A cold arm, which needs no warm-up, and a warmed one, both on GPUs."""
    write_tiny_shards(folder / "shards")
    (folder / "warm.yaml").write_text(f"warmup: {{model_kwargs: {MODEL}, budget: 2steps}}\n")
    (folder / "base.yaml").write_text(
        f"train: {{model_kwargs: {MODEL.replace(', img_size: 8', '')}, img_size: 8, steps: 2, "
        "warmup_epochs: 0, batch_size: 8}\n"
    )
    path = folder / "sweep.yaml"
    path.write_text(
        "name: s\nbase: base.yaml\nmatch: steps\nwarmup_seeds: shared\nseeds: [0]\n"
        "arms: {default: {}, dyck: {warmup: warm.yaml}}\nrun: {device: cuda}\n"
        f"set: {{data.train: '{folder}/shards/tiny-train-*.tar', "
        f"data.val: '{folder}/shards/tiny-val*.tar'}}\n"
    )
    return load_config(SweepConfig, path, [f"run.root={folder}/runs", *words]), path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_login_node_needs_no_gpu(
    devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\nwc -l < {tmp_path}/calls\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=":")
    config, path = sweep(tmp_path, "executor=slurm", f"run.devices={devices}")
    assert "32 images seen" in show_plan(config, recipe=path)
    result = run_sweep(config, recipe=path, say=lambda text: None)
    assert (result.failed, result.n_left) == ([], 3)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3  # warm-ups, trainings that need none, trainings that wait for one
    for call in calls:
        assert f"--gpus-per-node={devices}\n" in Path(call.split()[-1]).read_text()
    rows = load_plan(result.folder / "plan.json").rows
    assert {row.config.run.device for row in rows} == {"cuda"}  # what the jobs run on


def test_one_machine_without_a_gpu_refuses_before_anything_runs(tmp_path: Path) -> None:
    config, path = sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"run\.device is 'cuda', but torch sees no GPU"):
        run_sweep(config, recipe=path, say=lambda text: None)
    assert not (tmp_path / "runs").exists()

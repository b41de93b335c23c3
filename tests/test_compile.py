"""Compiled blocks compute what plain ones do, and a run keeps what it began with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_images import write_tiny_shards
from torch._dynamo.utils import counters

from vitwarm.config import TrainRun, WarmupRun, load_config
from vitwarm.errors import Stopped
from vitwarm.records import Record, read_metrics
from vitwarm.training import run_training
from vitwarm.warmup import run_warmup

MODEL = "embed_dim: 32, depth: 2, num_heads: 2, patch_size: 2"
RUN = [
    "run.progress=false", "run.log_every_steps=1", "run.device=cpu", "run.workers=0",
    "run.threads=1",
]  # fmt: skip


def warm_up(shards: Path, root: Path, *words: str) -> Record:
    config = load_config(
        WarmupRun,
        None,
        [
            *RUN, f"run.root={root}", f"warmup.model_kwargs={{{MODEL}, img_size: 8}}",
            "rule.params.n_kinds=8", "warmup.precision=fp32", "warmup.batch_size=8",
            "warmup.eval_sequences=64", "warmup.budget=6steps",
            *(word.replace("SECTION", "warmup") for word in words),
        ],
    )  # fmt: skip
    return run_warmup(config)


def train(shards: Path, root: Path, *words: str) -> Record:
    config = load_config(
        TrainRun,
        None,
        [
            *RUN, f"run.root={root}", f"train.model_kwargs={{{MODEL}}}", "train.img_size=8",
            "train.precision=fp32", "train.batch_size=16", "train.lr=2e-3", "train.steps=6",
            "train.evaluations=1", f"data.train={shards}/train",
            f"data.val={shards}/validation",
            *(word.replace("SECTION", "train") for word in words),
        ],
    )  # fmt: skip
    return run_training(config)


def losses(root: Path) -> list[float]:
    (folder,) = root.iterdir()
    return [line["loss"] for line in read_metrics(folder) if line["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("default")  # dynamo turns a warning raised inside it into its own error
@pytest.mark.parametrize(
    ("run", "n_graphs"), [(warm_up, 2), (train, 3)], ids=["warmup", "training"]
)
def test_compiled_blocks_change_nothing_and_a_resume_keeps_them(
    run: Any, n_graphs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_shards(tmp_path / "shards")
    torch._dynamo.reset()
    counters.clear()
    plain = run(tmp_path / "shards", tmp_path / "plain")
    assert not plain.extra["compiled"]
    assert not counters["stats"]["unique_graphs"]
    compiled = run(tmp_path / "shards", tmp_path / "compiled", "SECTION.compile=on")
    assert compiled.extra["compiled"]
    # Blocks share theirs, so that a deeper model has as many: one with gradients, one without, and
    # one for the smaller last batch of the validation.
    assert counters["stats"]["unique_graphs"] == n_graphs
    assert len(losses(tmp_path / "plain")) == 6
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)

    # Begun where `auto` means compiled, gone on with where it does not: the checkpoint decides.
    parts = tmp_path / "parts"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("vitwarm.loop.start._pays", lambda device: True)
        with pytest.raises(Stopped, match="after step 1 of 6"):
            run(tmp_path / "shards", parts, "run.time_limit_minutes=1e-9")
    torch._dynamo.reset()
    counters.clear()
    resumed = run(tmp_path / "shards", parts)
    assert resumed.extra["compiled"]
    assert counters["stats"]["unique_graphs"] == n_graphs
    assert losses(parts) == losses(tmp_path / "compiled")

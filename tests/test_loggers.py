"""Every logger shows metrics.jsonl, also over stops and resumptions, and none can harm a run."""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from tiny_images import write_tiny_shards

from vitwarm import informing, loggers
from vitwarm.cli import main
from vitwarm.config import TrainRun, WarmupRun, load_config
from vitwarm.errors import ConfigError, Stopped
from vitwarm.loop.module import SteppedModule
from vitwarm.records import read_metrics
from vitwarm.training import run_training, training_folder
from vitwarm.warmup import run_warmup, warmup_folder

Curves = dict[str, list[tuple[int, float]]]

MODEL = "{embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 2}"
WARM = [
    f"warmup.model_kwargs={MODEL}", "rule.params.n_kinds=8", "warmup.precision=fp32",
    "warmup.batch_size=8", "warmup.eval_sequences=16", "warmup.budget=12steps",
    "warmup.evaluations=3", "run.progress=false", "run.log_every_steps=2", "run.device=cpu",
]  # fmt: skip
TRAIN = [
    "train.model_kwargs={embed_dim: 32, depth: 1, num_heads: 2, patch_size: 2}",
    "train.img_size=8", "train.precision=fp32", "train.batch_size=16", "train.steps=12",
    "train.warmup_epochs=1", "train.evaluations=3", "run.progress=false",
    "run.log_every_steps=2", "run.device=cpu", "run.workers=0",
]  # fmt: skip


def warm(root: Path, *words: str) -> WarmupRun:
    return load_config(WarmupRun, None, [*WARM, f"run.root={root}", *words])


@contextmanager
def stop_in_step(step: int) -> Iterator[None]:
    original = SteppedModule.on_train_batch_start

    def wrapped(self: SteppedModule, batch: Any, batch_idx: int) -> None:
        if self.steps_done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch, batch_idx)

    SteppedModule.on_train_batch_start = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        SteppedModule.on_train_batch_start = original  # type: ignore[method-assign]


def stop_twice_and_finish(run: Callable[[], Any], folder: Path) -> None:
    """Steps 5 to 8 are done twice: the second stop's checkpoint is lost, its lines are not."""
    with stop_in_step(4), pytest.raises(Stopped):
        run()
    with stop_in_step(8), pytest.raises(Stopped):
        run()
    assert read_metrics(folder)[-1]["step"] == 8
    (folder / "checkpoints" / "step0000000009.pt").unlink()
    run()


def recorded(folder: Path) -> Curves:
    curves: Curves = {}
    for line in read_metrics(folder):
        for name, value in loggers.to_curves(line).items():
            curves.setdefault(name, []).append((line["step"], value))
    assert {"train/loss", "train/lr"} <= set(curves)
    assert [step for step, _ in curves["train/loss"]] == [2, 4, 6, 8, 10, 12]
    return curves


def from_tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def from_csv(folder: Path) -> Curves:
    curves: Curves = {}
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            for name, text in row.items():
                if text:
                    curves.setdefault(name, []).append((step, float(text)))
    return curves


def in_single_precision(curves: Curves) -> Curves:
    return {name: [(s, float(np.float32(v))) for s, v in c] for name, c in curves.items()}


def test_a_warm_ups_curves_are_the_records_over_stops(tmp_path: Path) -> None:
    config = warm(tmp_path, "run.logger=[tensorboard,csv]")
    folder = warmup_folder(config)
    stop_twice_and_finish(lambda: run_warmup(config), folder)
    curves = recorded(folder)
    assert len(curves["eval/hidden_accuracy_percent"]) == 3
    assert from_csv(folder) == curves
    assert from_tensorboard(folder) == in_single_precision(curves)


def test_a_trainings_curves_are_the_records_over_stops(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "tiny")
    data = [f"data.{a}={tmp_path}/tiny/tiny-{b}-*.tar" for a, b in
            (("train", "train"), ("val", "validation"))]  # fmt: skip
    words = [*TRAIN, *data, f"run.root={tmp_path}/runs", "run.logger=[tensorboard,csv]"]
    config = load_config(TrainRun, None, words)
    folder = training_folder(config)
    stop_twice_and_finish(lambda: run_training(config), folder)
    curves = recorded(folder)
    assert len(curves["eval/top1_percent"]) == 3
    assert from_csv(folder) == curves
    assert from_tensorboard(folder) == in_single_precision(curves)


def test_a_logger_that_comes_later_shows_the_whole_run(tmp_path: Path) -> None:
    with stop_in_step(6), pytest.raises(Stopped):
        run_warmup(warm(tmp_path))
    config = warm(tmp_path, "run.logger=[tensorboard]")
    assert warmup_folder(config) == warmup_folder(warm(tmp_path))
    run_warmup(config)
    assert from_tensorboard(warmup_folder(config)) == in_single_precision(
        recorded(warmup_folder(config))
    )


def test_a_logger_that_fails_or_hangs_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(informing, "_SAID", set())
    monkeypatch.setattr(loggers, "LEAVE_SECONDS", 0.5)
    config = warm(tmp_path, "run.logger=[tensorboard,csv]")
    folder = warmup_folder(config)
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / "tensorboard").write_text("a file where the folder should be")
    monkeypatch.setattr(CSVLogger, "log_metrics", lambda *args, **kwargs: time.sleep(60))
    began = time.monotonic()
    assert run_warmup(config).status == "finished"
    assert time.monotonic() - began < 30
    said = capsys.readouterr().err
    assert said.count("run.logger tensorboard failed (") == 1
    assert "run.logger csv failed (TimeoutError: not everything was sent within 0.5 s" in said


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_a_missing_package_is_refused_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dry_run: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # Python's own way to say: not there
    words = [*WARM, f"run.root={tmp_path}", "run.logger=[mlflow]"]
    assert main(["warmup", *words, *dry_run]) == 2
    assert "pip install 'vitwarm[loggers-mlflow]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["[tensorbord]", "[csv,csv]", "csv"])
def test_a_name_that_is_none_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="tensorboard, wandb, mlflow and csv, each at most once"):
        load_config(WarmupRun, None, [f"run.logger={given}"])
    assert main(["configs", "fields", "run.logger"]) == 0
    assert "tensorboard, wandb, mlflow and csv" in capsys.readouterr().out


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = warm(tmp_path, "run.logger=[wandb]")
    folder = warmup_folder(config)
    stop_twice_and_finish(lambda: run_warmup(config), folder)
    found = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(found) == 3
    assert len({path.name.split("-")[3] for path in found}) == 1  # offline-run-TIME-ID[-n]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow calls
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = warm(tmp_path, "run.logger=[mlflow]")
    folder = warmup_folder(config)
    with stop_in_step(4), pytest.raises(Stopped):
        run_warmup(config)
    run_warmup(config)
    client = MlflowClient(f"sqlite:///{tmp_path.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("vitwarm")
    (run,) = client.search_runs([experiment.experiment_id])
    curves = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert curves == recorded(folder)
    assert run.info.status == "FINISHED"

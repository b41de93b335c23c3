"""A run goes on as if it had not stopped: beside damaged files, in evaluations, whatever draws."""

from __future__ import annotations

import itertools
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import exported, lines, same, signal_in_step, tiny
from tiny_images import write_tiny_shards
from torch import Tensor

from vitwarm.errors import ConfigError, HandoffError, RunError, Stopped, TrainingFailed
from vitwarm.loop.plan import Cut, cut_batch
from vitwarm.loop.saving import TimedCheckpoint
from vitwarm.records import read_records
from vitwarm.training import plan_training, run_training, training_folder
from vitwarm.training.evaluate import evaluation_sums
from vitwarm.world import World

ONE_STEP = "run.time_limit_minutes=1e-9"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_shards(folder)
    return folder


def test_damaged_checkpoints_do_not_crowd_out_sound_ones(shards: Path, tmp_path: Path) -> None:
    config, hurried = tiny(shards, tmp_path), tiny(shards, tmp_path, ONE_STEP)
    with signal_in_step(6), pytest.raises(Stopped, match="after step 7 "):
        run_training(config)
    with pytest.raises(Stopped, match="after step 8 "):
        run_training(hurried)
    folder = training_folder(config) / "checkpoints"
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["step0000000007.pt", "step0000000008.pt"]
    for name in files:
        os.truncate(folder / name, 1000)
    for step in (1, 2, 3):  # each start comes further
        with pytest.raises(Stopped, match=f"after step {step} "):
            run_training(hurried)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["step0000000002.pt", "step0000000003.pt"]
    run_training(config)
    run_training(tiny(shards, tmp_path / "whole"))
    assert same(exported(config), exported(tiny(shards, tmp_path / "whole")))


@pytest.mark.parametrize(
    "word",
    [
        "train.model_kwargs.patch_drop_rate=0.5",
        "train.model_kwargs.proj_drop_rate=0.5",
        # It draws in its steps, and is compiled first.
        pytest.param(
            "train.opt=kron",
            marks=[
                pytest.mark.slow,
                pytest.mark.filterwarnings("ignore:.*opt_einsum:UserWarning"),
            ],
        ),
    ],
)
def test_what_draws_random_numbers_draws_them_of_the_step(
    shards: Path, tmp_path: Path, word: str
) -> None:
    whole, parts = (tiny(shards, tmp_path / name, word) for name in ("whole", "parts"))
    torch.manual_seed(1)
    run_training(whole)
    torch.manual_seed(2)  # a process that has trained another row before
    with signal_in_step(6), pytest.raises(Stopped):
        run_training(parts)
    run_training(parts)
    assert same(exported(whole), exported(parts))


def test_a_signal_in_an_evaluation_that_is_made_up_for_is_heard(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitwarm.training.evaluate.CHECK_EVERY_BATCHES", 1)
    config = tiny(shards, tmp_path, "data.resident=off")
    calls: list[int] = []

    def interrupting(*args: Any) -> Tensor:
        calls.append(0)
        if len(calls) in (3, 4):  # in the evaluation after step 8, and at once when it is resumed
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluation_sums(*args)

    monkeypatch.setattr("vitwarm.training.evaluate.evaluation_sums", interrupting)
    for _ in range(2):
        with pytest.raises(Stopped, match="SIGTERM after step 8"):
            run_training(config)
    run_training(config)
    assert [line["step"] for line in lines(config, "eval")] == [4, 8, 12]


def test_a_run_that_diverges_in_its_last_step_has_no_result(shards: Path, tmp_path: Path) -> None:
    """Its training losses are those before the last update, and finite."""
    words = ("train.steps=2", "train.warmup_epochs=0", "train.lr=1000", "train.opt=sgd")
    words += ("train.weight_decay=1000", "train.evaluations=1", "train.smoothing=0")
    with pytest.raises(TrainingFailed, match="validation loss is not a finite number"):
        run_training(tiny(shards, tmp_path, *words))
    assert not read_records(tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_not_called_saved(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TimedCheckpoint, module: Any) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(TimedCheckpoint, "save", full)
    with signal_in_step(2), pytest.raises(RunError, match="the disk is full"):
        run_training(tiny(shards, tmp_path))


def cut_or_advice(batch: int, micro: int | None, size: int, even: bool) -> Cut | str:
    try:
        return cut_batch(batch, micro, World(rank=0, size=size), field="train", even=even)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("even", [False, True])
def test_the_advice_on_a_batch_can_be_followed(size: int, even: bool) -> None:
    """For the batch first, then for the micro-batch, each once, and only where one was given."""
    n_refused = 0
    for given in itertools.product(range(1, 25), (None, *range(1, 25))):
        batch, micro = given
        cut = cut_or_advice(batch, micro, size, even)
        for field in ("batch_size", "micro_batch_size"):
            if isinstance(cut, str) and f"train.{field} is" in cut:
                assert field == "batch_size" or micro is not None, cut
                n_refused += 1
                number = int(re.findall(r"Use (\d+)\.$", cut)[0])
                batch, micro = (number, micro) if field == "batch_size" else (batch, number)
                cut = cut_or_advice(batch, micro, size, even)
        assert isinstance(cut, Cut), (given, cut)
        assert cut.micro_batch_size * cut.accumulate * size == cut.batch_size
        assert not (even and cut.micro_batch_size % 2)
    assert n_refused


def test_a_start_that_is_not_there_is_refused_before_anything_is_written(
    shards: Path, tmp_path: Path
) -> None:
    for init in ("nothing.pth", f"{tmp_path}/export"):
        with pytest.raises(HandoffError, match="there is no such file or folder"):
            plan_training(tiny(shards, tmp_path, f"handoff.init={init}"))

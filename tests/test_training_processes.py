"""Several processes are one, a kill at any moment loses minutes at most, every recipe runs."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_images import write_tiny_shards

from vitwarm.config import TrainRun, load_config
from vitwarm.errors import RunError
from vitwarm.records import RunFolder, read_metrics, read_records
from vitwarm.training import run_training, training_folder

ROOT = Path(__file__).parent.parent
TINY = [
    "train.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, patch_size: 2}",
    "train.img_size=8", "train.precision=fp32", "train.batch_size=16", "train.lr=2e-3",
    "train.warmup_epochs=30", "train.mixup=0.8", "train.aa=rand-m9-mstd0.5-inc1",
    "run.log_every_steps=4", "run.threads=1", "run.device=cpu",
]  # fmt: skip


def where(shards: Path) -> list[str]:
    return [f"data.train={shards}/tiny-train-*.tar", f"data.val={shards}/tiny-validation-*.tar"]


def launch(shards: Path, out: Path, *words: str, processes: int = 1, code: int = 0) -> Path:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--standalone"]  # a free port each, so that tests can run side by side
    done = subprocess.run(
        [*launcher, "scripts/train.py", *TINY, *where(shards), "--out", str(out),
         f"run.devices={processes}", "train.steps=20", "train.evaluations=2", *words],
        cwd=ROOT, text=True, capture_output=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # torchrun reports a worker's own exit code as 1.
    assert done.returncode == code, done.stdout + done.stderr
    assert code == 0 or "Stopped by the time limit" in done.stderr, done.stdout + done.stderr
    (folder,) = out.iterdir()
    return folder


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if line["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("resident", ["on", "off"])
def test_two_processes_equal_one_and_a_run_moves_between_them(
    tmp_path: Path, resident: str
) -> None:
    write_tiny_shards(tmp_path / "shards")
    words = (f"data.resident={resident}", "run.workers=1", "train.model_ema=true")
    one = launch(tmp_path / "shards", tmp_path / "one", *words)
    two = launch(tmp_path / "shards", tmp_path / "two", *words, processes=2)
    assert len(losses(one)) == 5
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    (a,), (b,) = read_records(one), read_records(two)
    assert (a.images_seen, a.n_val_images) == (b.images_seen, b.n_val_images) == (320, 27)
    assert b.val_loss == pytest.approx(a.val_loss, rel=1e-4)
    for export in ("export", "export_ema"):
        ours, theirs = (load_file(run / export / "model.safetensors") for run in (one, two))
        for name, tensor in ours.items():
            # Adam makes steps out of a key bias's gradient, which is zero but for rounding.
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=5e-4)

    # Begun by two processes, stopped by the time limit, gone on with by one in micro-batches.
    moved = tmp_path / "moved"
    launch(tmp_path / "shards", moved, *words, "run.time_limit_minutes=1e-9", processes=2, code=1)
    folder = launch(tmp_path / "shards", moved, *words, "train.micro_batch_size=4")
    assert losses(folder)[-1] == pytest.approx(losses(one)[-1], rel=1e-3)


def child(config: TrainRun) -> None:
    torch.set_num_threads(1)
    run_training(config)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "shards")
    words = [
        *TINY, *where(tmp_path / "shards"), "run.progress=false", "train.steps=900",
        "train.evaluations=9", "train.checkpoint_minutes=1e-6", "train.model_ema=true",
        "train.drop_path=0.1",
    ]  # fmt: skip
    whole = load_config(TrainRun, None, [*words, f"run.root={tmp_path / 'whole'}"])
    parts = load_config(TrainRun, None, [*words, f"run.root={tmp_path / 'parts'}"])
    began = time.monotonic()
    run_training(whole)
    seconds = time.monotonic() - began  # the moments are this machine's: fast ones finish sooner
    run = RunFolder(training_folder(parts))
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    for n in range(20):
        before = run.saved_step
        process = context.Process(target=child, args=(parts,))
        process.start()
        if n % 4:  # every fourth is killed while it starts, the others after they saved something
            while process.is_alive() and run.saved_step == before:
                time.sleep(0.001)
        time.sleep(rng.uniform(0, seconds / 40))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    assert 15 <= run.saved_step < 900
    record = run_training(parts)
    assert record.steps == 900
    for export in ("export", "export_ema"):
        a, b = (
            load_file(training_folder(c) / export / "model.safetensors") for c in (whole, parts)
        )
        assert all(torch.equal(a[name], b[name]) for name in a)
    evaluations = [line for line in read_metrics(training_folder(parts)) if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == list(range(100, 901, 100))


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_shards(tmp_path / "shards")
    words = [
        *TINY, *where(tmp_path / "shards"), "run.progress=false", "train.steps=12",
        "train.checkpoint_minutes=1e-6",
    ]  # fmt: skip
    whole = load_config(TrainRun, None, [*words, f"run.root={tmp_path / 'whole'}"])
    parts = load_config(TrainRun, None, [*words, f"run.root={tmp_path / 'parts'}"])
    run_training(whole)
    saves = []
    original = torch.save

    def full(*args: object, **kwargs: object) -> None:
        saves.append(0)
        if len(saves) == 6:
            raise OSError(28, "No space left on device")
        original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left"):
        run_training(parts)
    monkeypatch.undo()
    assert run_training(parts).steps == 12
    a, b = (load_file(training_folder(c) / "export" / "model.safetensors") for c in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


RECIPES = sorted((ROOT / "configs" / "train").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_takes_a_few_steps(tmp_path: Path, recipe: Path) -> None:
    """With one block and few images, but its own width, operations, optimiser and schedule."""
    write_tiny_shards(tmp_path / "shards", n_train=8, n_val=4, size=80, ending="jpg")
    words = [
        *where(tmp_path / "shards"), f"run.root={tmp_path / 'runs'}", "run.progress=false",
        "run.device=cpu", "run.workers=0", "train.batch_size=4", "train.micro_batch_size=2",
        "train.steps=2", "train.evaluations=1", "train.model_kwargs.depth=1", "data.fraction=1",
    ]  # fmt: skip
    record = run_training(load_config(TrainRun, recipe, words))
    assert record.steps == 2
    assert record.name == recipe.stem
    assert record.n_val_images == 4


@pytest.mark.slow
def test_a_recipe_in_two_processes_is_the_one_in_one(tmp_path: Path) -> None:
    """The paper's: mixing, RandAugment and erasing in micro-batches, its width and size shrunk."""
    write_tiny_shards(tmp_path / "shards", size=80, ending="jpg")
    words = ("--config", "train/imagenet1k_vit_base_300ep", "train.micro_batch_size=4")
    runs = [
        launch(tmp_path / "shards", tmp_path / str(n), *words, "run.workers=1", processes=n)
        for n in (1, 2)
    ]
    one, two = map(losses, runs)
    assert len(one) == 5
    assert two == pytest.approx(one, rel=1e-4)
    (record,) = read_records(runs[1])
    assert (record.name, record.n_val_images) == ("imagenet1k_vit_base_300ep", 27)


@pytest.mark.slow
def test_processes_resume_where_only_the_last_evaluation_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process makes up for it; the others have no figures, and must not end the run by that."""
    shards, out = tmp_path / "shards", tmp_path / "out"
    write_tiny_shards(shards)
    words = [*TINY, *where(shards), f"run.root={out}", "train.steps=20", "train.evaluations=2"]
    monkeypatch.setattr("vitwarm.training.run.Evaluation._evaluate_if_due", lambda *args: None)
    monkeypatch.setattr("vitwarm.training.run.write_exports", _stop_here)
    with pytest.raises(KeyboardInterrupt):
        run_training(load_config(TrainRun, None, words))
    assert not read_records(out)
    launch(shards, out, processes=2)
    (record,) = read_records(out)
    assert record.top1_percent is not None


def _stop_here(*args: object) -> None:
    raise KeyboardInterrupt

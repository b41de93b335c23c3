"""What a GPU computes is what the CPU does: `pytest -m gpu` where there is one.

Every body takes its device, so that the default suite proves the bodies themselves on a CPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_images import write_tiny_shards
from torch.nn.modules.module import register_module_forward_hook

from vitwarm.augment import Augmentation, Mixing
from vitwarm.config import TrainRun, WarmupRun, load_config
from vitwarm.errors import Stopped
from vitwarm.records import Record, read_metrics
from vitwarm.training import run_training
from vitwarm.warmup import run_warmup

MODEL = "embed_dim: 32, depth: 2, num_heads: 2, patch_size: 2"
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
    ],
)
on_each_device = pytest.mark.parametrize("device", ["cpu", CUDA])


def run_words(root: Path, device: str) -> list[str]:
    return [
        f"run.root={root}", f"run.device={device}", "run.progress=false", "run.workers=0",
        "run.log_every_steps=1", "run.threads=1",
    ]  # fmt: skip


def warm_up(root: Path, device: str, *words: str) -> tuple[Record, list[float]]:
    config = load_config(
        WarmupRun,
        None,
        [
            *run_words(root, device), f"warmup.model_kwargs={{{MODEL}, img_size: 8}}",
            "rule.params.n_kinds=8", "warmup.precision=fp32", "warmup.batch_size=8",
            "warmup.eval_sequences=16", "warmup.budget=6steps", "warmup.compile=off", *words,
        ],
    )  # fmt: skip
    return run_warmup(config), losses(root)


def train(shards: Path, root: Path, device: str, *words: str) -> tuple[Record, list[float]]:
    config = load_config(
        TrainRun,
        None,
        [
            *run_words(root, device), f"train.model_kwargs={{{MODEL}}}", "train.img_size=8",
            "train.precision=fp32", "train.batch_size=16", "train.lr=2e-3", "train.steps=6",
            "train.evaluations=1", "train.compile=off", f"data.train={shards}/train",
            f"data.val={shards}/validation", *words,
        ],
    )  # fmt: skip
    return run_training(config), losses(root)


def losses(root: Path) -> list[float]:
    (folder,) = [path.parent for path in root.glob("*/record.json")]
    return [line["loss"] for line in read_metrics(folder) if line["kind"] == "train"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_tiny_shards(tmp_path / "shards")
    return tmp_path / "shards"


@on_each_device
def test_a_warmup_is_the_cpus_to_rounding(device: str, tmp_path: Path) -> None:
    _, ours = warm_up(tmp_path / "ours", device)
    _, cpus = warm_up(tmp_path / "cpus", "cpu")
    assert len(cpus) == 6
    assert ours == pytest.approx(cpus, rel=1e-3)


@pytest.mark.filterwarnings("default")  # dynamo turns a warning raised inside it into its own error
@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here"),
            ],
        ),
        CUDA,
    ],
)
@pytest.mark.parametrize(("precision", "rel"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_compiled_blocks_are_the_plain_ones(
    device: str, precision: str, rel: float, tmp_path: Path
) -> None:
    words = f"warmup.precision={precision}"
    _, plain = warm_up(tmp_path / "plain", device, words)
    record, compiled = warm_up(tmp_path / "compiled", device, words, "warmup.compile=on")
    assert record.extra["compiled"]
    assert compiled == pytest.approx(plain, rel=rel)


@on_each_device
@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "3a"])
def test_augmentation_is_the_cpus(device: str, aa: str, rng: np.random.Generator) -> None:
    n = 64
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, 24, 24), np.uint8))
    labels = torch.arange(n) % 5
    augment = Augmentation(
        seed=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), aa=aa, color_jitter=None, reprob=0.0,
        mixing=Mixing(mixup=0.8, cutmix=1.0),
    )  # fmt: skip

    def run(where: str) -> torch.Tensor:
        out, _ = augment(
            images.to(where), labels.to(where), rows=np.arange(n), epochs=np.zeros(n, int),
            positions=np.arange(n),
        )  # fmt: skip
        assert out.device.type == where
        return out.cpu()

    off = (run(device) - run("cpu")).abs()
    # A grey value is 0.02 after normalising; rounding moves few of them by one.
    assert off.mean() < 1e-3
    assert (off > 0.05).float().mean() < 1e-3


@on_each_device
def test_resident_images_train_as_loaded_ones(device: str, shards: Path, tmp_path: Path) -> None:
    resident, ours = train(shards, tmp_path / "resident", device, "data.resident=on")
    loaded, theirs = train(shards, tmp_path / "loaded", device, "data.resident=off")
    assert ours == pytest.approx(theirs, rel=1e-2)  # crops differ by rounding
    assert resident.val_loss == pytest.approx(loaded.val_loss, rel=2e-2)


@on_each_device
@pytest.mark.parametrize("stage", ["warmup", "training"])
def test_a_resumed_run_is_the_uninterrupted_one(
    device: str, stage: str, shards: Path, tmp_path: Path
) -> None:
    def run(root: Path, *words: str) -> tuple[Record, list[float]]:
        if stage == "warmup":
            return warm_up(root, device, *words)
        return train(shards, root, device, *words)

    _, whole = run(tmp_path / "whole")
    with pytest.raises(Stopped, match="after step 1 of 6"):
        run(tmp_path / "parts", "run.time_limit_minutes=1e-9")
    _, parts = run(tmp_path / "parts")
    assert parts == pytest.approx(whole, rel=1e-5)


@on_each_device
def test_bf16_is_where_it_should_be(device: str, tmp_path: Path) -> None:
    """Products in bf16; parameters, their optimiser and the loss in fp32."""
    products: set[torch.dtype] = set()
    parameters: set[torch.dtype] = set()

    def note(module: torch.nn.Module, _: object, out: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.training and torch.is_grad_enabled():
            assert isinstance(out, torch.Tensor)
            assert out.device.type == device
            products.add(out.dtype)
            parameters.update(p.dtype for p in module.parameters())

    handle = register_module_forward_hook(note)
    try:
        warm_up(tmp_path, device, "warmup.precision=bf16")
    finally:
        handle.remove()
    assert products == {torch.bfloat16}
    assert parameters == {torch.float32}
    (newest, *_) = sorted(tmp_path.glob("*/checkpoints/step*.pt"), reverse=True)
    state = torch.load(newest, map_location="cpu", weights_only=True)["state"]
    moments = [m for one in state["optimizer"]["state"].values() for m in one.values()]
    assert moments
    assert {m.dtype for m in moments} == {torch.float32}

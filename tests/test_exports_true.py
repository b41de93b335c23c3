"""What stands beside exported weights is what an independent evaluation of them finds.

Independent: timm loads the folder, PIL decodes, timm's own transform prepares, plain torch counts.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

from vitwarm.cli import main
from vitwarm.config import TrainRun, WarmupRun, load_config
from vitwarm.errors import ConfigError, Stopped
from vitwarm.records import Record
from vitwarm.shards.write.writer import Sample, write_info, write_shards
from vitwarm.training import run_training, training_folder
from vitwarm.trunk import build_model, trunk_names
from vitwarm.warmup import run_warmup, warmup_folder

N_VAL = 300
SHAPE = "embed_dim: 32, depth: 2, num_heads: 2, patch_size: 4"
#: Every field that an export has to tell timm differs from timm's defaults.
COMMON = [
    "train.img_size=16", "train.crop_pct=0.8", "train.interpolation=bilinear",
    "train.mean=[0.4, 0.5, 0.6]", "train.std=[0.2, 0.25, 0.3]", "train.precision=fp32",
    "train.batch_size=16", "train.lr=2e-3", "train.steps=30", "train.warmup_epochs=10",
    "train.evaluations=2", "run.device=cpu", "run.workers=0",
]  # fmt: skip


def write_noisy_shards(folder: Path, *, n_classes: int, ending: str = "png") -> Path:
    """Images 28 wide and 22 high in which a class is a tint and an edge that noise half hides."""
    rng = np.random.default_rng(n_classes)
    tints = rng.integers(90, 166, (n_classes, 3))
    lengths = {}
    for split, n in (("train", 96), ("validation", N_VAL)):
        samples = []
        for k in range(n):
            label = int(rng.integers(n_classes))
            pixels = rng.normal(0, 60, (22, 28, 3)) + tints[label] + rng.normal(0, 25, 3)
            pixels[:, : (label + 1) * 28 // (n_classes + 1)] += 30
            buffer = io.BytesIO()
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(buffer, format={"png": "PNG", "jpg": "JPEG"}[ending])
            samples.append(Sample(f"{split}{k:04d}", ending, buffer.getvalue(), label))
        lengths[split] = write_shards(folder, f"n-{split}", samples, n_samples=n, n_shards=2)
    write_info(folder, "noisy", lengths, [f"class {k}" for k in range(n_classes)])
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noisy_shards(tmp_path_factory.mktemp("noisy"), n_classes=4)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noisy_shards(tmp_path_factory.mktemp("others"), n_classes=3, ending="jpg")


def words_of(shards: Path, root: Path, *words: str) -> list[str]:
    data = [f"data.train={shards}/train", f"data.val={shards}/validation"]
    return [*COMMON, f"train.model_kwargs={{{SHAPE}}}", *data, f"run.root={root}", *words]


def config_of(shards: Path, root: Path, *words: str) -> TrainRun:
    return load_config(TrainRun, None, words_of(shards, root, "run.progress=false", *words))


def evaluate_alone(export: Path, shards: Path) -> dict[str, float]:
    """Counts right images without anything of this package."""
    vit = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    data = resolve_model_data_config(vit)
    transform = create_transform(**data, is_training=False)
    mode = "RGB" if data["input_size"][0] == 3 else "L"
    images, labels = [], []
    for tar in sorted(shards.glob("n-validation-*.tar")):
        with tarfile.open(tar) as file:
            for member in file.getmembers():
                content = file.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".cls"):
                    labels.append(int(content))
                else:
                    images.append(transform(Image.open(io.BytesIO(content)).convert(mode)))
    target = torch.tensor(labels)
    with torch.no_grad():
        logits = vit(torch.stack(images))
    assert len(images) == len(labels) == N_VAL
    loss = torch.nn.functional.cross_entropy(logits, target).item()
    return {"right": int((logits.argmax(1) == target).sum()), "val_loss": loss}


def check_true(config: TrainRun, record: Record, shards: Path, *, weights: str = "raw") -> int:
    """Holds config.json, record and metrics of a finished run against an independent evaluation.

    Returns: right images.
    """
    folder = training_folder(config)
    export = folder / {"raw": "export", "ema": "export_ema"}[weights]
    alone = evaluate_alone(export, shards)
    right = alone["right"]
    said = json.loads((export / "config.json").read_text())["vitwarm"]
    assert said["weights"] == weights
    assert said["evaluation"]["n_val_images"] == N_VAL
    assert abs(said["evaluation"]["top1_percent"] * N_VAL / 100 - right) <= 1 + 1e-6
    assert said["evaluation"]["val_loss"] == pytest.approx(alone["val_loss"], rel=0.01)
    headline = record.top1_weights == weights
    for name in ("top1_percent", "top5_percent", "val_loss"):
        recorded = getattr(record, name) if headline else record.extra[f"raw_{name}"]
        assert recorded == said["evaluation"][name]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["top1_percent"] == record.top1_percent
    return int(right)


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRun, Record]:
    config = config_of(shards, tmp_path_factory.mktemp("trained"), "data.resident=off")
    return config, run_training(config)


def test_the_raw_export(trained: tuple[TrainRun, Record], shards: Path) -> None:
    right = check_true(*trained, shards)
    assert N_VAL / 4 * 1.2 < right < 0.95 * N_VAL, "too easy or too hard to tell weights apart"


@pytest.mark.parametrize("resident", ["on", "off"])
def test_raw_and_averaged_exports_each_say_their_own(
    shards: Path, tmp_path: Path, resident: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train.model_ema=true", "train.model_ema_decay=0.9", f"data.resident={resident}")
    assert main(["train", *words_of(shards, tmp_path, *words)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    config = config_of(shards, tmp_path, *words)
    record = run_training(config)
    assert record.top1_weights == "ema"
    right = {w: check_true(config, record, shards, weights=w) for w in ("raw", "ema")}
    assert abs(right["raw"] - right["ema"]) > 4, "the two are too alike to be mixed up"
    folder = training_folder(config)
    assert f"{folder / 'export_ema'} (ema weights, top-1 {record.top1_percent:.2f} %)" in last
    raw = record.extra["raw_top1_percent"]
    assert f"{folder / 'export'} (raw weights, top-1 {raw:.2f} %)" in last


def test_a_fine_tuned_export(
    trained: tuple[TrainRun, Record], others: Path, tmp_path: Path
) -> None:
    """To other classes, JPEGs, another size; the export brings its arguments along."""
    start = training_folder(trained[0]) / "export"
    config = config_of(
        others, tmp_path, f"handoff.init={start}", "train.model_kwargs={}", "train.img_size=20",
        "train.crop_pct=1.0",
    )  # fmt: skip
    check_true(config, run_training(config), others)
    sources = {
        entry["name"]: entry["source"]
        for entry in json.loads((training_folder(config) / "audit.json").read_text())["entries"]
    }
    assert sources["pos_embed"] == f"{start} (resampled from 1x17x32)"
    assert sources["head.weight"].startswith("timm's initialisation")
    assert sources["blocks.0.attn.qkv.weight"] == str(start)


def test_a_size_that_is_not_given_is_the_exports(
    trained: tuple[TrainRun, Record], others: Path, tmp_path: Path
) -> None:
    start = training_folder(trained[0]) / "export"
    config = config_of(
        others, tmp_path, f"handoff.init={start}", "train.model_kwargs={}", "train.img_size=null"
    )
    check_true(config, run_training(config), others)
    loaded = timm.create_model(f"local-dir:{training_folder(config) / 'export'}", pretrained=True)
    assert resolve_model_data_config(loaded)["input_size"] == (3, 16, 16)


@pytest.mark.parametrize("resident", ["on", "off"])
def test_images_that_are_not_square(
    shards: Path, tmp_path: Path, resident: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a warm-up of their grid, and by fine-tuning from square ones."""
    shape = f"{{{SHAPE}, img_size: [16, 24]}}"
    warm = load_config(
        WarmupRun, None,
        [f"warmup.model_kwargs={shape}", "rule.params.n_kinds=8", "warmup.precision=fp32",
         "warmup.budget=2steps", "warmup.batch_size=8", "warmup.eval_sequences=16",
         "run.device=cpu", "run.progress=false", f"run.root={tmp_path}"],
    )  # fmt: skip
    assert run_warmup(warm).warmup_tokens == 2 * 8 * 24
    words = [
        f"handoff.trunk={warmup_folder(warm)}", "handoff.allow_failed=true",
        "train.img_size=[16,24]", "train.steps=10", f"data.resident={resident}",
    ]  # fmt: skip
    assert main(["train", *words_of(shards, tmp_path, *words), "--dry-run"]) == 0
    assert " at 16 x 24 px, " in capsys.readouterr().out
    config = config_of(shards, tmp_path, *words)
    check_true(config, run_training(config), shards)
    export = training_folder(config) / "export"
    loaded = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert resolve_model_data_config(loaded)["input_size"] == (3, 16, 24)

    init = [f"handoff.init={export}", "train.model_kwargs={}", "train.steps=3"]
    wider = config_of(shards, tmp_path, *init, "train.img_size=[24,20]")
    check_true(wider, run_training(wider), shards)
    with pytest.raises(ConfigError, match=r"train.img_size is 22, .* Use train.img_size=20 or 24"):
        run_training(config_of(shards, tmp_path, "train.img_size=[16,22]"))


@pytest.mark.parametrize("resident", ["on", "off"])
def test_grey_images(
    shards: Path, tmp_path: Path, resident: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One channel is Pillow's mode L of the augmented picture, as timm loads it."""
    words = [
        f"train.model_kwargs={{{SHAPE}, in_chans: 1}}", "train.aa=rand-m9-mstd0.5-inc1",
        "train.reprob=0.25", "train.mixup=0.8", f"data.resident={resident}",
    ]  # fmt: skip
    assert main(["train", *words_of(shards, tmp_path, *words), "--dry-run"]) == 0
    assert " at 16 px, grey, " in capsys.readouterr().out
    config = config_of(shards, tmp_path, *words)
    check_true(config, run_training(config), shards)
    facts = json.loads((training_folder(config) / "export" / "config.json").read_text())
    assert facts["pretrained_cfg"]["input_size"] == [1, 16, 16]
    assert facts["pretrained_cfg"]["mean"] == pytest.approx([0.5])
    with pytest.raises(ConfigError, match=r"in_chans is 4; .* Use 3, or 1 for grey"):
        run_training(config_of(shards, tmp_path, "train.model_kwargs.in_chans=4"))


def test_a_probed_export_keeps_the_trunk_that_it_probes(
    trained: tuple[TrainRun, Record], others: Path, tmp_path: Path
) -> None:
    start = training_folder(trained[0]) / "export"
    words = (f"handoff.init={start}", "train.freeze=all_but_head", "train.model_ema=true")
    config = config_of(others, tmp_path, *words)
    record = run_training(config)
    before = load_file(start / "model.safetensors")
    vit = build_model("vit_tiny_patch16_224", seed=0, img_size=16, **dict(trained_shape()))
    for weights, folder in (("raw", "export"), ("ema", "export_ema")):
        check_true(config, record, others, weights=weights)
        after = load_file(training_folder(config) / folder / "model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in trunk_names(vit))
        assert after["head.weight"].shape == (3, 32)


def trained_shape() -> dict[str, Any]:
    return {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}


def test_a_resumed_export(shards: Path, tmp_path: Path) -> None:
    words = ("train.model_ema=true", "train.model_ema_decay=0.9")
    with pytest.raises(Stopped):
        run_training(config_of(shards, tmp_path, *words, "run.time_limit_minutes=1e-9"))
    config = config_of(shards, tmp_path, *words)
    record = run_training(config)
    for weights in ("raw", "ema"):
        check_true(config, record, shards, weights=weights)


def test_a_run_killed_between_its_last_step_and_its_exports(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated and saved, but not exported: the average is in the checkpoint and comes out."""
    config = config_of(shards, tmp_path, "train.model_ema=true", "train.model_ema_decay=0.9")

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitwarm.training.run.write_exports", killed)
    with pytest.raises(KeyboardInterrupt):
        run_training(config)
    monkeypatch.undo()
    record = run_training(config)
    for weights in ("raw", "ema"):
        check_true(config, record, shards, weights=weights)

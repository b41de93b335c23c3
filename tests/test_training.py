"""The image training is the plain loop's, resumes bit for bit, and says what it did."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_images import write_tiny_shards
from torch import Tensor, nn

from vitwarm.augment import Targets
from vitwarm.cli import main
from vitwarm.config import TrainRun, load_config
from vitwarm.errors import (
    ConfigError,
    HandoffError,
    ModelError,
    ShardError,
    Stopped,
    TrainingFailed,
)
from vitwarm.loop.plan import Cut, Schedule, evaluation_steps
from vitwarm.records import Record, read_metrics, read_records
from vitwarm.shards import decode_all
from vitwarm.training import (
    make_model,
    make_module,
    plan_training,
    run_training,
    show_plan,
    training_folder,
)
from vitwarm.training.data import Pictures
from vitwarm.training.evaluate import evaluation_sums
from vitwarm.training.module import ImageModule, freeze, image_loss
from vitwarm.trunk import save_trunk, trunk_names
from vitwarm.world import World

TINY = [
    "train.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, patch_size: 2}",
    "train.img_size=8",
    "train.precision=fp32",
    "train.batch_size=16",
    "train.lr=2e-3",
    "train.steps=12",
    "train.warmup_epochs=30",
    "train.evaluations=3",
    "run.progress=false",
    "run.log_every_steps=4",
    "run.device=cpu",
    "run.workers=0",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_shards(folder)
    return folder


def tiny(shards: Path, root: Path, *words: str) -> TrainRun:
    data = [f"data.train={shards}/tiny-train-*.tar", f"data.val={shards}/tiny-validation-*.tar"]
    return load_config(TrainRun, None, [*TINY, *data, f"run.root={root}", *words])


def exported(config: TrainRun, name: str = "export") -> dict[str, Tensor]:
    return load_file(training_folder(config) / name / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(config: TrainRun, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(training_folder(config)) if line["kind"] == kind]


@contextmanager
def signal_in_step(step: int, signum: int = signal.SIGTERM) -> Iterator[None]:
    """Sends this process a signal while a step is being trained."""
    original = ImageModule.training_step

    def wrapped(self: ImageModule, batch: Any, batch_idx: int) -> Tensor:
        if self.steps_done == step:
            os.kill(os.getpid(), signum)
        return original(self, batch, batch_idx)

    ImageModule.training_step = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        ImageModule.training_step = original  # type: ignore[method-assign]


MIXED = (
    "train.mixup=0.8",
    "train.cutmix=1.0",
    "train.aa=rand-m9-mstd0.5-inc1",
    "train.reprob=0.25",
)


@pytest.mark.parametrize("words", [(), MIXED], ids=["plain", "mixed"])
def test_the_loss_is_a_plain_loops_for_fifty_steps(
    shards: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    config = tiny(shards, tmp_path, "train.steps=50", "run.log_every_steps=1", *words)
    run_training(config)

    plan = plan_training(config)
    vit, _ = make_model(plan)
    decay = [
        p for n, p in vit.named_parameters() if p.ndim > 1 and n not in ("pos_embed", "cls_token")
    ]
    rest = [p for n, p in vit.named_parameters() if p.ndim <= 1 or n in ("pos_embed", "cls_token")]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=1.0
    )
    feed, _ = Pictures(plan).feed(start_step=0)
    losses = []
    for step, batch in enumerate(feed):
        ramp = min(step / 5, 1.0)  # 30 of 300 epochs = 5 of 50 steps
        cosine = 1e-6 + (2e-3 - 1e-6) * (1 + np.cos(np.pi * (step - 5) / 45)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * ramp if step < 5 else cosine
        optimizer.zero_grad()
        logits = vit(batch.images)
        soft = batch.targets.soft(4, smoothing=0.1)
        loss = -(soft * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = [line["loss"] for line in lines(config, "train")]
    assert len(ours) == 50
    assert ours == pytest.approx(losses, rel=2e-5)
    assert [line["lr"] for line in lines(config, "train")][:6] == pytest.approx(
        [0.0, 4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3]
    )


def test_a_run_leaves_what_it_promises_and_is_not_run_again(shards: Path, tmp_path: Path) -> None:
    config = tiny(shards, tmp_path, "data.fraction=0.5", "train.steps=100", "seed=3")
    record = run_training(config)
    folder = training_folder(config)
    assert read_records(tmp_path) == [record]
    facts = {
        "stage": "train", "arm": "default", "seed": 3, "steps": 100, "n_train_images": 32,
        "images_seen": 1600, "epochs": 50.0, "n_val_images": 27, "n_classes": 4, "fraction": 0.5,
        "unreadable_images": 0, "trunk_sha256": None, "top1_weights": "raw",
    }  # fmt: skip
    assert {name: getattr(record, name) for name in facts} == facts
    assert record.top1_percent is not None
    assert record.top1_percent > 60
    evaluations = lines(config, "eval")
    assert [line["step"] for line in evaluations] == [33, 67, 100]
    assert [line["images_seen"] for line in evaluations] == [528, 1072, 1600]
    assert evaluations[-1]["top1_percent"] == record.top1_percent
    assert record.best_top1_percent == max(line["top1_percent"] for line in evaluations)
    subset = json.loads((folder / "subset.json").read_text())
    assert subset["per_class"] == [8, 8, 8, 8]
    assert subset["sha256"] == record.subset_sha256
    assert len((folder / "subset.txt").read_text().split()) == 32
    audit = json.loads((folder / "audit.json").read_text())
    assert audit["n_carried"] == 0

    before = (folder / "record.json").stat().st_mtime_ns
    assert run_training(config) == record
    assert (folder / "record.json").stat().st_mtime_ns == before
    again = run_training(config, fresh=True)
    assert again.top1_percent == record.top1_percent

    # The list that a run leaves is one that a run takes.
    listed = tiny(shards, tmp_path, f"data.image_list={folder / 'subset.txt'}", "seed=3")
    assert plan_training(listed).subset.sha256 == record.subset_sha256


def test_the_evaluation_counts_every_image_once(shards: Path, tmp_path: Path) -> None:
    config = tiny(shards, tmp_path, "train.steps=30", "data.resident=off", "train.crop_pct=1.0")
    record = run_training(config)
    folder = training_folder(config)
    vit = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
    index = plan_training(config).val
    images = decode_all(index, np.arange(27)).images.float() / 255
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (config.train.mean, config.train.std)
    )
    with torch.no_grad():
        logits = vit((images - mean) / std)
    labels = torch.from_numpy(np.asarray(index.labels).astype(np.int64))
    hits = int((logits.argmax(dim=1) == labels).sum())
    assert record.top1_percent == pytest.approx(100 * hits / 27)
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert record.val_loss == pytest.approx(loss, rel=1e-4)
    assert record.top5_percent == 100
    assert vit.pretrained_cfg["input_size"] == (3, 8, 8)
    assert vit.pretrained_cfg["mean"] == pytest.approx(config.train.mean)


@pytest.mark.parametrize(
    "words",
    [
        ("train.micro_batch_size=8", "train.drop_path=0.2", *MIXED),
        ("train.model_ema=true", "data.resident=off", "train.clip_grad=1.0"),
    ],
    ids=["accumulated", "ema"],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    shards: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    whole = tiny(shards, tmp_path / "whole", *words)
    parts = tiny(shards, tmp_path / "parts", *words)
    record = run_training(whole)
    with signal_in_step(6), pytest.raises(Stopped, match="SIGTERM after step 7 of 12") as stopped:
        run_training(parts)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert not read_records(tmp_path / "parts")
    with pytest.raises(Stopped, match="the time limit after step 8") as stopped:
        run_training(tiny(shards, tmp_path / "parts", *words, "run.time_limit_minutes=1e-9"))
    assert stopped.value.exit_code == 75
    resumed = run_training(parts)
    assert same(exported(whole), exported(parts))
    assert resumed.top1_percent == record.top1_percent
    assert resumed.val_loss == record.val_loss
    assert [line["step"] for line in lines(parts, "eval")] == [4, 8, 12]
    if "train.model_ema=true" in words:
        assert same(exported(whole, "export_ema"), exported(parts, "export_ema"))
        assert not same(exported(whole), exported(whole, "export_ema"))
        assert resumed.top1_weights == "ema"
        assert "raw_top1_percent" in resumed.extra


def test_a_stop_inside_an_evaluation_makes_up_for_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitwarm.training.evaluate.CHECK_EVERY_BATCHES", 1)
    config = tiny(shards, tmp_path, "data.resident=off")
    original = evaluation_sums
    calls = []

    def interrupting(*args: Any) -> Tensor:
        calls.append(0)
        if len(calls) == 3:  # in the evaluation after step 8 (two batches each)
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    monkeypatch.setattr("vitwarm.training.evaluate.evaluation_sums", interrupting)
    with pytest.raises(Stopped, match="SIGINT after step 8") as stopped:
        run_training(config)
    assert stopped.value.exit_code == 130
    run_training(config)
    assert [line["step"] for line in lines(config, "eval")] == [4, 8, 12]


def test_a_run_killed_before_its_last_evaluation_makes_up_for_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(shards, tmp_path, "train.model_ema=true")
    whole = run_training(tiny(shards, tmp_path / "whole", "train.model_ema=true"))
    monkeypatch.setattr("vitwarm.training.run.Evaluation._evaluate_if_due", lambda *args: None)
    monkeypatch.setattr("vitwarm.training.run.write_exports", _raise_keyboard)
    with pytest.raises(KeyboardInterrupt):
        run_training(config)
    monkeypatch.undo()
    for line in (training_folder(config) / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["kind"] in ("train", "eval")
    record = run_training(config)
    assert record.top1_percent == whole.top1_percent
    assert same(
        exported(config, "export_ema"),
        exported(tiny(shards, tmp_path / "whole", "train.model_ema=true"), "export_ema"),
    )


def _raise_keyboard(*args: Any) -> None:
    raise KeyboardInterrupt


def test_accumulation_and_the_data_path_do_not_change_the_loss(
    shards: Path, tmp_path: Path
) -> None:
    words = ("train.mixup=0.8", "run.log_every_steps=2")
    base = tiny(shards, tmp_path / "a", *words)
    run_training(base)
    losses = [line["loss"] for line in lines(base, "train")]
    for name, word, tolerance in (
        ("b", "train.micro_batch_size=4", 1e-5), ("c", "data.resident=off", 1e-2),
    ):  # fmt: skip
        other = tiny(shards, tmp_path / name, *words, word)
        run_training(other)
        assert [line["loss"] for line in lines(other, "train")] == pytest.approx(
            losses, rel=tolerance
        )


def write_trunk(path: Path, config: TrainRun, **metadata: str) -> Path:
    vit, _ = make_model(plan_training(config))
    state = {name: vit.state_dict()[name] + 0.01 for name in trunk_names(vit)}
    facts = {"depth": "2", "model": config.train.model, "num_heads": "2", **metadata}
    return save_trunk(path, state, facts)


def test_arms_are_paired_and_a_trunk_counts_by_its_content(shards: Path, tmp_path: Path) -> None:
    cold = tiny(shards, tmp_path)
    rule = json.dumps({"name": "dyck", "params": {"n_kinds": 8}})
    facts = {"rule": rule, "samples": "3840", "seed": "0"}
    first = write_trunk(tmp_path / "a.safetensors", cold, **facts)
    second = write_trunk(tmp_path / "b.safetensors", cold, **facts)
    warm = [tiny(shards, tmp_path, f"handoff.trunk={path}") for path in (first, second)]
    plans = [plan_training(config) for config in (cold, *warm)]
    assert plans[1].digest == plans[2].digest != plans[0].digest
    assert len({plan.pair for plan in plans}) == 1
    longer = plan_training(tiny(shards, tmp_path, "train.steps=99"))
    assert longer.pair == plans[0].pair
    other = plan_training(tiny(shards, tmp_path, "data.fraction=0.5"))
    assert other.pair != plans[0].pair

    record = run_training(warm[0])
    assert (record.arm, record.warmup_samples, record.warmup_seed) == ("dyck", 3840, 0)
    assert record.rule == {"name": "dyck", "params": {"n_kinds": 8}}
    assert record.trunk_sha256 == plans[1].trunk.sha256  # type: ignore[union-attr]
    audit = json.loads((training_folder(warm[0]) / "audit.json").read_text())
    assert audit["n_carried"] > 20
    batches = [next(iter(Pictures(plan).feed(start_step=0)[0])) for plan in plans[:2]]
    assert torch.equal(batches[0].images, batches[1].images)


def test_a_trunk_that_learned_nothing_is_refused(shards: Path, tmp_path: Path) -> None:
    facts = {
        "hidden_accuracy_percent": "1.6", "chance_percent": "1.5", "order_blind_percent": "6.1",
        "verdict": "not learned",
    }  # fmt: skip
    path = write_trunk(tmp_path / "bad.safetensors", tiny(shards, tmp_path), **facts)
    with pytest.raises(HandoffError, match=r"learned nothing .*1\.6 %.*allow_failed=true"):
        plan_training(tiny(shards, tmp_path, f"handoff.trunk={path}"))
    plan_training(tiny(shards, tmp_path, f"handoff.trunk={path}", "handoff.allow_failed=true"))


def test_a_loss_that_is_no_number_stops_with_the_rows(shards: Path, tmp_path: Path) -> None:
    config = tiny(
        shards, tmp_path, "train.lr=1000", "train.weight_decay=1000", "train.warmup_epochs=0"
    )
    with pytest.raises(TrainingFailed, match=r"finite number at step \d.*rows \d+, .*keys train0"):
        run_training(config)
    failure = json.loads((training_folder(config) / "failure.json").read_text())
    assert failure["error"] == "TrainingFailed"
    assert not read_records(tmp_path)


def test_unreadable_images_stop_a_run(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "bad", bad=(7,))
    for resident in ("on", "off"):
        config = tiny(tmp_path / "bad", tmp_path / "runs", f"data.resident={resident}")
        with pytest.raises(
            TrainingFailed, match=r"of 64 images .* did not decode; allowed is 0\.1%"
        ):
            run_training(config)


@pytest.mark.parametrize("resident", ["on", "off"])
def test_unreadable_validation_images_stop_a_run(
    shards: Path, tmp_path: Path, resident: str
) -> None:
    write_tiny_shards(tmp_path / "bad", bad=(7,))
    words = [
        f"data.train={shards}/tiny-train-*.tar", f"data.val={tmp_path}/bad/tiny-train-*.tar",
        f"data.resident={resident}", f"run.root={tmp_path / 'runs'}",
    ]  # fmt: skip
    with pytest.raises(TrainingFailed, match=r"1 of \d+ validation images .* allowed is 0\.1%"):
        run_training(load_config(TrainRun, None, [*TINY, *words]))


def test_a_trunk_that_does_not_fit_leaves_no_run_folder(shards: Path, tmp_path: Path) -> None:
    path = write_trunk(tmp_path / "t.safetensors", tiny(shards, tmp_path))
    wide = "train.model_kwargs={patch_size: 2, embed_dim: 64, depth: 2, num_heads: 2}"
    words = [word for word in TINY if not word.startswith("train.model_kwargs")]
    data = [f"data.train={shards}/tiny-train-*.tar", f"data.val={shards}/tiny-validation-*.tar"]
    root = f"run.root={tmp_path / 'runs'}"
    config = load_config(TrainRun, None, [*words, *data, wide, root, f"handoff.trunk={path}"])
    with pytest.raises(HandoffError):
        run_training(config)
    assert not list((tmp_path / "runs").glob("*"))


def test_few_unreadable_images_are_counted(shards: Path) -> None:
    schedule = Schedule(n_steps=1, ramp_steps=0, lr=1e-3)
    module = ImageModule(nn.Linear(1, 1), schedule, Cut(1, 1, 1), World(0, 1))
    module.n_unreadable = 3
    module.check_unreadable(3000)
    with pytest.raises(TrainingFailed, match="3 of 2,999 images"):
        module.check_unreadable(2999)


@pytest.mark.parametrize(
    ("what", "moving"),
    [("all_but_head", {"head.weight", "head.bias"}), ("trunk", None), ("none", None)],
)
def test_frozen_tensors_stay(
    shards: Path, tmp_path: Path, what: str, moving: set[str] | None
) -> None:
    config = tiny(shards, tmp_path, f"train.freeze={what}", "train.model_ema=true")
    vit, _ = make_model(plan_training(config))
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    run_training(config)
    after = exported(config)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if what == "none":
        assert moved == set(before)
    elif what == "trunk":
        assert moved == set(before) - set(trunk_names(vit))
    else:
        assert moved == moving


def test_layer_decay_scales_the_learning_rate(shards: Path, tmp_path: Path) -> None:
    plan = plan_training(tiny(shards, tmp_path, "train.layer_decay=0.5"))
    vit, _ = make_model(plan)
    groups = make_module(plan, vit).make_optimizer().param_groups
    scales = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scales)
    by_name = {name: scales[id(p)] for name, p in vit.named_parameters()}
    assert by_name["head.weight"] == 1
    assert by_name["blocks.1.mlp.fc1.weight"] == 2 * by_name["blocks.0.mlp.fc1.weight"]
    assert by_name["patch_embed.proj.weight"] < by_name["blocks.0.mlp.fc1.weight"]


def test_the_loss_of_mixed_labels() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.0]])
    targets = Targets(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0.7, 1.0]))
    logs = torch.log_softmax(logits, dim=1)
    by_hand = -(0.7 * logs[0, 0] + 0.3 * logs[0, 1] + logs[1, 1]) / 2
    assert image_loss(logits, targets).loss == pytest.approx(by_hand.item())
    plain = Targets(torch.tensor([0, 1]))
    for smoothing in (0.0, 0.1):
        theirs = nn.functional.cross_entropy(logits, plain.labels, label_smoothing=smoothing)
        assert image_loss(logits, plain, smoothing=smoothing).loss == theirs
    wanted = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    theirs = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
    assert image_loss(logits, targets, bce=True).loss == theirs


def test_evaluation_sums_count_top_five() -> None:
    logits = torch.arange(8.0).repeat(3, 1)
    labels = torch.tensor([7, 3, 2])
    loss, first, fifth, images = evaluation_sums(logits, labels).tolist()
    assert (first, fifth, images) == (1, 2, 3)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item() * 3)


@pytest.mark.parametrize(("n_steps", "evaluations"), [(600, 6), (7, 30), (1, 5), (100, 3)])
def test_evaluations_are_even_and_end_with_the_run(n_steps: int, evaluations: int) -> None:
    steps = evaluation_steps(n_steps, evaluations)
    assert max(steps) == n_steps
    assert min(steps) >= 1
    assert len(steps) == min(n_steps, evaluations)


def test_fine_tuning_to_other_classes_and_another_size(shards: Path, tmp_path: Path) -> None:
    start = tiny(shards, tmp_path / "start")
    run_training(start)
    export = training_folder(start) / "export"
    write_tiny_shards(tmp_path / "other", n_classes=3, size=12, seed=1)
    words = (
        f"handoff.init={export}", "train.img_size=12", "train.layer_decay=0.75",
        "train.model_kwargs={}", "train.steps=40",
    )  # fmt: skip
    config = tiny(tmp_path / "other", tmp_path / "tuned", *words)
    record = run_training(config)
    audit = json.loads((training_folder(config) / "audit.json").read_text())
    sources = {entry["name"]: entry["source"] for entry in audit["entries"]}
    states = {entry["name"]: entry["state"] for entry in audit["entries"]}
    assert "resampled" in sources["pos_embed"]
    assert states["head.weight"] == "fresh"
    assert states["blocks.0.attn.qkv.weight"] == "carried"
    vit = timm.create_model(f"local-dir:{training_folder(config) / 'export'}", pretrained=True)
    assert vit(torch.zeros(1, 3, 12, 12)).shape == (1, 3)
    assert record.n_classes == 3
    # Another export is another run; the same one elsewhere is the same run.
    assert plan_training(config).digest != plan_training(start).digest


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("train.num_classes=3", ShardError, r"label 3, but train\.num_classes is 3.*num_classes=4"),
        ("train.opt=adamww", ConfigError, r"train\.opt is 'adamww'.*adamw"),
        ("train.model=vit_tinny_patch16_224", ModelError, "vit_tiny_patch16_224"),
        ("train.aa=randaug", ConfigError, r"train\.aa is 'randaug'"),
        ("data.train=/nowhere", ShardError, "/nowhere"),
        ("data.fraction=0.01", ShardError, r"data\.fraction is 0\.01"),
        ("train.batch_size=15", ConfigError, "even"),
    ],
)
def test_mistakes_get_a_sentence(
    shards: Path, tmp_path: Path, word: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_training(tiny(shards, tmp_path, "train.mixup=0.5", word))
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_pattern_that_the_shell_has_expanded_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the last shard would be taken for the whole set."""
    tars = [f"data.train={shards}/tiny-train-{k:04d}.tar" for k in range(2)]
    words = [*TINY, *tars, f"data.val={shards}/validation", f"run.root={tmp_path}"]
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert "data.train is given 2 times" in said
    assert "quote it, 'data.train=DIR/imagenet1k-train-{0000..1023}.tar'" in said


def test_no_worker_process_outlives_a_run(
    shards: Path, tmp_path: Path, new_children: Callable[[], set[BaseProcess]]
) -> None:
    config = tiny(shards, tmp_path, "data.resident=off", "run.workers=1")
    with signal_in_step(5), pytest.raises(Stopped):
        run_training(config)
    assert not new_children()
    run_training(config)
    assert not new_children()


def test_a_dry_run_prints_the_plan_and_writes_nothing(shards: Path, tmp_path: Path) -> None:
    text = show_plan(tiny(shards, tmp_path))
    for part in (
        "steps: 12",
        "64 of 64",
        "12 steps = 3 epochs = 192 images",
        "estimate",
        "hand-off",
    ):
        assert part in text
    assert not list(tmp_path.iterdir())


def test_bf16_and_bce_leave_the_weights_in_fp32(shards: Path, tmp_path: Path) -> None:
    config = tiny(shards, tmp_path, "train.precision=bf16", "train.steps=4", "train.bce_loss=true")
    record = run_training(config)
    assert isinstance(record, Record)
    assert all(tensor.dtype == torch.float32 for tensor in exported(config).values())


def test_a_run_in_a_thread_and_many_in_a_process(shards: Path, tmp_path: Path) -> None:
    records: list[Record] = []
    for seed in range(2):
        config = tiny(shards, tmp_path, f"seed={seed}", "train.steps=2")
        thread = threading.Thread(target=lambda c=config: records.append(run_training(c)))
        thread.start()
        thread.join()
    assert [record.seed for record in records] == [0, 1]
    assert records[0].pair != records[1].pair


def test_freeze_does_not_touch_what_trains() -> None:
    vit = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, embed_dim=24, num_heads=2)
    freeze(vit, "all_but_head")
    trained = {name for name, p in vit.named_parameters() if p.requires_grad}
    assert trained == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}

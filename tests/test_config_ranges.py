"""Whatever is written into whatever field: a refusal in words, or a run that makes sense."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_images import write_tiny_shards

from vitwarm.config import SweepConfig, TrainRun, WarmupRun, load_config
from vitwarm.config.fields import LABEL, fields_of
from vitwarm.config.reading import read_word, value_of
from vitwarm.errors import TrainingFailed, VitwarmError
from vitwarm.loop.start import time_step
from vitwarm.sweep import run_sweep, show_plan
from vitwarm.training import plan_training, run_training
from vitwarm.warmup import plan_warmup, run_warmup

#: What is written into every field of every config.
WORDS = (
    "nan", ".nan", ".inf", "-.inf", "-1", "0", "1", "2.5", "1e30", "-1e30", "1e-30", "10%", "250%",
    "", "null", "true", "[]", "[0.3]", "[1, 0.5]", "[0, 0, 0]", "[.nan, .nan]", "[-1, 2]", "{}",
    "{a/b: 1}", "{a: .nan}", "../../evil", "/", "..", "a\\b", "word", "two words", "a\nb",
)  # fmt: skip
NEEDED: dict[Any, dict[str, Any]] = {
    WarmupRun: {},
    TrainRun: {"data.train": "x", "data.val": "x"},
    SweepConfig: {"base": "quickstart", "match": "steps", "warmup_seeds": "shared"},
}
#: Zero means there: none, off, nothing of it, or the first.
MAY_BE_ZERO = {
    "seed", "seeds", "data.subset_seed", "run.workers", "warmup.min_lr", "warmup.warmup_lr",
    "warmup.weight_decay", "train.momentum", "train.weight_decay", "train.warmup_epochs",
    "train.warmup_lr", "train.min_lr", "train.smoothing", "train.mixup", "train.cutmix",
    "train.mixup_prob", "train.mixup_switch_prob", "train.color_jitter", "train.reprob",
    "train.hflip", "train.drop_path", "train.model_ema_decay", "train.opt_betas", "train.mean",
}  # fmt: skip
TINY_TRAIN = {
    "train.model_kwargs": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 2},
    "train.img_size": 8, "train.precision": "fp32", "train.batch_size": 8, "train.steps": 2,
    "train.epochs": 1, "train.warmup_epochs": 0, "train.evaluations": 1, "run.progress": False,
    "run.device": "cpu", "run.workers": 0,
}  # fmt: skip
TINY_WARMUP = {
    "warmup.model_kwargs": {
        "embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 8, "patch_size": 2
    },
    "rule.params": {"n_kinds": 4}, "warmup.precision": "fp32", "warmup.batch_size": 4,
    "warmup.eval_sequences": 8, "warmup.budget": "2steps", "warmup.base_images": 8,
    "warmup.base_epochs": 1, "run.progress": False,
    "run.device": "cpu",
}  # fmt: skip


#: A folder of the machine's; the model's own 224 pixels in patches of two.
#: Probabilities and shares, and what at 1 would leave nothing or change nothing ever.
AT_MOST_ONE = {
    "train.mixup_prob", "train.mixup_switch_prob", "train.hflip", "train.reprob", "train.scale",
    "train.crop_pct", "train.mean", "data.fraction",
}  # fmt: skip
BELOW_ONE = {"train.drop_path", "train.model_ema_decay", "train.momentum", "train.smoothing"}
TOO_MUCH = {("run.root", "/"), ("train.img_size", ""), ("train.img_size", "null")}


def names_of(schema: type[Any]) -> Iterator[str]:
    return (facts.name.replace(LABEL, "default") for facts in fields_of(schema))


def part_of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def check_refusal(name: str, error: VitwarmError) -> None:
    assert error.exit_code == 2, (name, error)
    assert name.rpartition(".")[2] in str(error), (name, error)


def makes_sense(name: str, value: Any) -> None:
    """What no field may hold, whatever is declared for it."""
    values = list(value) if isinstance(value, list) else [value]
    for number in values:
        if isinstance(number, float | int) and not isinstance(number, bool):
            assert math.isfinite(number), (name, value)
            assert 0 <= number < 1e19, (name, value)
            assert number > 0 or name in MAY_BE_ZERO, (name, value)
            assert name not in AT_MOST_ONE or number <= 1, (name, value)
            assert name not in BELOW_ONE or number < 1, (name, value)
    if name in ("train.scale", "train.ratio"):
        assert values == sorted(values)
        assert len(values) == 2
    if name == "name":
        assert value not in (".", "..")
        assert not set("/\\\n") & set(value)


@pytest.mark.parametrize("schema", NEEDED, ids=lambda schema: schema.__name__)
def test_every_word_in_every_field_is_refused_by_name_or_makes_sense(schema: type[Any]) -> None:
    usual = load_config(schema, fields=NEEDED[schema])
    accepted = 0
    for name in names_of(schema):
        section, _, last = name.rpartition(".")
        owner = part_of(usual, section) if section else usual
        for word in WORDS:
            try:
                value = value_of(schema, *read_word(f"{name}={word}", schema))
                part = dataclasses.replace(owner, **{last: value})
                if name.startswith("arms."):  # an arm is checked by the sweep that holds it
                    dataclasses.replace(usual, arms={"default": part})
            except VitwarmError as error:
                check_refusal(name, error)
                continue
            accepted += 1
            makes_sense(name, value)
    assert accepted > len(list(names_of(schema)))  # a check that refuses everything is none


every_name = st.one_of(
    *(st.tuples(st.just(schema), st.sampled_from(list(names_of(schema)))) for schema in NEEDED)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(every_name, st.sampled_from(WORDS) | st.floats().map(repr) | st.text(max_size=8))
@example((TrainRun, "train.lr"), "${x}")
@example((TrainRun, "train"), "3")
@example((SweepConfig, "arms"), "{a: 3}")
@example((SweepConfig, "arms.default.scope"), "some")
def test_a_whole_config_holds_what_was_written_or_is_refused(
    place: tuple[type[Any], str], word: str
) -> None:
    schema, name = place
    needed = {k: v for k, v in NEEDED[schema].items() if k != name}
    try:
        config = load_config(schema, None, [f"{name}={word}"], fields=needed)
    except VitwarmError as error:
        check_refusal(name, error)
    else:
        makes_sense(name, part_of(config, name))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_shards(folder, n_train=16, n_val=8)
    return folder


def tiny_fields(schema: type[Any], shards: Path, root: Path) -> dict[str, Any]:
    data = {"data.train": f"{shards}/tiny-train-*.tar", "data.val": f"{shards}/tiny-val*.tar"}
    return {**(TINY_WARMUP if schema is WarmupRun else TINY_TRAIN | data), "run.root": str(root)}


def run_for_real(schema: type[Any], fields: dict[str, Any], name: str, word: str) -> str:
    """Returns `refused` or `ran`; anything else is raised."""
    try:
        config = load_config(schema, None, [f"{name}={word}"], fields=fields)
        if schema is WarmupRun:
            plan_warmup(config)
            record = run_warmup(config)
        else:
            plan_training(config)
            record = run_training(config)
    except VitwarmError as error:
        check_refusal(name, error)
        return "refused"
    assert record.status == "finished"
    return "ran"


@pytest.mark.parametrize(
    ("name", "word", "what"),
    [
        ("train.opt_betas", "[0.9, 0.95, 0.99]", "refused"),
        ("train.opt_betas", "[0.9, 0.95]", "ran"),
        ("train.opt", "fusedlamb", "refused"),
        ("train.opt", "bnbadam8bit", "refused"),
        ("train.opt", "adahessian", "refused"),
        ("train.img_size", "9", "refused"),
        ("train.aa", "rand-m99", "refused"),
        ("train.model_kwargs", "{depth: .nan}", "refused"),
        ("train.model_kwargs", "{img_size: 32}", "refused"),
        ("train.steps", "2e0", "ran"),
        ("data.fraction", "50%", "ran"),
    ],
)
def test_what_only_a_plan_can_tell(
    name: str, word: str, what: str, shards: Path, tmp_path: Path
) -> None:
    fields = tiny_fields(TrainRun, shards, tmp_path)
    assert run_for_real(TrainRun, fields, name, word) == what


#: What timm builds, or trips over, and no training can use.
BAD_ARGUMENTS = [
    "num_heads=0", "num_heads=-2", "embed_dim=0", "embed_dim=7", "patch_size=0", "depth=0",
    "mlp_ratio=.inf", "drop_rate=.nan", "proj_drop_rate=1.0", "init_values=.nan", "reg_tokens=-1",
    "norm_layer=foo", "act_layer=foo", "block_fn=foo", "global_pool=foo", "weight_init=foo",
    "pos_embed=foo", "mlp_layer=x", "nonsense=1",
]  # fmt: skip


@pytest.mark.parametrize("word", BAD_ARGUMENTS)
def test_arguments_of_timm_that_make_no_model_are_refused(
    word: str, shards: Path, tmp_path: Path
) -> None:
    fields = tiny_fields(TrainRun, shards, tmp_path / "runs")
    config = load_config(TrainRun, None, [f"train.model_kwargs.{word}"], fields=fields)
    with pytest.raises(VitwarmError, match=word.partition("=")[0]) as caught:
        run_training(config)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("word", ["patch_size=0", "drop_path_rate=2", "depth=-1"])
def test_a_warmup_refuses_them_too(word: str) -> None:
    config = load_config(WarmupRun, None, [f"warmup.model_kwargs.{word}"], fields=TINY_WARMUP)
    with pytest.raises(VitwarmError, match=word.partition("=")[0]) as caught:
        run_warmup(config)
    assert caught.value.exit_code == 2


def test_memory_that_runs_out_is_said_with_what_helps(shards: Path, tmp_path: Path) -> None:
    """The largest side that the field takes: 48 GiB of pixels in a batch of 64, 1.5 TiB here."""
    fields = tiny_fields(TrainRun, shards, tmp_path) | {"train.batch_size": 2048}
    fields["train.model_kwargs"] = {**TINY_TRAIN["train.model_kwargs"], "patch_size": 1024}
    config = load_config(TrainRun, None, ["train.img_size=8192"], fields=fields)
    with pytest.raises(TrainingFailed, match=r"ran out with 2048 .* train\.micro_batch_size"):
        run_training(config)
    (failure,) = tmp_path.rglob("failure.json")
    assert "train.grad_checkpointing" in failure.read_text()
    # A dry run times a few samples alone, and no start of it is there to go on from.
    with pytest.raises(TrainingFailed, match=r"ran out with 3 samples .* stays the same\.$"):
        time_step(plan_training(config), lambda: torch.empty(1 << 44), n_samples=3)


def test_a_killed_loader_is_said_with_what_helps(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does it where memory runs out."""
    import vitwarm.shards.load.workers as workers

    fields = tiny_fields(TrainRun, shards, tmp_path)
    fields |= {"run.workers": 1, "train.steps": 2000, "data.resident": "off"}
    config = load_config(TrainRun, None, [], fields=fields)
    start = workers._start_worker

    def start_and_die(worker: int) -> None:
        start(worker)
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    monkeypatch.setattr(workers, "_start_worker", start_and_die)
    with pytest.raises(TrainingFailed, match=r"loads images has ended.*fewer run\.workers"):
        run_training(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "name"),
    [(schema, name) for schema in (WarmupRun, TrainRun) for name in names_of(schema)],
    ids=lambda part: part if isinstance(part, str) else str(part.__name__),
)
def test_what_is_not_refused_runs(
    schema: type[Any], name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`../../evil` is a path where paths are asked for: it stays inside the test's folder."""
    if name == "run.devices":
        pytest.skip("starts processes: tests/test_training_processes.py")
    home = tmp_path / "a" / "b" / "c"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    fields = tiny_fields(schema, shards, home / "runs")
    seen: list[Any] = []
    for word in WORDS:
        if (name, word) in TOO_MUCH or (name.endswith("compile") and word in ("true", "1")):
            continue
        try:
            value = part_of(load_config(schema, None, [f"{name}={word}"], fields=fields), name)
        except VitwarmError:
            continue
        texts = sum(isinstance(one, str) for one in seen)
        if value not in seen and not (isinstance(value, str) and texts >= 3):
            seen.append(value)
            run_for_real(schema, fields, name, word)


#: What the executor itself reads: these sweeps run to their end.
RUN_FOR_REAL = {"name", "seeds", "slots"}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(names_of(SweepConfig)))
def test_what_a_sweep_does_not_refuse_is_planned(
    name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned with the real stages, which count the images and size the warm-up."""
    home = tmp_path / "a" / "b" / "c"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    train = tiny_fields(TrainRun, shards, home / "runs")
    warm = tiny_fields(WarmupRun, shards, home / "runs")
    for path, recipe in (("base.yaml", train), ("warm.yaml", warm)):
        plain = {k: v for k, v in recipe.items() if not k.startswith("run.")}
        (home / path).write_text(yaml.safe_dump(nested(plain)))
    warmed = {"warmup": "warm.yaml", "train": {"handoff.allow_failed": True}}
    fields = {
        "base": "base.yaml", "match": "steps", "warmup_seeds": "shared", "seeds": [0],
        "arms": {"default": {}, "warmed": warmed},
        "run": nested({k: v for k, v in train.items() if k.startswith("run.")})["run"],
    }  # fmt: skip
    (home / "sweep.yaml").write_text(yaml.safe_dump(fields))
    seen: list[Any] = []
    refusals: list[tuple[str, int]] = []
    for word in (*WORDS, "[7]"):
        if (name, word) in TOO_MUCH:
            continue
        try:
            config = load_config(SweepConfig, home / "sweep.yaml", [f"{name}={word}"])
            words = show_plan(config, recipe=home / "sweep.yaml")
        except VitwarmError as error:
            refusals.append((word, error.exit_code))
            continue
        assert "train" in words
        value = part_of(config, name)
        if name in RUN_FOR_REAL and value not in seen and len(seen) < 3:
            seen.append(value)
            result = run_sweep(config, recipe=home / "sweep.yaml", say=lambda line: None)
            assert result.exit_code == 0, (name, word)
            assert len(list((home / "runs").glob("*/record.json"))) >= 2
    assert {code for _, code in refusals} <= {2}, refusals
    assert seen or name not in RUN_FOR_REAL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in dotted.items():
        section, _, last = name.partition(".")
        plain.setdefault(section, {})[last] = value
    return plain

"""Typos, types and ranges are refused with field and value; the hash sees what changes results."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vitwarm.config import (
    SweepConfig,
    TrainRun,
    WarmupRun,
    config_hash,
    find_recipe,
    load_config,
    save_config,
    with_overrides,
)
from vitwarm.errors import ConfigError

RECIPES = sorted(Path(__file__).parent.parent.joinpath("configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("warmup.batchsize=8", r"no field 'warmup\.batchsize'. Did you mean warmup\.batch_size"),
        ("warmup.batch_size=a", r"warmup\.batch_size.*'a'"),
        ("warmup.batch_size=0", r"warmup\.batch_size is 0; it must be above 0"),
        ("warmup.lr=fast", r"warmup\.lr.*'fast'"),
        ("warmup.hide_share=1.5", r"warmup\.hide_share is 1\.5"),
        ("warmup.precision=fp8", r"warmup\.precision.*fp8.*bf16"),
        ("warmup.checkpoint_minutes=0", r"warmup\.checkpoint_minutes is 0"),
        ("warmup.model_kwargs={depth:3}", r"key 'depth:3'.*blank after the colon"),
        ("warmup", "'warmup' is no override; write section.field=value"),
    ],
)
def test_a_wrong_override_names_field_value_and_remedy(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(WarmupRun, None, [word])


@pytest.mark.parametrize("share", ["0", "-0.5", "1.01", ".nan"])
def test_an_evaluation_crop_larger_than_the_image_is_refused(share: str) -> None:
    needed = ["data.train=x", "data.val=x", "train.model=x"]
    with pytest.raises(ConfigError, match=r"train\.crop_pct is .*above 0 and at most 1"):
        load_config(TrainRun, None, [*needed, f"train.crop_pct={share}"])


def test_a_key_mistyped_in_an_arm_names_the_nearest() -> None:
    words = ["base=x", "match=steps", "warmup_seeds=shared", "arms={dyck: {warmpu: w.yaml}}"]
    with pytest.raises(ConfigError, match=r"arms\.dyck\.warmpu.*Did you mean arms\.dyck\.warmup"):
        load_config(SweepConfig, None, words)


def test_numbers_of_the_command_line_are_numbers() -> None:
    config = load_config(WarmupRun, None, ["warmup.lr=1e-3", "rule.params.n_kinds=8"])
    assert config.warmup.lr == 1e-3
    assert config.rule.params == {"n_kinds": 8}


def test_mandatory_fields_are_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"data\.train has no value"):
        load_config(TrainRun)
    with pytest.raises(ConfigError, match=r"match has no value"):
        load_config(SweepConfig, None, ["base=x", "warmup_seeds=shared"])


def test_recipes_extend_once_and_take_their_files_name(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("warmup: {lr: 0.1, batch_size: 4}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nwarmup: {lr: 0.2}\n")
    (tmp_path / "grandchild.yaml").write_text("extends: child.yaml\n")
    config = load_config(WarmupRun, tmp_path / "child.yaml", ["warmup.min_lr=0.01"])
    assert (config.name, config.warmup.lr, config.warmup.batch_size) == ("child", 0.2, 4)
    with pytest.raises(ConfigError, match="one level"):
        load_config(WarmupRun, tmp_path / "grandchild.yaml")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(WarmupRun, tmp_path / "broken.yaml")
    with pytest.raises(ConfigError, match="holds no fields"):
        load_config(WarmupRun, tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="There is no recipe 'warmpu/quickstart'"):
        find_recipe("warmpu/quickstart")


def test_the_hash_ignores_what_does_not_change_the_result() -> None:
    digest = config_hash(load_config(WarmupRun))
    free = ["run.root=/elsewhere", "run.devices=8", "warmup.micro_batch_size=2", "name=x"]
    assert config_hash(load_config(WarmupRun, None, [*free, "run.log_every_steps=7"])) == digest
    for word in ("seed=1", "warmup.lr=1e-4", "rule.params.n_kinds=8", "warmup.budget=0.02"):
        assert config_hash(load_config(WarmupRun, None, [word])) != digest


def test_files_enter_the_hash_by_content() -> None:
    here = load_config(TrainRun, None, ["data.train=/a", "data.val=/b", "handoff.trunk=/c"])
    there = load_config(TrainRun, None, ["data.train=/x", "data.val=/y", "handoff.trunk=/z"])
    contents = {"data.train": "1", "data.val": "2", "handoff.trunk": "3"}
    assert config_hash(here) != config_hash(there)
    assert config_hash(here, contents) == config_hash(there, contents)
    assert config_hash(here, contents) != config_hash(here, {**contents, "handoff.trunk": "4"})


def test_a_saved_config_loads_to_itself(tmp_path: Path) -> None:
    config = load_config(WarmupRun, None, ["warmup.lr=3e-4", "rule.params={n_kinds: 8}"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(WarmupRun, tmp_path / "config.yaml") == config


def test_overrides_of_a_loaded_config_are_checked_too() -> None:
    config = load_config(WarmupRun)
    assert with_overrides(config, {"warmup.lr": 1.0, "rule.name": "copy"}).rule.name == "copy"
    with pytest.raises(ConfigError, match=r"warmup\.lrr"):
        with_overrides(config, {"warmup.lrr": 1.0})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.parent.name + "/" + path.stem))
def test_every_recipe_loads_and_says_what_to_expect(path: Path) -> None:
    kind = path.parent.name
    schema = {"warmup": WarmupRun, "train": TrainRun, "sweep": SweepConfig}.get(kind, TrainRun)
    required = {"train": ["data.train=x", "data.val=y"]}.get(kind, [])
    plain = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(plain, dict)
    load_config(schema, path, [] if "data" in plain else required)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("What:", "Source:", "Run:", "Cost:", "Expect:"):
        assert any(word in line for line in header), f"{path} does not say {word}"

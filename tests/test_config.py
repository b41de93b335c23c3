"""Typos, types and ranges are refused with field and value; the hash sees what changes results."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest
from omegaconf import OmegaConf

from vitwarm.cli import main
from vitwarm.config import (
    ArmConfig,
    DataConfig,
    HandoffConfig,
    RuleConfig,
    RunConfig,
    SweepConfig,
    TrainConfig,
    TrainRun,
    WarmupConfig,
    WarmupRun,
    config_hash,
    find_recipe,
    load_config,
    save_config,
    with_overrides,
)
from vitwarm.config.check import hints_of, inner_type
from vitwarm.config.fields import SCHEMAS, fields_of, to_markdown
from vitwarm.config.ranges import later, numbers, positive
from vitwarm.errors import ConfigError
from vitwarm.sweep.checks import split_axes

RECIPES = sorted(Path(__file__).parent.parent.joinpath("configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("warmup.batchsize=8", r"no field 'warmup\.batchsize'. Did you mean warmup\.batch_size"),
        ("warmup.batch_size=a", r"warmup\.batch_size.*'a'"),
        ("warmup.batch_size=0", r"warmup\.batch_size is 0; it must be a whole number above 0"),
        ("warmup.lr=fast", r"warmup\.lr.*'fast'"),
        ("warmup.hide_share=1.5", r"warmup\.hide_share is 1\.5"),
        ("warmup.precision=fp8", r"warmup\.precision.*fp8.*bf16"),
        ("warmup.checkpoint_minutes=0", r"warmup\.checkpoint_minutes is 0"),
        ("warmup.model_kwargs={depth:3}", r"key 'depth:3'.*blank after the colon"),
        ("warmup", "'warmup' is not an override; write section.field=value"),
        ("warmup.tie_norms=false", r"tie_norms is false, but warmup\.tie is not given"),
        ("warmup.budget=100", r"If steps are meant, write 100steps"),
        ("warmup.budget=1e20steps", r"above 0 and at most 1e\+15"),
        ("warmup.budget=soon", r"warmup\.budget is 'soon'; allowed is a share"),
    ],
)
def test_a_wrong_override_names_field_value_and_remedy(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(WarmupRun, None, [word])


@pytest.mark.parametrize(
    ("schema", "recipe", "says"),
    [
        (TrainRun, "sweep/transfer_base", "no field 'base' here; it is one of vitwarm sweep"),
        (SweepConfig, "train/ten_classes_cpu", "no field 'data' here; it is one of vitwarm train"),
        (TrainRun, "warmup/ten_classes_dyck", "'rule' here; it is one of vitwarm warmup"),
    ],
)
def test_a_recipe_of_another_command_names_that_command(
    schema: Any, recipe: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(schema, find_recipe(recipe))


@pytest.mark.parametrize("share", ["0", "-0.5", "1.01", ".nan"])
def test_an_evaluation_crop_larger_than_the_image_is_refused(share: str) -> None:
    needed = ["data.train=x", "data.val=x", "train.model=x"]
    with pytest.raises(ConfigError, match=r"train\.crop_pct is .*from 0\.05 to 1"):
        load_config(TrainRun, None, [*needed, f"train.crop_pct={share}"])


def test_a_key_mistyped_in_an_arm_names_the_nearest() -> None:
    words = ["base=x", "match=steps", "warmup_seeds=shared", "arms={dyck: {warmpu: w.yaml}}"]
    with pytest.raises(ConfigError, match=r"arms\.dyck\.warmpu.*Did you mean arms\.dyck\.warmup"):
        load_config(SweepConfig, None, words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            b"seed: 1\nwarmup:\n  lr: 1\n  lr: 2\n",
            r", line 4, column 3: the key 'lr' is given twice",
        ),
        (b"seed: 1\nseed: 2\n", r", line 2, column 1: the key 'seed' is given twice"),
        (b"warmup:\n\tlr: 1\n", r", line 2, column 1: this is not valid YAML \(found character"),
        (b"warmup:\n  lr: [1, 2\nseed: 1\n", r", line 3, column \d: this is not valid YAML"),
        (b"seed: 1\nname: caf\xe9\n", r", line 2, column 10: no UTF-8 text"),
        (b"seed: 1\nname: \x00\n", r", line 2, column 7: this is not valid YAML"),
        (b"rule: &a {name: [*a]}\n", r": this is not valid YAML \(Circular reference"),
        (b"rule: {1: a, 1.0: b}\n", r", line 1, column 14: the key '1.0' is given twice"),
        (b"seed: 1\n---\nseed: 2\n", r", line 2, column 1: this is not valid YAML"),
        (b"seed: *one\n", r", line 1, column 7: this is not valid YAML"),
    ],
)
def test_a_recipe_that_is_no_yaml_is_refused_with_its_line(
    text: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    (tmp_path / "child.yaml").write_text("extends: broken.yaml\n")
    for name in ("broken.yaml", "child.yaml"):
        with pytest.raises(ConfigError, match=r"broken\.yaml" + says) as caught:
            load_config(WarmupRun, tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "rule.params={a: 1",
            r"rule\.params is '\{a: 1', line \d, column \d: this is not valid YAML",
        ),
        ("rule.params={a: 1, a: 2}", r"column 8: the key 'a' is given twice"),
        ("warmup.lr=*x", r"warmup\.lr is '\*x', line 1, column 1: this is not valid YAML"),
    ],
)
def test_an_override_that_is_no_yaml_is_refused_with_its_field(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(WarmupRun, None, ["seed=1", word])


def test_where_labels_stand_is_no_part_of_the_hash_but_must_make_sense() -> None:
    needed = ["data.train=x", "data.val=x"]
    plain = load_config(TrainRun, None, needed)
    folder = load_config(TrainRun, None, [*needed, "data.label_from=folder", "data.classes=a.txt"])
    assert config_hash(plain) == config_hash(folder)  # the labels themselves enter by content
    with pytest.raises(ConfigError, match=r"data\.label_key is 'fine'.*label_from is 'text'"):
        load_config(TrainRun, None, [*needed, "data.label_from=text", "data.label_key=fine"])
    with pytest.raises(ConfigError, match=r"data\.label_from.*'name'"):
        load_config(TrainRun, None, [*needed, "data.label_from=name"])


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
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(WarmupRun, tmp_path / "broken.yaml")
    with pytest.raises(ConfigError, match="holds no fields"):
        load_config(WarmupRun, tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="There is no recipe 'warmpu/quickstart'"):
        find_recipe("warmpu/quickstart")


def test_a_field_in_its_section_and_by_its_dotted_name_is_given_twice(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("warmup: {lr: 1e-3}\nwarmup.min_lr: 1e-6\n")
    assert load_config(WarmupRun, tmp_path / "one.yaml").warmup.min_lr == 1e-6
    (tmp_path / "two.yaml").write_text("warmup: {lr: 1e-3}\nwarmup.lr: 1e-2\n")
    with pytest.raises(ConfigError, match=r"warmup\.lr is given twice"):
        load_config(WarmupRun, tmp_path / "two.yaml")


def test_a_word_joins_what_a_recipe_sets() -> None:
    """`set: {warmup.model_kwargs: {...}}` of a recipe, and one of them on the command line."""
    both = {"warmup.model_kwargs": {"depth": 3, "embed_dim": 64}}
    config = load_config(
        WarmupRun, fields={**both, "warmup": {"model_kwargs": {"embed_dim": 32}, "lr": 0.5}}
    )
    assert config.warmup.model_kwargs == {"depth": 3, "embed_dim": 32}
    assert config.warmup.lr == 0.5


def test_extends_is_no_word_of_a_command() -> None:
    with pytest.raises(ConfigError, match="'extends=other' changes nothing"):
        load_config(WarmupRun, None, ["extends=other"])


@pytest.mark.parametrize("name", ["a" * 101, "a:b", "CON", "nul.txt", "a?", "a.", "a<b"])
def test_a_name_can_name_a_folder_on_any_system(name: str) -> None:
    with pytest.raises(ConfigError, match="name is"):
        load_config(WarmupRun, None, [f"name={name}"])
    with pytest.raises(ConfigError, match="arm is"):
        load_config(TrainRun, None, ["data.train=x", "data.val=y", f"arm={name}"])


def test_the_hash_ignores_what_does_not_change_the_result() -> None:
    digest = config_hash(load_config(WarmupRun))
    free = ["run.root=/elsewhere", "run.devices=8", "warmup.micro_batch_size=2", "name=x"]
    assert config_hash(load_config(WarmupRun, None, [*free, "run.log_every_steps=7"])) == digest
    for word in ("seed=1", "warmup.lr=1e-4", "rule.params.n_kinds=8", "warmup.budget=0.02"):
        assert config_hash(load_config(WarmupRun, None, [word])) != digest


def test_runs_of_earlier_versions_are_found_again() -> None:
    """A run's folder is named by its hash: a new hash would run everything again.

    A field that is added is declared `later`; where results change, these digests may.
    """
    shards = ["data.train=x", "data.val=x"]
    trunk = [*shards, "handoff.trunk=y", "train.steps=100"]
    other = ["rule.name=shuffled:dyck", "warmup.budget=500steps", "seed=3"]
    assert config_hash(load_config(WarmupRun))[:16] == "4a88d792cfa28da5"
    assert config_hash(load_config(WarmupRun, None, other))[:16] == "f6cfcda76b692b0d"
    assert config_hash(load_config(TrainRun, None, shards))[:16] == "538e2b4910eefa9a"
    warmed = load_config(TrainRun, None, trunk)
    assert config_hash(warmed, {"handoff.trunk": "0123"})[:16] == "f366b444690f441d"


@dataclass(frozen=True, kw_only=True)
class WithALaterField(WarmupRun):
    factor: float = later(positive(1.0, most=1000))
    pair: list[float] = later(numbers([0.5, 1.0], n=(2,), least=0))  # noqa: RUF009


WithALaterField.__name__ = "WarmupRun"  # as the next version's is called


def test_a_later_field_is_hashed_where_it_is_changed() -> None:
    before = config_hash(load_config(WarmupRun))
    assert config_hash(load_config(WithALaterField)) == before
    assert config_hash(load_config(WithALaterField, None, ["factor=1.0"])) == before
    for word in ("factor=0.3", "pair=[0.5, 2.0]"):
        assert config_hash(load_config(WithALaterField, None, [word])) != before
    with pytest.raises(ConfigError, match="factor is -1"):
        load_config(WithALaterField, None, ["factor=-1"])


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


def test_the_reference_names_every_field_of_the_schema() -> None:
    page = to_markdown()
    for schema in SCHEMAS.values():
        for facts in fields_of(schema):
            assert f"`{facts.name}`" in page
            assert facts.meaning, f"{facts.name} has no docstring"
            assert facts.allowed
    assert "| `train.lr` | a number above 0 and at most 1,000 | `0.001` | Peak learning" in page


def test_every_field_declares_what_it_may_hold() -> None:
    """Switches and choices say it by their type, sections by their fields."""
    parts = (RuleConfig, RunConfig, WarmupConfig, HandoffConfig, DataConfig, TrainConfig)
    for schema in (*parts, WarmupRun, TrainRun, ArmConfig, SweepConfig):
        for item in dataclasses.fields(schema):
            kind, _ = inner_type(hints_of(schema)[item.name])
            said = kind is bool or get_origin(kind) is Literal or dataclasses.is_dataclass(kind)
            assert said or "allowed" in item.metadata, f"{schema.__name__}.{item.name}"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.steps=2e3", 2000),
        ("train.steps=15k", 15_000),
        ("data.fraction=10%", 0.1),
        ("handoff.blocks=-4:", "-4:"),
        ("handoff.blocks=1:3", "1:3"),  # a number to base 60, says YAML 1.1
        ("handoff.trunk=none", None),
        ("train.compile=off", "off"),
        ("run.progress=off", False),
        ("name=on", "on"),
    ],
)
def test_words_are_taken_as_people_mean_them(word: str, value: object) -> None:
    config: Any = load_config(TrainRun, None, ["data.train=x", "data.val=x", word])
    for part in word.partition("=")[0].split("."):
        config = getattr(config, part)
    assert config == value


def test_what_stands_in_a_recipe_is_taken_so_too(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "base: x\nmatch: steps\nwarmup_seeds: shared\nsbatch: {time: 12:00:00, exclusive: true}\n"
        "n_seeds: {10%: 2}\narms: {default: , warm: {trunk: t, blocks: [0, 1]}}\n"
    )
    config = load_config(SweepConfig, tmp_path / "sweep.yaml")
    assert config.sbatch == {"time": "12:00:00", "exclusive": True}
    assert config.n_seeds == {0.1: 2}
    assert config.arms["warm"].blocks == "0,1"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.min_lr=1", r"train\.min_lr is 1, above train\.lr \(0\.001\)"),
        ("train.epochs=300%", r"train\.epochs is '300%'; it must be a number"),
        ("train.model_kwargs={pretrained: true}", r"'pretrained', which has no place there"),
        ("train=3", "it is a section: give train.model="),
    ],
)
def test_rules_between_fields(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(TrainRun, None, ["data.train=x", "data.val=x", word])


def test_recipes_are_listed_shown_and_copied_with_what_they_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "list"]) == 0
    assert "sweep/ablation_depth" in capsys.readouterr().out
    assert main(["configs", "show", "warmup/quickstart"]) == 0
    assert "# What:" in capsys.readouterr().out
    assert main(["configs", "copy", "sweep/ablation_depth"]) == 0
    copied = {str(path.relative_to("configs")) for path in Path("configs").rglob("*.yaml")}
    assert {"sweep/ablation_depth.yaml", "sweep/ablation_reference.yaml"} < copied
    assert load_config(SweepConfig, "configs/sweep/ablation_depth.yaml").name == "ablation_depth"
    assert main(["configs", "copy", "sweep/ablation_depth"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["configs", "copy", "train/deit_small", "my/deit.yaml"]) == 0
    assert capsys.readouterr().out == "my/deit.yaml\n"
    needed = ["data.train=x", "data.val=x"]
    assert load_config(TrainRun, "my/deit.yaml", needed).train.model.startswith("deit_small")
    assert main(["configs", "copy", "train/deit_small", "my/deit.yaml"]) == 2
    assert "my/deit.yaml already exists" in capsys.readouterr().err
    assert main(["configs", "copy", "sweep/ablation_depth", "my/sweep.yaml"]) == 2
    assert "names others (ablation_reference.yaml" in capsys.readouterr().err
    assert main(["configs", "fields", "mixup"]) == 0
    assert "train.mixup_prob" in capsys.readouterr().out
    assert main(["configs", "fields", "mixupp"]) == 2


def test_a_file_that_is_no_text_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.yaml").write_bytes(b"seed: 1\n\xff")
    assert main(["configs", "show", str(tmp_path / "odd.yaml")]) == 2
    assert "odd.yaml, line 2, column 1: no UTF-8 text" in capsys.readouterr().err


def test_values_of_over_are_taken_as_their_fields_take_them() -> None:
    words = ["base=x", "match=steps", "warmup_seeds=shared"]
    config = load_config(SweepConfig, None, [*words, "over={data.fraction: [1%, 0.5]}"])
    assert split_axes(config).sizes == {"data.fraction": [0.01, 0.5]}
    for over, says in (
        ("{data.fraction: [10%, 0.1]}", "give each value once"),
        ("{data.fraction: []}", "give a list of values"),
        ("{train.lr: [fast]}", r"train\.lr is 'fast'"),
    ):
        config = load_config(SweepConfig, None, [*words, f"over={over}"])
        with pytest.raises(ConfigError, match=says):
            split_axes(config)

"""A sweep's rows: what is paired, what is shared, what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_stages import FAKE

from vitwarm.config import SweepConfig, TrainRun, WarmupRun, load_config
from vitwarm.errors import ConfigError, HandoffError, ModelError, TrunkError, VitwarmError
from vitwarm.records import Record
from vitwarm.rules import make_rule
from vitwarm.sweep.plan import extra_steps, make_plan, resolve
from vitwarm.sweep.rows import Plan, Row, load_plan, make_label, save_plan
from vitwarm.sweep.stages import check_init, check_start, check_trunk, plan_warmup
from vitwarm.trunk import build_model, save_trunk

BASE = """
name: digits
data: {train: t, val: v}
train: {epochs: 10, warmup_epochs: 1, batch_size: 50}
"""
WARM = """
rule: {name: dyck, params: {n_kinds: 8}}
warmup: {budget: 50steps, batch_size: 256}
"""


def write_recipes(folder: Path, sweep: str, base: str = BASE) -> Path:
    (folder / "base.yaml").write_text(base)
    (folder / "warm.yaml").write_text(WARM)
    (folder / "toy.yaml").write_text(sweep)
    return folder / "toy.yaml"


def plan_of(folder: Path, sweep: str, *overrides: str, base: str = BASE) -> Plan:
    path = write_recipes(folder, sweep, base)
    config = load_config(SweepConfig, path, [f"run.root={folder / 'runs'}", *overrides])
    return make_plan(config, recipe=path, stages=FAKE)


def trainings(plan: Plan) -> list[Row]:
    return [row for row in plan.rows if row.kind == "train"]


def train_config(row: Row) -> TrainRun:
    assert isinstance(row.config, TrainRun)
    return row.config


THREE_ARMS = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  default: {}
  dyck: {warmup: warm.yaml}
  shuffled:
    warmup: warm.yaml
    set: {rule.name: "shuffled:dyck"}
    train: {handoff.allow_failed: true}
over: {data.fraction: [0.1, 1.0]}
seeds: [0, 1]
"""


def test_rows_are_arms_by_fractions_by_seeds_after_their_warmups(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, THREE_ARMS)
    assert [row.kind for row in plan.rows] == ["warmup"] * 2 + ["train"] * 12
    assert [row.arms for row in plan.rows[:2]] == [("dyck",), ("shuffled",)]
    cells = {(row.arms[0], row.fraction, row.seed) for row in trainings(plan)}
    assert len(cells) == 12
    for row in trainings(plan):
        assert bool(row.needs) == (row.arms[0] != "default")
        assert train_config(row).arm == row.arms[0]
        assert train_config(row).handoff.allow_failed == (row.arms[0] == "shuffled")
    # Seed by seed: a sweep that is stopped has whole comparisons.
    assert [row.seed for row in trainings(plan)] == [0] * 6 + [1] * 6


@pytest.mark.parametrize(("match", "steps"), [("steps", {200}), ("epochs", {20, 200})])
def test_match_holds_steps_or_epochs_equal(tmp_path: Path, match: str, steps: set[int]) -> None:
    plan = plan_of(tmp_path, THREE_ARMS, f"match={match}")
    assert {row.steps for row in trainings(plan)} == steps
    set_in_config = {train_config(row).train.steps for row in trainings(plan)}
    assert set_in_config == ({200} if match == "steps" else {None})
    assert {train_config(row).match for row in trainings(plan)} == {match}


def test_given_steps_are_kept_and_contradict_match_epochs(tmp_path: Path) -> None:
    base = BASE.replace("epochs: 10", "epochs: 10, steps: 77")
    assert {row.steps for row in trainings(plan_of(tmp_path, THREE_ARMS, base=base))} == {77}
    with pytest.raises(ConfigError, match=r"match is 'epochs', but train\.steps is 77"):
        plan_of(tmp_path, THREE_ARMS, "match=epochs", base=base)


def test_a_fraction_may_run_fewer_seeds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, THREE_ARMS, "over.data.fraction=[0.1, 1.0]", "n_seeds={1.0: 1}")
    cells = {(train_config(row).data.fraction, row.seed, row.arms[0]) for row in trainings(plan)}
    assert {(fraction, seed) for fraction, seed, _ in cells} == {(0.1, 0), (0.1, 1), (1.0, 0)}
    assert len(cells) == 9


@pytest.mark.parametrize(("seeds", "n_warmups"), [("shared", 2), ("paired", 4)])
def test_warmup_seeds_are_shared_or_paired(tmp_path: Path, seeds: str, n_warmups: int) -> None:
    plan = plan_of(tmp_path, THREE_ARMS, f"warmup_seeds={seeds}")
    warmups = {row.key: row for row in plan.rows if row.kind == "warmup"}
    assert len(warmups) == n_warmups
    for row in trainings(plan):
        for need in row.needs:
            assert warmups[need].seed == (row.seed if seeds == "paired" else 0)


def test_arms_with_one_warmup_share_its_row(tmp_path: Path) -> None:
    arms = """
arms:
  all: {warmup: warm.yaml}
  late: {warmup: warm.yaml, blocks: "-4:"}
  attention: {warmup: warm.yaml, scope: attention}
  # Another spelling of the same rule.
  same: {warmup: warm.yaml, set: {rule.params.n_kinds: 8}}
"""
    plan = plan_of(tmp_path, "base: base.yaml\nmatch: steps\nwarmup_seeds: shared\n" + arms)
    warmups = [row for row in plan.rows if row.kind == "warmup"]
    assert [row.arms for row in warmups] == [("all", "late", "attention", "same")]
    by_arm = {row.arms[0]: train_config(row).handoff for row in trainings(plan)}
    assert by_arm["late"].blocks == "-4:"
    assert by_arm["attention"].scope == "attention"


SMALL_WARM = "{embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 2}"


@pytest.mark.parametrize(
    ("train", "warm", "says"),
    [
        ("{embed_dim: 48, depth: 2, num_heads: 2}", {}, r"arms\.dyck.*\(the width differs\)"),
        ("{embed_dim: 32, depth: 3, num_heads: 2}", {}, r"trunk has 2 blocks, the model has 3"),
        ("{embed_dim: 32, depth: 2, num_heads: 4}", {}, r"2 attention heads, the model 4"),
        (
            "{embed_dim: 32, depth: 2, num_heads: 2, mlp_ratio: 2}", {},
            r"\(the MLP ratio differs\)",
        ),
        (
            "{embed_dim: 32, depth: 2, num_heads: 2}",
            {"warmup.model": "vit_relpos_small_patch16_224", "warmup.n_tokens": 15},
            r"n_tokens is 15.*takes its patch count, 16, alone",
        ),
    ],
)  # fmt: skip
def test_a_trunk_that_will_not_fit_is_refused_before_its_warm_up_runs(
    tmp_path: Path, train: str, warm: dict[str, Any], says: str
) -> None:
    arms = f"""
base: base.yaml
match: steps
warmup_seeds: shared
set: {{train.model: vit_tiny_patch16_224, train.model_kwargs: {train}}}
arms:
  default: {{}}
  dyck: {{warmup: warm.yaml, set: {json.dumps({"warmup.model_kwargs": "KWARGS", **warm})}}}
""".replace('"KWARGS"', SMALL_WARM)
    path = write_recipes(tmp_path, arms)
    config = load_config(SweepConfig, path, [f"run.root={tmp_path / 'runs'}"])
    stages = dataclasses.replace(FAKE, check_trunk=check_trunk)
    with pytest.raises((HandoffError, ModelError), match=says) as refused:
        make_plan(config, recipe=path, stages=stages)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_trunk_that_fits_is_checked_once(tmp_path: Path) -> None:
    """Another patch size, image size and head are no misfit; seeds and fractions ask no more."""
    asked = []

    def watched(label: str, warm: WarmupRun, train: TrainRun) -> None:
        asked.append(label)
        check_trunk(label, warm, train)

    kwargs = "{embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8}"
    sweep = THREE_ARMS.replace("rule.name:", f"warmup.model_kwargs: {SMALL_WARM}, rule.name:")
    sweep = sweep.replace(
        "dyck: {warmup: warm.yaml}",
        f"dyck: {{warmup: warm.yaml, set: {{warmup.model_kwargs: {SMALL_WARM}}}}}",
    )
    sweep += f"set: {{train.model: vit_tiny_patch16_224, train.model_kwargs: {kwargs}}}\n"
    path = write_recipes(tmp_path, sweep)
    config = load_config(SweepConfig, path, [f"run.root={tmp_path / 'runs'}"])
    make_plan(config, recipe=path, stages=dataclasses.replace(FAKE, check_trunk=watched))
    assert asked == ["dyck"]


def test_keys_are_stable_and_do_not_depend_on_paths_or_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = plan_of(tmp_path / "a", THREE_ARMS)
    other = plan_of(tmp_path / "a", THREE_ARMS.replace("seeds: [0, 1]", "seeds: [1, 0]"))
    assert {row.key for row in one.rows} == {row.key for row in other.rows}
    assert len({row.key for row in one.rows}) == len(one.rows)
    changed = plan_of(tmp_path / "b", THREE_ARMS, "set.train.lr=5e-4")
    assert not {r.key for r in trainings(one)} & {r.key for r in trainings(changed)}


def test_warmup_fields_multiply_warmed_arms_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, THREE_ARMS, "over.rule.params.n_kinds=[8, 16]", "seeds=[0]")
    assert {row.arms[0] for row in trainings(plan)} == {
        "default", "dyck, n_kinds=8", "dyck, n_kinds=16", "shuffled, n_kinds=8",
        "shuffled, n_kinds=16",
    }  # fmt: skip
    kinds = [row.config.rule.params for row in plan.rows if isinstance(row.config, WarmupRun)]
    assert sorted(params["n_kinds"] for params in kinds) == [8, 8, 16, 16]


def test_other_fields_are_settings_of_every_arm(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, THREE_ARMS, "over.train.lr=[1e-3, 2e-3]", "seeds=[0]")
    for lr in (1e-3, 2e-3):
        own = [row for row in trainings(plan) if row.setting == {"train.lr": lr}]
        assert {row.arms[0] for row in own} == {"default", "dyck", "shuffled"}
        assert {train_config(row).train.lr for row in own} == {lr}


LONGER = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  dyck: {warmup: warm.yaml}
  longer: {extra_samples_of: dyck}
seeds: [0]
"""


def test_train_longer_adds_exactly_the_warmups_samples(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, LONGER)
    rows = {row.arms[0]: row for row in trainings(plan)}
    warmup = next(row for row in plan.rows if row.kind == "warmup")
    assert rows["longer"].samples - rows["default"].samples == warmup.samples == 50 * 256
    assert rows["dyck"].samples == rows["default"].samples
    assert rows["longer"].extra_samples_of == "dyck"
    assert rows["longer"].trunk_of is None
    # What the warm-up really saw counts, should it have stopped early.
    record = Record(
        stage="warmup", name="w", seed=0, config_hash="", code_version="", warmup_samples=30 * 256
    )
    config = resolve(train_config(rows["longer"]), trunk=None, warm=record)
    assert config.train.steps == 200 + extra_steps(30 * 256, 50)
    assert (extra_steps(100, 50), extra_steps(101, 50)) == (2, 3)  # never less than the warm-up


def test_train_longer_follows_the_budgets_of_its_arm(tmp_path: Path) -> None:
    two = plan_of(tmp_path, LONGER, "over.warmup.budget=[50steps, 100steps]")
    assert {r.arms[0]: r.samples for r in trainings(two) if r.arm_kind == "longer"} == {
        "longer, budget=50steps": 10_000 + 12_800, "longer, budget=100steps": 10_000 + 25_600,
    }  # fmt: skip
    one = plan_of(tmp_path, LONGER, "over.rule.params.n_kinds=[8, 16]")
    assert [row.arms[0] for row in trainings(one) if row.arm_kind == "longer"] == ["longer"]


def test_initialisers_may_take_another_arms_trunk(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  dyck: {warmup: warm.yaml}
  mimetic: {init: mimetic}
  scrambled: {init: weights_shuffled_in_heads, init_params: {trunk: "arm:dyck"}}
seeds: [0, 1]
""",
    )
    inits = [row for row in plan.rows if row.kind == "init"]
    warmup = next(row for row in plan.rows if row.kind == "warmup")
    assert len(inits) == 4  # a draw per seed
    for row in inits:
        assert row.needs == ((warmup.key,) if row.arms == ("scrambled",) else ())
    scrambled = next(row.config for row in inits if row.arms == ("scrambled",))
    assert scrambled.params == {"trunk": f"{warmup.folder}/trunk.safetensors"}  # type: ignore[union-attr]


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, THREE_ARMS)
    assert load_plan(save_plan(plan)) == plan
    manifest = json.loads((plan.home / "manifest.json").read_text())
    assert (manifest["match"], manifest["warmup_seeds"]) == ("steps", "shared")
    with pytest.raises(ConfigError, match="not a plan of this version"):
        load_plan(plan.home / "manifest.json")


def arm(text: str) -> str:
    return f"base: base.yaml\nmatch: steps\nwarmup_seeds: paired\narms: {{dyck: {text}}}\n"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (arm("{warmup: warm.yaml, trunk: x}"), "arms.dyck has warmup and trunk"),
        (arm("{set: {rule.name: dyck}}"), "arms.dyck.set is given without arms.dyck.warmup"),
        (arm("{blocks: '-4:'}"), "no trunk to carry"),
        (arm("{warmup: warm.yaml, set: {seed: 3}}"), "arms.dyck.set has a seed"),
        (arm("{extra_samples_of: dick}"), "extra_samples_of is 'dick'"),
        (arm("{init: i, init_params: {trunk: 'arm:x'}}"), "names the arm 'x'"),
        (arm("{warmup: worm.yaml}"), "There is no recipe 'worm.yaml'"),
        (arm("{warmup: warm.yaml, set: {rule.nmae: dyck}}"), "rule.nmae"),
        (arm("{warmup: warm.yaml, train: {train.lrr: 1}}"), "train.lrr"),
        (THREE_ARMS.replace("[0.1, 1.0]", "[]"), r"over.data.fraction is \[\]"),
        (THREE_ARMS + "n_seeds: {0.1: 3}\n", r"n_seeds has 3 seeds at the fraction 0.1; seeds lis"),
        (THREE_ARMS + "n_seeds: {0.25: 1}\n", r"n_seeds has the fraction 0.25, which no row has"),
        (THREE_ARMS.replace("[0, 1]", "[1, 1]"), r"seeds is \[1, 1\]"),
        (THREE_ARMS.replace("match: steps", ""), "match has no value"),
        (THREE_ARMS.replace("warmup_seeds: shared", ""), "warmup_seeds has no value"),
        (THREE_ARMS + "run: {devices: 4}", "run.devices is 4"),
        (THREE_ARMS + "set: {seed: 3}\n", "set has 'seed'; seeds have a field of their own"),
        (THREE_ARMS + "set: {match: epochs}\n", "set has 'match', which the sweep says itself"),
        (
            THREE_ARMS.replace("data.fraction: [0.1, 1.0]", "name: [a, b]"),
            "over has 'name', which changes no result",
        ),
        (
            "base: base.yaml\nmatch: steps\nwarmup_seeds: shared\nover: {warmup.budget: [1steps]}",
            "no arm has a warm-up recipe",
        ),
        (THREE_ARMS.replace("data.fraction", "data.fractoin"), "data.fractoin"),
    ],
)
def test_contradictions_are_refused_by_name(tmp_path: Path, sweep: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, sweep)


def test_the_command_line_may_set_the_bases_fields(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, THREE_ARMS + "set: {data.val: w}", "set.data.train=elsewhere")
    data: Any = train_config(trainings(plan)[0]).data
    assert (data.train, data.val) == ("elsewhere", "w")


ABLATIONS = sorted((Path(__file__).parent.parent / "configs" / "sweep").glob("ablation_*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_ablation_recipes_come_to_what_they_say(path: Path) -> None:
    """Every rule, parameter and initialiser exists, and the cost that is stated is the plan's."""
    stages = dataclasses.replace(FAKE, check_init=check_init)
    config = load_config(SweepConfig, path, ["set.data.train=t", "set.data.val=v", "seeds=[0]"])
    plan = make_plan(config, recipe=path, stages=stages)
    for row in plan.rows:
        if isinstance(row.config, WarmupRun):
            make_rule(row.config.rule.name, **row.config.rule.params)
    said = re.search(r"(\d+) warm-ups and (\d+) image trainings", path.read_text())
    assert said
    kinds = [row.kind for row in plan.rows]
    # One seed of three, and every seed has warm-ups of its own.
    assert [int(n) for n in said.groups()] == [3 * kinds.count("warmup"), 3 * kinds.count("train")]
    assert "the paper" in path.read_text()


def test_a_row_over_nodes_is_planned_where_nothing_has_started() -> None:
    words = ["warmup.model_kwargs={depth: 1}", "run.device=cpu", "run.devices=2"]
    one, four = (load_config(WarmupRun, None, [*words, f"run.nodes={n}"]) for n in (1, 2))
    assert plan_warmup(four).folder == plan_warmup(one).folder
    odd = load_config(WarmupRun, None, [*words, "run.nodes=2", "warmup.batch_size=6"])
    with pytest.raises(ConfigError, match="batch_size is 6; 4 processes cannot share"):
        plan_warmup(odd)


def test_a_base_below_configs_is_the_training_and_no_sweep_of_that_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "base: quickstart\nmatch: steps\nwarmup_seeds: shared\n", "seeds=[0]")
    assert train_config(plan.rows[0]).train.img_size == 8


@pytest.mark.parametrize(
    ("arm", "words", "message"),
    [
        (
            "{trunk: trunk.safetensors}",
            [],
            r"arms\.dyck: the trunk .* do not fit: tensor 'blocks\.0",
        ),
        ("{trunk: nowhere.safetensors}", [], "nowhere"),
        ("{trunk: trunk.safetensors, blocks: '9:'}", ["embed_dim=16"], "handoff.blocks is '9:'"),
        ("{init: mimetic, blocks: '9:'}", [], "handoff.blocks is '9:'"),
    ],
)
def test_an_arm_that_cannot_start_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, words: list[str], message: str
) -> None:
    from vitwarm.trunk import build_model, save_trunk

    monkeypatch.chdir(tmp_path)
    shape = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2}
    save_trunk(Path("trunk.safetensors"), build_model("vit_tiny_patch16_224", seed=0, **shape), {})
    kwargs = "{embed_dim: 32, depth: 2, num_heads: 2, patch_size: 2}"
    base = f"{BASE}name: digits\ntrain.model_kwargs: {kwargs}\ntrain.img_size: 8\n"
    path = write_recipes(
        tmp_path,
        "base: base.yaml\nmatch: steps\nwarmup_seeds: paired\n"
        f"arms: {{default: {{}}, dyck: {arm}}}\n",
        base.replace("name: digits\n", "", 1),
    )
    set_words = [f"set.train.model_kwargs.{word}" for word in words]
    config = load_config(SweepConfig, path, set_words)
    stages = dataclasses.replace(FAKE, check_start=check_start)
    with pytest.raises((HandoffError, TrunkError), match=message):
        make_plan(config, recipe=path, stages=stages)


def test_rows_with_other_labels_are_counted_anew(tmp_path: Path) -> None:
    """What an earlier variant counted must not stand for a set that this one cuts otherwise."""
    counted = []

    def count(config: TrainRun) -> int:
        counted.append((config.data.label_from, config.data.fraction))
        return 100 if config.data.label_from == "text" else 1000

    path = write_recipes(tmp_path, THREE_ARMS)
    arms = "arms={default: {}, other: {train: {data.label_from: text}}}"
    words = [f"run.root={tmp_path / 'runs'}", arms]
    config = load_config(SweepConfig, path, words)
    plan = make_plan(config, recipe=path, stages=dataclasses.replace(FAKE, count_images=count))
    found = {(train_config(row).data.label_from, row.n_images) for row in trainings(plan)}
    assert found == {("text", 100), (None, 1000)}
    assert len(counted) == len(set(counted))  # once each, not once a seed


def labels_of(plan: Plan) -> list[str]:
    return list(dict.fromkeys(row.arms[0] for row in trainings(plan)))


@pytest.mark.parametrize(
    ("over", "labels"),
    [
        ('rule.name: [dyck, "shuffled:dyck"]', ["dyck, name=dyck", "dyck, name=shuffled-dyck"]),
        ('handoff.blocks: ["-1:", "0:1"]', ["dyck, blocks=-1-", "dyck, blocks=0-1"]),
        (
            "rule.params: [{n_kinds: 2}, {n_kinds: 4}]",
            ["dyck, params=n_kinds 2", "dyck, params=n_kinds 4"],
        ),
        ('warmup.tie: ["0|1", "0-1"]', ["dyck, tie=0+1", "dyck, tie=0-1"]),
    ],
)
def test_any_value_of_over_has_a_label(tmp_path: Path, over: str, labels: list[str]) -> None:
    sweep = f"{THREE_ARMS.split('over:')[0]}over: {{{over}}}\nseeds: [0]\n"
    found = [one for one in labels_of(plan_of(tmp_path, sweep)) if one.startswith("dyck")]
    assert found == labels


def test_a_long_label_is_short_and_stays_apart() -> None:
    params = [{f"a_parameter_with_a_long_name_{n}": 0 for n in range(5)} | {"z": z} for z in (1, 2)]
    first, second = (make_label("dyck", {"rule.params": one}) for one in params)
    assert len(first) <= 100
    assert first != second


def test_what_an_arm_says_itself_is_no_axis_of_it(tmp_path: Path) -> None:
    own = """
arms:
  few: {warmup: warm.yaml, set: {rule.params.n_kinds: 4}, scope: mlp}
  dyck: {warmup: warm.yaml}
over: {rule.params.n_kinds: [2, 8], handoff.scope: [all, attention]}
seeds: [0]
"""
    plan = plan_of(tmp_path, f"base: base.yaml\nmatch: steps\nwarmup_seeds: shared{own}")
    assert labels_of(plan) == [
        "default",
        "few",
        *(f"dyck, n_kinds={n}, scope={scope}" for n in (2, 8) for scope in ("all", "attention")),
    ]


def test_an_arms_scope_comes_before_the_bases(tmp_path: Path) -> None:
    sweep = arm("{warmup: warm.yaml, scope: all}") + "set: {handoff.scope: mlp}\n"
    scopes = {r.arms[0]: train_config(r).handoff.scope for r in trainings(plan_of(tmp_path, sweep))}
    assert scopes == {"default": "mlp", "dyck": "all"}


COLD_BESIDE = THREE_ARMS + "set: {handoff.%s: x}\n"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (COLD_BESIDE % "trunk", "handoff.trunk is 'x' for every arm, so none would be a cold"),
        (COLD_BESIDE % "init", "handoff.init is 'x' for every arm, and arms.dyck carries"),
        (arm("{train: {handoff.trunk: x}}"), "an arm has a field for it: arms.dyck.trunk"),
        (arm("{trunk: x, train: {handoff: {scope: mlp}}}"), "has a field for it: arms.dyck.scope"),
        (arm("{train: {seed: 9}}"), "arms.dyck.train has 'seed'; seeds have a field"),
        (arm("{train: {match: epochs}}"), "arms.dyck.train has 'match', which the sweep says"),
        (THREE_ARMS + "set: {run.root: x}\n", "set has 'run.root', which all rows share"),
        (THREE_ARMS + "set: {run.devices: 2}\n", r"run.devices is 2 .*\(base.yaml\)"),
        (THREE_ARMS.replace("data.fraction: [0.1, 1.0]", "match: [steps]"), "Use match=... with"),
        (THREE_ARMS.replace("data.fraction: [0.1, 1.0]", "run.root: [a]"), "Use run.root=... with"),
        (THREE_ARMS.replace("data.fraction: [0.1, 1.0]", "arm: [a]"), "one run. Leave it out"),
        (
            THREE_ARMS.replace("data.fraction: [0.1, 1.0]", "handoff.trunk: [a, b]"),
            "which is what makes an arm",
        ),
        (arm("{init: mixed, init_params: {seed: 4}}"), "has the key 'seed', which has no place"),
    ],
)
def test_what_would_make_arms_alike_is_refused(tmp_path: Path, sweep: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, sweep)


def test_a_warmups_devices_count_too(tmp_path: Path) -> None:
    path = write_recipes(tmp_path, THREE_ARMS)
    (tmp_path / "warm.yaml").write_text(WARM + "run: {devices: 2}\n")
    with pytest.raises(ConfigError, match=r"run.devices is 2 .*\(warm.yaml\)"):
        make_plan(load_config(SweepConfig, path), recipe=path, stages=FAKE)


@pytest.mark.parametrize(
    ("init", "params", "message"),
    [
        ("mixed", {"trunk": "nope"}, "There is no trunk 'nope'"),
        ("expand", {"core": "nope"}, "There is no trunk 'nope'"),
        ("mimetic", {"alpha_qk": "abc"}, "alpha_qk of 'mimetic' is 'abc'; allowed is a number"),
        ("mimetic", {"alpha_qk": float("nan")}, "is nan; allowed is a number"),
        ("mimetic", {"zero_biases": 3}, "zero_biases of 'mimetic' is 3; allowed is true or false"),
        ("mimetic", {"entries": "x"}, "entries of 'mimetic' is 'x'; allowed are "),
        ("graft", {"a": "arm:x", "b": "arm:y", "first_blocks": 1.5}, "allowed is a whole number"),
    ],
)
def test_initialisers_are_checked_before_anything_runs(
    init: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(VitwarmError, match=message):
        check_init(init, params)


def test_initialisers_take_what_they_take() -> None:
    assert check_init("mimetic", {"alpha_qk": 1, "zero_biases": True, "entries": "uniform"}) == {}
    assert check_init("graft", {"a": "arm:x", "b": "arm:y", "first_blocks": 1}) == {}


def test_another_trunk_of_that_name_is_another_initialisation(tmp_path: Path) -> None:
    folder, sweep = tmp_path / "warmed", arm("{init: mixed, init_params: {trunk: %s}}")
    keys = []
    for seed in (0, 0, 1):
        model = build_model("test_vit", seed=seed)
        save_trunk(folder / "trunk.safetensors", model, {})
        path = write_recipes(tmp_path, sweep % folder)
        config = load_config(SweepConfig, path, ["seeds=[0]"])
        stages = dataclasses.replace(FAKE, check_init=check_init)
        keys.append(make_plan(config, recipe=path, stages=stages).rows[0].key)
    assert keys[0] == keys[1] != keys[2]

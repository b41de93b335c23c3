"""The warm-up learns what it should, resumes bit for bit, and stops without losing anything."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import SafetensorError

from vitwarm.config import WarmupRun, load_config
from vitwarm.errors import ConfigError, RunError, Stopped, TrainingFailed
from vitwarm.files import replacing
from vitwarm.loop.plan import Schedule, cut_batch
from vitwarm.loop.start import choose_attention
from vitwarm.records import read_metrics, read_records
from vitwarm.rules import make_rule
from vitwarm.seeding import seed_of
from vitwarm.trunk import load_trunk
from vitwarm.warmup import (
    hidden_loss,
    make_loader,
    make_module,
    make_token_model,
    plan_warmup,
    run_warmup,
    warmup_folder,
)
from vitwarm.warmup.learned import SATURATION_STEPS, describe, find_order_blind, judge
from vitwarm.warmup.sequences import SequenceLoader, WarmupBatch
from vitwarm.world import World

TINY = [
    "warmup.model=vit_tiny_patch16_224",
    "warmup.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 2}",
    "rule.params.n_kinds=8",
    "warmup.precision=fp32",
    "warmup.batch_size=8",
    "warmup.eval_sequences=64",
    "warmup.budget=12steps",
    "run.progress=false",
    "run.log_every_steps=4",
    "run.device=cpu",
]


def tiny(root: Path, *words: str) -> WarmupRun:
    return load_config(WarmupRun, None, [*TINY, f"run.root={root}", *words])


def weights(config: WarmupRun) -> dict[str, torch.Tensor]:
    return load_trunk(warmup_folder(config) / "trunk.safetensors").tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_published_plan() -> None:
    plan = plan_warmup(load_config(WarmupRun))
    assert (plan.budget.steps, plan.n_tokens, plan.schedule.ramp_steps) == (15_014, 196, 1000)
    assert plan.rule_facts["name"] == "dyck"
    assert plan.rule_facts["params"]["n_kinds"] == 64


def test_the_schedule_is_the_published_one() -> None:
    lr = Schedule(n_steps=15_000, ramp_steps=1000, warmup_lr=1e-7, lr=2e-3, min_lr=1e-6).lr_at

    assert lr(0) == 1e-7
    assert lr(500) == pytest.approx(1e-3, rel=1e-3)
    assert lr(1000) == 2e-3
    assert lr(8000) == pytest.approx((2e-3 + 1e-6) / 2)
    assert lr(14_999) == pytest.approx(1e-6, rel=1e-3)


def test_a_run_leaves_trunk_record_and_metrics_and_is_not_run_again(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    record = run_warmup(config)
    folder = warmup_folder(config)
    assert read_records(tmp_path) == [record]
    assert record.steps == 12
    assert record.warmup_samples == 96
    assert record.warmup_tokens == 96 * 16
    assert record.verdict == "not learned"
    assert record.extra["ceiling"]["low_percent"] == 100.0
    trunk = load_trunk(folder / "trunk.safetensors")
    assert trunk.sha256 == record.trunk_sha256
    assert trunk.metadata["status"] == "finished"
    assert json.loads(trunk.metadata["rule"])["params"]["n_kinds"] == 8
    lines = [line for line in read_metrics(folder) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [4, 8, 12]
    before = (folder / "record.json").stat().st_mtime_ns
    assert run_warmup(config) == record
    assert (folder / "record.json").stat().st_mtime_ns == before


def test_nothing_of_the_image_side_moves_and_all_of_the_trunk_does(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    fresh = {k: v.clone() for k, v in make_token_model(config).state_dict().items()}
    run_warmup(config)
    trained = weights(config)
    assert trained
    assert not any(name.startswith(("patch_embed", "pos_embed", "head")) for name in trained)
    for name, tensor in trained.items():
        assert not torch.equal(tensor, fresh[f"model.{name}"]), f"{name} did not move"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, accumulate: int) -> None:
    cut = f"warmup.micro_batch_size={8 // accumulate}"
    whole = tiny(tmp_path / "whole", cut)
    run_warmup(whole)
    parts = tiny(tmp_path / "parts", cut, "warmup.checkpoint_minutes=1e-6")
    with interrupt_after_step(5), pytest.raises(Stopped, match="after step") as stopped:
        run_warmup(parts)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert load_trunk(warmup_folder(parts) / "trunk.safetensors").metadata["status"] == "unfinished"
    assert read_records(tmp_path / "parts") == []
    newest = sorted((warmup_folder(parts) / "checkpoints").iterdir())
    assert len(newest) == 2
    newest[-1].write_bytes(newest[-1].read_bytes()[:1000])  # a disk that filled, a node that died
    record = run_warmup(parts)
    assert record.steps == 12
    assert same(weights(whole), weights(parts))


def test_the_first_checkpoint_comes_early_whatever_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []

    def note(path: Path) -> Any:
        saved.append(path.name)
        return replacing(path)

    monkeypatch.setattr("vitwarm.loop.saving.replacing", note)
    run_warmup(tiny(tmp_path / "usual", "warmup.checkpoint_minutes=600"))
    assert saved == ["step0000000012.pt"]  # the last step
    saved.clear()
    monkeypatch.setattr("vitwarm.loop.saving.FIRST_SECONDS", 0.0)
    run_warmup(tiny(tmp_path / "slow", "warmup.checkpoint_minutes=600"))
    assert saved == ["step0000000001.pt", "step0000000012.pt"]


def test_accumulation_does_not_change_the_loss(tmp_path: Path) -> None:
    whole, parts = tiny(tmp_path / "a"), tiny(tmp_path / "b", "warmup.micro_batch_size=2")
    run_warmup(whole)
    run_warmup(parts)
    a, b = (
        [line["loss"] for line in read_metrics(warmup_folder(run)) if line["kind"] == "train"]
        for run in (whole, parts)
    )
    assert a == pytest.approx(b, rel=1e-5)


def test_a_time_limit_saves_and_says_so(tmp_path: Path) -> None:
    config = tiny(tmp_path, "run.time_limit_minutes=1e-9")
    with pytest.raises(Stopped, match="the time limit after step 1 of 12") as stopped:
        run_warmup(config)
    assert stopped.value.exit_code == 75


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    tmp_path: Path,
) -> None:
    config = tiny(
        tmp_path,
        "warmup.lr=1000",
        "warmup.weight_decay=1000",
        "warmup.ramp_steps=1",
        "run.log_every_steps=1",
    )
    with pytest.raises(TrainingFailed, match=r"step \d+ .*sequences of seed 0"):
        run_warmup(config)
    folder = warmup_folder(config)
    assert json.loads((folder / "failure.json").read_text())["error"] == "TrainingFailed"
    assert not (folder / "record.json").exists()


def test_loss_is_the_mean_over_the_hidden_tokens_of_the_whole_batch(tmp_path: Path) -> None:
    """However a batch is cut, the micro-batches' losses add up to the batch's mean."""
    config = tiny(tmp_path)
    plan = plan_warmup(config)
    module = make_module(plan, make_token_model(config))
    whole = next(iter(make_loader(plan, start_step=0)))
    sums = hidden_loss(module(whole.input_ids, whole.hidden), whole.targets)
    mean = sums.loss / sums.n_hidden
    assert int(sums.n_hidden) == int(whole.n_hidden)
    parts = []
    for rank in range(2):
        loader = sequence_loader(world_size=2, rank=rank, micro_batch_size=2)
        for batch in loader.step(0):
            part = hidden_loss(module(batch.input_ids, batch.hidden), batch.targets)
            parts.append(part.loss / batch.n_hidden)
    assert len(parts) == 4
    assert torch.stack(parts).sum().item() == pytest.approx(mean.item(), rel=1e-5)


def sequence_loader(**given: Any) -> SequenceLoader:
    plain: dict[str, Any] = {
        "seed": 0,
        "n_tokens": 16,
        "batch_size": 8,
        "micro_batch_size": 8,
        "start_step": 0,
        "n_steps": 6,
    }
    return SequenceLoader(make_rule("dyck", n_kinds=8), **{**plain, **given})


def test_the_loader_gives_the_same_sequences_however_it_is_cut() -> None:
    def rows(**given: Any) -> np.ndarray:
        return np.concatenate([batch.input_ids.numpy() for batch in sequence_loader(**given)])

    whole = rows()
    assert whole.shape == (48, 16)
    assert np.array_equal(rows(micro_batch_size=2), whole)
    assert np.array_equal(rows(start_step=4), whole[32:])
    halves = [rows(world_size=2, rank=r, micro_batch_size=4).reshape(6, 4, 16) for r in range(2)]
    assert np.array_equal(np.concatenate(halves, axis=1).reshape(48, 16), whole)


def test_the_loaders_length_is_what_it_yields_twice_over() -> None:
    loader = sequence_loader(start_step=2, micro_batch_size=4)
    assert len(loader) == len(list(loader)) == len(list(loader)) == 8


def test_an_error_while_generating_reaches_the_training_loop() -> None:
    loader = sequence_loader()
    loader.n_tokens = 0
    with pytest.raises(Exception, match=r"."):
        list(loader)
    assert not [t for t in threading.enumerate() if t.name == "sequences"]


def test_a_batch_with_more_hidden_tokens_than_places_is_not_cut() -> None:
    loader = sequence_loader()
    loader.places = 3
    batch: WarmupBatch = next(iter(loader.step(0)))
    assert len(batch.hidden) == 64
    assert int((batch.targets >= 0).sum()) == int(batch.n_hidden) > 3


def test_an_odd_length_is_filled_with_one_visible_pad(tmp_path: Path) -> None:
    config = tiny(tmp_path, "warmup.n_tokens=15")
    plan = plan_warmup(config)
    assert (plan.n_tokens, plan.n_words) == (15, 14)
    batch = next(iter(make_loader(plan, start_step=0)))
    assert batch.input_ids.shape == (8, 15)
    assert (batch.input_ids[:, 14] == plan.rule.pad_id).all()
    assert run_warmup(config).extra["visible_pads"] == 1


def test_rules_that_need_more_than_one_seed_or_share_warm_up_too(tmp_path: Path) -> None:
    """A mixture hides what each member says; a curriculum is judged on its last stage."""
    for name, params in (
        (
            "mixture",
            "{of: [{name: dyck, params: {n_kinds: 4}}, {name: copy}], weights: [0.5, 0.5]}",
        ),
        ("curriculum", "{of: [{name: random}, {name: dyck}], shares: [0.5, 0.5], n_sequences: 96}"),
    ):
        words = [w for w in TINY if not w.startswith("rule.")]
        config = load_config(
            WarmupRun,
            None,
            [*words, f"run.root={tmp_path}", f"rule.name={name}", f"rule.params={params}"],
        )
        plan = plan_warmup(config)
        assert plan.hide_share is None
        record = run_warmup(config)
        assert record.rule is not None
        assert record.rule["name"] == name


def test_held_out_sequences_are_not_the_training_ones() -> None:
    rule = make_rule("dyck", n_kinds=8)
    train = {row.tobytes() for row in rule.sample(0, 0, 4096, 64)}
    held_out = {row.tobytes() for row in rule.sample(seed_of(0, "held-out"), 0, 1024, 64)}
    assert not train & held_out


@pytest.mark.parametrize(
    ("batch", "micro", "size", "says"),
    [(10, None, 4, "4 processes cannot share"), (16, 3, 2, "do not divide")],
)
def test_batches_that_cannot_be_cut(batch: int, micro: int | None, size: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cut_batch(batch, micro, World(rank=0, size=size), field="warmup")


def test_verdicts() -> None:
    def said(accuracy: float, chance: float, saturated: int | None) -> str:
        return judge(
            accuracy_percent=accuracy, chance_percent=chance, saturated_at=saturated, n_steps=100
        )

    assert said(2.0, 1.6, None) == "not learned"
    assert said(52.0, 50.0, None) == "not learned"
    assert said(40.0, 1.6, None) == "learned"
    assert said(99.9, 1.6, 30) == "saturated early"
    assert said(99.9, 1.6, 60) == "learned"
    told = {"saturated_at": None, "n_steps": 100, "order_blind_percent": 41.0}
    assert judge(accuracy_percent=41.5, chance_percent=12.5, **told) == "not learned"
    assert judge(accuracy_percent=60.0, chance_percent=12.5, **told) == "learned"


def test_a_control_that_learned_all_it_can_has_not_learned(tmp_path: Path) -> None:
    """What order does not tell is no success: the same rule, the same model, two verdicts."""
    order_blind = {}
    for rule in ("dyck", "shuffled:dyck"):
        plan = plan_warmup(tiny(tmp_path, f"rule.name={rule}"), n_tokens=16)
        order_blind[rule] = find_order_blind(plan)
        assert order_blind[rule] is not None
    assert 35 < order_blind["dyck"] < 45  # type: ignore[operator]
    assert order_blind["dyck"] == pytest.approx(order_blind["shuffled:dyck"], abs=4)
    words = [word for word in TINY if not word.startswith("rule.params")]
    words += ["rule.name=mixture", "rule.params={of: [dyck, copy]}"]
    blend = load_config(WarmupRun, None, words)
    assert 0 < (find_order_blind(plan_warmup(blend, n_tokens=16)) or 0) < 60


def test_sequences_that_a_training_saw_are_no_held_out_ones(tmp_path: Path) -> None:
    """An elementary automaton 4 columns wide has 16 sequences: each is in both streams."""
    words = [word for word in TINY if not word.startswith("rule.params")]
    record = run_warmup(
        load_config(WarmupRun, None, [*words, "rule.name=eca", f"run.root={tmp_path}"])
    )
    assert record.seen_percent == 100
    assert "WARNING   100 % of the held-out sequences were seen in training" in describe(record)
    brackets = run_warmup(tiny(tmp_path))
    assert brackets.seen_percent is not None
    assert brackets.seen_percent < 5
    assert "seen in training" not in describe(brackets)


def test_looks_on_the_way_and_the_record_tell_what_was_hard(tmp_path: Path) -> None:
    config = tiny(tmp_path, "warmup.evaluations=3")
    record = run_warmup(config)
    looks = [x for x in read_metrics(warmup_folder(config)) if x["kind"] == "eval"]
    assert [look["step"] for look in looks] == [4, 8, 12]
    assert [len(look["block_norms"]) for look in looks] == [2, 2, 2]
    assert looks[0]["block_norms"] != looks[2]["block_norms"]
    assert looks[2]["block_norms"] == pytest.approx(record.extra["block_norms"], abs=1e-3)
    for found in (looks[2], {"hidden_accuracy_by": record.hidden_accuracy_by}):
        by = found["hidden_accuracy_by"]
        assert set(by) == {"match_distance", "depth"}
        counts = [sum(part["n"] for part in bins.values()) for bins in by.values()]
        assert counts[0] == counts[1] > 0
    bins = record.hidden_accuracy_by["depth"].values()
    mean = sum(b["n"] * b["accuracy_percent"] for b in bins) / sum(b["n"] for b in bins)
    assert mean == pytest.approx(record.hidden_accuracy_percent, abs=0.01)
    quiet = tiny(tmp_path / "other", "warmup.evaluations=1")  # a look changes no weight
    run_warmup(quiet)
    assert same(weights(config), weights(quiet))


def test_attention_is_unfused_where_that_is_faster_and_says_the_same() -> None:
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=2)
    x_BTD = torch.randn(2, 65, 32, generator=torch.Generator().manual_seed(0))
    cpu, fused = torch.device("cpu"), model.blocks[0].attn.fused_attn
    before = model.blocks(x_BTD)
    for long in ({"bf16": False, "n_tokens": 65}, {"bf16": True, "n_tokens": 4096}):
        choose_attention(model, device=cpu, **long)  # type: ignore[arg-type]
        assert model.blocks[0].attn.fused_attn == fused
    choose_attention(model, device=cpu, bf16=True, n_tokens=65)
    assert model.blocks[0].attn.fused_attn == torch.cpu._is_amx_tile_supported() * fused
    assert torch.allclose(model.blocks(x_BTD), before, atol=1e-5)


def test_until_saturated_ends_at_the_second_solved_line(tmp_path: Path) -> None:
    config = tiny(
        tmp_path, "rule.params.n_kinds=1", "warmup.until=saturated", "warmup.budget=400steps",
        "warmup.lr=1e-2", "warmup.ramp_steps=2",
    )  # fmt: skip
    record = run_warmup(config)  # one kind of bracket: every hidden token is the same
    assert record.steps in (100, 150)
    assert record.saturated_at_step == record.steps - SATURATION_STEPS
    assert record.verdict == "saturated early"  # of the budget, not of the steps that were made

    elsewhere = dataclasses.replace(config.run, root=str(tmp_path / "parts"), log_every_steps=7)
    parts = dataclasses.replace(config, run=elsewhere)
    with pytest.raises(Stopped), interrupt_after_step(record.steps - 20):
        run_warmup(parts)
    assert run_warmup(parts).steps == record.steps  # neither a stop nor the log's interval counts
    assert same(weights(config), weights(parts))
    (warmup_folder(parts) / "record.json").unlink()  # stopped between training and record
    assert run_warmup(parts).steps == record.steps


class interrupt_after_step:
    """Sends this process a SIGTERM once the run's metrics show the step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> None:
        from vitwarm.loop import saving

        self.original = saving.StopRequest.on_train_batch_end
        step, original = self.step, self.original

        def watched(stop: Any, trainer: Any, module: Any, *args: Any) -> None:
            if module.steps_done == step:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            original(stop, trainer, module, *args)

        saving.StopRequest.on_train_batch_end = watched  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        from vitwarm.loop import saving

        saving.StopRequest.on_train_batch_end = self.original  # type: ignore[method-assign]


@pytest.mark.slow
def test_the_warm_up_learns_what_order_tells_and_nothing_else(tmp_path: Path) -> None:
    """Width 64, 16 tokens, 8 kinds: solved within 500 steps of 256; its shuffled control is not."""
    reached = {}
    for rule in ("dyck", "shuffled:dyck"):
        config = load_config(
            WarmupRun,
            None,
            [
                *TINY,
                f"run.root={tmp_path}",
                f"rule.name={rule}",
                "warmup.model_kwargs={embed_dim: 64, depth: 3, num_heads: 4, img_size: 8, "
                "patch_size: 2}",
                "warmup.batch_size=256",
                "warmup.budget=500steps",
                "warmup.eval_sequences=1024",
                "run.log_every_steps=50",
                "run.threads=1",
            ],
        )
        reached[rule] = run_warmup(config).hidden_accuracy_percent or 0.0
    assert reached["dyck"] >= 95.0
    assert reached["shuffled:dyck"] <= 45.0


def test_what_cannot_be_used_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    for word, says in (
        ("warmup.opt=adamww", r"warmup.opt is 'adamww'.*adamw"),
        ("run.device=cuda", "run.device is 'cuda'"),
        ("warmup.base_images=-4", "warmup.base_images is -4; it must be a whole number above 0"),
        ("warmup.base_epochs=0", "warmup.base_epochs is 0"),
    ):
        if word == "run.device=cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(ConfigError, match=says):
            run_warmup(tiny(tmp_path / "runs", word))
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_fills_while_saving_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch and safetensors wrap what the disk says, each in an error of its own."""

    def torch_fails(plain: Any, path: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 5 vs 1")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", torch_fails)
        with pytest.raises(RunError, match=r"step0+12\.pt cannot be written.*free some space"):
            run_warmup(tiny(tmp_path))
    assert not list(tmp_path.rglob("*.part"))
    says = "cannot be written: Error while serializing"
    with pytest.raises(RunError, match=says), replacing(tmp_path / "x.safetensors"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")
    assert run_warmup(tiny(tmp_path)).steps == 12


def test_a_finished_run_keeps_what_was_true_of_it(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    run_warmup(config)
    before = {
        path.name: path.read_bytes() for path in warmup_folder(config).iterdir() if path.is_file()
    }
    run_warmup(tiny(tmp_path, "run.threads=1", "run.log_every_steps=3"))
    after = {name: (warmup_folder(config) / name).read_bytes() for name in before}
    assert {n for n in before if before[n] != after[n]} <= {".lock"}

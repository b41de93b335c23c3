"""A sweep of real runs at toy size: every kind of arm, through the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from vitwarm.config import SweepConfig, load_config
from vitwarm.records import read_records
from vitwarm.report import run_report
from vitwarm.sweep import run_sweep

pytestmark = pytest.mark.slow

WARM = """
rule: {name: dyck, params: {n_kinds: 8}}
warmup:
  model: vit_tiny_patch16_224
  model_kwargs: {img_size: 8, patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}
  budget: 12steps
  batch_size: 32
  eval_sequences: 64
  precision: fp32
  compile: "off"
"""
SWEEP = """
base: ../quickstart.yaml
match: steps
warmup_seeds: shared
set:
  train.model_kwargs: {patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}
  train.steps: 10
  train.batch_size: 32
  train.evaluations: 2
arms:
  dyck: {warmup: warm.yaml, train: {handoff.allow_failed: true}}
  unlearned:
    warmup: warm.yaml
    set: {warmup.lr: 1.0e-7, warmup.warmup_lr: 0.0, warmup.min_lr: 0.0}
  late: {warmup: warm.yaml, blocks: "-1:", train: {handoff.allow_failed: true}}
  mimetic: {init: mimetic}
  scrambled:
    init: weights_shuffled_in_heads
    init_params: {trunk: "arm:dyck"}
    train: {handoff.allow_failed: true}
  unasked: {init: weights_shuffled_in_tensors, init_params: {trunk: "arm:dyck"}}
  longer: {extra_samples_of: dyck}
over: {data.fraction: [0.1]}
seeds: [0, 1]
run: {device: cpu}
slots: 2
"""


def test_every_kind_of_arm_runs_and_is_compared(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from vitwarm.shards.write.digits import write_digits

    write_digits(tmp_path / "shards")
    (tmp_path / "warm.yaml").write_text(WARM)
    recipe = tmp_path / "arms.yaml"
    recipe.write_text(SWEEP)
    config = load_config(
        SweepConfig,
        recipe,
        [
            f"run.root={tmp_path / 'runs'}",
            f"set.data.train={tmp_path}/shards/digits-train-*.tar",
            f"set.data.val={tmp_path}/shards/digits-validation-*.tar",
        ],
    )
    said: list[str] = []
    result = run_sweep(config, recipe=recipe, say=said.append)
    states = {}
    for done in result.done:
        states.setdefault((done.row.kind, done.row.arms), set()).add(done.state)
    assert states.pop(("train", ("unlearned",))) == {"refused"}, said
    assert states.pop(("train", ("unasked",))) == {"refused"}, said  # made of a failed warm-up
    assert set().union(*states.values()) == {"finished"}, said
    assert [done.row.kind for done in result.failed] == ["train"] * 4  # both, for two seeds
    assert all("its warm-up learned nothing" in done.reason for done in result.failed)

    records = [r for r in read_records(tmp_path / "runs") if r.stage == "train"]
    assert len(records) == 12
    by_arm = {(r.arm, r.n_train_images, r.seed): r for r in records}
    warmed = ("dyck", "late", "scrambled")  # what is made of a warm-up has cost it too
    for (arm, n_images, seed), record in by_arm.items():
        default = by_arm["default", n_images, seed]
        assert record.pair == default.pair
        assert record.subset_sha256 == default.subset_sha256
        extra = 12 * 32 if arm == "longer" else 0
        assert record.images_seen == 320 + extra
        assert record.warmup_samples == (12 * 32 if arm in warmed else None)
    # What is fresh is the same in every arm: the patch embedding before any step is not stored, but
    # the trunk of every draw is, and seeds draw their own.
    inits = sorted((tmp_path / "runs" / "sweeps" / "arms" / "inits").glob("mimetic-*.safetensors"))
    first, second = (load_file(path)["blocks.0.attn.qkv.weight"] for path in inits)
    assert (first != second).any()

    again = run_sweep(config, recipe=recipe, say=said.append)
    assert all(done.before or done.state in ("refused", "failed") for done in again.done)

    paths = run_report([result.folder], tmp_path / "report")
    (analysis,) = paths.analyses
    assert {(d.arm, d.reference) for d in analysis.matched_total} == {
        ("dyck", "longer"), ("late", "longer"), ("scrambled", "longer"),
    }  # fmt: skip
    assert {d.arm for d in analysis.matched_images} == {"dyck", "late", "mimetic", "scrambled"}
    assert len(analysis.convergence) == 12
    assert {line.verdict for line in analysis.warmups if "unlearned" in line.arms} == {
        "not learned"
    }
    assert {run.state for run in analysis.runs if run.arm == "unlearned"} == {"refused"}
    assert json.loads(paths.json.read_text())["sections"][0]["match"] == "steps"
    assert paths.page.stat().st_size > 40_000

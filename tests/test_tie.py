"""Blocks that share weights train as a hand-written loop over one, and are untied by loading."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from vitwarm.config import SweepConfig, WarmupRun, load_config
from vitwarm.errors import ConfigError, ModelError, Stopped
from vitwarm.handoff import attach
from vitwarm.inits import make_init
from vitwarm.records import read_metrics
from vitwarm.trunk import Trunk, build_model, load_trunk, read_groups, tie_blocks
from vitwarm.trunk.tie import drop_shared, untie
from vitwarm.warmup import (
    make_loader,
    make_module,
    make_token_model,
    plan_warmup,
    run_warmup,
    warmup_folder,
)

VIT = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {
    "embed_dim": 32, "depth": 5, "num_heads": 2, "img_size": 8, "patch_size": 2,
}  # fmt: skip
TINY = [
    f"warmup.model_kwargs={json.dumps(SHAPE)}", "rule.params.n_kinds=8", "warmup.precision=fp32",
    "warmup.batch_size=8", "warmup.eval_sequences=64", "warmup.budget=12steps",
    "run.progress=false", "run.log_every_steps=1", "run.device=cpu", "run.threads=1",
]  # fmt: skip
GROUPS = [[0], [1, 2, 3], [4]]


def tied(root: Path, *words: str, tie: str = "0|1-3|4") -> WarmupRun:
    return load_config(WarmupRun, None, [*TINY, f"run.root={root}", f"warmup.tie={tie}", *words])


def trunk(config: WarmupRun) -> Trunk:
    return load_trunk(warmup_folder(config) / "trunk.safetensors")


def losses(config: WarmupRun) -> list[float]:
    lines = read_metrics(warmup_folder(config))
    return [line["loss"] for line in lines if line["kind"] == "train"]


class Loop(nn.Module):
    """Three blocks, the middle one applied three times."""

    def __init__(self, first: nn.Module, middle: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = first, middle, last

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.first(x_BTD)
        for _ in range(3):
            x_BTD = self.middle(x_BTD)
        out: Tensor = self.last(x_BTD)
        return out


def test_a_tied_warm_up_is_the_hand_written_loop_step_by_step(tmp_path: Path) -> None:
    config = tied(tmp_path)
    run_warmup(config)

    untied = load_config(WarmupRun, None, TINY)
    plan = plan_warmup(untied)
    module = make_module(plan, make_token_model(untied))
    vit = module.tokens.model
    vit.blocks = Loop(vit.blocks[0], vit.blocks[1], vit.blocks[4])
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.05)
    loader, expected = make_loader(plan, start_step=0), []
    for step in range(12):
        (batch,) = loader.step(step)
        logits_KV = module(batch.input_ids, batch.hidden)
        loss = F.cross_entropy(logits_KV, batch.targets)  # ignores -100, the mean over the rest
        expected.append(loss.item())
        optimizer.param_groups[0]["lr"] = plan.schedule.lr_at(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert losses(config) == pytest.approx(expected, rel=1e-5)
    found = trunk(config).tensors
    for place, block in enumerate([vit.blocks.first, *[vit.blocks.middle] * 3, vit.blocks.last]):
        for name, tensor in block.state_dict().items():
            theirs = found[f"blocks.{place}.{name}"]
            if name == "attn.qkv.bias":  # of a key's bias softmax takes no notice: rounding alone
                theirs, tensor = (torch.cat([b[:32], b[64:]]) for b in (theirs, tensor))
            torch.testing.assert_close(theirs, tensor, rtol=1e-4, atol=1e-6)


def test_the_optimiser_sees_each_tensor_once_and_gradients_add_up() -> None:
    config = load_config(WarmupRun, None, [*TINY, "warmup.tie=0|1-3|4"])
    tokens = make_token_model(config)
    plan = plan_warmup(config)
    module = make_module(plan, tokens)
    groups = module.make_optimizer().param_groups
    sizes = sum(p.numel() for group in groups for p in group["params"])
    block = sum(p.numel() for p in tokens.model.blocks[0].parameters())
    outside = [p for n, p in module.named_parameters() if ".blocks." not in n and p.requires_grad]
    assert sizes == 3 * block + sum(p.numel() for p in outside)

    apart = make_module(plan_warmup(load_config(WarmupRun, None, TINY)),
                        make_token_model(load_config(WarmupRun, None, TINY)))  # fmt: skip
    apart.load_state_dict(module.state_dict())  # equal numbers, nothing shared
    (batch,) = make_loader(plan, start_step=0).step(0)
    for one in (module, apart):
        F.cross_entropy(one(batch.input_ids, batch.hidden), batch.targets).backward()
    for name, parameter in tokens.model.blocks[1].named_parameters():
        parts = [apart.tokens.model.blocks[i].get_parameter(name).grad for i in (1, 2, 3)]
        torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-4, atol=1e-7)


def test_a_resume_and_micro_batches_are_the_uninterrupted_run(tmp_path: Path) -> None:
    whole = tied(tmp_path / "whole")
    run_warmup(whole)
    parts = tied(tmp_path / "parts")
    with pytest.raises(Stopped):
        run_warmup(tied(tmp_path / "parts", "run.time_limit_minutes=1e-9"))
    run_warmup(parts)
    assert trunk(parts).sha256 == trunk(whole).sha256
    cut = tied(tmp_path / "cut", "warmup.micro_batch_size=2")
    run_warmup(cut)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("default")
def test_compiled_tied_blocks_change_nothing(tmp_path: Path) -> None:
    torch._dynamo.reset()
    plain, compiled = tied(tmp_path / "plain"), tied(tmp_path / "fast", "warmup.compile=on")
    assert not run_warmup(plain).extra["compiled"]
    assert run_warmup(compiled).extra["compiled"]
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    found = trunk(compiled).tensors
    assert torch.equal(found["blocks.1.mlp.fc1.weight"], found["blocks.3.mlp.fc1.weight"])


@pytest.mark.slow
def test_a_tied_warm_up_learns(tmp_path: Path) -> None:
    """Width 64, 16 tokens, 8 kinds, three unique blocks in a depth of 4."""
    shape = {**SHAPE, "embed_dim": 64, "num_heads": 4, "depth": 4}
    config = tied(
        tmp_path, f"warmup.model_kwargs={json.dumps(shape)}", "warmup.batch_size=128",
        "warmup.budget=700steps", "warmup.eval_sequences=1024", "run.log_every_steps=50",
        tie="0|1-2|3",
    )  # fmt: skip
    assert (run_warmup(config).hidden_accuracy_percent or 0.0) >= 95.0


@pytest.mark.parametrize("norms", [True, False])
def test_the_file_holds_what_is_shared_once_and_the_hand_off_unties_it(
    norms: bool, tmp_path: Path
) -> None:
    config = tied(tmp_path, f"warmup.tie_norms={str(norms).lower()}")
    run_warmup(config)
    path = warmup_folder(config) / "trunk.safetensors"
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert json.loads(metadata["block_groups"]) == GROUPS
    assert metadata["tied"] == ("all of a block" if norms else "attention and MLP")
    assert "blocks.2.mlp.fc1.weight" not in names
    assert ("blocks.2.norm1.weight" in names) == (not norms)
    assert {f"blocks.{i}.attn.qkv.weight" for i in (0, 1, 4)} <= names

    vit, audit = attach(path, model=VIT, **SHAPE)
    assert audit.carried == list(load_trunk(path).tensors)
    assert len(audit.carried) == 5 * 12 + 2
    assert torch.equal(vit.blocks[1].mlp.fc1.weight, vit.blocks[3].mlp.fc1.weight)
    assert vit.blocks[1].mlp.fc1.weight is not vit.blocks[3].mlp.fc1.weight
    same = torch.equal(vit.blocks[1].norm1.weight, vit.blocks[3].norm1.weight)
    assert same == norms
    source = next(e.source for e in audit.entries if e.name == "blocks.3.mlp.fc1.weight")
    assert source == f"{path} (shared: blocks.1.mlp.fc1.weight)"

    # And it is a core: of the same depth itself, of another one its three blocks.
    made = make_init("expand", model=VIT, seed=0, model_kwargs=SHAPE, core=path)
    assert all(torch.equal(t, load_trunk(path).tensors[n]) for n, t in made.tensors.items())
    deep = make_init("expand", model=VIT, seed=0, model_kwargs={**SHAPE, "depth": 8}, core=path)
    name = "blocks.{}.attn.proj.weight"
    assert torch.equal(deep.tensors[name.format(6)], vit.blocks[1].attn.proj.weight)
    assert torch.equal(deep.tensors[name.format(7)], vit.blocks[4].attn.proj.weight)


def test_untying_gives_back_what_was_dropped() -> None:
    model = build_model(VIT, seed=0, pre_norm=True, **SHAPE)
    tie_blocks(model, GROUPS)
    whole = {n: t for n, t in model.state_dict().items() if n.startswith(("blocks", "norm"))}
    few = drop_shared(whole, GROUPS)
    assert len(few) == 3 * 12 + 4
    again, shared = untie(few, GROUPS)
    assert list(again) == list(whole)
    assert all(torch.equal(again[n], whole[n]) for n in whole)
    assert len(shared) == 2 * 12


def test_two_spellings_are_one_warm_up(tmp_path: Path) -> None:
    short = tied(tmp_path)
    assert warmup_folder(tied(tmp_path, tie="[[4], [0], [1, 3, 2]]")) == warmup_folder(short)
    recipe = tmp_path / "tied.yaml"
    recipe.write_text("name: warmup\nwarmup: {tie: [[0], [1, 2, 3], [4]]}\n")
    assert warmup_folder(load_config(WarmupRun, recipe, [*TINY, f"run.root={tmp_path}"])) == (
        warmup_folder(short)
    )
    assert warmup_folder(tied(tmp_path, tie="0|1-4")) != warmup_folder(short)
    assert read_groups("0|1-10|11") == [[0], list(range(1, 11)), [11]]
    fields = {"base": "b", "match": "steps", "warmup_seeds": "shared"}
    over = {"warmup.tie": [[[0], [1, 2]], None]}
    load_config(SweepConfig, None, fields={**fields, "over": over})


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        ("0|1-3", "block 4 is in no group"),
        ("0|1-5", "there is no block 5"),
        ("0,1|1-3|4", "block 1 is in two groups"),
        ("all", r"'all'; write the groups"),
        ("0-2|4-3", r"the range 4-3 descends\. Write 3-4"),
        ("[[0], [4-1]]", r"the range 4-1 descends\. Write 1-4"),
        ("0-1000000000", "with numbers of at most 4 digits"),
    ],
)
def test_groups_that_are_none_get_their_sentence(tie: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_warmup(tied(tmp_path / "runs", tie=tie))
    assert not (tmp_path / "runs").exists()


def test_only_plain_vits_are_tied() -> None:
    model = build_model("swin_tiny_patch4_window7_224", seed=0)
    with pytest.raises(ModelError, match=r"cannot be tied: it is 'swin_tiny"):
        tie_blocks(model, GROUPS)

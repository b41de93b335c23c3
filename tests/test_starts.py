"""Fine-tuning starts from folders and files of weights; what does not fit is told by name."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import running_hub
from safetensors.torch import save, save_file
from tiny_images import write_tiny_shards
from torch import nn

from vitwarm.cli import main
from vitwarm.config import TrainRun, WarmupRun, load_config
from vitwarm.errors import ConfigError, HandoffError, ModelError
from vitwarm.handoff import attach, export_model, start_from
from vitwarm.trunk import build_model

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {
    "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return build_model(VIT, seed=4, num_classes=10, **SMALL)


@pytest.fixture(scope="module")
def export(vit: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(vit, tmp_path_factory.mktemp("runs") / "export", facts={})


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_the_file_in_an_export_is_the_export(vit: nn.Module, export: Path) -> None:
    loaded, audit = start_from(export / "model.safetensors")
    assert same(loaded, vit)
    assert not audit.fresh
    with pytest.raises(HandoffError, match=r"holds 'vit_tiny_patch16_224'.*train\.model=vit_tiny"):
        start_from(export / "model.safetensors", model="vit_small_patch16_224")


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.pth", lambda state: state),
        ("deit.pth", lambda state: {"model": state, "args": argparse.Namespace(lr=1), "epoch": 3}),
        ("wrapped.pt", lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
        ("compiled.pt", lambda state: {f"_orig_mod.{k}": v for k, v in state.items()}),
        ("averaged.pt", lambda state: {
            "state_dict": {k: v + 1 for k, v in state.items()}, "state_dict_ema": state,
        }),
    ],
)  # fmt: skip
def test_checkpoints_of_torch(
    vit: nn.Module, tmp_path: Path, name: str, wrap: Callable[[dict[str, Any]], Any]
) -> None:
    torch.save(wrap(dict(vit.state_dict())), tmp_path / name)
    loaded, audit = start_from(tmp_path / name, model=VIT, num_classes=10, **SMALL)
    assert same(loaded, vit)
    assert {entry.source for entry in audit.entries} == {str(tmp_path / name)}


def test_a_lone_safetensors_file_needs_a_model(vit: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(vit.state_dict(), path)
    assert same(start_from(path, model=VIT, num_classes=10, **SMALL)[0], vit)
    with pytest.raises(HandoffError, match=r"does not say which model it is of\. Give the model"):
        start_from(path)


def test_an_encoder_without_a_head_gets_a_fresh_one(vit: nn.Module, tmp_path: Path) -> None:
    state = {n: t for n, t in vit.state_dict().items() if not n.startswith("head.")}
    torch.save({"model": state}, tmp_path / "mae.pth")
    tuned, audit = start_from(tmp_path / "mae.pth", model=VIT, seed=9, num_classes=10, **SMALL)
    assert audit.fresh == ["head.weight", "head.bias"]
    other = build_model(VIT, seed=9, num_classes=10, **SMALL)
    assert torch.equal(tuned.head.weight, other.head.weight)
    assert torch.equal(tuned.blocks[2].mlp.fc2.weight, vit.blocks[2].mlp.fc2.weight)


@pytest.mark.parametrize("n_classes", [10, 4])
def test_the_last_norm_goes_where_the_pooling_wants_it(
    vit: nn.Module, export: Path, tmp_path: Path, n_classes: int
) -> None:
    with torch.no_grad():
        vit.norm.weight += 0.5
    there = export_model(vit, tmp_path / "token", facts={})
    pooled, audit = start_from(there, num_classes=n_classes, global_pool="avg")
    assert torch.equal(pooled.fc_norm.weight, vit.norm.weight)
    sources = {entry.name: entry.source for entry in audit.entries}
    assert sources["fc_norm.weight"] == f"{there} (norm.weight)"
    assert any("norm.weight -> fc_norm.weight" in note for note in audit.notes)
    folder = export_model(pooled, tmp_path / "pooled", facts={})
    back, _ = start_from(folder, num_classes=n_classes, global_pool="token")
    assert torch.equal(back.norm.weight, vit.norm.weight)
    with torch.no_grad():
        vit.norm.weight -= 0.5


@pytest.mark.parametrize("n_classes", [10, 4])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 4}, r"'blocks\.3\.norm1\.weight' \(32 in the model\) is not in the file, "
         r"'blocks\.3\.norm1\.bias' .*, and 9 others"),
        ({"depth": 2}, r"'blocks\.2\.[\w.]+' \([\dx]+ in the file\) has no place in the model"
         r".*, and 9 others"),
        ({"mlp_ratio": 2}, r"'blocks\.0\.mlp\.fc1\.weight' is 128x32 in the file and 64x32 in the "
         r"model.*'blocks\.0\.mlp\.fc1\.bias'.*'blocks\.0\.mlp\.fc2\.weight'.*, and 6 others"),
        ({"qkv_bias": False}, r"'blocks\.0\.attn\.qkv\.bias' \(96 in the file\) has no place"),
        ({"init_values": 0.1}, r"'blocks\.0\.ls1\.gamma' \(32 in the model\) is not in the file"),
        ({"embed_dim": 64}, r"'cls_token' is 1x1x32 in the file and 1x1x64 in the model"),
    ],
)  # fmt: skip
def test_a_misfit_names_three_tensors_and_counts_the_rest(
    export: Path, change: dict[str, Any], says: str, n_classes: int
) -> None:
    """Also where the head is fresh, which timm takes for leave to let anything be missing."""
    with pytest.raises(HandoffError, match=says):
        start_from(export, num_classes=n_classes, **change)


class Runs:
    """Pickled, it would call a function."""

    def __reduce__(self) -> Any:
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "whole.pth",
            r"needs code to be read \((timm\.|builtins\.getattr).*torch\.save\(model\.state_dict",
        ),
        ("hostile.pt", r"needs code to be read \(builtins\.print\)"),
        ("words.pth", "neither a safetensors file nor one that torch.save wrote"),
        ("empty.pt", "neither a safetensors file nor one that torch.save wrote"),
        ("words.safetensors", "not a readable safetensors file"),
        ("list.pt", "holds a list, not tensors by their names"),
        ("others.pt", r"this one has 'mine', 'epoch'.*Save model\.state_dict\(\)"),
        ("nowhere.pth", "there is no such file or folder"),
    ],
)
def test_files_that_are_no_weights(
    vit: nn.Module, tmp_path: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(vit, tmp_path / "whole.pth")
    torch.save({"model": Runs()}, tmp_path / "hostile.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"mine": dict(vit.state_dict()), "epoch": 1}, tmp_path / "others.pt")
    for empty, content in (("words.pth", b"hello"), ("empty.pt", b""), ("words.safetensors", b"h")):
        (tmp_path / empty).write_bytes(content)
    with pytest.raises((ModelError, HandoffError), match=says) as refused:
        start_from(tmp_path / name, model=VIT, num_classes=10, **SMALL)
    assert str(refused.value).startswith("handoff.init is ")
    assert "code ran" not in capsys.readouterr().out


def test_folders_and_names_that_are_no_start(export: Path) -> None:
    with pytest.raises(HandoffError, match=r"a folder without a timm model.*Give .*/export"):
        start_from(export.parent)
    with pytest.raises(ModelError, match=r"handoff\.init: .*no model of that name.*vit_tiny"):
        start_from("vit_tniy_patch16_224.augreg_in21k")
    with pytest.raises(HandoffError, match="is 'vit_small_patch16_224'"):
        start_from("vit_tiny_patch16_224.augreg_in21k", model="vit_small_patch16_224")
    with pytest.raises(ModelError, match=r"its weights cannot be loaded: .*while online"):
        start_from("vit_tiny_patch16_224.augreg_in21k")  # tests have HF_HUB_OFFLINE


TAGGED = """
import json, sys
from vitwarm.errors import HandoffError
from vitwarm.handoff import start_from
name = "vit_tiny_patch16_224.augreg_in21k"
tuned, audit = start_from(name, num_classes=10, img_size=192)
try:
    start_from(name, num_classes=10, depth=6)
except HandoffError as error:
    sources = {entry.name: entry.source for entry in audit.entries}
    norm = tuned.norm.bias[0].item()
    print(json.dumps([audit.fresh, sources["pos_embed"], norm, str(error)]))
"""


@pytest.mark.slow
def test_a_tag_of_timms_is_read_as_strictly(tmp_path: Path) -> None:
    """In a process whose hub is one of this machine."""
    name = "vit_tiny_patch16_224.augreg_in21k"
    vit = build_model(name, seed=0)
    with torch.no_grad():
        vit.norm.bias.fill_(0.25)
    with running_hub() as hub:
        hub.commits[f"timm/{name}"] = {"c" * 40: {"model.safetensors": save(vit.state_dict())}}
        env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path)}
        env["HF_HUB_OFFLINE"] = "0"
        done = subprocess.run(
            [sys.executable, "-c", TAGGED], env=env, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    fresh, positions, norm, refused = json.loads(done.stdout)
    assert fresh == ["head.weight", "head.bias"]
    assert positions == f"{name} (resampled from 1x197x192)"
    assert norm == 0.25
    assert "'blocks.6.norm1.weight' (192 in the file) has no place in the model" in refused


def test_a_bad_start_or_source_names_its_field_and_leaves_no_run(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_shards(tmp_path / "tiny")
    words = [
        "train", f"data.train={tmp_path}/tiny/train", "train.steps=2", "run.device=cpu",
        "run.workers=0", "run.progress=false", f"run.root={tmp_path}/runs", "train.batch_size=8",
        "train.model_kwargs={depth: 2}",
    ]  # fmt: skip
    assert main([*words, f"data.val={tmp_path}/nowhere"]) == 2
    assert "data.val: There is no" in capsys.readouterr().err
    words.append(f"data.val={tmp_path}/tiny/validation")
    for init, says in (
        (tmp_path / "nowhere.pth", "there is no such file or folder"),
        (export.parent, "a folder without a timm model"),
        (export, "in the file) has no place in the model, "),
    ):
        assert main([*words, f"handoff.init={init}"]) == 2
        said = capsys.readouterr().err
        assert "handoff.init" in said
        assert says in said
    assert not list(tmp_path.glob("runs/*"))


NEEDED: dict[type, list[str]] = {TrainRun: ["data.train=x", "data.val=x"], WarmupRun: []}
RESERVED = {
    "pretrained": True,
    "checkpoint_path": "x",
    "pretrained_cfg": "x",
    "features_only": True,
}


@pytest.mark.parametrize("key", RESERVED)
def test_arguments_that_make_no_fresh_model_are_refused_everywhere(
    key: str, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says = rf"{key}.* has no place there: "
    for schema, field in ((TrainRun, "train.model_kwargs"), (WarmupRun, "warmup.model_kwargs")):
        with pytest.raises(ConfigError, match=says):
            load_config(schema, None, NEEDED[schema], fields={field: {key: RESERVED[key]}})
    for build in (lambda **some: attach(None, model=VIT, **some), lambda **some: start_from(
        export, **some)):  # fmt: skip
        with pytest.raises(ModelError, match=says):
            build(**{key: RESERVED[key]})
    words = ["handoff", "none", "--model", VIT, "--out", str(tmp_path / "out"), "--model-kwargs"]
    assert main([*words, json.dumps({key: RESERVED[key]})]) == 2
    assert f"'{key}', which has no place there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.model_kwargs={num_classes: 3}", r"use train\.num_classes"),
        ("train.model_kwargs={img_size: 32}", r"use train\.img_size"),
        ("train.model_kwargs={seed: 1}", "use seed"),
        ("train.model_kwargs={dtype: bfloat16}", "use warmup.precision or train.precision"),
        ("warmup.model_kwargs={num_classes: 3}", r"use train\.num_classes"),
        ("warmup.model_kwargs={in_chans: 1}", "sees no images"),
        ("warmup.model_kwargs={seed: 1}", "use seed"),
        ("warmup.model_kwargs={device: cuda}", r"use run\.device"),
    ],
)
def test_arguments_that_a_field_says_name_the_field(word: str, says: str) -> None:
    schema = TrainRun if word.startswith("train") else WarmupRun
    with pytest.raises(ConfigError, match=says):
        load_config(schema, None, [*NEEDED[schema], word])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ('{"num_classes": 3}', "use --num-classes"),
        ('{"img_size": 32}', "use --img-size"),
        ('{"seed": 1}', "use --seed"),
        ("[1]", "give an object"),
    ],
)
def test_the_hand_offs_arguments(
    given: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["handoff", "none", "--model", VIT, "--out", str(tmp_path / "out")]
    assert main([*words, "--model-kwargs", given]) == 2
    assert says in capsys.readouterr().err

"""Carried tensors are bit-equal, fresh tensors equal across arms, misfits refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from vitwarm.cli import main
from vitwarm.errors import HandoffError, ModelError, RunError
from vitwarm.handoff import attach, export_model, start_from
from vitwarm.trunk import TokenModel, build_model, load_trunk, save_trunk, trunk_names

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    "img_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk file whose every number differs from any fresh model's."""
    tokens = TokenModel(build_model(VIT, seed=7, **SMALL), n_ids=17)
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter += 0.5
    return save_trunk(tmp_path_factory.mktemp("run") / "trunk.safetensors", tokens, {})


def test_carried_is_bit_equal_and_fresh_is_equal_across_arms(warmed: Path) -> None:
    vit, audit = attach(warmed, model=VIT, seed=1, num_classes=10, **SMALL)
    default, empty = attach(None, model=VIT, seed=1, num_classes=10, **SMALL)
    trunk = load_trunk(warmed)
    ours, theirs = vit.state_dict(), default.state_dict()
    assert audit.carried == trunk_names(vit) == list(trunk.tensors)
    assert all(torch.equal(ours[name], trunk.tensors[name]) for name in audit.carried)
    assert all(torch.equal(ours[name], theirs[name]) for name in audit.fresh)
    assert not any(torch.equal(ours[name], theirs[name]) for name in audit.carried)
    assert sorted(audit.carried + audit.fresh) == sorted(ours)
    assert not empty.carried
    assert audit.trunk_sha256 == trunk.sha256


def test_the_trunks_output_is_bit_equal_before_and_after(warmed: Path) -> None:
    before = TokenModel(build_model(VIT, seed=0, **SMALL), n_ids=17).model.eval()
    before.load_state_dict(load_trunk(warmed).tensors, strict=False)
    after = attach(warmed, model=VIT, **SMALL)[0].eval()
    x_BTD = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(before.norm(before.blocks(x_BTD)), after.norm(after.blocks(x_BTD)))


@pytest.mark.parametrize(
    ("scope", "blocks", "carried"),
    [
        ("attention", None, r"blocks\.\d\.(norm1|attn)"),
        ("mlp", None, r"blocks\.\d\.(norm2|mlp)"),
        ("blocks", None, r"blocks\."),
        ("blocks", "-1:", r"blocks\.2"),
        ("all", "-1:", r"blocks\.2|norm"),
        ("all", "0,1", r"blocks\.[01]"),
        ("all", [0], r"blocks\.0"),
        ("attention", slice(1, None), r"blocks\.[12]\.(norm1|attn)"),
    ],
)
def test_scopes_and_blocks(warmed: Path, scope: Any, blocks: Any, carried: str) -> None:
    vit, audit = attach(warmed, model=VIT, scope=scope, blocks=blocks, **SMALL)
    assert audit.carried == [name for name in vit.state_dict() if re.match(carried, name)]


@pytest.mark.parametrize(
    "blocks", ["3", "-4", "1:1", "one", "0;1", [], "::0", 5, "9" * 5000, "1:-"]
)
def test_blocks_that_are_not_there_are_refused(warmed: Path, blocks: Any) -> None:
    with pytest.raises(HandoffError, match=r"handoff\.blocks is .*of the 3 blocks"):
        attach(warmed, model=VIT, blocks=blocks, **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 64}, r"'blocks\.0\.norm1\.weight' is 32 in the trunk and 64 .*width"),
        ({"depth": 4}, r"3 blocks, the model has 4 .*'blocks\.3\.norm1\.weight'"),
        ({"depth": 2}, r"3 blocks, the model has 2 .*'blocks\.2\.norm1\.weight'"),
        ({"mlp_ratio": 2}, r"'blocks\.0\.mlp\.fc1\.weight' is 128x32 .* 64x32 .*MLP ratio"),
        ({"num_heads": 4}, r"2 attention heads, the model 4"),
        ({"init_values": 0.1}, r"lacks 'blocks\.0\.ls1\.gamma'"),
        ({"qkv_bias": False}, r"'blocks\.0\.attn\.qkv\.bias' has no place"),
    ],
)
def test_a_misfit_names_the_first_tensor(warmed: Path, change: dict, message: str) -> None:
    with pytest.raises(HandoffError, match=message):
        attach(warmed, model=VIT, **{**SMALL, **change})


def test_only_what_is_carried_has_to_fit(warmed: Path) -> None:
    _, audit = attach(warmed, model=VIT, scope="attention", **{**SMALL, "mlp_ratio": 2})
    assert len(audit.carried) == 3 * 6


def test_another_image_size_is_fine_and_noted(warmed: Path) -> None:
    vit, audit = attach(warmed, model=VIT, **{**SMALL, "img_size": 48})
    assert vit(torch.zeros(1, 3, 48, 48)).shape == (1, 1000)
    assert audit.notes == ["the trunk saw sequences of 16 tokens (4x4), the model has 6x6 patches"]


def test_the_last_norm_goes_where_pooling_puts_it(warmed: Path) -> None:
    kwargs = {**SMALL, "global_pool": "avg", "class_token": False}
    vit, audit = attach(warmed, model=VIT, **kwargs)
    assert torch.equal(vit.fc_norm.weight, load_trunk(warmed).tensors["norm.weight"])
    assert any("norm.weight -> fc_norm.weight" in note for note in audit.notes)


def test_a_table_of_the_patch_grid_is_refused_by_name(tmp_path: Path) -> None:
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
    model = build_model("beit_base_patch16_224", seed=0, img_size=32, **small)
    path = save_trunk(tmp_path / "t.safetensors", model, {})
    attach(path, model="beit_base_patch16_224", img_size=32, **small)
    with pytest.raises(HandoffError, match=r"relative_position_bias_table.*patch grid"):
        attach(path, model="beit_base_patch16_224", img_size=48, **small)


def test_a_partial_trunk_leaves_the_rest_fresh(warmed: Path, tmp_path: Path) -> None:
    trunk = load_trunk(warmed)
    some = {n: t for n, t in trunk.tensors.items() if ".attn.qkv" in n}
    facts = {"depth": "3", "num_heads": "2"}
    said = save_trunk(tmp_path / "said.safetensors", some, {**facts, "partial": "true"})
    _, audit = attach(said, model=VIT, **SMALL)
    assert audit.carried == list(some)
    with pytest.raises(HandoffError, match=r"nothing would be carried"):
        attach(said, model=VIT, scope="mlp", **SMALL)
    unsaid = save_trunk(tmp_path / "unsaid.safetensors", some, facts)
    with pytest.raises(HandoffError, match=r"the trunk lacks 'blocks\.0\.norm1\.weight'"):
        attach(unsaid, model=VIT, **SMALL)


def test_a_bf16_trunk_is_cast(warmed: Path, tmp_path: Path) -> None:
    trunk = load_trunk(warmed)
    half = {name: tensor.bfloat16() for name, tensor in trunk.tensors.items()}
    path = save_trunk(tmp_path / "t.safetensors", half, trunk.metadata)
    vit, audit = attach(path, model=VIT, **SMALL)
    assert torch.equal(vit.norm.weight, half["norm.weight"].float())
    assert vit.norm.weight.dtype == torch.float32
    assert audit.notes == ["numbers were cast from torch.bfloat16 to torch.float32"]


def test_the_export_loads_both_of_timms_ways(warmed: Path, tmp_path: Path) -> None:
    vit = attach(warmed, model=VIT, num_classes=10, **SMALL)[0].eval()
    facts = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "crop_pct": 1.0, "top1_percent": 7.5}
    folder = export_model(vit, tmp_path / "export", facts={**facts, "origin": "here"})
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    initial = timm.create_model(VIT, num_classes=10, **SMALL).eval()
    timm.models.load_checkpoint(initial, str(folder / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(image), vit(image))
        assert torch.equal(initial(image), vit(image))
    data = resolve_model_data_config(loaded)
    assert tuple(data["mean"]) == (0.4, 0.5, 0.6)
    assert (data["input_size"], data["crop_pct"]) == ((3, 32, 32), 1.0)
    config = json.loads((folder / "config.json").read_text())
    assert config["vitwarm"] == {"top1_percent": 7.5}
    assert config["pretrained_cfg"]["tag"] == "vitwarm"
    assert config["pretrained_cfg"]["license"] == "unknown"
    assert config["pretrained_cfg"]["origin_url"] == "here"
    export_model(vit, folder, facts={})
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("other", ["warmup-1a2b3c4d/record.json", "notes.txt", "README.md"])
def test_an_export_replaces_nothing_but_an_export(warmed: Path, tmp_path: Path, other: str) -> None:
    vit = attach(warmed, model=VIT, **SMALL)[0]
    folder = export_model(vit, tmp_path / "export", facts={})
    (folder / "audit.json").write_text("{}")  # a hand-off's own
    kept = export_model(vit, folder, facts={}) / other
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("{}")
    with pytest.raises(RunError, match=f"{other.split('/')[0]}.*would be lost"):
        export_model(vit, folder, facts={})
    assert kept.read_text() == "{}"


def test_fine_tuning_starts_from_an_export(warmed: Path, tmp_path: Path) -> None:
    vit = attach(warmed, model=VIT, num_classes=10, **SMALL)[0]
    folder = export_model(vit, tmp_path / "export", facts={})
    same, audit = start_from(folder)
    assert not audit.fresh
    assert all(torch.equal(t, vit.state_dict()[n]) for n, t in same.state_dict().items())
    wider, audit = start_from(folder, model=VIT, seed=3, num_classes=7, img_size=48)
    assert audit.fresh == ["head.weight", "head.bias"]
    assert wider(torch.zeros(1, 3, 48, 48)).shape == (1, 7)
    sources = {entry.name: entry.source for entry in audit.entries}
    assert "resampled from 1x17x32" in sources["pos_embed"]
    assert torch.equal(wider.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)
    again, _ = start_from(folder, model=VIT, seed=3, num_classes=7, img_size=48)
    assert torch.equal(wider.head.weight, again.head.weight)


def test_fine_tuning_from_nothing_is_one_sentence(warmed: Path, tmp_path: Path) -> None:
    with pytest.raises(HandoffError, match="a folder without a timm model"):
        start_from(tmp_path)
    vit = attach(warmed, model=VIT, **SMALL)[0]
    folder = export_model(vit, tmp_path / "export", facts={})
    with pytest.raises(HandoffError, match=r"holds 'vit_tiny_patch16_224', but the model is"):
        start_from(folder, model="vit_small_patch16_224")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights cannot be loaded"):
        start_from(folder)
    with pytest.raises(ModelError, match=r"no model of that name"):
        start_from("vit_tniy_patch16_224.augreg_in21k")


def test_the_command_exports_with_the_audit(
    warmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["handoff", str(warmed.parent), "--model", VIT, "--num-classes", "4", "--seed", "2"]
    assert main([*words, "--blocks=-1:", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    audit = json.loads((out / "audit.json").read_text())
    vit = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert [entry["name"] for entry in audit["entries"]] == list(vit.state_dict())
    assert audit["n_carried"] == 14
    assert all(entry["name"] in printed for entry in audit["entries"])
    expected = attach(warmed, model=VIT, blocks="-1:", seed=2, num_classes=4, **SMALL)[0]
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())


def test_the_command_grafts(
    warmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_trunk(tmp_path / "b.safetensors", build_model(VIT, seed=8, **SMALL), {})
    made = tmp_path / "graft.safetensors"
    words = ["handoff", "graft", str(warmed), str(other), "--out", str(made)]
    assert main([*words, "--first-blocks", "1"]) == 0
    trunk = load_trunk(made)
    first, second = load_trunk(warmed), load_trunk(other)
    for name, tensor in trunk.tensors.items():
        owner = first if name.startswith("blocks.0") else second
        assert torch.equal(tensor, owner.tensors[name]), name
    _, audit = attach(made, model=VIT, **SMALL)
    for entry in audit.entries:
        if entry.state == "carried":
            assert str(warmed if entry.name.startswith("blocks.0") else other) in entry.source
    assert main(words) == 2
    assert "exactly one of them" in capsys.readouterr().err


@pytest.mark.parametrize("blocks", ["-9:", "0:9", "5:"])
def test_a_range_beyond_the_blocks_is_refused(blocks: str, warmed: Path) -> None:
    with pytest.raises(HandoffError, match=r"handoff\.blocks is .* of the 3 blocks \(0 to 2\)"):
        attach(warmed, model=VIT, blocks=blocks, **SMALL)


def test_the_command_refuses_a_trunk_that_learned_nothing_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"verdict": "not learned", "hidden_accuracy_percent": "6.1", "chance_percent": "6.2"}
    trunk = save_trunk(tmp_path / "t.safetensors", build_model(VIT, seed=0, **SMALL), facts)
    shape = json.dumps({name: value for name, value in SMALL.items() if name != "img_size"})
    words = ["handoff", str(trunk), "--model", VIT, "--model-kwargs", shape, "--img-size", "32"]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "learned nothing (held-out accuracy 6.1 %, chance 6.2 %" in said
    assert "give --allow-failed" in said
    assert not (tmp_path / "out").exists()
    assert main([*words, "--allow-failed"]) == 0


@pytest.mark.parametrize("size", ["abc", "0", "8x8x8", "192x"])
def test_a_size_that_is_none_gets_a_sentence(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["handoff", "trunk", "--img-size", size])
    assert stop.value.code == 2
    assert f"{size!r} is not a size; write 224, or 192x256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["handoff", "t", "--num-classes", "-3"], "'-3' is no whole number from 0 to 1,000,000"),
        (["handoff", "t", "--seed", "-1"], "'-1' is no whole number from 0"),
        (["probe", "t", "--data", "d", "--seed", "9" * 5000], "9' is no whole number from 0"),
        (["rules", "show", "dyck", "--seed", "-1"], "'-1' is no whole number from 0"),
        (["shards", "make", "a", "b", "--seed", "-1"], "'-1' is no whole number from 0"),
        (["configs", "fields", "mixup", "--markdown"], "--markdown: not allowed with argument"),
        (["doctor", "--models", "--model", "x"], "--model: not allowed with argument --models"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none", "--scope", "mlp", "--blocks", "0"], "--scope, --blocks has no effect on none"),
        (["none", "--allow-failed"], "--allow-failed has no effect on none"),
        *(
            ([*way, "T", "--out", "out.pt"], "--out is out.pt; a trunk file ends in .safetensors")
            for way in (["mix"], ["graft", "T"], ["expand", "--model", VIT], ["import"])
        ),
    ],
)
def test_what_a_hand_off_cannot_do_is_refused_before_it_writes(
    words: list[str], says: str, warmed: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [str(warmed) if word == "T" else word for word in words]
    assert main(["handoff", "--out", "out", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_size_of_two_sides_is_handed_off(tmp_path: Path) -> None:
    shape = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4}
    vit = build_model("vit_tiny_patch16_224", seed=0, img_size=(8, 12), **shape)
    trunk = save_trunk(tmp_path / "trunk.safetensors", vit, {})
    words = ["--model", "vit_tiny_patch16_224", "--model-kwargs", json.dumps(shape)]
    for size, sides in (("8x12", (8, 12)), ("16", (16, 16))):
        out = str(tmp_path / size)
        assert main(["handoff", str(trunk), *words, "--img-size", size, "--out", out]) == 0
        loaded = timm.create_model(f"local-dir:{out}", pretrained=True)
        assert loaded.patch_embed.img_size == sides

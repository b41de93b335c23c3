"""Other people's checkpoints become trunk files whose blocks compute what theirs computed."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitwarm.cli import main
from vitwarm.errors import ModelError, TrunkError
from vitwarm.handoff import attach, export_model
from vitwarm.trunk import build_model, import_weights, load_trunk, trunk_names

VIT = "vit_tiny_patch16_224"
WIDTH, DEPTH, HEADS, EPS = 32, 2, 4, 1e-6
SMALL: dict[str, Any] = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": 32}


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


def layer_shapes(prefix: str, *, bias: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The names of a layer in transformers' modeling_vit."""
    shapes: dict[str, tuple[int, ...]] = {}
    for role in ("query", "key", "value"):
        shapes[f"{prefix}.attention.attention.{role}.weight"] = (WIDTH, WIDTH)
        if role in bias:
            shapes[f"{prefix}.attention.attention.{role}.bias"] = (WIDTH,)
    for name, rows, columns in (
        ("attention.output.dense", WIDTH, WIDTH),
        ("intermediate.dense", 4 * WIDTH, WIDTH),
        ("output.dense", WIDTH, 4 * WIDTH),
    ):
        shapes |= {f"{prefix}.{name}.weight": (rows, columns), f"{prefix}.{name}.bias": (rows,)}
    for name in ("layernorm_before", "layernorm_after"):
        shapes |= {f"{prefix}.{name}.weight": (WIDTH,), f"{prefix}.{name}.bias": (WIDTH,)}
    return shapes


def hugging_face(start: str = "vit.", bias: tuple[str, ...] = ("query", "key", "value")) -> Any:
    """A state dict by the names of transformers' ViTForImageClassification."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{start}embeddings.cls_token": (1, 1, WIDTH),
        f"{start}embeddings.position_embeddings": (1, 5, WIDTH),
        f"{start}embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 16, 16),
        f"{start}embeddings.patch_embeddings.projection.bias": (WIDTH,),
    }
    for k in range(DEPTH):
        shapes |= layer_shapes(f"{start}encoder.layer.{k}", bias=bias)
    norm = {f"{start}layernorm.weight": (WIDTH,), f"{start}layernorm.bias": (WIDTH,)}
    return random_state(
        {**shapes, **norm, "classifier.weight": (7, WIDTH), "classifier.bias": (7,)}
    )


def hugging_face_layer(state: dict[str, Tensor], at: str, x_BTD: Tensor) -> Tensor:
    """transformers' ViTLayer in plain torch."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{at}.{name}.weight"], state.get(f"{at}.{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = state[f"{at}.{name}.weight"], state[f"{at}.{name}.bias"]
        return F.layer_norm(x, (WIDTH,), weight, bias, EPS)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)

    y = norm("layernorm_before", x_BTD)
    query, key, value = (
        heads(linear(f"attention.attention.{role}", y)) for role in ("query", "key", "value")
    )
    scores = (query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(dim=-1)
    context = (scores @ value).transpose(1, 2).flatten(2)
    x_BTD = x_BTD + linear("attention.output.dense", context)
    inner = F.gelu(linear("intermediate.dense", norm("layernorm_after", x_BTD)))
    return x_BTD + linear("output.dense", inner)


@pytest.mark.parametrize("start", ["vit.", "", "model.vit.", "module."])
@pytest.mark.parametrize("bias", [("query", "key", "value"), ("query", "value"), ()])
def test_hugging_face_layers_compute_the_same(
    tmp_path: Path, start: str, bias: tuple[str, ...]
) -> None:
    state = hugging_face(start, bias)
    save_file(state, tmp_path / "model.safetensors")
    kwargs = {**SMALL, "qkv_bias": bool(bias)}
    made = import_weights(tmp_path / "model.safetensors", tmp_path / "t.safetensors", model=VIT,
                          **kwargs)  # fmt: skip
    vit: Any = attach(tmp_path / "t.safetensors", model=VIT, seed=3, **kwargs)[0].eval()
    x_BTD = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = x_BTD
    with torch.no_grad():
        for k, block in enumerate(vit.blocks):
            expected = hugging_face_layer(state, f"{start}encoder.layer.{k}", expected)
            x_BTD = block(x_BTD)
            assert torch.allclose(x_BTD, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(vit.norm.weight, state[f"{start}layernorm.weight"])
    image_side = {name for name in state if "embeddings." in name or "classifier" in name}
    assert {name.removeprefix("module.") for name in image_side} == set(made.left_out)
    assert made.trunk.metadata["num_heads"] == str(HEADS)


def timms(**kwargs: Any) -> dict[str, Tensor]:
    vit = build_model(VIT, seed=5, num_classes=3, **{**SMALL, **kwargs})
    return random_state({name: tuple(t.shape) for name, t in vit.state_dict().items()})


def as_mae(state: dict[str, Tensor]) -> Any:
    """MAE's pre-training checkpoint: timm's names, a decoder, a mask token, a command line."""
    decoder = {f"decoder_blocks.0.{n}": torch.ones(2) for n in ("norm1.weight", "attn.qkv.weight")}
    model = {**state, "mask_token": torch.zeros(1, 1, WIDTH), **decoder}
    return {"model": model, "optimizer": {"state": {}}, "epoch": 7, "args": argparse.Namespace(a=1)}


@pytest.mark.parametrize(
    ("wrap", "part", "others"),
    [
        (lambda s: s, None, []),
        (lambda s: {"state_dict": {f"module.encoder.{k}": v for k, v in s.items()}}, "state_dict",
         []),
        (lambda s: {"model": {f"_orig_mod.model.{k}": v for k, v in s.items()}}, "model", []),
        (lambda s: {"student": {}, "teacher": {f"module.backbone.{k}": v for k, v in s.items()}},
         "teacher", ["student"]),
        (as_mae, "model", ["mask_token", "decoder_blocks.0.norm1.weight",
                           "decoder_blocks.0.attn.qkv.weight", "optimizer", "epoch", "args"]),
    ],
)  # fmt: skip
def test_timms_names_in_their_wrappings(
    tmp_path: Path, wrap: Callable[[Any], Any], part: str | None, others: list[str]
) -> None:
    state = timms()
    torch.save(wrap(state), tmp_path / "theirs.pth")
    made = import_weights(tmp_path / "theirs.pth", tmp_path / "t.safetensors", model=VIT, **SMALL)
    trunk = load_trunk(tmp_path / "t.safetensors")
    assert list(trunk.tensors) == trunk_names(build_model(VIT, seed=0, **SMALL))
    assert all(torch.equal(tensor, state[name]) for name, tensor in trunk.tensors.items())
    image_side = [name for name in state if name not in trunk.tensors]
    left_out = [re.sub(r"^(encoder|model|backbone)\.", "", name) for name in made.left_out]
    assert left_out == [*image_side, *others]
    assert trunk.metadata["source"] == "import of theirs.pth"
    assert trunk.metadata.get("part") == part
    assert trunk.facts["left_out"] == made.left_out
    _, audit = attach(trunk, model=VIT, **SMALL)
    sources = {entry.name: entry.source for entry in audit.entries}
    assert sources["norm.weight"].startswith("theirs.pth (")


def test_layer_scales_by_either_name(tmp_path: Path) -> None:
    """DeiT-III's gamma_1, DINOv2's lambda1: both are timm's ls1.gamma."""
    state = timms(init_values=0.1)
    for spelling in ("gamma_{0}", "layer_scale{0}.lambda1"):
        named = {}
        for name, tensor in state.items():
            for k in "12":
                name = name.replace(f"ls{k}.gamma", spelling.format(k))
            named[name] = tensor
        save_file(named, tmp_path / "w.safetensors")
        import_weights(tmp_path / "w.safetensors", tmp_path / "t.safetensors", model=VIT, **SMALL)
        trunk = load_trunk(tmp_path / "t.safetensors")
        assert torch.equal(trunk.tensors["blocks.1.ls2.gamma"], state["blocks.1.ls2.gamma"])


def test_an_export_says_its_model_and_the_norm_after_pooling_is_the_last(tmp_path: Path) -> None:
    vit = build_model(VIT, seed=6, global_pool="avg", **SMALL)
    folder = export_model(vit, tmp_path / "export", facts={})
    made = import_weights(folder / "model.safetensors", tmp_path / "t.safetensors")
    assert made.trunk.metadata["depth"] == str(DEPTH)
    token: Any = attach(made.trunk, model=VIT, **SMALL)[0]
    assert torch.equal(token.norm.weight, vit.fc_norm.weight)  # type: ignore[union-attr, arg-type]
    # By its names alone, into a model that pools otherwise.
    save_file(vit.state_dict(), tmp_path / "pooled.safetensors")
    import_weights(tmp_path / "pooled.safetensors", tmp_path / "t.safetensors", model=VIT, **SMALL)
    assert "norm.weight" in load_trunk(tmp_path / "t.safetensors").tensors


def test_an_encoder_without_a_last_norm_is_partial(tmp_path: Path) -> None:
    state = {name: t for name, t in timms().items() if name.startswith("blocks.")}
    save_file(state, tmp_path / "w.safetensors")
    made = import_weights(tmp_path / "w.safetensors", tmp_path / "t.safetensors", model=VIT,
                          **SMALL)  # fmt: skip
    assert made.trunk.is_partial
    _, audit = attach(made.trunk, model=VIT, **SMALL)
    assert "norm.weight" in audit.fresh


@pytest.mark.parametrize("prefix", ["deit", "dinov2", "backbone"])
def test_what_was_left_out_is_named_without_its_wrapper(
    tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"{prefix}.{name}": t for name, t in timms().items() if not name.startswith("norm.")}
    torch.save(state, tmp_path / "w.pth")
    words = ["import", str(tmp_path / "w.pth"), "--model", VIT, "--model-kwargs",
             json.dumps({k: v for k, v in SMALL.items() if k != "img_size"})]  # fmt: skip
    assert main(["handoff", *words, "--out", str(tmp_path / "t.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "left out: cls_token, pos_embed, patch_embed (2), head (2)\n" in said
    assert "the file has no last norm: it starts fresh" in said


def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path: Path) -> None:
    state = timms()
    save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        made = import_weights(tmp_path / name, tmp_path / "t.safetensors", model=VIT, **SMALL)
        assert torch.equal(made.trunk.tensors["norm.bias"], state["norm.bias"])
    for length in (0x80, 0x4B50):  # of a header: what a pickle and what a zip begins with
        header = json.dumps({"__metadata__": {"pad": ""}})
        header = json.dumps({"__metadata__": {"pad": " " * (length - len(header))}})
        (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + header.encode())
        with pytest.raises(TrunkError, match="holds no blocks"):
            import_weights(
                tmp_path / "w.safetensors", tmp_path / "t.safetensors", model=VIT, **SMALL
            )
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=r"a pointer of Git LFS.*git lfs pull"):
        import_weights(pointer, tmp_path / "t.safetensors", model=VIT, **SMALL)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_plain_pickle_with_code_is_not_run(
    tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "w.pth").open("wb") as file:
        pickle.dump({"model": Runs()}, file, protocol=protocol)
    with pytest.raises(ModelError, match=r"needs code to be read \(\w+\.print\)"):
        import_weights(tmp_path / "w.pth", tmp_path / "t.safetensors", model=VIT, **SMALL)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_published_vit_is_known_by_its_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build_model("deit_tiny_patch16_224", seed=0).state_dict()
    torch.save({"model": state}, tmp_path / "deit.pth")
    out = tmp_path / "t.safetensors"
    words = ["handoff", "import", str(tmp_path / "deit.pth"), "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "146 tensors of 12 blocks as vit_tiny_patch16_224, 3 heads" in said
    assert "left out: cls_token, pos_embed, patch_embed (2), head (2)" in said
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["content_sha256"] == load_trunk(out).sha256


class Runs:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_files_that_cannot_be_imported_get_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.safetensors"

    def refuse(state: Any, says: str, error: type = TrunkError, **kwargs: Any) -> None:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(error, match=says):
            import_weights(tmp_path / "w.pth", out, **kwargs)
        assert not out.exists()

    state, small = timms(), {"model": VIT, **SMALL}
    refuse(state, "holds 2 blocks 32 wide, which is no published ViT. Give --model")
    refuse({"conv1.weight": torch.zeros(3)}, "holds no blocks of a ViT.*it has 'conv1.weight'")
    odd = {f"trunk.{name}": tensor for name, tensor in state.items()}
    refuse(odd, "holds no blocks of a ViT.*it has 'trunk.cls_token'", **small)
    refuse(state, r"'blocks\.0\.norm1\.weight' is 32 in the file and 192", model=VIT, depth=DEPTH)
    refuse(state, r"'blocks\.2\.norm1\.weight' is not there in the file and 32 in the model; 11",
           **{**small, "depth": 3})  # fmt: skip
    twice = {**state, **{f"module.{name}": tensor for name, tensor in state.items()}}
    refuse({f"vit.{k}": v for k, v in twice.items()} | state, "holds two models", **small)
    refuse(
        {**state, "norm.bias": torch.full((WIDTH,), math.nan)}, "not finite.*'norm.bias'", **small
    )
    refuse({"model": Runs()}, "needs code to be read", ModelError, **small)
    lone = hugging_face()
    lone.pop("vit.encoder.layer.1.attention.attention.key.weight")
    refuse(lone, r"layer\.1.*but not query, key and value together", **small)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(TrunkError, match="There is no file"):
        import_weights(tmp_path / "nowhere.pth", out)


def test_hugging_faces_config_is_held_against_the_model(tmp_path: Path) -> None:
    save_file(hugging_face(), tmp_path / "model.safetensors")
    beside = tmp_path / "config.json"
    for plain, says in (
        (
            {"num_attention_heads": 2},
            r"states 2 attention heads, .* has 4.*\"num_heads\": 2",
        ),
        ({"num_attention_heads": HEADS, "hidden_act": "relu"}, "activation 'relu'"),
    ):
        beside.write_text(json.dumps(plain))
        with pytest.raises(TrunkError, match=says):
            import_weights(
                tmp_path / "model.safetensors", tmp_path / "t.safetensors", model=VIT, **SMALL
            )
    beside.write_text(json.dumps({"num_attention_heads": HEADS, "layer_norm_eps": 1e-12}))
    made = import_weights(
        tmp_path / "model.safetensors", tmp_path / "t.safetensors", model=VIT, **SMALL
    )
    assert made.trunk.metadata["norm_eps"] == "1e-12"


def test_a_checkpoint_as_trunk_is_told_of_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(timms(), tmp_path / "w.pth")
    save_file(timms(), tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        words = ["handoff", str(tmp_path / name), "--model", VIT, "--out", str(tmp_path / "out")]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "`vitwarm handoff import FILE --out TRUNK.safetensors`" in said
        assert "header too large" not in said
    for words, says in (
        (["import"], "import takes one file"),
        (["import", "w.pth", "--num-classes", "3"], "--num-classes has no effect on an import"),
        (["import", "w.pth", "--allow-failed"], "--allow-failed has no effect on an import"),
    ):
        assert main(["handoff", *words, "--out", "t.safetensors"]) == 2
        assert says in capsys.readouterr().err


def test_the_module_is_only_the_trunk(tmp_path: Path) -> None:
    """Whatever was on the image side of the file, the image side of the model is fresh."""
    save_file(timms(), tmp_path / "w.safetensors")
    import_weights(tmp_path / "w.safetensors", tmp_path / "t.safetensors", model=VIT, **SMALL)
    vit, _ = attach(tmp_path / "t.safetensors", model=VIT, seed=2, **SMALL)
    cold: nn.Module = build_model(VIT, seed=2, **SMALL)
    assert torch.equal(vit.state_dict()["pos_embed"], cold.state_dict()["pos_embed"])

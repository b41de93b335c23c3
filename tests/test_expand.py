"""An expanded core is what loops over its rows and columns say; what cannot be expanded is told."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitwarm.cli import main
from vitwarm.config import SweepConfig, load_config
from vitwarm.errors import ConfigError, HandoffError, ModelError
from vitwarm.handoff import attach
from vitwarm.inits import make_init, write_init
from vitwarm.sweep.checks import spell_out
from vitwarm.sweep.stages import check_init
from vitwarm.trunk import Trunk, build_model, load_trunk, save_trunk

VIT = "vit_tiny_patch16_224"
HEAD, HEADS, DEPTH = 4, 3, 12
WIDTH = HEAD * HEADS
SMALL: dict[str, Any] = {"num_heads": HEADS, "embed_dim": WIDTH, "img_size": 32, "patch_size": 16}


def shape(depth: int = DEPTH, n_heads: int = HEADS, **other: Any) -> dict[str, Any]:
    return {**SMALL, "depth": depth, "num_heads": n_heads, "embed_dim": HEAD * n_heads, **other}


def trunk_of(path: Path, **kwargs: Any) -> Trunk:
    """A trunk no two of whose numbers are alike, biases and norms included."""
    model = build_model(VIT, seed=7, **kwargs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return load_trunk(save_trunk(path, model, {}))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return trunk_of(tmp_path_factory.mktemp("core") / "core.safetensors", **shape())


def expand(core: Any, *, model: str = VIT, seed: int = 0, to: dict[str, Any], **params: Any) -> Any:
    return make_init("expand", model=model, seed=seed, model_kwargs=to, core=core, **params)


# -- the reference: float64, an entry at a time, written from the description of the method --------


def old_index(i: int, n_old: int, n_new: int, order: str) -> int:
    return i % n_old if order == "cyclic" else math.floor(i * n_old / n_new)


def old_feature(i: int, n_old: int, n_new: int, order: str) -> int:
    """Row i of query, key or value: its head is another whole head, its place there the same."""
    return old_index(i // HEAD, n_old // HEAD, n_new // HEAD, order) * HEAD + i % HEAD


def wide_matrix(w: np.ndarray, rows: int, columns: int, row_of: Any, column_of: Any) -> np.ndarray:
    wide = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            wide[i, j] = w[row_of(i, w.shape[0], rows), column_of(j, w.shape[1], columns)]
    return wide


def wide_vector(v: np.ndarray, n: int, fill: float, vectors: str, index_of: Any) -> np.ndarray:
    wide = np.zeros(n)
    for i in range(n):
        if vectors == "tiled":
            wide[i] = v[index_of(i, len(v), n)]
        else:
            wide[i] = v[i] if i < len(v) else fill
    return wide


def reference(
    name: str, old: np.ndarray, n: int, scale: str, vectors: str, order: str
) -> np.ndarray:
    """The tensor `name` of a block at width n."""

    def plain(i: int, a: int, b: int) -> int:
        return old_index(i, a, b, order)

    def heads(i: int, a: int, b: int) -> int:
        return old_feature(i, a, b, order)

    def scaled(w: np.ndarray, wide: np.ndarray) -> np.ndarray:
        if scale == "none":
            return wide
        return wide * (math.sqrt((w**2).sum()) / math.sqrt((wide**2).sum()))

    if name == "attn.qkv.weight":
        parts = [old[k * WIDTH : (k + 1) * WIDTH] for k in range(3)]
        return np.vstack([scaled(w, wide_matrix(w, n, n, heads, plain)) for w in parts])
    if name == "attn.qkv.bias":
        parts = [old[k * WIDTH : (k + 1) * WIDTH] for k in range(3)]
        return np.concatenate([wide_vector(b, n, 0, vectors, heads) for b in parts])
    if name == "attn.proj.weight":
        return scaled(old, wide_matrix(old, n, n, plain, heads))
    if name == "mlp.fc1.weight":
        return scaled(old, wide_matrix(old, 4 * n, n, plain, plain))
    if name == "mlp.fc2.weight":
        return scaled(old, wide_matrix(old, n, 4 * n, plain, plain))
    length = 4 * n if name == "mlp.fc1.bias" else n
    fill = 1.0 if re.search(r"norm\d?\.weight", name) else 0.0
    return wide_vector(old, length, fill, vectors, plain)


#: 3, 4, 6 and 12 heads: 1, 1.33, 2 and 4 times the width.
CASES = [(depth, n, "fro", "published", "cyclic") for depth in (6, 12, 24) for n in (3, 4, 6, 12)]
CASES += [
    (6, n, scale, vectors, order)
    for n in (4, 12)
    for scale, vectors, order in (
        ("none", "published", "cyclic"), ("none", "tiled", "each"), ("fro", "tiled", "cyclic"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("depth", "n_heads", "scale", "vectors", "order"), CASES)
def test_an_expansion_is_what_the_loops_say(
    depth: int, n_heads: int, scale: str, vectors: str, order: str, core: Trunk
) -> None:
    n = HEAD * n_heads
    choices = {"scale": scale, "vectors": vectors, "order": order}
    made = expand(core, to=shape(depth, n_heads), **choices)
    sources = json.loads(made.facts["sources"])
    assert len(made.tensors) == 12 * depth + 2
    cache: dict[str, np.ndarray] = {}
    for name, found in made.tensors.items():
        inner, theirs = name, name
        if match := re.match(r"blocks\.(\d+)\.(.*)", name):
            place = {0: 0, depth - 1: DEPTH - 1}.get(int(match[1]), 1)
            place = int(match[1]) if depth == DEPTH else place
            inner, theirs = match[2], f"blocks.{place}.{match[2]}"
        if theirs not in cache:
            old = core.tensors[theirs].double().numpy()
            cache[theirs] = reference(inner, old, n, scale, vectors, order)
        np.testing.assert_allclose(
            found.double().numpy(), cache[theirs], rtol=2e-7, atol=0, err_msg=name
        )
        _, rule = sources[name].split(f": {theirs}, ")
        grown = "copied, then" if found.ndim == 1 and vectors == "published" else "tiled"
        assert rule.startswith("copied" if n == WIDTH else grown)
        assert ("q, k, v apart" in rule) == (".qkv." in name and n != WIDTH)
    said = json.loads(made.facts["expansion"])
    assert {k: said[k] for k in choices} == choices
    assert said["width_ratio"] == n_heads / HEADS


def test_the_hand_off_says_of_each_tensor_where_it_is_from(core: Trunk, tmp_path: Path) -> None:
    path, to = tmp_path / "t.safetensors", shape(6, 4)
    write_init("expand", path, model=VIT, seed=0, model_kwargs=to, core=core)
    _, audit = attach(path, model=VIT, **to)
    assert audit.carried == list(load_trunk(path).tensors)
    source = next(e.source for e in audit.entries if e.name == "blocks.4.attn.proj.weight")
    assert source.startswith(f"{core.path} ({core.sha256[:12]}): blocks.1.attn.proj.weight, tiled")
    assert any("no whole number: 1 of the 3 heads are there 2 times" in n for n in audit.notes)


def test_blocks_are_untied(core: Trunk) -> None:
    tensors = expand(core, to=shape(6)).tensors
    one, two = tensors["blocks.1.mlp.fc1.weight"], tensors["blocks.2.mlp.fc1.weight"]
    assert torch.equal(one, two)
    vit, _ = attach(Trunk(tensors, {"num_heads": "3", "depth": "6"}, "x"), model=VIT, **shape(6))
    assert vit.blocks[1].mlp.fc1.weight is not vit.blocks[2].mlp.fc1.weight


@pytest.mark.parametrize("choice", [{}, {"width": "zero"}, {"depth": "stack"}, {"order": "each"}])
def test_to_the_same_shape_it_is_the_same_trunk(
    choice: dict[str, Any], core: Trunk, tmp_path: Path
) -> None:
    out = tmp_path / "t.safetensors"
    write_init("expand", out, model=VIT, seed=0, model_kwargs=shape(), core=core, **choice)
    assert load_trunk(out).sha256 == core.sha256


def run_blocks(trunk: Trunk, to: dict[str, Any], x_BTD: torch.Tensor) -> list[torch.Tensor]:
    """What every block and the last norm give, in float64."""
    vit = attach(trunk, model=VIT, **to)[0].double().eval()
    outputs = []
    with torch.no_grad():
        for block in vit.blocks:
            x_BTD = block(x_BTD)
            outputs.append(x_BTD)
        return [*outputs, vit.norm(x_BTD)]


@pytest.fixture
def x_BTD(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((2, 5, WIDTH)))


def test_fro_with_tiled_vectors_preserves_the_function_of_repeated_channels(
    core: Trunk, x_BTD: torch.Tensor, tmp_path: Path
) -> None:
    """Our reading of `tile and rescale`; with the published vectors it does not hold."""
    narrow = run_blocks(core, shape(), x_BTD)
    for vectors in ("tiled", "published"):
        made = expand(core, to=shape(n_heads=6), scale="fro", vectors=vectors)
        wide = load_trunk(save_trunk(tmp_path / "t.safetensors", made.tensors, made.facts))
        outputs = run_blocks(wide, shape(n_heads=6), x_BTD.repeat(1, 1, 2))
        same = [
            torch.allclose(a.repeat(1, 1, 2), b, rtol=1e-4, atol=1e-4)
            for a, b in zip(narrow, outputs, strict=True)
        ]
        assert all(same) if vectors == "tiled" else not any(same)


@pytest.mark.parametrize("n_heads", [4, 6, 12])
def test_zero_changes_nothing_in_the_old_channels(
    n_heads: int, core: Trunk, x_BTD: torch.Tensor, tmp_path: Path
) -> None:
    made = expand(core, to=shape(n_heads=n_heads), width="zero")
    wide = load_trunk(save_trunk(tmp_path / "t.safetensors", made.tensors, made.facts))
    x_BTD = x_BTD - x_BTD.mean(-1, keepdim=True)
    *narrow, narrow_norm = run_blocks(core, shape(), x_BTD)
    padded = F.pad(x_BTD, (0, HEAD * n_heads - WIDTH))
    *blocks, norm = run_blocks(wide, shape(n_heads=n_heads), padded)
    for old, new in zip(narrow, blocks, strict=True):
        centred = old - old.mean(-1, keepdim=True)  # what the next LayerNorm sees
        torch.testing.assert_close(new[..., :WIDTH], centred, rtol=1e-4, atol=1e-4)
        assert not new[..., WIDTH:].any()
    torch.testing.assert_close(norm[..., :WIDTH], narrow_norm, rtol=1e-4, atol=1e-4)
    assert norm[..., WIDTH:].abs().max() < 1e-6


def test_what_zero_adds_can_learn(core: Trunk, tmp_path: Path) -> None:
    made = expand(core, to=shape(3, 6), width="zero")
    path = save_trunk(tmp_path / "t.safetensors", made.tensors, made.facts)
    vit = attach(path, model=VIT, **shape(3, 6))[0]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(vit(images), torch.tensor([1, 2])).backward()
    for block in vit.blocks:
        assert block.mlp.fc2.weight.grad[:, 4 * WIDTH :].any()
        assert block.attn.proj.weight.grad[:, WIDTH:].any()
        assert block.attn.qkv.weight.grad[:, WIDTH:].any()
        assert block.mlp.fc2.weight.grad[WIDTH:].any()


@pytest.mark.parametrize(
    ("by", "depth", "blocks"),
    [
        ("stack", 7, [0, 1, 2, 0, 1, 2, 0]),
        ("interleave", 7, [0, 0, 0, 1, 1, 2, 2]),
        ("interleave", 6, [0, 0, 1, 1, 2, 2]),
        ("core", 6, [0, 1, 1, 1, 1, 2]),
    ],
)
def test_depth_grows_in_the_order_that_was_asked_for(
    by: str, depth: int, blocks: list[int], tmp_path: Path
) -> None:
    three = trunk_of(tmp_path / "t.safetensors", **shape(3))
    made = expand(three, to=shape(depth), depth=by)
    for i, j in enumerate(blocks):
        name = "blocks.{}.attn.qkv.weight"
        assert torch.equal(made.tensors[name.format(i)], three.tensors[name.format(j)])
    assert json.loads(made.facts["expansion"])["blocks"] == blocks


@pytest.mark.parametrize(
    ("to", "choice", "message"),
    [
        ({"embed_dim": 14, "num_heads": 2}, {}, r"of 4 features.*4 does not divide.*14.*12 or 16"),
        ({"embed_dim": 24, "num_heads": 3}, {}, r"24 into 3 heads of 8\. Set num_heads=6"),
        ({"embed_dim": 8, "num_heads": 2}, {}, r"nothing is made narrower"),
        ({"mlp_ratio": 2}, {}, r"Set mlp_ratio=4"),
        ({"depth": 2}, {}, r"a first, a middle and a last block.* 12 and 2"),
        ({"depth": 6}, {"depth": "stack"}, r"12 blocks, the model 6; depth=stack only adds"),
        ({"init_values": 0.1}, {}, r"model has 'blocks\.0\.ls1\.gamma', and the trunk lacks"),
        ({"qkv_bias": False}, {}, r"'blocks\.0\.attn\.qkv\.bias' has no place"),
    ],
)
def test_what_does_not_go_together_gets_its_sentence(
    to: dict[str, Any], choice: dict[str, Any], message: str, core: Trunk
) -> None:
    with pytest.raises(HandoffError, match=message):
        expand(core, to={**shape(), **to}, **choice)


def test_a_norm_behind_the_pooling_is_the_same_norm(core: Trunk) -> None:
    to = {**shape(), "global_pool": "avg", "class_token": False}
    assert torch.equal(expand(core, to=to).tensors["fc_norm.bias"], core.tensors["norm.bias"])


def test_other_models_and_choices_are_refused(core: Trunk) -> None:
    with pytest.raises(ModelError, match=r"made from a smaller trunk: it is 'beit_base"):
        expand(core, model="beit_base_patch16_224", to={})
    with pytest.raises(ModelError, match=r"gated mlp|mlp\."):
        expand(core, model="vit_giant_patch14_reg4_dinov2", to={"depth": 3})
    with pytest.raises(ConfigError, match=r"scale of an expansion is 'half'.*none, fro"):
        expand(core, to=shape(), scale="half")
    with pytest.raises(ConfigError, match=r"width is 'zero'"):
        expand(core, to=shape(n_heads=6), width="zero", scale="fro")
    gammas = [f"blocks.{i}.ls{k}.gamma" for i in range(DEPTH) for k in (1, 2)]
    scaled = {**core.tensors, **dict.fromkeys(gammas, torch.ones(WIDTH))}
    with pytest.raises(ModelError, match=r"layer scale"):
        expand(dataclasses.replace(core, tensors=scaled), width="zero",
               to=shape(n_heads=6, init_values=0.1))  # fmt: skip
    before = {f"norm_pre.{kind}": torch.ones(WIDTH) for kind in ("weight", "bias")}
    normed = dataclasses.replace(core, tensors={**core.tensors, **before})
    with pytest.raises(ModelError, match=r"a norm before its blocks"):
        expand(normed, width="zero", to=shape(n_heads=6, pre_norm=True))
    with pytest.raises(HandoffError, match=r"trunk's 'norm_pre\.weight' has no place"):
        expand(normed, to=shape(n_heads=6))
    headless = dataclasses.replace(core, metadata={"depth": str(DEPTH)})
    with pytest.raises(HandoffError, match=r"not the whole trunk of a plain ViT.*num_heads is ''"):
        expand(headless, to=shape(n_heads=6))


def test_the_command_writes_a_trunk_and_says_where_each_tensor_is_from(
    core: Trunk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "big.safetensors"
    words = ["handoff", "expand", str(core.path), "--model", VIT, "--out", str(out)]
    to = {"depth": 6, "num_heads": 4, "embed_dim": 16}
    kwargs = ["--model-kwargs", json.dumps(to)]
    assert main([*words, *kwargs, "--scale", "none"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"blocks\.3\.attn\.qkv\.weight .*: blocks\.1\.attn\.qkv\.weight, tiled", said)
    assert "note: the width grew 1.333 times (12 to 16)" in said
    assert json.loads(load_trunk(out).metadata["expansion"])["scale"] == "none"
    assert main([*words, *kwargs, "--img-size", "64"]) == 0
    assert json.loads(load_trunk(out).metadata["model_args"])["img_size"] == [64, 64]
    with pytest.raises(SystemExit):
        main([*words, "--model-kwargs", "{depth: 6}"])
    assert "'{depth: 6}' is no JSON" in capsys.readouterr().err
    assert main([*words, "--scope", "mlp"]) == 2
    assert "--scope has no effect on an expansion" in capsys.readouterr().err
    assert main(["handoff", str(core.path), "--out", str(tmp_path), "--scale", "fro"]) == 2
    assert "write expand before the trunk" in capsys.readouterr().err


def test_a_core_without_its_last_norm_leaves_that_fresh(core: Trunk, tmp_path: Path) -> None:
    tensors = {name: t for name, t in core.tensors.items() if not name.startswith("norm.")}
    metadata = {**core.metadata, "partial": "true"}
    partial = load_trunk(save_trunk(tmp_path / "p.safetensors", tensors, metadata))
    made, whole = (expand(c, to=shape(n_heads=6)) for c in (partial, core))
    assert made.facts["partial"] == "true"
    assert set(whole.tensors) - set(made.tensors) == {"norm.weight", "norm.bias"}
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in made.tensors.items())


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [("scale", "foo", "allowed are none, fro"), ("depth", "deep", "core, stack, interleave")],
)
def test_a_choice_that_there_is_not_is_refused_before_anything_runs(
    name: str, word: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"init_params\.{name} of 'expand' is '{word}'.*{says}"):
        check_init("expand", {"core": "arm:x", name: word})
    check_init("expand", {"core": "arm:x"})


def test_an_arm_of_a_core_is_an_initialiser() -> None:
    fields = {
        "base": "train/debug.yaml", "match": "steps", "warmup_seeds": "shared",
        "arms": {"big": {"core": "arm:dyck", "init_params": {"scale": "none"}}},
    }  # fmt: skip
    arm = spell_out(load_config(SweepConfig, None, fields=fields)).arms["big"]
    assert (arm.init, arm.init_params) == ("expand", {"scale": "none", "core": "arm:dyck"})
    fields["arms"] = {"big": {"core": "a", "init": "mimetic"}}
    with pytest.raises(ConfigError, match=r"arms\.big has init and core"):
        spell_out(load_config(SweepConfig, None, fields=fields))

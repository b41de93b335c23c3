"""Mimetic weights have the spectra of their formula; shuffled weights keep what they promise."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitwarm.cli import main
from vitwarm.config import TrainRun, load_config
from vitwarm.errors import ConfigError, HandoffError, ModelError
from vitwarm.handoff import attach
from vitwarm.inits import INITS, make_init, write_init
from vitwarm.seeding import numpy_rng
from vitwarm.training.plan import _arm
from vitwarm.trunk import Trunk, build_model, load_trunk, save_trunk

VIT = "vit_tiny_patch16_224"
WIDTH, HEADS, DEPTH = 24, 3, 2
SMALL: dict[str, Any] = {
    "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    model = build_model(VIT, seed=7, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():  # no two numbers alike, biases and norms included
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return load_trunk(save_trunk(tmp_path_factory.mktemp("w") / "t.safetensors", model, {}))


def _z(seed: int, block: int, what: str) -> np.ndarray:
    """The reference's own draw: i.i.d. entries of variance 1 / d, uniform."""
    edge = np.sqrt(3 / WIDTH)
    return numpy_rng(seed, "mimetic", block, what).uniform(-1, 1, (WIDTH, WIDTH)) * edge


@pytest.mark.parametrize(("name", "qk", "vo"), [("mimetic", 0.7, 0.4), ("mimetic_0.4", 0.4, 0.4)])
def test_mimetic_products_against_the_formula(name: str, qk: float, vo: float) -> None:
    made = make_init(name, model=VIT, seed=5, model_kwargs=SMALL).tensors
    for block in range(DEPTH):
        qkv = made[f"blocks.{block}.attn.qkv.weight"].double().numpy()
        rows = qkv.reshape(3, HEADS, -1, WIDTH)
        for head in range(HEADS):
            product = rows[0, head].T @ rows[1, head]
            target = qk * _z(5, block, f"qk {head}") + qk * np.eye(WIDTH)
            u, s, vt = np.linalg.svd(target)
            rank = WIDTH // HEADS
            best = (u[:, :rank] * s[:rank]) @ vt[:rank]
            np.testing.assert_allclose(product, best, atol=1e-6)
            spectrum = np.linalg.svd(product, compute_uv=False)
            np.testing.assert_allclose(spectrum[:rank], s[:rank], rtol=1e-6)
            np.testing.assert_allclose(spectrum[rank:], 0, atol=1e-6)
        value = rows[2].reshape(WIDTH, WIDTH)
        projection = made[f"blocks.{block}.attn.proj.weight"].double().numpy()
        target = vo * _z(5, block, "vo") - vo * np.eye(WIDTH)
        found = np.poly(projection @ value)  # the characteristic polynomial: no order to sort
        np.testing.assert_allclose(found, np.poly(target), atol=1e-5)
        singular = np.linalg.svd(value, compute_uv=False)
        np.testing.assert_allclose(
            singular**2, np.linalg.svd(target, compute_uv=False), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(
    ("name", "touched"), [("mimetic", "(qkv|proj).weight"), ("mimetic_0.4", "(qkv|proj).")]
)
def test_mimetic_touches_attention_weights_alone(name: str, touched: str, tmp_path: Path) -> None:
    path = write_init(name, tmp_path / "t.safetensors", model=VIT, seed=0, model_kwargs=SMALL)
    vit, audit = attach(path, model=VIT, seed=3, **SMALL)
    default = attach(None, model=VIT, seed=3, **SMALL)[0].state_dict()
    pattern = re.compile(rf"blocks\.\d+\.attn\.{touched}")
    assert audit.carried == [n for n in default if pattern.match(n)]
    assert all(torch.equal(vit.state_dict()[n], default[n]) for n in audit.fresh)


def test_mimetic_of_separate_and_gated_layers() -> None:
    small = {"embed_dim": 24, "depth": 1, "num_heads": 3, "img_size": 32, "patch_size": 8}
    eva = make_init("mimetic", model="eva02_tiny_patch14_224", seed=0, model_kwargs={
        **small, "qkv_fused": False}).tensors  # fmt: skip
    plain = make_init("mimetic", model=VIT, seed=0, model_kwargs=small).tensors
    separate = [eva[f"blocks.0.attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(separate), plain["blocks.0.attn.qkv.weight"])
    with pytest.raises(ModelError, match=r"no plain attention in 'blocks\.0'"):
        make_init("mimetic", model="vit_base_patch16_xp_224", seed=0, model_kwargs=small)


def test_an_equal_call_writes_the_same_trunk(tmp_path: Path) -> None:
    def digest(file: str, seed: int) -> str:
        out = tmp_path / file
        return load_trunk(
            write_init("mimetic", out, model=VIT, seed=seed, model_kwargs=SMALL)
        ).sha256

    assert digest("a.safetensors", 0) == digest("b.safetensors", 0) != digest("c.safetensors", 1)


@pytest.mark.parametrize("name", INITS)
def test_every_file_says_what_made_it_and_how_wide_it_is(
    name: str, warmed: Trunk, tmp_path: Path
) -> None:
    old = save_trunk(tmp_path / "old.safetensors", warmed.tensors, {"model": VIT})
    ways: dict[str, dict] = {
        "graft": {"a": old, "b": old, "first_blocks": 1}, "expand": {"core": warmed},
    }  # fmt: skip
    how = ways.get(name, {} if name.startswith("mimetic") else {"trunk": old})
    if name == "weights_shuffled_in_heads":
        how = {"trunk": warmed}
    out = tmp_path / "made.safetensors"
    write_init(name, out, model=VIT, seed=0, model_kwargs=SMALL, **how)
    facts = load_trunk(out).metadata
    assert facts["source"] == {"expand": "expansion"}.get(name, name)
    assert facts["width"] == str(SMALL["embed_dim"])
    config = load_config(TrainRun, None, ["data.train=x", "data.val=x"])
    assert _arm(config, load_trunk(out)) == ("expansion" if name == "expand" else "made")


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_shuffled_in_heads_keeps_the_numbers_of_every_head(warmed: Trunk) -> None:
    made = make_init("weights_shuffled_in_heads", model=VIT, seed=0, trunk=warmed).tensors
    for name, tensor in warmed.tensors.items():
        if ".attn.qkv." in name:
            parts = zip(made[name].chunk(3 * HEADS), tensor.chunk(3 * HEADS), strict=True)
            assert all(_alike(a, b) and not torch.equal(a, b) for a, b in parts)
        elif ".mlp." in name:
            assert _alike(made[name], tensor)
            assert not torch.equal(made[name], tensor)
        else:  # projection and norms
            assert torch.equal(made[name], tensor)


def test_shuffled_in_tensors_keeps_the_numbers_of_every_tensor(warmed: Trunk) -> None:
    made = make_init("weights_shuffled_in_tensors", model=VIT, seed=0, trunk=warmed).tensors
    for name, tensor in warmed.tensors.items():
        assert _alike(made[name], tensor), name
        assert not torch.equal(made[name], tensor), name


@pytest.mark.parametrize("name", ["weights_shuffled_in_heads", "weights_shuffled_in_tensors"])
def test_shuffling_keeps_to_its_part_and_seed(name: str, warmed: Trunk) -> None:
    def make(seed: int, **params: Any) -> dict[str, torch.Tensor]:
        return make_init(name, model=VIT, seed=seed, trunk=warmed, **params).tensors

    part = make(0, scope="attention", blocks="-1:")
    moved = {n for n, t in part.items() if not torch.equal(t, warmed.tensors[n])}
    assert moved
    assert all(n.startswith("blocks.1.") and ".mlp." not in n and "norm2" not in n for n in moved)
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(make(0)[key], make(0)[key])
    assert not torch.equal(make(0)[key], make(1)[key])


@pytest.mark.parametrize("how", [{"attention_of": "A"}, {"attention_of": "B"}, {"first_blocks": 1}])
def test_a_graft_with_itself_is_the_identity(how: dict, warmed: Trunk, tmp_path: Path) -> None:
    out = tmp_path / "g.safetensors"
    made = load_trunk(write_init("graft", out, model="", seed=0, a=warmed, b=warmed, **how))
    assert made.sha256 == warmed.sha256
    assert list(made.tensors) == list(warmed.tensors)
    assert set(json.loads(made.metadata["sources"])) == set(warmed.tensors)


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_graft_takes_attention_of_one_and_mlps_of_the_other(
    side: str, warmed: Trunk, tmp_path: Path
) -> None:
    cold = load_trunk(
        save_trunk(tmp_path / "cold.safetensors", build_model(VIT, seed=1, **SMALL), {})
    )
    made = make_init("graft", model="", seed=0, a=warmed, b=cold, attention_of=side)
    sources = json.loads(made.facts["sources"])
    attention, mlp = (warmed, cold) if side == "A" else (cold, warmed)
    for name, tensor in made.tensors.items():
        owner = attention if re.search(r"attn|norm1", name) else mlp  # the final norm with the MLP
        assert torch.equal(tensor, owner.tensors[name])
        assert str(owner.path) in sources[name]


def test_grafts_of_unlike_trunks_are_refused(warmed: Trunk, tmp_path: Path) -> None:
    for change, message in (
        ({"depth": 3}, "depth is 2 in one and 3"),
        ({"mlp_ratio": 2}, "mlp.fc1"),
    ):
        other = build_model(VIT, seed=1, **{**SMALL, **change})
        path = save_trunk(tmp_path / "o.safetensors", other, {})
        nameless = dataclasses.replace(load_trunk(path), metadata={})
        for b in (path, nameless):
            for how in ({"attention_of": "A"}, {"first_blocks": 1}):
                with pytest.raises(HandoffError, match=message):
                    make_init("graft", model="", seed=0, a=warmed, b=b, **how)
    with pytest.raises(ConfigError, match="1 to 1 is allowed"):
        make_init("graft", model="", seed=0, a=warmed, b=warmed, first_blocks=2)


def test_unknown_names_and_parameters_are_refused(warmed: Trunk) -> None:
    with pytest.raises(ConfigError, match=r"mimetc.*Did you mean mimetic"):
        make_init("mimetc", model=VIT, seed=0)
    with pytest.raises(ConfigError, match=r"alhpa.*alpha_qk, beta_qk"):
        make_init("mimetic", model=VIT, seed=0, alhpa=1)
    assert set(INITS) >= {"mimetic", "mimetic_0.4", "graft"}


def _with(trunk: Trunk, sha: str, **facts: str) -> Trunk:
    return dataclasses.replace(trunk, metadata={**trunk.metadata, **facts}, sha256=sha)


def test_what_is_made_of_a_failed_warm_up_has_failed_too(warmed: Trunk) -> None:
    good = _with(warmed, "a", verdict="learned", samples="300", tokens="9")
    bad = _with(
        warmed, "b", verdict="not learned", samples="20", tokens="1",
        hidden_accuracy_percent="2.5", chance_percent="2.4",
    )  # fmt: skip
    facts = make_init("graft", model=VIT, seed=0, a=good, b=bad, first_blocks=1).facts
    assert (facts["verdict"], facts["samples"], facts["tokens"]) == ("not learned", "320", "10")
    assert facts["hidden_accuracy_percent"] == "2.5"
    facts = make_init("graft", model=VIT, seed=0, a=good, b=good, first_blocks=1).facts
    assert (facts["verdict"], facts["samples"]) == ("learned", "300")  # one warm-up, counted once
    for name in ("weights_shuffled_in_heads", "weights_shuffled_in_tensors"):
        facts = make_init(name, model=VIT, seed=0, model_kwargs=SMALL, trunk=bad).facts
        assert (facts["verdict"], facts["samples"]) == ("not learned", "20")
    assert (
        "verdict"
        not in make_init("graft", model=VIT, seed=0, a=warmed, b=warmed, first_blocks=1).facts
    )


def test_a_control_that_would_shuffle_nothing_is_refused() -> None:
    other = {"blocks.0.in_proj.weight": torch.arange(12.0).reshape(3, 4)}
    trunk = Trunk(other, {"num_heads": "1", "depth": "1"}, "c")
    with pytest.raises(HandoffError, match=r"nothing would be shuffled.*in_tensors"):
        make_init("weights_shuffled_in_heads", model=VIT, seed=0, model_kwargs={}, trunk=trunk)
    gated = {
        "blocks.0.mlp.fc1.weight": torch.arange(12.0).reshape(3, 4),
        "blocks.0.mlp.norm.weight": torch.arange(4.0),
    }
    trunk = Trunk(gated, {"num_heads": "1", "depth": "1"}, "d")
    made = make_init(
        "weights_shuffled_in_heads", model=VIT, seed=0, model_kwargs={}, trunk=trunk
    ).tensors
    assert torch.equal(made["blocks.0.mlp.norm.weight"], gated["blocks.0.mlp.norm.weight"])
    assert not torch.equal(made["blocks.0.mlp.fc1.weight"], gated["blocks.0.mlp.fc1.weight"])


def test_first_blocks_are_not_counted_in_a_trunk_that_lacks_some(warmed: Trunk) -> None:
    last = {n: t for n, t in warmed.tensors.items() if not n.startswith("blocks.0.")}
    part = dataclasses.replace(warmed, tensors=last, sha256="e")
    three = _with(part, "f", depth="3")
    with pytest.raises(HandoffError, match="with 3 blocks, of which 1 are there"):
        make_init("graft", model=VIT, seed=0, a=three, b=_with(warmed, "g", depth="3"),
                  first_blocks=1)  # fmt: skip


@pytest.mark.parametrize(
    ("warm", "fresh", "norms"), [(1.0, 0.0, "timm"), (0.4, 0.1, "kept"), (0.5, 0.5, "kept")]
)
def test_mixed_is_the_sum_and_has_timms_norms(
    warmed: Trunk, warm: float, fresh: float, norms: str
) -> None:
    made = make_init(
        "mixed", model=VIT, model_kwargs=SMALL, seed=3, trunk=warmed,
        warmed=warm, fresh=fresh, norms=norms,
    )  # fmt: skip
    cold = build_model(VIT, seed=3, **SMALL).state_dict()
    assert made.tensors.keys() == warmed.tensors.keys()
    for name, tensor in made.tensors.items():
        expected = warm * warmed.tensors[name].double() + fresh * cold[name].double()
        if norms == "timm" and expected.ndim == 2:
            assert float(tensor.norm()) == pytest.approx(float(cold[name].norm()), rel=1e-5)
            cosine = torch.cosine_similarity(tensor.double().flatten(), expected.flatten(), dim=0)
            assert float(cosine) == pytest.approx(1)
        else:
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)
    assert made.facts["made_from_sha256"] == warmed.sha256


def test_the_command_mixes_a_trunk_and_says_of_what(
    warmed: Trunk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mixed.safetensors"
    words = ["handoff", "mix", str(warmed.path), "--out", str(out)]
    assert main([*words, "--warmed", "0.4", "--fresh", "0.1", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    name = r"blocks\.1\.mlp\.fc1\.weight"
    assert re.search(rf"{name} .*: 0\.4 x {name} \+ 0\.1 x timm's start of seed 3", said)
    made = make_init("mixed", model=VIT, model_kwargs=SMALL, seed=3, trunk=warmed, warmed=0.4,
                     fresh=0.1)  # fmt: skip
    mixed = load_trunk(out)
    assert all(torch.equal(tensor, mixed.tensors[name]) for name, tensor in made.tensors.items())
    _, audit = attach(out, model=VIT, **SMALL)
    assert set(audit.carried) == set(warmed.tensors)
    for more, says in (
        (["--scale", "fro"], "write expand before the trunk"),
        (["--scope", "mlp"], "--scope has no effect on a mix"),
        (["--model", VIT], "--model has no effect on a mix"),
    ):
        assert main([*words, *more]) == 2
        assert says in capsys.readouterr().err
    nameless = save_trunk(tmp_path / "n.safetensors", warmed.tensors, {})
    assert main(["handoff", "mix", str(nameless), "--out", str(out)]) == 2
    assert "does not name its model" in capsys.readouterr().err
    assert main(["handoff", str(warmed.path), "--out", str(tmp_path), "--warmed", "0.4"]) == 2
    assert "write mix before the trunk" in capsys.readouterr().err


def test_mixed_says_what_does_not_fit(warmed: Trunk) -> None:
    wider = {**SMALL, "embed_dim": 48}
    with pytest.raises(HandoffError, match="model of its own shape"):
        make_init("mixed", model=VIT, model_kwargs=wider, seed=0, trunk=warmed)
    for bad in ({"fresh": float("nan")}, {"norms": "theirs"}):
        with pytest.raises(ConfigError, match="init_params"):
            make_init("mixed", model=VIT, model_kwargs=SMALL, seed=0, trunk=warmed, **bad)

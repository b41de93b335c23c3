"""A trunk file is whole or refused, and its hash is its content's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitwarm.errors import RunError, TrunkError
from vitwarm.trunk import TokenModel, build_model, find_trunk, load_trunk, save_trunk, trunk_names

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model("vit_tiny_patch16_224", seed=0, **SMALL)


def test_round_trip(model: torch.nn.Module, tmp_path: Path) -> None:
    path = save_trunk(tmp_path / "t.safetensors", model, {"rule": "dyck"})
    trunk = load_trunk(path)
    assert list(trunk.tensors) == trunk_names(model)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trunk.tensors.items())
    assert trunk.metadata["rule"] == "dyck"
    assert trunk.metadata["model"] == "vit_tiny_patch16_224"
    assert (trunk.metadata["depth"], trunk.metadata["num_heads"]) == ("2", "2")
    assert not trunk.is_partial


def test_a_token_model_leaves_the_same_trunk_and_its_facts(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    plain = load_trunk(save_trunk(tmp_path / "a.safetensors", model, {}))
    warmed = load_trunk(save_trunk(tmp_path / "b.safetensors", TokenModel(model, n_ids=9), {}))
    assert warmed.sha256 == plain.sha256
    assert warmed.metadata["token_scale"] == "0.02"
    assert warmed.metadata["grid"] == "4x4"


def test_the_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    a, b = torch.arange(4.0), torch.ones(2, 3)
    first = load_trunk(save_trunk(tmp_path / "1.safetensors", {"a": a, "b": b}, {"x": "1"}))
    second = load_trunk(save_trunk(tmp_path / "2.safetensors", {"b": b, "a": a}, {"x": "2"}))
    assert first.sha256 == second.sha256
    for other in ({"a": a, "c": b}, {"a": a, "b": b.T}, {"a": a.double(), "b": b}, {"a": a}):
        changed = load_trunk(save_trunk(tmp_path / "3.safetensors", other, {}))
        assert changed.sha256 != first.sha256


def test_find_trunk(model: torch.nn.Module, tmp_path: Path) -> None:
    path = save_trunk(tmp_path / "run" / "trunk.safetensors", model, {})
    assert find_trunk(str(path)) == find_trunk(str(path.parent)) == path
    with pytest.raises(TrunkError, match=r"neither a file, nor a run folder"):
        find_trunk("nothing-of-that-name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrunkError, match=r"holds no trunk\.safetensors"):
        find_trunk(str(tmp_path / "empty"))


def test_what_is_no_trunk_is_refused_with_its_path(model: torch.nn.Module, tmp_path: Path) -> None:
    whole = save_trunk(tmp_path / "whole.safetensors", model, {}).read_bytes()
    cases = {
        "short": whole[: len(whole) // 2],
        "shorter": whole[:5],
        "text": b"no safetensors at all",
        "empty": b"",
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(TrunkError, match=rf"{name}\.safetensors is not a readable safetensors"):
            load_trunk(path)
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(2)}, plain)
    with pytest.raises(TrunkError, match="no trunk: it has no list of trunk tensors"):
        load_trunk(plain)
    with pytest.raises(TrunkError, match=r"t\.pt is no name of a trunk file; it ends in \.safe"):
        save_trunk(tmp_path / "t.pt", model, {})
    assert not (tmp_path / "t.pt").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names", "{"), ("names", "3"), ("block_groups", "x"), ("depth", "abc"), ("sources", "["),
        ("model_args", "{"), ("model_args", "[]"), ("samples", "many"), ("verdict", "fine"),
    ],
)  # fmt: skip
def test_damaged_metadata_is_named(name: str, text: str, tmp_path: Path) -> None:
    path = save_trunk(tmp_path / "t.safetensors", {"norm.weight": torch.ones(2)}, {})
    facts = {**load_trunk(path).metadata, name: text}
    save_file({"norm.weight": torch.ones(2)}, path, metadata=facts)
    with pytest.raises(TrunkError, match=f"is damaged: its metadata says {name}="):
        load_trunk(path)


def test_a_diverged_trunk_is_refused_by_tensor(tmp_path: Path) -> None:
    bad = {"blocks.0.norm1.weight": torch.tensor([1.0, float("nan")])}
    path = save_trunk(tmp_path / "t.safetensors", bad, {})
    with pytest.raises(TrunkError, match=r"not finite.*blocks\.0\.norm1\.weight"):
        load_trunk(path)


def test_a_failed_write_leaves_what_stood_there(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        save_trunk(tmp_path / "file" / "t.safetensors", model, {})
    assert (tmp_path / "file").read_text() == "in the way"

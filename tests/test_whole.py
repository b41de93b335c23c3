"""Any image model is a source of a trunk: by its export folder, its run, or timm's tag."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import running_hub
from safetensors.torch import save

from vitwarm.cli import main
from vitwarm.config import TrainRun, load_config
from vitwarm.errors import TrunkError
from vitwarm.handoff import attach, export_model
from vitwarm.inits import make_init
from vitwarm.training.plan import _arm
from vitwarm.trunk import build_model, load_trunk, push, trunk_names
from vitwarm.trunk.file import content_sha256

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {
    "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training, as far as its export goes."""
    run = tmp_path_factory.mktemp("run")
    export_model(build_model(VIT, seed=5, num_classes=7, **SMALL), run / "export", facts={})
    return run


@pytest.mark.parametrize("inside", ["", "export"])
def test_the_trunk_of_an_export_is_carried_and_the_rest_is_fresh(
    inside: str, trained: Path
) -> None:
    source = trained / inside
    theirs = build_model(VIT, seed=5, num_classes=7, **SMALL).state_dict()
    vit, audit = attach(str(source), model=VIT, seed=1, num_classes=10, **SMALL)
    default = attach(None, model=VIT, seed=1, num_classes=10, **SMALL)[0].state_dict()
    assert audit.carried == trunk_names(vit)
    assert all(torch.equal(vit.state_dict()[n], theirs[n]) for n in audit.carried)
    assert all(torch.equal(vit.state_dict()[n], default[n]) for n in audit.fresh)
    assert {e.source for e in audit.entries if e.state == "carried"} == {str(source)}
    assert load_trunk(source).sha256 == load_trunk(trained / "export").sha256
    trunk = load_trunk(source)
    assert trunk.metadata["source"] == f"image model {source}"
    config = load_config(TrainRun, None, ["data.train=x", "data.val=y"])
    assert _arm(config, trunk) == f"image model {trained.name}"  # in tables, no path


def test_it_can_be_expanded_and_leaves_the_random_numbers_alone(trained: Path) -> None:
    before = torch.get_rng_state()
    to = {**SMALL, "depth": 4, "embed_dim": 64, "num_heads": 4}
    made = make_init("expand", model=VIT, seed=0, model_kwargs=to, core=trained)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.facts["made_from"].startswith(str(trained))


def test_the_command_hands_it_over(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["handoff", str(trained / "export"), "--num-classes", "3", "--out", str(out)]) == 0
    audit = json.loads((out / "audit.json").read_text())
    assert (audit["n_carried"], audit["n_fresh"]) == (3 * 12 + 2, 6)
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 3


@pytest.mark.slow
def test_a_tag_of_timms_is_a_trunk_while_online(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    vit = build_model(VIT, seed=3)
    with running_hub() as hub:
        hub.commits[f"timm/{name}"] = {"c" * 40: {"model.safetensors": save(vit.state_dict())}}
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
        code = (
            "import sys; from vitwarm.trunk import load_trunk\n"
            "trunk = load_trunk(sys.argv[1]); print(trunk.path, trunk.sha256)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, name], env=env, text=True, capture_output=True, check=False
        )
    names = trunk_names(vit)
    expected = {n: t for n, t in vit.state_dict().items() if n in names}
    assert done.stdout.split() == [name, content_sha256(expected)], done.stderr
    with pytest.raises(TrunkError, match=rf"weights of {name} cannot be loaded: .*while online"):
        load_trunk(name)  # the tests are offline


def test_what_is_no_image_model_is_told(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(TrunkError, match=r"nor a tag of timm's"):
        load_trunk("vit_tiny_patch16_224.no_such_tag")
    broken = tmp_path / "broken"
    shutil.copytree(trained / "export", broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(TrunkError, match=rf"weights of {broken} cannot be loaded"):
        load_trunk(broken)
    with pytest.raises(TrunkError, match="is an image model and no trunk file"):
        push(str(trained), "hf-hub:me/x")

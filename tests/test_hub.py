"""A trunk and a trained model go to the hub and come back bit for bit, with a card that is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN, Hub, running_hub
from safetensors.torch import load_file
from tiny_images import write_tiny_shards

from vitwarm.cli import main
from vitwarm.config import TrainRun, WarmupRun, load_config
from vitwarm.errors import TrunkError
from vitwarm.records import Record, read_records
from vitwarm.training import run_training, training_folder
from vitwarm.trunk import load_trunk
from vitwarm.warmup import run_warmup, warmup_folder

SHAPE = "embed_dim: 32, depth: 2, num_heads: 2, patch_size: 2"
COMMON = ["run.progress=false", "run.device=cpu"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [
        f"warmup.model_kwargs={{{SHAPE}, img_size: 8}}", "rule.params.n_kinds=8",
        "warmup.precision=fp32", "warmup.batch_size=8", "warmup.eval_sequences=64",
        "warmup.budget=12steps", *COMMON, f"run.root={tmp_path_factory.mktemp('warm')}",
    ]  # fmt: skip
    config = load_config(WarmupRun, None, words)
    run_warmup(config)
    return warmup_folder(config)


def online(hub: Hub, home: Path, *commands: list[str]) -> tuple[list[int], str, str]:
    """One process that runs `vitwarm` commands, whose hub this is, with an empty cache of its own.

    Returns: exit codes, stdout, stderr.
    """
    env = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    env |= {"HF_HUB_DISABLE_XET": "1"}  # large files by LFS: the hub's other store needs the hub
    code = (
        "import json, sys; from vitwarm.cli import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        "print('codes', json.dumps(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said, _, codes = done.stdout.rpartition("codes ")
    return json.loads(codes), said, done.stderr


@pytest.mark.slow
def test_a_trunk_is_pushed_and_fetched_bit_for_bit(hub: Hub, warmed: Path, tmp_path: Path) -> None:
    codes, said, errors = online(
        hub,
        tmp_path,
        ["handoff", "push", str(warmed), "hf-hub:me/trunk", "--private"],
        ["handoff", "hf-hub:me/trunk", "--allow-failed", "--out", str(tmp_path / "from_hub")],
        ["handoff", "hf-hub:me/trunk@v9", "--out", str(tmp_path / "no")],
        ["handoff", "hf-hub:me/nothing", "--out", str(tmp_path / "no")],
    )
    assert codes == [0, 0, 2, 2], errors
    assert f"hf-hub:me/trunk@{hub.head('me/trunk')}\n" in said
    assert "carried from hf-hub:me/trunk" in said  # and not from a path in the cache
    assert "snapshots" not in said
    assert "it has no revision 'v9'" in errors
    assert "there is no such repository" in errors
    assert hub.private == {"me/trunk"}
    pushed = hub.files("me/trunk") or {}
    assert list(hub.large.values()) == [pushed["trunk.safetensors"]]  # by Git LFS, as all weights
    assert pushed["trunk.safetensors"] == (warmed / "trunk.safetensors").read_bytes()
    assert set(pushed) - {".gitattributes"} == {"trunk.safetensors", "README.md"}
    check_trunk_card(pushed["README.md"].decode(), warmed)

    words = ["handoff", str(warmed), "--allow-failed", "--out", str(tmp_path / "from_run")]
    assert main(words) == 0
    here, there = (load_file(tmp_path / name / "model.safetensors") for name in
                   ("from_run", "from_hub"))  # fmt: skip
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def check_trunk_card(card: str, warmed: Path) -> None:
    (record,) = read_records(warmed)
    assert "library_name: vitwarm" in card
    assert (
        'import vitwarm\n\nvit, audit = vitwarm.attach("hf-hub:me/trunk"' in card
    )  # as docs/api.md
    assert '"name": "dyck"' in card
    assert '"n_kinds": 8' in card
    assert "12 steps, 96 sequences, 1,536 tokens" in card
    assert f"| verdict | {record.verdict} |" in card
    n = sum(one["n"] for one in record.hidden_accuracy_by["match_distance"].values())
    assert f"{record.hidden_accuracy_percent:.2f} % (n = {n:,} tokens)" in card
    assert f"| code | {record.code_version} |" in card
    assert str(warmed.parent) not in card
    assert "'embed_dim': 32" in card


@pytest.mark.slow
def test_a_trained_model_is_pushed_as_timm_takes_it(hub: Hub, warmed: Path, tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "tiny")
    words = [
        f"train.model_kwargs={{{SHAPE}}}", "train.img_size=8", "train.precision=fp32",
        "train.batch_size=16", "train.steps=4", "train.evaluations=1", "train.warmup_epochs=1",
        "run.workers=0", *COMMON, f"run.root={tmp_path}/runs", f"handoff.trunk={warmed}",
        "handoff.allow_failed=true", f"data.train={tmp_path}/tiny/tiny-train-*.tar",
        f"data.val={tmp_path}/tiny/tiny-validation-*.tar",
    ]  # fmt: skip
    config = load_config(TrainRun, None, words)
    record = run_training(config)
    folder = training_folder(config)
    codes, _, errors = online(hub, tmp_path, ["handoff", "push", str(folder), "hf-hub:me/model"])
    assert codes == [0], errors
    pushed = hub.files("me/model") or {}
    for name in ("model.safetensors", "config.json"):
        assert pushed[name] == (folder / "export" / name).read_bytes()
    check_model_card(pushed["README.md"].decode(), record)
    code = (
        "import sys, timm; from safetensors.torch import save_file\n"
        "model = timm.create_model('hf-hub:me/model', pretrained=True)\n"
        "save_file(model.state_dict(), sys.argv[1])"
    )
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "fresh")}
    env["HF_HUB_OFFLINE"] = "0"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "got")], env=env, check=True)
    got, trained = load_file(tmp_path / "got"), load_file(folder / "export" / "model.safetensors")
    assert got.keys() == trained.keys()
    assert all(torch.equal(got[name], trained[name]) for name in got)


def check_model_card(card: str, record: Record) -> None:
    assert "library_name: timm" in card
    assert f"{record.top1_percent:.2f} % (n = {record.n_val_images} images)" in card
    assert "| start | dyck |" in card
    assert "n = 1, seed 0" in card


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hf-hub:me/trunk", "--out", "x"], "HF_HUB_OFFLINE is set"),
        (["hf-hub:trunk", "--out", "x"], "write hf-hub:OWNER/NAME[@revision]"),
        (["push", "WARMED", "hf-hub:me/trunk"], "HF_HUB_OFFLINE is set"),
        (["push", "WARMED", "me/trunk"], "write hf-hub:OWNER/NAME[@revision]"),
        (["push", "WARMED", "hf-hub:me/trunk@v1"], "leave @v1 out"),
        (["push", "WARMED"], "push takes a trunk or a run, and a name"),
        (["push", "WARMED", "hf-hub:me/t", "--scope", "mlp"], "--scope has no effect on a push"),
        (["WARMED"], "--out is not given"),
        (["WARMED", "--out", "x", "--private"], "--private has no effect here"),
    ],
)
def test_mistakes_and_an_offline_hub_get_a_sentence(
    warmed: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tests' own environment sets HF_HUB_OFFLINE."""
    assert main(["handoff", *(str(warmed) if w == "WARMED" else w for w in words)]) == 2
    assert says in capsys.readouterr().err


def test_a_training_takes_the_same_names() -> None:
    config = load_config(
        TrainRun, None, ["data.train=x", "data.val=x", "handoff.trunk=hf-hub:me/trunk@v1"]
    )
    assert config.handoff.trunk == "hf-hub:me/trunk@v1"
    with pytest.raises(TrunkError, match="HF_HUB_OFFLINE"):
        load_trunk(config.handoff.trunk)


def test_shipped_trunks_are_listed(
    warmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert main(["trunks"]) == 0
    assert "hf-hub:OWNER/NAME" in capsys.readouterr().out
    (tmp_path / "small-dyck.safetensors").write_bytes((warmed / "trunk.safetensors").read_bytes())
    monkeypatch.setattr("vitwarm.trunk.file._trunk_homes", lambda: [tmp_path])
    assert main(["trunks"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "model", "blocks", "width", "made", "by"]
    assert row.split() == ["small-dyck", "vit_tiny_patch16_224", "2", "32", "rule", "dyck"]
    assert head.index("blocks") == row.index(" 2 ") + 1

"""The doctor's verdicts come from a check that can fail."""

import json

import pytest
import torch
from torch import nn

from vitwarm.cli import main
from vitwarm.commands import check_machine as machine
from vitwarm.commands import check_models as models
from vitwarm.commands.check_machine import Finding, check_machine
from vitwarm.commands.check_models import check_model, model_names
from vitwarm.trunk import TokenModel


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224", "test_vit4"])
def test_working_models(name: str) -> None:
    verdict = check_model(name)
    assert (verdict.ok, verdict.why) == (True, "")


def test_models_that_cannot_work_say_why() -> None:
    assert "pixels of each patch" in check_model("tnt_s_patch16_224").why
    assert "no transformer blocks" in check_model("resnet18").why


def test_a_token_model_that_leaves_a_tensor_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(TokenModel):
        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            return super().forward(ids_BT)[:, 1:]

    monkeypatch.setattr(models, "TokenModel", Short)
    assert "gives logits (2, 99, 130)" in check_model("test_vit").why

    class Loose(TokenModel):
        def __init__(self, model: nn.Module, **kwargs: int) -> None:
            super().__init__(model, **kwargs)
            self.unused = nn.Parameter(torch.zeros(1))

    monkeypatch.setattr(models, "TokenModel", Loose)
    assert "gives no gradient to 'unused'" in check_model("test_vit").why


def test_there_are_enough_names() -> None:
    names = model_names()
    assert len(names) == len(set(names)) >= 360


def test_the_machine_is_checked() -> None:
    findings = {finding.name: finding for finding in check_machine()}
    assert findings["warm-up step"].ok
    assert findings["torch"].text == torch.__version__.split("+")[0]


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--model", "test_vit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "test_vit", "ok": True, "why": ""}
    assert main(["doctor", "--model", "resnet18", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]
    assert main(["doctor", "--model", "test_vti"]) == 2
    assert "Did you mean" in capsys.readouterr().err
    monkeypatch.setattr(machine, "check_machine", lambda: [Finding("disk", False, "full")])
    assert main(["doctor"]) == 1
    assert "BAD disk" in capsys.readouterr().out

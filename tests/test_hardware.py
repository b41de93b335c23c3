"""One place decides device and numbers; every stage obeys it, says it, stores it and keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitwarm import hardware
from vitwarm.config import RunConfig, WarmupRun, config_hash, load_config
from vitwarm.errors import ConfigError, Stopped
from vitwarm.hardware import Numbers, choose_device, choose_numbers
from vitwarm.warmup import plan_warmup, run_warmup, warmup_folder

CPU = torch.device("cpu")
TINY = [
    "warmup.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 2}",
    "rule.params.n_kinds=8", "warmup.batch_size=8", "warmup.eval_sequences=16",
    "warmup.budget=6steps", "run.progress=false", "run.device=cpu",
]  # fmt: skip


def has(monkeypatch: pytest.MonkeyPatch, *, avx512: bool = False, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


def test_a_cpu_gets_bf16_where_it_has_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch)
    numbers = choose_numbers("auto", CPU)
    assert numbers.precision == "fp32"
    assert "no bf16 instructions" in numbers.why
    has(monkeypatch, avx512=True)
    assert str(choose_numbers("auto", CPU)) == "bf16: the CPU has AVX512-BF16"
    has(monkeypatch, avx512=True, amx=True)
    assert str(choose_numbers("auto", CPU)) == "bf16: the CPU has AMX"
    assert choose_numbers("fp32", CPU) == Numbers("fp32", "as asked")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_gets_bf16_unless_it_emulates_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation  # as a V100 says

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    numbers = choose_numbers("auto", torch.device("cuda"))
    assert numbers.precision == expected
    assert "Tesla V100 has" in numbers.why


def test_emulated_bf16_is_obeyed_and_its_cost_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch)
    monkeypatch.setattr(hardware, "_cost", lambda: 18.7)
    numbers = choose_numbers("bf16", CPU)
    assert numbers.precision == "bf16"
    assert "take 19 x as long as in fp32 (measured)" in numbers.why
    has(monkeypatch, avx512=True)
    assert choose_numbers("bf16", CPU) == Numbers("bf16", "as asked")


def test_the_cost_is_what_two_products_take() -> None:
    assert 0.05 < hardware._cost() < 200


@pytest.mark.parametrize(
    ("present", "words", "expected"),
    [
        ((), "auto", "cpu"),
        (("mps",), "auto", "mps"),
        (("cuda", "mps"), "auto", "cuda"),
        (("mps",), "cpu", "cpu"),
        (("mps",), "cuda", "sees no GPU of that kind"),
        ((), "mps", "sees no GPU of that kind"),
        (("xpu",), "xpu", "Lightning 2.6 has no accelerator for Intel"),
        (("xpu",), "auto", "cpu"),
    ],
)
def test_the_device(
    monkeypatch: pytest.MonkeyPatch,
    present: tuple[str, ...],
    words: str,
    expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, name), "is_available", lambda name=name: name in present)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    run = RunConfig(device=words)  # type: ignore[arg-type]
    if " " in expected:
        with pytest.raises(ConfigError, match=expected):
            choose_device(run)
    else:
        assert choose_device(run).type == expected
    assert ("Intel GPU" in caplog.text) == ((present, words) == (("xpu",), "auto"))


def test_apples_gpu_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(RunConfig(devices=2)).type == "cpu"
    with pytest.raises(ConfigError, match="cannot share gradients on Apple's GPU"):
        choose_device(RunConfig(devices=2, device="mps"))


def test_auto_is_what_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(WarmupRun, None, TINY)
    has(monkeypatch)
    without = plan_warmup(config)
    has(monkeypatch, amx=True)
    assert plan_warmup(config).digest == without.digest
    assert config_hash(config) != config_hash(
        load_config(WarmupRun, None, [*TINY, "warmup.precision=fp32"])
    )
    assert "precision fp32: the CPU" in str(without)


@pytest.mark.parametrize("begun", ["bf16", "fp32"])
def test_a_run_ends_in_the_numbers_it_began_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: str
) -> None:
    """A job that is put back into the queue may come to a node of another kind."""
    words = [*TINY, f"run.root={tmp_path}"]
    has(monkeypatch, avx512=begun == "bf16")
    with pytest.raises(Stopped):
        run_warmup(load_config(WarmupRun, None, [*words, "run.time_limit_minutes=1e-9"]))
    has(monkeypatch, avx512=begun == "fp32")
    config = load_config(WarmupRun, None, words)
    assert run_warmup(config).extra["precision"] == begun
    checkpoint = sorted((warmup_folder(config) / "checkpoints").glob("*.pt"))[-1]
    assert torch.load(checkpoint, weights_only=True)["facts"]["precision"] == begun

"""What this machine trains on, and in which numbers: the one place that decides.

bf16 pays where the hardware multiplies in it. Elsewhere torch emulates it: on a CPU without
AVX512-BF16 and AMX a step takes many times as long as in fp32 (pytorch#118499, #86270, #111456).
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch.nn.functional import linear

from vitwarm.config import Precision, RunConfig
from vitwarm.errors import ConfigError

log = logging.getLogger("vitwarm")

#: Rows, inputs and outputs of the product that tells what emulated bf16 costs: a ViT-Ti's MLP.
_PRODUCT = (512, 192, 768)


@dataclass(frozen=True)
class Numbers:
    """In which numbers a run multiplies, and why."""

    precision: Literal["bf16", "fp32"]
    why: str

    def __str__(self) -> str:
        return f"{self.precision}: {self.why}"

    def kept_from(self, facts: Mapping[str, Any]) -> Numbers:
        """Returns what a checkpoint says that the run began in: it ends in the same numbers."""
        kept = facts.get("precision") or self.precision
        return self if kept == self.precision else Numbers(kept, "as this run began")

    @property
    def bf16(self) -> bool:
        """Whether forward and backward run under bf16 autocast."""
        return self.precision == "bf16"


def choose_device(run: RunConfig, *, called: str = "run.device") -> torch.device:
    """Returns the device that `run.device` means; `auto`: CUDA, else Apple's GPU, else the CPU.

    Args:
        called: what the user sets it with.
    Raises: ConfigError: torch sees no such device, or too few of them.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = run.device
    if kind == "auto":
        kind = next(name for name in ("cuda", "mps", "cpu") if present[name])
        if kind == "cpu" and getattr(torch, "xpu", None) and torch.xpu.is_available():
            log.warning("torch sees an Intel GPU, but Lightning 2.6 cannot use it; the CPU runs.")
        if kind == "mps" and run.devices * run.nodes > 1:
            kind = "cpu"  # torch has no process group for Apple's GPU
    if kind == "xpu":
        raise ConfigError(
            "run.device is 'xpu', but Lightning 2.6 has no accelerator for Intel's GPUs. "
            "Use run.device=cpu."
        )
    if not present[kind]:
        raise ConfigError(
            f"{called} is {kind!r}, but torch sees no GPU of that kind here. Use cpu or auto."
        )
    if kind == "cuda" and run.devices > torch.cuda.device_count():
        raise ConfigError(
            f"run.devices is {run.devices}, but torch sees {torch.cuda.device_count()} GPU(s) "
            "here. Use as many, or run.device=cpu."
        )
    if kind == "mps" and run.devices * run.nodes > 1:
        raise ConfigError(
            f"run.devices x run.nodes is {run.devices} x {run.nodes}, but processes cannot share "
            "gradients on Apple's GPU. Use run.devices=1, or run.device=cpu."
        )
    return torch.device(kind)


def choose_numbers(asked: Precision, device: torch.device) -> Numbers:
    """Returns the precision that a run uses: what is asked for, obeyed unless it is `auto`."""
    native, what = multiplies_bf16(device)
    if asked == "auto":
        return Numbers("bf16" if native else "fp32", what)
    if asked == "bf16" and not native and device.type == "cpu":
        return Numbers(
            "bf16",
            f"as asked; {what}: emulated, products take {_cost():.0f} x as long as in fp32 "
            "(measured). precision=auto takes the faster one",
        )
    return Numbers(asked, "as asked" if native or asked == "fp32" else f"as asked; {what}")


def multiplies_bf16(device: torch.device) -> tuple[bool, str]:
    """Returns whether a device multiplies in bf16 without emulating it, and that in words."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return native, f"{name} {'has' if native else 'has no'} bf16 units"
    if device.type == "mps":
        return False, "bf16 is untested on Apple's GPU"
    if torch.cpu._is_amx_tile_supported():
        return True, "the CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "the CPU has AVX512-BF16"
    return False, f"the CPU ({platform.machine()}) has no bf16 instructions that torch uses"


@cache
def _cost() -> float:
    """How many times as long as in fp32 a product takes in bf16 on this CPU; some 0.1 s."""
    rows, inputs, outputs = _PRODUCT

    def seconds(dtype: torch.dtype) -> float:
        x_ND, weight = (torch.ones(n, inputs, dtype=dtype) for n in (rows, outputs))
        times = []
        for _ in range(4):
            began = time.perf_counter()
            linear(x_ND, weight)
            times.append(time.perf_counter() - began)
        return min(times)  # what else the machine does only adds

    return seconds(torch.bfloat16) / seconds(torch.float32)

"""Whether this machine is ready: versions, hardware, files, and one step of a warm-up."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from vitwarm.config import RunConfig
from vitwarm.hardware import choose_device, choose_numbers
from vitwarm.records import count_cpus
from vitwarm.trunk import TokenModel, build_model

PACKAGES = (
    "torch", "torchvision", "timm", "lightning", "webdataset", "numpy", "numba", "omegaconf",
    "safetensors", "huggingface-hub", "matplotlib", "pillow", "simplejpeg", "tqdm",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One fact about this machine."""

    name: str
    ok: bool
    text: str


def check_machine() -> list[Finding]:
    """Returns versions, hardware, and whether files and a training step work here."""
    cores = f"{count_cpus()} cores, torch uses {torch.get_num_threads()}"
    numbers = f"auto takes {choose_numbers('auto', choose_device(RunConfig()))}"
    return [
        *map(_package, PACKAGES),
        Finding("cpu", True, cores),
        Finding("precision", True, numbers),
        Finding("gpu", True, _gpu()),
        _disk(),
        _decoder(),
        _one_step(),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed: pip install -e .")


def _gpu() -> str:
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
    if torch.backends.mps.is_available():
        return "Apple's; one process uses it"
    if torch.xpu.is_available():
        return "Intel's, which Lightning cannot train on; the CPU is used"
    return "none that torch can use; everything runs on the CPU"


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            return Finding("disk", True, f"{free:.0f} GB free in {Path.cwd()}, writable")
    except OSError as error:
        return Finding("disk", False, f"{Path.cwd()} cannot be written ({error.strerror})")


def _decoder() -> Finding:
    try:
        importlib.import_module("simplejpeg")
    except ImportError as error:
        why = f"simplejpeg does not load ({error}); Pillow decodes instead"
        return Finding("decoder", True, why)
    return Finding("decoder", True, "simplejpeg (libjpeg-turbo)")


def _one_step() -> Finding:
    """One step of a tiny warm-up: that torch computes, and that a step changes the trunk."""
    tiny = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 16, "patch_size": 8}
    vit = build_model("vit_tiny_patch16_224", seed=0, **tiny)
    tokens = TokenModel(vit, n_ids=5)
    weight: Tensor = tokens.model.blocks[0].attn.qkv.weight
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in tokens.parameters() if p.requires_grad])
    tokens(torch.arange(4)[None]).square().sum().backward()
    optimizer.step()
    moved = bool(torch.isfinite(weight).all()) and not torch.equal(before, weight)
    return Finding("warm-up step", moved, "works" if moved else "left the trunk as it was")

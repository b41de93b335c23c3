"""Which timm models the warm-up works for, from a real check, and whether this machine is ready."""

from __future__ import annotations

import copy
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from vitwarm.errors import ModelError, VitwarmError
from vitwarm.handoff import carry
from vitwarm.trunk import TokenModel, Trunk, build_model, build_shapes, trunk_names

#: timm's modules of transformers on patches: every model name of theirs is expected to work.
PATCH_TRANSFORMERS = (
    "vision_transformer", "eva", "deit", "beit", "cait", "convit", "vision_transformer_relpos",
    "vision_transformer_hybrid", "vision_transformer_sam", "vitamin", "naflexvit", "xcit", "volo",
    "hiera", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr",
)  # fmt: skip
#: Other modules with attention; why they do not work stands in `trunk.family.REFUSED`.
OTHER_TRANSFORMERS = (
    "pit", "tnt", "crossvit", "levit", "deepseek_vit", "qwen3_vit", "gemma4_vit", "mvitv2",
    "twins", "nest", "pvt_v2", "davit", "gcvit", "maxxvit", "coat", "hieradet_sam2", "tiny_vit",
    "visformer", "mobilevit",
)  # fmt: skip
#: Blocks of a checked model, where its class takes a depth: blocks are alike, and 400 models many.
SHALLOW = 4
#: Modules whose blocks are of two kinds, the second beyond the fourth block.
FULL_DEPTH = ("convit",)

PACKAGES = (
    "torch", "torchvision", "timm", "lightning", "webdataset", "numpy", "numba", "omegaconf",
    "safetensors", "huggingface-hub", "matplotlib", "pillow", "simplejpeg", "tqdm",
)  # fmt: skip


@dataclass(frozen=True)
class ModelVerdict:
    """Whether a timm model can be warmed up and handed off."""

    model: str
    ok: bool
    why: str
    """Empty where it works."""


@dataclass(frozen=True)
class Finding:
    """One fact about this machine."""

    name: str
    ok: bool
    text: str


def model_names(modules: tuple[str, ...] = PATCH_TRANSFORMERS) -> list[str]:
    """Returns timm's model names of these modules, in the modules' order."""
    return [name for module in modules for name in timm.list_models(module=module)]


def check_models(names: list[str]) -> Iterator[ModelVerdict]:
    """Yields the verdict on each model."""
    return (check_model(name) for name in names)


def check_model(name: str) -> ModelVerdict:
    """Warms up and hands off a model on the meta device: everything but the numbers.

    It works if hidden tokens get logits of the right shape, every trainable tensor a gradient and
    no other (patch embedding, positions, heads), if the hand-off's audit names the whole trunk as
    carried, and if the image model that receives it runs.
    """
    try:
        _check(name)
    except VitwarmError as error:
        return ModelVerdict(name, False, str(error))
    except Exception as error:  # timm's classes fail in ways of their own; that is the verdict
        first = (str(error).strip().splitlines() or [""])[0]
        return ModelVerdict(name, False, f"{type(error).__name__}: {first}")
    return ModelVerdict(name, True, "")


def check_machine() -> list[Finding]:
    """Returns versions, hardware, and whether files and a training step work here."""
    findings = [_package(name) for name in PACKAGES]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings.append(Finding("cpu", True, f"{cpus} cores, torch uses {torch.get_num_threads()}"))
    findings.append(_bf16())
    findings.append(_gpu())
    findings.append(_disk())
    findings.append(_decoder())
    findings.append(_one_step())
    return findings


def _check(name: str) -> None:
    n_ids, batch = 130, 2
    vit = _build(name)
    expected = trunk_names(vit)
    with torch.device("meta"):
        tokens = TokenModel(copy.deepcopy(vit), n_ids=n_ids)
        head = nn.Linear(tokens.width, n_ids)
        logits = head(tokens(torch.zeros(batch, tokens.n_tokens, dtype=torch.int16)))
    if tuple(logits.shape) != (batch, tokens.n_tokens, n_ids):
        raise ModelError(
            f"model {name!r} gives logits {tuple(logits.shape)} instead of "
            f"{(batch, tokens.n_tokens, n_ids)}."
        )
    logits.sum().backward()
    for key, parameter in tokens.named_parameters():
        if (parameter.grad is not None) != parameter.requires_grad:
            got = "no" if parameter.requires_grad else "a"
            raise ModelError(f"model {name!r} gives {got} gradient to {key!r}.")
    state: dict[str, Tensor] = tokens.model.state_dict()
    trunk = Trunk({n: state[n] for n in trunk_names(tokens.model)}, dict(tokens.facts), "")
    audit = carry(trunk, vit, model=name)
    if audit.carried != expected:
        odd = sorted(set(audit.carried) ^ set(expected))
        raise ModelError(f"model {name!r}: the hand-off leaves out {odd[0]!r}.")
    with torch.device("meta"), torch.no_grad():
        vit(torch.zeros(batch, *_input_size(vit)))


def _build(name: str) -> nn.Module:
    module = timm.models.model_entrypoint(name).__module__.split(".")[-1]
    if module not in FULL_DEPTH:
        try:
            return build_shapes(name, depth=SHALLOW)
        except ModelError:
            pass  # stages instead of a depth
    return build_shapes(name)


def _input_size(vit: nn.Module) -> tuple[int, int, int]:
    config: dict[str, tuple[int, int, int]] = vit.pretrained_cfg  # type: ignore[assignment]
    return config["input_size"]


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed: pip install -e .")


def _bf16() -> Finding:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16")):
        return Finding("bf16", True, "the CPU has bf16 instructions: precision=bf16 pays")
    return Finding("bf16", True, "no bf16 instructions on the CPU: precision=fp32 is faster here")


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("gpu", True, "none that torch can use; everything runs on the CPU")
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return Finding("gpu", True, f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")


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
        return Finding("decoder", True, f"simplejpeg does not load ({error}); Pillow decodes")
    return Finding("decoder", True, "simplejpeg (libjpeg-turbo)")


def _one_step() -> Finding:
    """One step of a tiny warm-up: that torch computes, and that a step changes the trunk."""
    vit = build_model(
        "vit_tiny_patch16_224",
        seed=0,
        embed_dim=16,
        depth=1,
        num_heads=2,
        img_size=16,
        patch_size=8,
    )
    tokens = TokenModel(vit, n_ids=5)
    weight: Tensor = tokens.model.blocks[0].attn.qkv.weight
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in tokens.parameters() if p.requires_grad])
    tokens(torch.arange(4)[None]).square().sum().backward()
    optimizer.step()
    moved = bool(torch.isfinite(weight).all()) and not torch.equal(before, weight)
    return Finding("warm-up step", moved, "works" if moved else "left the trunk as it was")

"""Which timm models the warm-up works for, from a real check of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from vitwarm.errors import ModelError, VitwarmError
from vitwarm.handoff import carry
from vitwarm.trunk import TokenModel, Trunk, build_shapes, trunk_names

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


@dataclass(frozen=True)
class ModelVerdict:
    """Whether a timm model can be warmed up and handed off."""

    model: str
    ok: bool
    why: str
    """Empty where it works."""


def model_names(modules: tuple[str, ...] = PATCH_TRANSFORMERS) -> list[str]:
    """Returns timm's model names of these modules, in the modules' order."""
    return [name for module in modules for name in timm.list_models(module=module)]


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
    sides: tuple[int, int, int] = vit.pretrained_cfg["input_size"]  # type: ignore[index,assignment]
    with torch.device("meta"), torch.no_grad():
        vit(torch.zeros(batch, *sides))


def _build(name: str) -> nn.Module:
    module = timm.models.model_entrypoint(name).__module__.split(".")[-1]
    if module not in FULL_DEPTH:
        try:
            return build_shapes(name, depth=SHALLOW)
        except ModelError:
            pass  # stages instead of a depth
    return build_shapes(name)

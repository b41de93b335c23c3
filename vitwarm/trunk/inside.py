"""Inside the blocks of a plain timm ViT: the matrices of its heads, and what passes through them.

F: features of a head; T: all tokens, prefix tokens (class, registers) first; P: patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitwarm.errors import ModelError
from vitwarm.trunk.family import name_of


@dataclass(frozen=True)
class HeadMatrices:
    """The weights of a block's attention, head by head; biases apart."""

    q_HFD: Tensor
    k_HFD: Tensor
    v_HFD: Tensor
    o_HDF: Tensor


@dataclass(frozen=True)
class BlockView:
    """One block at work on one batch."""

    number: int
    entered_BTD: Tensor
    attention_BHTT: Tensor
    """Rows are queries and sum to 1."""
    keys_BHTF: Tensor
    left_BTD: Tensor


def check_plain(model: nn.Module, name: str) -> None:
    """Refuses a model that is no plain ViT on colour images.

    Args:
        name: how the message calls the model.
    Raises: ModelError: another class than VisionTransformer, or blocks of another kind.
    """
    check_plain_blocks(model, name, "probed")
    stem: Any = model.patch_embed
    channels = stem.proj.in_channels
    if channels != 3:
        _refuse(name, "probed", f"it takes images of {channels} channels, not of 3")


def check_plain_blocks(model: nn.Module, name: str, done: str) -> None:
    """Refuses a model whose blocks are not those of a plain ViT.

    Args:
        name: how the message calls the model.
        done: what cannot be done with it: `probed`.
    Raises: ModelError: another class than VisionTransformer, or blocks of another kind.
    """
    if not isinstance(model, VisionTransformer):
        _refuse(name, done, f"it is {name_of(model)!r} ({type(model).__name__})")
    for number, block in enumerate(model.blocks):
        if type(getattr(block, "attn", None)) is not Attention:
            why = f"its block {number} ({type(block).__name__}) attends in another way"
            _refuse(name, done, why)


def _refuse(name: str, done: str, why: str) -> NoReturn:
    raise ModelError(
        f"{name} cannot be {done}: {why}. Give a plain timm ViT: a VisionTransformer whose blocks "
        "have attn.qkv, such as vit_small_patch16_224."
    )


def head_matrices(block: Any) -> HeadMatrices:
    """Returns the matrices of a plain block's heads, as they lie in the model."""
    attn = block.attn
    q_HFD, k_HFD, v_HFD = attn.qkv.weight.detach().unflatten(0, (3, attn.num_heads, -1))
    o_DHF = attn.proj.weight.detach().unflatten(1, (attn.num_heads, -1))
    return HeadMatrices(q_HFD, k_HFD, v_HFD, o_DHF.transpose(0, 1))


@contextmanager
def watching(model: Any, show: Callable[[BlockView], None]) -> Iterator[None]:
    """Calls `show` after each block of each forward pass inside the context, block by block.

    Args:
        model: a plain ViT (`check_plain`).
    """
    inputs: dict[int, Tensor] = {}

    def keep(number: int, attn: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[number] = args[0]

    def tell(number: int, block: Any, args: tuple[Any, ...], left_BTD: Tensor) -> None:
        attention_BHTT, keys_BHTF = _attend(block.attn, inputs.pop(number))
        show(BlockView(number, args[0], attention_BHTT, keys_BHTF, left_BTD))

    handles = []
    for number, block in enumerate(model.blocks):
        handles.append(block.attn.register_forward_pre_hook(partial(keep, number)))
        handles.append(block.register_forward_hook(partial(tell, number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attend(attn: Any, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """The attention that `Attention.forward` leaves inside a fused kernel, and the keys."""
    q_BHTF, k_BHTF, _ = attn.qkv(x_BTD).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q_BHTF, k_BHTF = attn.q_norm(q_BHTF), attn.k_norm(k_BHTF)
    scores_BHTT = (q_BHTF * attn.scale) @ k_BHTF.mT
    return torch.softmax(scores_BHTT, dim=-1), k_BHTF

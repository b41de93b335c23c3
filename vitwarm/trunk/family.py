"""What differs between timm's transformer classes, as one table.

Everywhere the idea is the same: a token embedding stands in for the patch embedding, timm's own
`forward_features` does the rest. A `Family` says in which layout tokens go in and come out, and
which tensors of the class belong to the image side (patch embedding, positions, prefix tokens,
heads) and therefore never to the trunk.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from timm import models as timm_models
from torch import nn

from vitwarm.errors import ModelError
from vitwarm.trunk.select import BLOCK

Layout = Literal["NLC", "NHWC", "NCHW"]

PREFIX_TOKENS = ("cls_token", "reg_token", "dist_token")
HEADS = ("head", "head_drop", "head_dist", "attn_pool")
#: Top-level names of the image side, in every class.
IMAGE_SIDE = frozenset({"patch_embed", "pos_embed", *PREFIX_TOKENS, *HEADS})

#: Arguments that say nothing about the trunk.
_OF_THE_IMAGES = frozenset({"num_classes", "in_chans", "pretrained"})
#: Tensors whose size follows from the patch grid or the window.
_OF_THE_GRID = re.compile(r"relative_position|rel_pos|relative_coords|rel_indices")


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one timm class takes tokens in place of patches."""

    enter: Layout = "NLC"
    """What the class expects from its patch embedding."""
    with_size: bool = False
    """The patch embedding also returns (rows, columns)."""
    leave: Layout = "NLC"
    """What `forward_features` returns; prefix tokens, if any, come first."""
    stem: str = "patch_embed"
    """Attribute that the token embedding replaces."""
    image_side: frozenset[str] = frozenset()
    """Top-level names of the image side besides `IMAGE_SIDE`."""
    class_blocks: str | None = None
    """Attribute with blocks that serve the class token alone; left out of the warm-up."""
    absolute: tuple[str, ...] = ("pos_embed",)
    """Attributes that add a position to each patch."""
    needs_positions: bool = False
    """`forward_features` adds the first of them without asking whether it is there."""
    head_norm: bool = False
    """The final norm lives in the head (`head.norm`)."""
    any_length: bool = True
    """Takes any number of tokens; otherwise the patch count alone."""
    square: bool = False
    """Takes square grids alone."""


_SWIN = Family(enter="NHWC", leave="NHWC", any_length=False)

#: timm class -> how it takes tokens.
FAMILIES: dict[str, Family] = {
    "VisionTransformer": Family(needs_positions=True),
    "Eva": Family(image_side=frozenset({"rope"})),
    "Beit": Family(),
    "VisionTransformerRelPos": Family(any_length=False),
    "Cait": Family(
        needs_positions=True,
        image_side=frozenset({"blocks_token_only"}),
        class_blocks="blocks_token_only",
    ),
    "ConVit": Family(needs_positions=True, square=True),
    "Xcit": Family(
        with_size=True,
        image_side=frozenset({"cls_attn_blocks"}),
        class_blocks="cls_attn_blocks",
    ),
    "VisionTransformerSAM": Family(enter="NHWC", leave="NCHW", any_length=False),
    "NaFlexVit": Family(stem="embeds", image_side=frozenset({"embeds", "rope"})),
    "Hiera": Family(
        image_side=frozenset({"pos_embed_win", "pos_embed_spatial", "pos_embed_temporal"}),
        absolute=("pos_embed", "pos_embed_win", "pos_embed_spatial", "pos_embed_temporal"),
        needs_positions=True,
        head_norm=True,
        any_length=False,
    ),
    "VOLO": Family(
        enter="NCHW",
        image_side=frozenset({"aux_head", "post_network"}),
        class_blocks="post_network",
        any_length=False,
    ),
    "SwinTransformer": _SWIN,
    "SwinTransformerV2": _SWIN,
    "SwinTransformerV2Cr": Family(enter="NCHW", leave="NCHW", any_length=False),
}

_RE_EMBEDS = (
    "it embeds its map anew with convolutions at every stage, so there is no one place where "
    "tokens stand in for patches"
)
_OF_A_LANGUAGE_MODEL = (
    "it is the vision encoder of a language model, with an embedding and positions of its own; "
    "not built"
)
_HYBRID = "most of it is convolutions; a token embedding would enter an image network"

#: timm class -> why the idea does not carry over (or is not built).
REFUSED: dict[str, str] = {
    "PoolingVisionTransformer": "it pools its tokens with convolutions between stages; not built",
    "TNT": "its inner transformer reads the pixels of each patch, which tokens do not have",
    "CrossVit": "it cuts the image into two sizes of patches at once, tokens come in one",
    "Levit": _HYBRID,
    "LevitDistilled": _HYBRID,
    "DeepseekVitEncoder": _OF_A_LANGUAGE_MODEL,
    "DeepseekVitClassifier": _OF_A_LANGUAGE_MODEL,
    "Qwen3VitEncoder": _OF_A_LANGUAGE_MODEL,
    "Qwen3VitClassifier": _OF_A_LANGUAGE_MODEL,
    "Gemma4VitEncoder": _OF_A_LANGUAGE_MODEL,
    "Gemma4VitClassifier": _OF_A_LANGUAGE_MODEL,
    "MultiScaleVit": "its attention pools with convolutions that differ by block; not built",
    "Twins": _RE_EMBEDS,
    "Nest": "its blocks attend inside fixed image blocks that convolutions join; not built",
    "PyramidVisionTransformerV2": _RE_EMBEDS,
    "DaVit": _RE_EMBEDS,
    "GlobalContextVit": _RE_EMBEDS,
    "MaxxVit": _HYBRID,
    "CoaT": _RE_EMBEDS,
    "HieraDet": "its blocks pool between windows of changing size; not built",
    "TinyVit": _HYBRID,
    "Visformer": _HYBRID,
    "ByobNet": _HYBRID,
}


def family_of(model: nn.Module) -> Family:
    """Returns how a timm model takes tokens.

    Raises: ModelError: the model's class is none that the warm-up knows.
    """
    for kind in type(model).__mro__:
        if kind.__module__.startswith(timm_models.__name__) and kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    name = type(model).__name__
    why = REFUSED.get(name, "it has no transformer blocks that this tool knows")
    raise ModelError(
        f"model {name_of(model)!r} ({name}) cannot be warmed up: {why}. `vitwarm doctor --models` "
        "lists the models that can."
    )


def name_of(model: nn.Module) -> str:
    """Returns timm's name of a model's architecture, or its class where timm did not build it."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def built_with(model: nn.Module) -> dict[str, Any]:
    """Returns the arguments with which timm built the model, its name's own included."""
    from timm.models._input import get_model_args  # timm's export uses it; not in its public names

    return dict(get_model_args(model))


def model_args(model: nn.Module) -> str:
    """Returns, as JSON, the arguments with which `timm.create_model` builds this model again."""

    def is_plain(value: object) -> bool:  # classes and partials come with the model's name
        return value is None or isinstance(value, bool | int | float | str | list | tuple | dict)

    args = {k: v for k, v in built_with(model).items() if k not in _OF_THE_IMAGES and is_plain(v)}
    return json.dumps(args, default=str, sort_keys=True)


def model_facts(model: nn.Module) -> dict[str, str]:
    """Returns what a trunk file says of the model that it fits."""
    return {
        "model": name_of(model),
        "model_args": model_args(model),
        "depth": str(len(blocks_of(model))),
        "num_heads": heads_of(model),
    }


def trunk_names(model: nn.Module) -> list[str]:
    """Returns the names of the trunk's tensors in the order of the model's state dict.

    The trunk is everything but patch embedding, positions, prefix tokens and heads. A norm after
    pooling (`fc_norm`) belongs to it where it is the model's only final norm.

    Raises: ModelError: as `family_of`.
    """
    family = family_of(model)
    image_side = IMAGE_SIDE | family.image_side
    if not isinstance(getattr(model, "norm", nn.Identity()), nn.Identity):
        image_side |= {"fc_norm"}
    return [
        name
        for name in model.state_dict()
        if name.split(".")[0] not in image_side
        or (family.head_norm and name.startswith("head.norm."))
    ]


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks of the trunk by name (`blocks.0`), in the order in which data passes them.

    Raises: ModelError: as `family_of`.
    """
    family_of(model)
    return {name: part for name, part in model.named_modules() if BLOCK.fullmatch(name)}


def heads_of(model: nn.Module) -> str:
    """Returns the attention heads of the blocks: `3`, or `3,6,12` where stages differ."""
    counts: list[str] = []
    for block in blocks_of(model).values():
        parts = (
            getattr(part, "num_heads", getattr(part, "heads", None)) for part in block.modules()
        )
        count = next((str(n) for n in parts if isinstance(n, int)), "0")
        if count not in counts[-1:]:
            counts.append(count)
    return ",".join(counts)


def is_of_the_grid(name: str) -> bool:
    """Says whether a tensor's size follows from the patch grid (relative position tables)."""
    return bool(_OF_THE_GRID.search(name))

"""A trunk made deeper and wider: one core for models of many sizes, or a trunk that grows.

Where the published method leaves a choice, the choice is a parameter, and the trunk file says which
one was used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from vitwarm.errors import ConfigError, HandoffError
from vitwarm.inits.made import Made, facts_for, facts_of, label, read
from vitwarm.trunk import Trunk, build_shapes, heads_of, trunk_names
from vitwarm.trunk.grow import Order, Scale, Vectors, Widening, Width, check_can_grow, widen
from vitwarm.trunk.select import BLOCK, block_prefixes, named_as

Depth = Literal["core", "stack", "interleave"]


@dataclass(frozen=True)
class _Size:
    depth: int
    width: int
    heads: int
    hidden: int
    """Units of the MLP."""


def expand(
    *,
    model: str,
    model_kwargs: dict[str, Any],
    seed: int,
    core: str | Path | Trunk,
    depth: Depth = "core",
    width: Width = "tile",
    scale: Scale | None = None,
    vectors: Vectors | None = None,
    order: Order = "cyclic",
) -> Made:
    """Makes a trunk for a deeper or wider plain ViT from any trunk of one; nothing is drawn.

    Every block has weights of its own. An expansion to the same shape is the same trunk.

    Args:
        core: the trunk; that of a tied warm-up (`warmup.tie`) or any other.
        depth: `core`: the first block, the second one for all in the middle, the last; `stack`:
            the blocks in their order, again and again; `interleave`: each block several times.
        width: `tile`: matrices repeated in both directions; `zero`: the new channels are zero and
            change nothing in the old ones.
        scale: of tiled matrices: `fro` (the default) keeps the Frobenius norm, `none` the numbers.
        vectors: of a tiled model: `published` (the default) copies biases and norms and goes on
            with 0 and 1, `tiled` repeats them too.
        order: in which whole heads, channels and units repeat: `cyclic` or `each`.
    Returns: the tensors; the facts hold `sources` (for each tensor: the core, the block, the rule)
        and `expansion` (what was chosen, from which shape to which).
    Raises:
        ConfigError: a choice that there is not, or that has no effect.
        ModelError: a model that is no plain ViT.
        HandoffError: a trunk and a model that do not go together; why, and what to do.
    Source: arXiv preprint "Procedural Core" (2026) and zlshinnick/weight-selection:
        depth_expand.py, width_expand.py. Ours: vectors=tiled, width=zero, stack, interleave.
    """
    tiling: dict[str, Any] = {"scale": scale or "fro", "vectors": vectors or "published"}
    choices: dict[str, str] = {"depth": depth, "width": width, "order": order}
    choices |= tiling if width != "zero" else {}
    _check_choices(choices, tiled=bool(scale or vectors))
    source = read(core)
    vit = build_shapes(model, **model_kwargs)
    check_can_grow(vit)
    where = f"trunk {label(source)} cannot become {model}"
    old, new = _size_of_trunk(source, where), _size_of_model(vit)
    _check_sizes(old, new, where)
    blocks = _blocks_taken(old.depth, new.depth, depth, where)
    how = Widening(head_size=old.width // old.heads, width=width, order=order, **tiling)
    tensors, sources = {}, {}
    for name, shape in _shapes(vit).items():
        theirs, inner = _source_of(name, source, blocks, where)
        if not theirs:
            continue
        tensors[name], rule = widen(inner, source.tensors[theirs], shape, how)
        sources[name] = f"{label(source)}: {theirs}, {rule}"
    _check_nothing_left(source, blocks, set(tensors), where)
    shapes = {"from": _described(old), "to": _described(new), "blocks": blocks}
    expansion = {**shapes, "width_ratio": new.width / old.width, **choices}
    said = {"sources": json.dumps(sources), "expansion": json.dumps(expansion), **_width(old, new)}
    kept = {**facts_of(source), "source": "expansion"}
    return Made(tensors, {**kept, **facts_for(vit, tensors), **said})


_CHOICES: dict[str, Any] = {
    "depth": Depth, "width": Width, "scale": Scale, "vectors": Vectors, "order": Order,
}  # fmt: skip
_SET_ALIKE = (
    "Set what makes it (init_values, qk_norm, qkv_bias, ...) in model_kwargs as the trunk's model "
    "has it."
)


def _check_choices(choices: dict[str, str], *, tiled: bool) -> None:
    if choices["width"] == "zero" and tiled:
        raise ConfigError(
            "scale and vectors say how a width is tiled, and width is 'zero'. Leave them out."
        )
    for name, choice in choices.items():
        allowed = get_args(_CHOICES[name])
        if choice not in allowed:
            raise ConfigError(
                f"{name} of an expansion is {choice!r}; allowed are {', '.join(allowed)}."
            )


def _size_of_trunk(trunk: Trunk, where: str) -> _Size:
    norm, fc1 = (trunk.tensors.get(f"blocks.0.{n}.weight") for n in ("norm1", "mlp.fc1"))
    heads = trunk.metadata.get("num_heads", "")
    if norm is None or fc1 is None or not heads.isdigit() or not int(heads):
        raise HandoffError(
            f"{where}: it is not the whole trunk of a plain ViT (blocks.0.norm1.weight, "
            f"blocks.0.mlp.fc1.weight and the number of heads are needed; num_heads is {heads!r}). "
            "Give the trunk of a plain ViT's warm-up."
        )
    depth = int(trunk.metadata.get("depth", 0)) or len(block_prefixes(trunk.tensors))
    return _Size(depth, len(norm), int(heads), len(fc1))


def _size_of_model(vit: nn.Module) -> _Size:
    shapes = _shapes(vit)
    return _Size(
        len(block_prefixes(shapes)),
        shapes["blocks.0.norm1.weight"][0],
        int(heads_of(vit)),
        shapes["blocks.0.mlp.fc1.weight"][0],
    )


def _shapes(vit: nn.Module) -> dict[str, tuple[int, ...]]:
    state = vit.state_dict()
    return {name: tuple(state[name].shape) for name in trunk_names(vit)}


def _check_sizes(old: _Size, new: _Size, where: str) -> None:
    size = old.width // old.heads
    below = new.width // size * size
    whole = f"its heads are of {size} features and are copied whole, but"
    for misfits, why in (
        (
            new.width < old.width,
            f"its width is {old.width}, the model's {new.width}, and nothing is made narrower. "
            f"Choose a model of width {old.width} or more, or a narrower core.",
        ),
        (
            new.width % size,
            f"{whole} {size} does not divide the width {new.width}. Set embed_dim to {below} or "
            f"{below + size} in model_kwargs.",
        ),
        (
            new.width != size * new.heads,
            f"{whole} the model cuts its width {new.width} into {new.heads} heads of "
            f"{new.width // new.heads}. Set num_heads={new.width // size} in model_kwargs.",
        ),
        (
            old.hidden * new.width != new.hidden * old.width,
            f"its MLP has {old.hidden} units at width {old.width}, the model's {new.hidden} at "
            f"{new.width}. Set mlp_ratio={old.hidden / old.width:g} in model_kwargs.",
        ),
    ):
        if misfits:
            raise HandoffError(f"{where}: {why}")


def _blocks_taken(old: int, new: int, by: Depth, where: str) -> list[int]:
    """For every block of the model the block of the trunk."""
    if old == new:
        return list(range(new))
    if by == "core":
        if min(old, new) < 3:
            raise HandoffError(
                f"{where}: a first, a middle and a last block are needed on both sides, and there "
                f"are {old} and {new}. Use depth=stack or depth=interleave, or a deeper one."
            )
        return [0, *[1] * (new - 2), old - 1]
    if new < old:
        raise HandoffError(
            f"{where}: it has {old} blocks, the model {new}; depth={by} only adds some. Choose a "
            f"model of {old} blocks or more, or depth=core."
        )
    return [i % old if by == "stack" else i * old // new for i in range(new)]


def _source_of(name: str, trunk: Trunk, blocks: list[int], where: str) -> tuple[str, str]:
    """The trunk's name of a model's tensor, and its name inside the block.

    No name for the last norm of a file that lacks it (some that were imported): it starts fresh.
    """
    if match := BLOCK.match(name):
        inner = name[match.end() + 1 :]
        theirs = f"blocks.{blocks[_number(match[0])]}.{inner}"
    else:
        inner, theirs = name, named_as(trunk.tensors, [name]).get(name, name)
    if theirs in trunk.tensors:
        return theirs, inner
    if trunk.is_partial and not match:
        return "", inner
    raise HandoffError(
        f"{where}: the model has {name!r}, and the trunk lacks {theirs!r}. {_SET_ALIKE}"
    )


def _check_nothing_left(trunk: Trunk, blocks: list[int], made: set[str], where: str) -> None:
    """What the trunk has in a block that is taken, or before the blocks, must have a place."""
    for name in trunk.tensors:
        place, match = name, BLOCK.match(name)
        if match:
            if _number(match[0]) not in blocks:
                continue
            place = f"blocks.{blocks.index(_number(match[0]))}{name[match.end() :]}"
        elif name.startswith(("norm.", "fc_norm.")):  # the last norm goes by either name
            continue
        if place not in made:
            raise HandoffError(
                f"{where}: the trunk's {name!r} has no place in the model. {_SET_ALIKE}"
            )


def _number(block: str) -> int:
    return int(block.split(".")[1])


def _described(size: _Size) -> dict[str, int]:
    return {"depth": size.depth, "width": size.width, "num_heads": size.heads}


def _width(old: _Size, new: _Size) -> dict[str, str]:
    """The width, and of one that is no multiple what every audit of the trunk has to say."""
    width = {"width": str(new.width)}
    if new.width % old.width:
        whole, rest = divmod(new.heads, old.heads)
        width["note"] = (
            f"the width grew {new.width / old.width:.4g} times ({old.width} to {new.width}), no "
            f"whole number: {rest} of the {old.heads} heads are there {whole + 1} times, the "
            f"others {whole}"
        )
    return width

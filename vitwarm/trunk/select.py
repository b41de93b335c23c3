"""Which tensors a part of a trunk is: by component, by block; from names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vitwarm.errors import HandoffError

Scope = Literal["all", "blocks", "attention", "mlp"]
Component = Literal["attention", "mlp", "fused", "outside"]
Blocks = str | int | slice | Sequence[int] | None

#: A block's prefix in tensor names: plain, Swin (two spellings), VOLO.
BLOCK = re.compile(r"(?:blocks|layers\.\d+\.blocks|stages\.\d+\.blocks|network\.\d+)\.\d+")
_ATTENTION = re.compile(r"^(attn|attns|norm1|ls1|gamma_?1)(\.|$)")
_MLP = re.compile(r"^(mlp|ffns|local_mp|norm2|norm3|ls2|gamma_?2|gamma3)(\.|$)")
_AFTER_LAST = re.compile(r"^(norm|fc_norm|neck|head\.norm)\.")
_BEFORE_FIRST = re.compile(r"^norm_pre\.")
_BETWEEN = re.compile(r"^(?:layers|stages|network)\.(\d+)\.")
_END = r"\s*(?:-?\d{1,9})?\s*"  # of a slice


@dataclass(frozen=True)
class Place:
    """Where in a trunk a tensor lies."""

    block: int | None
    """Index of its block, or of the block it follows; None: it serves all blocks."""
    component: Component
    """`fused`: one tensor of a block that serves both halves; `outside`: of no block."""


def block_prefixes(names: Iterable[str]) -> list[str]:
    """Returns the prefixes of the blocks (`blocks.0`) among tensor names, in forward order."""
    found = {match[0] for match in map(BLOCK.match, names) if match}
    return sorted(found, key=lambda prefix: [int(n) for n in re.findall(r"\d+", prefix)])


def named_as(theirs: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """Returns a file's names by the model's: the last norm is `norm` or, pooled, `fc_norm`."""
    known, held = set(ours), list(theirs)

    def renamed(name: str) -> str:
        for a, b in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
            other = name.replace(a, b, 1)
            if name.startswith(a) and name not in known and other in known and other not in held:
                return other
        return name

    return {renamed(name): name for name in held}


def place_of(name: str, prefixes: Sequence[str]) -> Place:
    """Returns where a tensor lies: norms after the last block follow it, `norm_pre` the first, and
    what stands between two stages the block behind it.
    """
    match = BLOCK.match(name)
    if match and match[0] in prefixes:
        rest = name[match.end() + 1 :]
        component: Component = "fused"
        if _ATTENTION.match(rest):
            component = "attention"
        elif _MLP.match(rest):
            component = "mlp"
        return Place(prefixes.index(match[0]), component)
    if _AFTER_LAST.match(name):
        return Place(len(prefixes) - 1, "outside")
    if _BEFORE_FIRST.match(name):
        return Place(0, "outside")
    between = _BETWEEN.match(name)
    if between:
        stages = [int(re.findall(r"\d+", prefix)[0]) for prefix in prefixes]
        behind = (i for i, stage in enumerate(stages) if stage >= int(between[1]))
        return Place(next(behind, len(prefixes) - 1), "outside")
    return Place(None, "outside")


def parse_blocks(blocks: Blocks, depth: int) -> list[int]:
    """Returns the indices that a choice of blocks means, ascending.

    Args:
        blocks: None (all), an index, a slice or list, or text: `-4:`, `0,1,2`, `3`, `0:6`.
        depth: number of blocks there are.
    Raises: HandoffError: text that is neither, or indices that do not exist.
    """
    if blocks is None:
        return list(range(depth))
    bad = (
        f"handoff.blocks is {blocks!r}; allowed is a slice such as -4: or a list such as 0,1,2 of "
        f"the {depth} blocks (0 to {depth - 1})."
    )
    if isinstance(blocks, str):
        if re.fullmatch(rf"{_END}:{_END}(:{_END})?", blocks):
            blocks = slice(*(int(p) if p.strip() else None for p in blocks.split(":")))
        elif re.fullmatch(r"\s*-?\d{1,9}(\s*,\s*-?\d{1,9})*\s*", blocks):
            blocks = [int(p) for p in blocks.split(",")]
        else:
            raise HandoffError(bad)
    if isinstance(blocks, slice):
        ends = [end for end in (blocks.start, blocks.stop) if end is not None]
        if blocks.step == 0 or any(not -depth <= end <= depth for end in ends):
            raise HandoffError(bad)
        chosen = list(range(depth))[blocks]
    else:
        listed = [blocks] if isinstance(blocks, int) else list(blocks)
        if any(not -depth <= index < depth for index in listed):
            raise HandoffError(bad)
        chosen = [index % depth for index in listed]
    if not chosen:
        raise HandoffError(bad)
    return sorted(set(chosen))


def choose_names(names: Sequence[str], *, scope: Scope = "all", blocks: Blocks = None) -> list[str]:
    """Returns those of a trunk's tensor names that a scope and a range of blocks select.

    Attention is a block's attention with its norm and layer scale, mlp likewise; `blocks` is both
    of them. Tensors outside the blocks (the final norm) are selected with scope `all` alone, if the
    block they follow is selected; those that serve all blocks (a shared table of relative
    positions), if all blocks are.

    Raises: HandoffError: an unknown scope, blocks as `parse_blocks`, or a tensor that serves
        attention and MLP at once (parallel blocks) where only one of them is asked for.
    """
    if scope not in (allowed := get_args(Scope)):
        raise HandoffError(f"handoff.scope is {scope!r}; allowed are {', '.join(allowed)}.")
    prefixes = block_prefixes(names)
    chosen = set(parse_blocks(blocks, len(prefixes)))
    selected = []
    for name in names:
        place = place_of(name, prefixes)
        if place.component == "fused" and scope in ("attention", "mlp"):
            raise HandoffError(
                f"handoff.scope is {scope!r}, but {name!r} serves attention and MLP at once and "
                "cannot be split. Use scope=all or scope=blocks for this model."
            )
        in_blocks = len(chosen) == len(prefixes) if place.block is None else place.block in chosen
        of_a_block = scope == "blocks" and place.component != "outside"
        if in_blocks and (of_a_block or scope in ("all", place.component)):
            selected.append(name)
    return selected

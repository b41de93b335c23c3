"""Blocks that share weights: in the model, and in the trunk file, which holds each tensor once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitwarm.errors import ConfigError
from vitwarm.trunk.inside import check_plain_blocks

Groups = Sequence[Sequence[int]]

_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_RANGE = r"\d{1,4}(?:-\d{1,4})?"  # of any length it could fill the memory
_GROUP = rf"\s*{_RANGE}(?:\s*,\s*{_RANGE})*\s*"
_GROUPS = re.compile(rf"{_GROUP}(?:\|{_GROUP})*|\[\s*\[{_GROUP}\](?:\s*,\s*\[{_GROUP}\])*\s*\]")


def read_groups(text: str) -> list[list[int]]:
    """Returns the groups that `0|1-10|11` or `[[0],[1,2],[3]]` means, each ascending.

    Raises: ConfigError: text that is neither, or a range that descends.
    """
    if not _GROUPS.fullmatch(text):
        raise ConfigError(
            f"warmup.tie is {text!r}; write the groups of blocks that share weights as 0|1-10|11 "
            "or [[0], [1, 2], [3]], with numbers of at most 4 digits."
        )
    for low, high in re.findall(r"(\d+)-(\d+)", text):
        if int(low) > int(high):
            raise ConfigError(
                f"warmup.tie is {text!r}; the range {low}-{high} descends. Write {high}-{low}."
            )
    groups = []
    for part in re.split(r"\]\s*,\s*\[|\|", text.strip("[] ")):
        ranges = [[int(end) for end in piece.split("-")] for piece in part.split(",")]
        groups.append(sorted(i for ends in ranges for i in range(ends[0], ends[-1] + 1)))
    return sorted(groups)


def tie_blocks(model: nn.Module, groups: Groups, *, with_norms: bool = True) -> None:
    """Lets the blocks of each group of a plain ViT share parameters: those of its first block.

    Modules stay apart, so that names, drop path and compilation are those of an untied model. A
    parameter that several blocks use is one to `parameters()`, and its gradient is their sum.

    Args:
        groups: of block indices; every block in one of them.
        with_norms: share norms and layer scales as well, not attention and MLP alone.
    Raises:
        ModelError: the model is no plain ViT.
        ConfigError: groups that leave out a block, name one twice, or one that there is not.
    """
    check_plain_blocks(model, "model", "tied")
    blocks: Any = model.blocks
    _check_groups(groups, len(blocks))
    for first, *others in groups:
        for name, parameter in blocks[first].named_parameters():
            owner, _, last = name.rpartition(".")
            if with_norms or name.startswith(("attn.", "mlp.")):
                for index in others:
                    setattr(blocks[index].get_submodule(owner), last, parameter)


def drop_shared(tensors: Mapping[str, Tensor], groups: Groups) -> dict[str, Tensor]:
    """Returns tensors of a trunk without those that equal the ones of their group's first block."""

    def is_shared(name: str) -> bool:
        owner = _owner_of(name, groups)
        return owner != name and owner in tensors and torch.equal(tensors[owner], tensors[name])

    return {name: tensor for name, tensor in tensors.items() if not is_shared(name)}


def untie(
    tensors: Mapping[str, Tensor], groups: Groups
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns what `drop_shared` was given, in the order of the model, and name -> where it was."""
    parts = dict.fromkeys(match[2] for match in map(_IN_BLOCK.fullmatch, tensors) if match)
    blocks = sorted(index for group in groups for index in group)
    in_blocks = [f"blocks.{index}.{part}" for index in blocks for part in parts]
    names: dict[str, None] = {}
    for name in tensors:
        names |= dict.fromkeys(in_blocks if _IN_BLOCK.fullmatch(name) else [name])
    found = {name: name if name in tensors else _owner_of(name, groups) for name in names}
    found = {name: source for name, source in found.items() if source in tensors}
    whole = {name: tensors[source] for name, source in found.items()}
    return whole, {name: source for name, source in found.items() if source != name}


def _owner_of(name: str, groups: Groups) -> str:
    """The name in the first block of its group; the name itself outside of the blocks."""
    match = _IN_BLOCK.fullmatch(name)
    group = next((group for group in groups if match and int(match[1]) in group), None)
    return f"blocks.{group[0]}.{match[2]}" if group and match else name


def _check_groups(groups: Groups, depth: int) -> None:
    named = [index for group in groups for index in group]
    where = (
        f"warmup.tie is {json.dumps(groups)}, and the model has {depth} blocks (0 to {depth - 1})"
    )
    if odd := [i for i in named if i >= depth]:
        raise ConfigError(f"{where}: there is no block {odd[0]}. Name those that there are.")
    if twice := [i for i in named if named.count(i) > 1]:
        raise ConfigError(f"{where}: block {twice[0]} is in two groups. Name it once.")
    if lacking := sorted(set(range(depth)) - set(named)):
        raise ConfigError(
            f"{where}: block {lacking[0]} is in no group. Name every block; one that shares "
            f"nothing is a group of its own: ...|{lacking[0]}."
        )

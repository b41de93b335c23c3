"""What an initialiser returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from vitwarm.trunk import Trunk, load_trunk, model_facts, trunk_names


@dataclass(frozen=True)
class Made:
    """Tensors by timm's names, and facts for the trunk file's metadata."""

    tensors: dict[str, Tensor]
    facts: dict[str, str] = field(default_factory=dict)


def facts_for(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the metadata of tensors made for a model: its shape, and whether it lacks some."""
    partial = set(tensors) != set(trunk_names(model))
    return {**model_facts(model), "partial": str(partial).lower()}


def read(trunk: str | Path | Trunk) -> Trunk:
    """Returns the trunk itself, or reads it. Raises: TrunkError: as `load_trunk`."""
    return trunk if isinstance(trunk, Trunk) else load_trunk(trunk)


def label(trunk: Trunk) -> str:
    """Returns how audits name a trunk: its path and the start of its content hash."""
    return f"{trunk.path or 'memory'} ({trunk.sha256[:12]})"

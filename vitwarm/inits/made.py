"""What an initialiser returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from vitwarm.trunk import Trunk, load_trunk, model_facts, trunk_names
from vitwarm.trunk.swap import width_in


@dataclass(frozen=True)
class Made:
    """Tensors by timm's names, and facts for the trunk file's metadata."""

    tensors: dict[str, Tensor]
    facts: dict[str, str] = field(default_factory=dict)


def facts_for(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the metadata of tensors made for a model: its shape, and whether it lacks some."""
    partial = set(tensors) != set(trunk_names(model))
    width = str(width_in(model))
    return {**model_facts(model), "width": width, "partial": str(partial).lower()}


def inherit(*trunks: Trunk) -> dict[str, str]:
    """Returns what a trunk made of warmed ones has to say of their warm-ups.

    Returns: `samples` and `tokens` of all of them together, and the worst `verdict` with the
        accuracies that it rests on: what is made of a failed warm-up has failed too. Nothing for
        trunks that were never warmed up.
    """
    warmed = list({t.sha256: t for t in trunks if "verdict" in t.metadata}.values())
    if not warmed:
        return {}
    worst = min(warmed, key=lambda t: _BEST_LAST.index(t.metadata["verdict"])).metadata
    reached = {name: worst[name] for name in _REACHED if name in worst}
    total = {
        name: str(sum(int(t.metadata.get(name, 0)) for t in warmed))
        for name in ("samples", "tokens")
    }
    return {**reached, **total}


def shape_of(trunk: Trunk) -> dict[str, str]:
    """Returns what a trunk's metadata says of its shape, and whether it lacks tensors."""
    kept = (
        "model", "model_args", "depth", "num_heads", "width", "grid", "n_tokens", "norm_eps",
        "partial",
    )  # fmt: skip
    norms = [t for name, t in trunk.tensors.items() if name.endswith("norm1.weight")]
    width = {"width": str(len(norms[0]))} if norms else {}
    return width | {key: trunk.metadata[key] for key in kept if key in trunk.metadata}


def facts_of(source: Trunk) -> dict[str, str]:
    """Returns the metadata of tensors made of a trunk's own, name by name: its shape and past."""
    made_from = {"made_from": label(source), "made_from_sha256": source.sha256}
    return {**shape_of(source), **inherit(source), **made_from}


#: Verdicts of `warmup.learned.judge`.
_BEST_LAST = ("not learned", "saturated early", "learned")
_REACHED = ("verdict", "hidden_accuracy_percent", "chance_percent", "order_blind_percent")


def read(trunk: str | Path | Trunk) -> Trunk:
    """Returns the trunk itself, or reads it. Raises: TrunkError: as `load_trunk`."""
    return trunk if isinstance(trunk, Trunk) else load_trunk(trunk)


def label(trunk: Trunk) -> str:
    """Returns how audits name a trunk: its path and the start of its content hash."""
    return f"{trunk.path or 'memory'} ({trunk.sha256[:12]})"

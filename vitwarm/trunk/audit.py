"""Where every tensor of a model or trunk comes from, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

State = Literal["carried", "fresh"]


@dataclass(frozen=True)
class AuditEntry:
    """Where one tensor of the image model comes from."""

    name: str
    shape: tuple[int, ...]
    state: State
    source: str
    """The trunk file (or the file that it was grafted from), or timm's initialisation."""


@dataclass(frozen=True)
class Audit:
    """Where every tensor of an image model comes from."""

    model: str
    entries: list[AuditEntry]
    """In the order of the model's state dict; every tensor of it, once."""
    trunk: str | None = None
    trunk_sha256: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    """Of the trunk file."""
    notes: list[str] = field(default_factory=list)
    """What fits but differs: another patch count, another epsilon, another dtype."""

    @property
    def carried(self) -> list[str]:
        """Names of the tensors that come from the trunk."""
        return [entry.name for entry in self.entries if entry.state == "carried"]

    @property
    def fresh(self) -> list[str]:
        """Names of the tensors that are as timm initialised them."""
        return [entry.name for entry in self.entries if entry.state == "fresh"]

    def table(self) -> str:
        """Returns one line per tensor: state, name, shape, source."""
        width = max((len(entry.name) for entry in self.entries), default=0)
        lines = [
            f"{e.state:8}{e.name:{width + 2}}{'x'.join(map(str, e.shape)) or 'scalar':18}{e.source}"
            for e in self.entries
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def summary(self) -> str:
        """Returns one line: how many tensors and parameters are carried, and from where."""

        def count(state: State) -> str:
            shapes = [torch.Size(e.shape).numel() for e in self.entries if e.state == state]
            return f"{len(shapes)} tensors ({sum(shapes):,} numbers)"

        origin = f" from {self.trunk}" if self.trunk else ""
        return f"{self.model}: {count('carried')} carried{origin}, {count('fresh')} fresh"

    def to_json(self) -> dict[str, Any]:
        """Returns the audit as plain values, for audit.json."""
        return {**asdict(self), "n_carried": len(self.carried), "n_fresh": len(self.fresh)}


def audit_tensors(
    tensors: Mapping[str, Tensor], sources: Mapping[str, str], fresh: str
) -> list[AuditEntry]:
    """Returns one entry per tensor: carried where `sources` names it, else from `fresh`."""
    return [
        AuditEntry(
            name=name,
            shape=tuple(tensor.shape),
            state="carried" if name in sources else "fresh",
            source=sources.get(name, fresh),
        )
        for name, tensor in tensors.items()
    ]

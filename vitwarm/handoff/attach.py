"""From a trunk file and a timm model to a model ready for images, with an audit of every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitwarm.handoff.fit import match, notes_on
from vitwarm.trunk import Audit, Trunk, audit_tensors, build_model, load_trunk
from vitwarm.trunk.select import Blocks, Scope


def attach(
    trunk: str | Path | Trunk | None = None,
    *,
    model: str,
    scope: Scope = "all",
    blocks: Blocks = None,
    seed: int = 0,
    **timm_kwargs: Any,
) -> tuple[nn.Module, Audit]:
    """Builds an image model whose trunk comes from a trunk file; all else is fresh from the seed.

    timm builds the model from `seed` first and the carried tensors overwrite its own, so the fresh
    tensors are the same whatever is carried: arms are paired by construction.

    Args:
        trunk: a trunk file, a run folder, a shipped name, `hf-hub:OWNER/NAME[@revision]`, a
            loaded Trunk; None: the default arm.
        model: timm's name of the image model.
        scope: `all`, `blocks` (without the final norm), or one half of each block: `attention` or
            `mlp`.
        blocks: a slice such as `-4:` or a list of block indices; None: all.
        seed: of timm's initialisation.
        timm_kwargs: passed to `timm.create_model`.
    Returns: the model on the CPU, and the audit.
    Raises:
        ModelError: no such timm model.
        TrunkError: no such trunk, or a file that is none.
        HandoffError: the trunk does not fit the model; the first tensor that does not is named.
    """
    vit = build_model(model, seed=seed, **timm_kwargs)
    loaded = trunk if isinstance(trunk, Trunk) or trunk is None else load_trunk(trunk)
    fresh = f"timm's initialisation, seed {seed}"
    if loaded is None:
        return vit, Audit(model=model, entries=audit_tensors(vit.state_dict(), {}, fresh))
    return vit, carry(loaded, vit, model=model, scope=scope, blocks=blocks, fresh=fresh)


def carry(
    trunk: Trunk,
    vit: nn.Module,
    *,
    model: str,
    scope: Scope = "all",
    blocks: Blocks = None,
    fresh: str = "as it was",
) -> Audit:
    """Overwrites the trunk of a model that stands already; `attach` builds it first.

    Args:
        fresh: what the audit calls the source of all other tensors.
    Raises: HandoffError: as `attach`.
    """
    source = str(trunk.path) if trunk.path else "memory"
    where = f"trunk {source} and model {model}"
    pairs = match(trunk, vit, scope=scope, blocks=blocks, where=where)
    state = vit.state_dict()
    with torch.no_grad():
        for name, theirs in pairs.items():
            state[name].copy_(trunk.tensors[theirs])
    sources = json.loads(trunk.metadata.get("sources", "{}"))
    origin = {
        name: sources.get(theirs, source) + (f" ({theirs})" if theirs != name else "")
        for name, theirs in pairs.items()
    }
    return Audit(
        model=model,
        entries=audit_tensors(state, origin, fresh),
        trunk=source,
        trunk_sha256=trunk.sha256,
        metadata=trunk.metadata,
        notes=notes_on(trunk, vit, pairs),
    )

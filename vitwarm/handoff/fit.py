"""Whether a trunk may be carried: learned something, fits tensor by tensor; in words if not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from vitwarm.errors import HandoffError
from vitwarm.trunk import Trunk, choose_names, heads_of, is_of_the_grid, patch_grid, trunk_names
from vitwarm.trunk.select import Blocks, Scope, block_prefixes, named_as


def refuse_unlearned(trunk: Trunk, name: str, remedy: str) -> None:
    """Refuses a trunk that learned nothing; one that is merely unfinished is as good as it says.

    Args:
        name: what the user calls it.
        remedy: how the user has it all the same.
    Raises: HandoffError: with what the warm-up reached.
    """
    facts = trunk.facts
    if facts.get("verdict") == "not learned":
        raise HandoffError(
            f"the warm-up of the trunk {name!r} learned nothing (held-out accuracy "
            f"{facts.get('hidden_accuracy_percent') or 0:.1f} %, chance "
            f"{facts.get('chance_percent') or 0:.1f} %, order-blind baseline "
            f"{facts.get('order_blind_percent') or 0:.1f} %); that is worse than none. "
            f"Warm up again, or {remedy}."
        )


def check_fit(
    trunk: Trunk, vit: nn.Module, *, where: str, scope: Scope = "all", blocks: Blocks = None
) -> None:
    """Refuses a trunk that a model cannot take, by names and shapes alone (meta tensors will do).

    Args:
        where: how the message calls the two: `{where} do not fit: ...`.
    Raises: HandoffError: as `attach`.
    """
    match(trunk, vit, scope=scope, blocks=blocks, where=where)


def match(
    trunk: Trunk, vit: nn.Module, *, scope: Scope, blocks: Blocks, where: str
) -> dict[str, str]:
    """Returns the model's tensor name -> the file's, for all that is carried.

    Raises: HandoffError: a misfit; `where` is how the message calls the two.
    """
    names, heads = trunk_names(vit), heads_of(vit)
    if why := _other_depth(trunk, names):
        raise HandoffError(f"{where} do not fit: {why}")
    if (their_heads := trunk.metadata.get("num_heads", heads)) != heads:
        raise HandoffError(
            f"{where} do not fit: the trunk has {their_heads} attention heads, the model {heads}, "
            "so the same numbers would mean something else. Set num_heads alike."
        )
    theirs = named_as(trunk.tensors, names)
    selected = choose_names(names, scope=scope, blocks=blocks)
    homeless = [n for n in choose_names(list(theirs), scope=scope, blocks=blocks) if n not in names]
    missing = [name for name in selected if name not in theirs]
    same = "Use the model that was warmed up, with the same model_kwargs."
    if homeless:
        raise HandoffError(
            f"{where} do not fit: the trunk's tensor {theirs[homeless[0]]!r} has no place in the "
            f"model. {same}"
        )
    state = vit.state_dict()
    for name in selected:
        if name in theirs and trunk.tensors[theirs[name]].shape != state[name].shape:
            why = _other_shape(name, trunk.tensors[theirs[name]].shape, state[name].shape)
            raise HandoffError(f"{where} do not fit: {why}")
    if missing and not trunk.is_partial:
        raise HandoffError(f"{where} do not fit: the trunk lacks {missing[0]!r}. {same}")
    if len(missing) == len(selected):
        raise HandoffError(
            f"{where}: with scope {scope!r} and blocks {blocks!r} nothing would be carried. "
            "Choose a part that the trunk file holds."
        )
    return {name: theirs[name] for name in selected if name in theirs}


def _other_depth(trunk: Trunk, names: list[str]) -> str | None:
    prefixes, found = block_prefixes(names), block_prefixes(trunk.tensors)
    depth = int(trunk.metadata.get("depth", 0)) or len(found)
    if depth == len(prefixes) and set(found) <= set(prefixes):
        return None
    odd = [p for p in found if p not in prefixes] or [p for p in prefixes if p not in found]
    first = next((n for n in [*trunk.tensors, *names] if odd and n.startswith(f"{odd[0]}.")), odd)
    return (
        f"the trunk has {depth} blocks, the model has {len(prefixes)} (the first tensor without a "
        f"partner is {first!r}). Set depth in model_kwargs, or warm up that model."
    )


def _other_shape(name: str, theirs: Iterable[int], ours: Iterable[int]) -> str:
    there, here = shape_in_words(theirs), shape_in_words(ours)
    shapes = f"tensor {name!r} is {there} in the trunk and {here} in the model"
    if is_of_the_grid(name):
        return (
            f"{shapes}; it is a table of relative positions, whose size follows from the patch "
            "grid. Warm up with the same img_size and patch size."
        )
    cause = "the MLP ratio" if re.search(r"\bmlp\b|fc1|fc2", name) else "the width"
    return (
        f"{shapes} ({cause} differs). Choose the model that was warmed up, or set embed_dim, "
        "num_heads and mlp_ratio alike in model_kwargs."
    )


def notes_on(trunk: Trunk, vit: nn.Module, pairs: Mapping[str, str]) -> list[str]:
    """Returns what to know of a trunk that fits: other grids, unfinished warm-ups, casts."""
    notes, facts, state = [], trunk.metadata, vit.state_dict()
    grid = "x".join(map(str, patch_grid(vit)))
    if facts.get("grid", grid) != grid:
        notes.append(
            f"the trunk saw sequences of {facts.get('n_tokens', '?')} tokens ({facts['grid']}), "
            f"the model has {grid} patches"
        )
    if facts.get("status") == "unfinished":
        notes.append("the warm-up that made this trunk was not finished")
    if facts.get("verdict") == "not learned":
        notes.append("the warm-up that made this trunk learned nothing")
    if "note" in facts:
        notes.append(facts["note"])
    cast = {(trunk.tensors[b].dtype, state[a].dtype) for a, b in pairs.items()}
    notes += [f"numbers were cast from {b} to {a}" for b, a in sorted(cast, key=str) if a != b]
    if renamed := [f"{b} -> {a}" for a, b in pairs.items() if a != b]:
        notes.append(f"the final norm comes after pooling here: {', '.join(renamed)}")
    return notes


def shape_in_words(shape: Iterable[int]) -> str:
    """Returns 3x16x16."""
    return "x".join(map(str, shape)) or "a scalar"

"""From a whole pretrained model to a model for fine-tuning: every weight is carried, or named."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models._hub import load_model_config_from_path  # how timm reads an export's config.json
from torch import Tensor, nn

from vitwarm.errors import HandoffError, ModelError, first_line
from vitwarm.handoff.fit import shape_in_words
from vitwarm.seeding import torch_seeded
from vitwarm.trunk import Audit, audit_tensors, build_model, check_name, name_of
from vitwarm.trunk.family import built_with
from vitwarm.trunk.select import named_as
from vitwarm.trunk.weights import read_weights

#: Weights in a folder, the first that is there.
_IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin")
#: Differing tensors that a message names.
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Weights, and what is known of the model that they are of."""

    model: str
    """timm's name."""
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None
    """timm's description of the weights; None: that of the model's own."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """With which timm builds their model."""


def start_from(
    init: str | Path, *, model: str | None = None, seed: int = 0, **timm_kwargs: Any
) -> tuple[nn.Module, Audit]:
    """Builds a model from a whole pretrained one, for fine-tuning.

    The head is fresh where the number of classes differs or the file has none; timm resamples
    positions (and tables of relative positions) where the image size does. The last norm goes from
    `norm` to `fc_norm`, or back, where the pooling differs.

    Args:
        init: an export folder (of ours or of timm's) or the model.safetensors in it, a file of
            weights (.safetensors, .pth, .pt), or a timm model name with its weights' tag.
        model: what the model must be; None: whatever `init` is, which a lone file does not say.
        seed: of what is fresh.
        timm_kwargs: passed to `timm.create_model`, over what an export was built with.
    Raises:
        ModelError: no such model, or its weights cannot be had.
        HandoffError: `init` is another model than `model`, a folder without a model, or weights
            that do not fit the model: the first of the tensors are named.
    """
    source = _read(str(init), model)
    kwargs = {**source.arguments, **timm_kwargs}
    fresh = build_model(source.model, seed=seed, **kwargs)
    ours, heads = fresh.state_dict(), _head_names(fresh)
    renamed = named_as(source.tensors, list(ours))
    tensors = {name: source.tensors[theirs] for name, theirs in renamed.items()}
    for name in [name for name in {**tensors, **ours} if name.startswith(heads)]:
        if name not in ours:
            del tensors[name]
        elif name not in tensors or tensors[name].shape != ours[name].shape:
            tensors[name] = ours[name]
            renamed.pop(name, None)
    config: Any = source.config or getattr(fresh, "pretrained_cfg", {})
    config = {**config, "state_dict": tensors, "source": "", "custom_load": False}
    config |= {"num_classes": getattr(fresh, "num_classes", 0), "label_offset": 0}
    try:
        with torch_seeded(seed, "model"):
            vit: nn.Module = timm.create_model(
                source.model,
                pretrained=True,
                pretrained_cfg=config,
                pretrained_model_args=source.arguments,
                **kwargs,
            )
    except Exception as error:  # timm's resampling and torch's loading raise families of their own
        where = f"handoff.init {init} and model {source.model}"
        raise _misfit(error, where, tensors, ours) from error
    vit.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
    return vit, _audit(vit, str(init), renamed, source.tensors, heads, seed)


def arguments_of(init: str) -> dict[str, Any]:
    """Returns the arguments that a start brings along: an export's own; of others, none.

    Raises: HandoffError: a folder without a model.
    """
    folder = _export_of(init)
    return _read_config(folder, init)[2] if folder else {}


def _audit(
    vit: nn.Module,
    init: str,
    renamed: Mapping[str, str],
    theirs: Mapping[str, Tensor],
    heads: tuple[str, ...],
    seed: int,
) -> Audit:
    """Says what came from the file, under which name (model's -> file's), and was resampled."""
    sources = {}
    for name, tensor in vit.state_dict().items():
        if name not in renamed and name.startswith(heads):
            continue
        old = renamed.get(name, name)  # a name that the file does not have, timm made of another
        was = theirs[old].shape if old in theirs else tensor.shape
        sources[name] = init + (f" ({old})" if old != name else "")
        if was != tensor.shape:
            sources[name] += f" (resampled from {shape_in_words(was)})"
    entries = audit_tensors(vit.state_dict(), sources, f"timm's initialisation, seed {seed}")
    moved = [f"{old} -> {name}" for name, old in renamed.items() if old != name]
    notes = [f"the final norm is elsewhere here: {', '.join(moved)}"] if moved else []
    return Audit(model=name_of(vit), entries=entries, trunk=init, notes=notes)


def check_start(init: str) -> None:
    """Refuses a start that reads as a path where nothing is. Raises: HandoffError."""
    path = Path(init.removeprefix("local-dir:")).expanduser()
    is_path = os.sep in init or path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
    if is_path and not path.exists():
        raise HandoffError(
            f"handoff.init is {init!r}; there is no such file or folder. Give an export folder, a "
            "file of weights, or a timm model name with the tag of its weights."
        )


def _read(init: str, model: str | None) -> _Source:
    """Reads what `init` means, and checks it against the model that was asked for."""
    path = Path(init.removeprefix("local-dir:")).expanduser()
    if folder := _export_of(init):
        config, name, arguments = _read_config(folder, init)
        _check_same(name, model, init)
        tensors = _tensors_in(folder, init)
        return _Source(model=name, tensors=tensors, config=config, arguments=arguments)
    if path.is_file():
        if model is None:
            raise HandoffError(
                f"handoff.init is {init!r}, a file that does not say which model it is of. "
                "Give the model."
            )
        return _Source(model=model, tensors=_tensors_in(path, init))
    check_start(init)
    try:
        check_name(init)
    except ModelError as error:
        raise ModelError(f"handoff.init: {error}") from error
    _check_same(init.split(".")[0], model, init)
    try:
        vit: Any = timm.create_model(init, pretrained=True)
    except Exception as error:  # the hub, its client and timm each raise families of their own
        raise ModelError(
            f"handoff.init is {init!r}; its weights cannot be loaded: {first_line(error)}. Give a "
            "file of weights or an export folder, or a timm tag while online."
        ) from error
    config, arguments = vit.pretrained_cfg, built_with(vit)
    return _Source(model=init, tensors=vit.state_dict(), config=config, arguments=arguments)


def _export_of(init: str) -> Path | None:
    """The folder that a start means, itself or by the model.safetensors in it; None: no folder."""
    path = Path(init.removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        return path
    beside = path.name == _IN_A_FOLDER[0] and (path.parent / "config.json").is_file()
    return path.parent if beside and path.is_file() else None


def _read_config(folder: Path, init: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """An export's description of its weights, the model's name, and its arguments."""
    try:
        config, name, arguments = load_model_config_from_path(folder)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        inside = [name for name in ("export", "export_ema") if (folder / name).is_dir()]
        advice = f"Give {folder / inside[0]}" if inside else "Give the export folder of a training"
        raise HandoffError(
            f"handoff.init is {init!r}, a folder without a timm model (no config.json that names "
            f"an architecture). {advice}, or a file of weights."
        ) from error
    return config, str(name), dict(arguments or {})


def _tensors_in(place: Path, init: str) -> dict[str, Tensor]:
    """The weights of a file, or of the first one that a folder holds."""
    files = [place] if place.is_file() else [place / name for name in _IN_A_FOLDER]
    unread = f"handoff.init is {init!r}; its weights cannot be loaded:"
    for path in files:
        if path.is_file():
            try:
                return read_weights(path).tensors
            except ModelError as error:
                raise ModelError(f"{unread} {error}") from error
    raise ModelError(
        f"{unread} the folder holds no {' and no '.join(_IN_A_FOLDER)}. Export the model again."
    )


def _check_same(theirs: str, asked: str | None, init: str) -> None:
    if asked and theirs.split(".")[0] != asked.split(".")[0]:
        raise HandoffError(
            f"handoff.init {init} holds {theirs!r}, but the model is {asked!r}. Make them the same "
            f"model: train.model={theirs}."
        )


def _misfit(
    error: Exception, where: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> HandoffError:
    """What torch's load_state_dict refused, in words; it lists names but mixes up their kinds."""
    found = re.findall(r'"([^"\s]+)"|size mismatch for ([^:\s]+):', str(error))
    odd = {a or b for a, b in found} & {*ours, *theirs}
    if not odd:  # timm's own resampling tripped over what does not fit
        odd = {n for n in ours if n not in theirs or theirs[n].shape != ours[n].shape}
    names = [name for name in {**ours, **theirs} if name in odd]
    if not names:
        first = first_line(error).rstrip(":")
        return HandoffError(
            f"{where} do not fit: {first}. Build the model as its weights were trained: "
            "train.model, train.img_size and train.model_kwargs."
        )

    def told(name: str) -> str:
        there, here = (shape_in_words(w[name].shape) if name in w else "" for w in (theirs, ours))
        if not there:
            return f"{name!r} ({here} in the model) is not in the file"
        if not here:
            return f"{name!r} ({there} in the file) has no place in the model"
        return f"{name!r} is {there} in the file and {here} in the model"

    rest = f", and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return HandoffError(
        f"{where} do not fit: {', '.join(map(told, names[:_NAMED]))}{rest}. Build the model as its "
        "weights were trained: an export carries its own arguments, so leave those out of "
        "train.model_kwargs; for a file of weights set train.model and train.model_kwargs to match."
    )


def _head_names(vit: nn.Module) -> tuple[str, ...]:
    config: Any = getattr(vit, "pretrained_cfg", {})
    classifier = config.get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{name}." for name in names)

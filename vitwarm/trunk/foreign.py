"""A trunk file out of a checkpoint that somebody else's code wrote.

Taken are blocks and last norm, by the names of timm (DeiT, DeiT-III, MAE, DINO) or of Hugging
Face's ViT, MAE and DINOv2; what else the file holds is left out and listed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitwarm.errors import TrunkError
from vitwarm.files import sha256_of
from vitwarm.records import code_version, read_json
from vitwarm.trunk.build import build_shapes
from vitwarm.trunk.family import heads_of, model_facts, name_of, trunk_names
from vitwarm.trunk.file import Trunk, load_trunk, save_trunk
from vitwarm.trunk.select import named_as
from vitwarm.trunk.weights import read_weights

#: What wrappers put in front of all names, in any order and number.
_WRAPPERS = re.compile(
    r"^(?:vit|deit|dinov2|module|_orig_mod|model|encoder|backbone|student|teacher)\."
)
#: Names inside of a block, and of the last norm -> timm's. Sources: transformers 4, modeling_vit,
#: modeling_vit_mae and modeling_dinov2; facebookresearch/deit, models_v2 (`gamma_1`).
_RENAMED = [
    (re.compile(r"^layer\."), "blocks."),
    (re.compile(r"^layernorm\."), "norm."),
    (re.compile(r"(?<=\d)\.attention\.output\.dense\."), ".attn.proj."),
    (re.compile(r"(?<=\d)\.attention\.attention\.(query|key|value)\."), r".attn.\1."),
    (re.compile(r"(?<=\d)\.intermediate\.dense\."), ".mlp.fc1."),
    (re.compile(r"(?<=\d)\.output\.dense\."), ".mlp.fc2."),
    (re.compile(r"(?<=\d)\.layernorm_before\."), ".norm1."),
    (re.compile(r"(?<=\d)\.layernorm_after\."), ".norm2."),
    (re.compile(r"(?<=\d)\.layer_scale([12])\.lambda1$"), r".ls\1.gamma"),
    (re.compile(r"(?<=\d)\.gamma_([12])$"), r".ls\1.gamma"),
]
_OF_THE_TRUNK = re.compile(r"^(blocks\.\d+|norm|fc_norm)\.")
_LAST_NORM = re.compile(r"^(norm|fc_norm)\.")
_PART_OF_QKV = re.compile(r"^(.*\.attn\.)(query|key|value)\.(weight|bias)$")

#: (width, blocks) -> timm's model, where nobody says which; with its usual number of heads.
_PUBLISHED = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
    (1280, 32): "vit_huge_patch14_224",
}


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    trunk: Trunk
    left_out: list[str]
    """What else the file holds, by its own names."""

    def summary(self) -> str:
        """Returns what was taken and what was left out, in two lines."""
        facts = self.trunk.metadata
        groups = Counter(_unwrapped(name).split(".")[0] for name in self.left_out)
        rest = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in groups.items())
        if self.trunk.is_partial:
            rest = f"{rest or 'nothing'}\nthe file has no last norm: it starts fresh"
        return (
            f"{len(self.trunk.tensors)} tensors of {facts['depth']} blocks as {facts['model']}, "
            f"{facts['num_heads']} heads\nleft out: {rest or 'nothing'}"
        )


def import_weights(
    path: str | Path, out: str | Path, *, model: str | None = None, **timm_kwargs: Any
) -> Imported:
    """Writes the trunk file of a checkpoint.

    Args:
        path: .safetensors, or what torch.save wrote of tensors and plain values.
        out: the trunk file.
        model: timm's name of the model that the trunk is of; None: what an export's config.json
            beside the file says, else the published ViT of that width and depth. Tensors do not
            tell the number of heads: it is the model's, and Hugging Face's config.json, where it
            is there, is held against it.
        timm_kwargs: passed to `timm.create_model`.
    Raises:
        ModelError: a file that is not read, see `read_weights`, or no such model.
        TrunkError: no blocks in it, or blocks that are not the model's; the first is named.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise TrunkError(f"There is no file {path}. Give a .safetensors, .pth or .pt file.")
    weights = read_weights(path)
    theirs, origins, left_out = _to_timm(weights.tensors, path)
    if not any(name.startswith("blocks.") for name in theirs):
        raise TrunkError(
            f"{path} holds no blocks of a ViT by the names of timm or of Hugging Face; it has "
            f"{', '.join(map(repr, left_out[:3]))}. Rename its tensors to timm's: "
            "blocks.0.norm1.weight and so on."
        )
    beside = read_json(path.parent / "config.json") or {}
    if model is None and isinstance(beside.get("architecture"), str):  # an export of timm's
        model = beside["architecture"]
        timm_kwargs = {**(beside.get("model_args") or {}), **timm_kwargs}
    if "blocks.0.ls1.gamma" in theirs:
        timm_kwargs.setdefault("init_values", 1.0)  # any number: the file's own are carried
    vit = build_shapes(model or _published(theirs, path), **timm_kwargs)
    _check_beside(beside, vit, path)
    names = trunk_names(vit)
    renamed = named_as(theirs, names)
    for ours in [name for name in renamed if _LAST_NORM.match(name) and name not in names]:
        left_out += origins[renamed.pop(ours)]
    tensors = {ours: theirs[name] for ours, name in renamed.items()}
    _check_fit(tensors, vit, path)
    facts = {
        **model_facts(vit),
        "width": str(tensors["blocks.0.norm1.weight"].shape[0]),
        "partial": str(len(tensors) < len(names)).lower(),
        "source": f"import of {path.name}",
        "made_from_sha256": sha256_of(path),
        "sources": json.dumps(
            {ours: f"{path.name} ({' + '.join(origins[name])})" for ours, name in renamed.items()}
        ),
        "left_out": json.dumps([*left_out, *weights.others]),
        "code_version": code_version(),
    }
    if weights.part:
        facts["part"] = weights.part
    if "layer_norm_eps" in beside:
        facts["norm_eps"] = f"{float(beside['layer_norm_eps']):g}"
    made = save_trunk(out, {name: tensors[name] for name in names if name in tensors}, facts)
    return Imported(load_trunk(made), [*left_out, *weights.others])


def _to_timm(
    theirs: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, list[str]], list[str]]:
    """Returns the trunk's tensors by timm's names, the file's names of each, and all other names.

    Raises: TrunkError: two tensors of one name, or numbers that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    origins: dict[str, list[str]] = {}
    left_out = []
    for name, tensor in theirs.items():
        ours = _timm_name(name)
        if not _OF_THE_TRUNK.match(ours):
            left_out.append(name)
            continue
        if ours in tensors:
            raise TrunkError(
                f"{path} holds two models: {origins[ours][0]!r} and {name!r} would both be "
                f"{ours!r}. Save only the one that you need."
            )
        if not bool(torch.isfinite(tensor.float()).all()):
            raise TrunkError(
                f"{path} holds numbers that are not finite, in {name!r} for one. Take an earlier "
                "checkpoint of that training."
            )
        tensors[ours], origins[ours] = tensor, [name]
    _join_qkv(tensors, origins, path)
    return tensors, origins, left_out


def _unwrapped(name: str) -> str:
    while _WRAPPERS.match(name):
        name = _WRAPPERS.sub("", name, count=1)
    return name


def _timm_name(name: str) -> str:
    name = _unwrapped(name)
    for pattern, ours in _RENAMED:
        name = pattern.sub(ours, name)
    return name


def _join_qkv(tensors: dict[str, Tensor], origins: dict[str, list[str]], path: Path) -> None:
    """Stacks query, key and value to timm's qkv, in place; a bias that one of them lacks is 0."""
    joined = {f"{m[1]}qkv.{m[3]}" for m in map(_PART_OF_QKV.match, tensors) if m}
    for ours in joined:
        names = [ours.replace(".qkv.", f".{role}.") for role in ("query", "key", "value")]
        there = [name for name in names if name in tensors]
        if len(there) < len(names) and ours.endswith("weight"):
            raise TrunkError(
                f"{path} holds {origins[there[0]][0]!r}, but not query, key and value together. "
                "Copy it again, whole."
            )
        zeros = torch.zeros_like(tensors[there[0]])
        tensors[ours] = torch.cat([tensors.pop(name, zeros) for name in names])
        origins[ours] = [origin for name in there for origin in origins.pop(name)]


def _published(tensors: Mapping[str, Tensor], path: Path) -> str:
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    norm = tensors.get("blocks.0.norm1.weight")
    shape = (0 if norm is None else norm.shape[0], len(blocks))
    if shape not in _PUBLISHED:
        raise TrunkError(
            f"{path} holds {shape[1]} blocks {shape[0]} wide, which is no published ViT. Give "
            "--model, timm's name of its model, and --model-kwargs where it differs from that."
        )
    return _PUBLISHED[shape]


def _check_beside(beside: Mapping[str, Any], vit: nn.Module, path: Path) -> None:
    """Holds the model against Hugging Face's config.json, which says what tensors do not."""
    said = path.parent / "config.json"
    heads = beside.get("num_attention_heads")
    if heads is not None and str(heads) != heads_of(vit):
        raise TrunkError(
            f"{said} states {heads} attention heads, the model has {heads_of(vit)}, so the same "
            "numbers would mean something else. Give "
            f"--model-kwargs '{{\"num_heads\": {heads}}}'."
        )
    if beside.get("hidden_act", "gelu") != "gelu":
        raise TrunkError(
            f"{said} states the activation {beside['hidden_act']!r}; the model's is gelu, so its "
            "MLPs would compute something else. It cannot be imported."
        )


def _check_fit(tensors: Mapping[str, Tensor], vit: nn.Module, path: Path) -> None:
    """Raises: TrunkError: the first tensor that does not fit; only the last norm may be lacking."""
    state = vit.state_dict()
    ours = {name: tuple(state[name].shape) for name in trunk_names(vit)}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = [
        name
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name) and (name in theirs or not _LAST_NORM.match(name))
    ]
    if odd:
        there, here = (
            "x".join(map(str, shapes[odd[0]])) if odd[0] in shapes else "not there"
            for shapes in (theirs, ours)
        )
        raise TrunkError(
            f"{path} does not fit model {name_of(vit)}: {odd[0]!r} is {there} in the file and "
            f"{here} in the model; {len(odd) - 1} others differ too. Give --model, timm's name of "
            "its model, and --model-kwargs where it differs from that."
        )

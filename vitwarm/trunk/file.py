"""Trunk files: safetensors with timm's own names, and what made them as string metadata."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from vitwarm.errors import TrunkError, nearest
from vitwarm.files import write_bytes
from vitwarm.trunk.family import model_facts, trunk_names

FORMAT_VERSION = 1
FILE_NAME = "trunk.safetensors"


@dataclass(frozen=True)
class Trunk:
    """A trunk file in memory."""

    tensors: dict[str, Tensor]
    """By timm's names, in the file's own dtypes, on the CPU."""
    metadata: dict[str, str]
    """`format_version`, `names` (JSON), `model`, `depth`, and what the maker added; `partial` is
    `true` where tensors of the model's trunk are left out on purpose."""
    sha256: str
    """Of names, shapes, dtypes and bytes of the tensors: the same trunk in another file has it."""
    path: Path | None = None

    @property
    def is_partial(self) -> bool:
        """Whether the file leaves out some of its model's trunk on purpose."""
        return self.metadata.get("partial") == "true"

    @property
    def facts(self) -> dict[str, Any]:
        """The metadata with what was JSON read as such: numbers, `rule`, `verdict`, ..."""
        facts: dict[str, Any] = dict(self.metadata)
        for name, text in self.metadata.items():
            with contextlib.suppress(ValueError):
                facts[name] = json.loads(text)
        return facts


def save_trunk(
    path: str | Path,
    tensors_or_model: Mapping[str, Tensor] | nn.Module,
    metadata: Mapping[str, str],
) -> Path:
    """Writes a trunk file, atomically.

    Args:
        path: the file, `.safetensors`.
        tensors_or_model: tensors by timm's names; or a timm model or TokenModel, whose trunk is
            taken and whose name and depth are added to the metadata.
        metadata: strings; `model`, `depth` (blocks of that model) and, where tensors are left out
            on purpose, `partial: "true"` are understood by the hand-off.
    Raises: RunError: the file cannot be written.
    """
    facts: dict[str, str] = {}
    if isinstance(tensors_or_model, nn.Module):
        model = tensors_or_model
        if hasattr(model, "facts") and isinstance(getattr(model, "model", None), nn.Module):
            facts = dict(model.facts)  # type: ignore[arg-type]
            model = model.model  # type: ignore[assignment]
        facts = {**model_facts(model), **facts}
        state = model.state_dict()
        tensors = {name: state[name] for name in trunk_names(model)}
    else:
        tensors = dict(tensors_or_model)
    tensors = {n: t.detach().to("cpu").contiguous().clone() for n, t in tensors.items()}
    facts = {
        **facts,
        **{str(k): str(v) for k, v in metadata.items()},
        "format_version": str(FORMAT_VERSION),
        "names": json.dumps(list(tensors)),
    }
    path = Path(path)
    write_bytes(path, save(tensors, metadata=facts))
    return path


def load_trunk(path: str | Path) -> Trunk:
    """Reads a trunk file, or what `find_trunk` finds under that name.

    Raises: TrunkError: there is none, it is damaged, or it is no trunk file.
    """
    path = find_trunk(str(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise TrunkError(
            f"{path} is no readable safetensors file ({first}). A trunk file is what `vitwarm "
            "warmup` or `vitwarm handoff graft` writes; make it again or copy it whole."
        ) from error
    names = _check(path, tensors, metadata)
    return Trunk(
        tensors={name: tensors[name] for name in names},
        metadata=metadata,
        sha256=content_sha256(tensors),
        path=path,
    )


def find_trunk(text: str) -> Path:
    """Returns the trunk file that a text means: a file, a run folder, or a name in data/trunks.

    Raises: TrunkError: none of them is there.
    """
    asked = Path(text).expanduser()
    if asked.is_file():
        return asked
    if asked.is_dir():
        if (asked / FILE_NAME).is_file():
            return asked / FILE_NAME
        raise TrunkError(
            f"{asked} holds no {FILE_NAME}: the warm-up there has not written one yet, or it is "
            "no run folder of a warm-up. Give a trunk file or the folder of a finished warm-up."
        )
    shipped = {p.stem: p for home in _trunk_homes() for p in sorted(home.glob("*.safetensors"))}
    if text.removesuffix(".safetensors") in shipped:
        return shipped[text.removesuffix(".safetensors")]
    raise TrunkError(
        f"There is no trunk {text!r}: neither a file, nor a run folder, nor one of the shipped "
        f"trunks ({', '.join(sorted(shipped)) or 'none'}).{nearest(text, shipped)}"
    )


def content_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns 64 hex digits of names, shapes, dtypes and bytes, whatever the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """Returns the names in the order of the model that they were saved from."""
    version = metadata.get("format_version")
    if version is None or "names" not in metadata:
        raise TrunkError(
            f"{path} is a safetensors file but no trunk: it has no list of trunk tensors. Give "
            "what `vitwarm warmup` wrote, or use handoff.init for a whole pretrained model."
        )
    if version != str(FORMAT_VERSION):
        raise TrunkError(
            f"{path} has trunk format {version}; this version reads {FORMAT_VERSION}. "
            "Upgrade vitwarm."
        )
    listed: list[str] = json.loads(metadata["names"])
    if set(listed) != set(tensors):
        odd = sorted(set(listed) ^ set(tensors))[0]
        raise TrunkError(
            f"{path} lists other tensors than it holds ({odd!r} for one). Make it again."
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise TrunkError(
                f"{path} holds numbers that are not finite, in {name!r} for one: that warm-up "
                "diverged. Warm up again with a lower warmup.lr."
            )
    return listed


def _trunk_homes() -> list[Path]:
    package = Path(__file__).resolve().parent.parent
    homes = (package.parent / "data" / "trunks", package / "data" / "trunks")
    return [home for home in homes if home.is_dir()]

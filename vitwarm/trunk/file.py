"""Trunk files: safetensors with timm's own names, and what made them as string metadata."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from vitwarm.errors import TrunkError, first_line, nearest
from vitwarm.files import write_bytes
from vitwarm.trunk.family import model_facts, trunk_names
from vitwarm.trunk.hub import PREFIX, fetch
from vitwarm.trunk.tie import drop_shared, untie
from vitwarm.trunk.whole import find_whole, read_whole

FORMAT_VERSION = 1
FILE_NAME = "trunk.safetensors"

_IMPORT = (
    "`vitwarm handoff import FILE --out TRUNK.safetensors` makes a trunk file of its blocks; "
    "handoff.init takes all of its weights."
)


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
            on purpose, `partial: "true"` are understood by the hand-off. With `block_groups`
            (JSON) what the blocks of a group share is written once.
    Raises:
        TrunkError: another suffix, by which no one would read it.
        RunError: the file cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise TrunkError(f"{path} is no name of a trunk file; it ends in .safetensors.")
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
    facts |= {str(k): str(v) for k, v in metadata.items()}
    if "block_groups" in facts:
        tensors = drop_shared(tensors, json.loads(facts["block_groups"]))
    tensors = {n: t.detach().to("cpu").contiguous().clone() for n, t in tensors.items()}
    facts |= {
        "format_version": str(FORMAT_VERSION),
        "names": json.dumps(list(tensors)),
    }
    path = Path(path)
    write_bytes(path, save(tensors, metadata=facts))
    return path


def load_trunk(path: str | Path) -> Trunk:
    """Reads a trunk file, or what `find_trunk` finds under that name; tied blocks are untied.

    Of an image model (an export folder, the run folder of a training, a timm tag) its trunk is
    taken, and `path` is what it was called.

    Raises: TrunkError: there is none, it is damaged, or it is no trunk file.
    """
    if whole := find_whole(str(path)):
        tensors, metadata = read_whole(whole, str(path))
        return Trunk(tensors, metadata, content_sha256(tensors), Path(path))
    path = find_trunk(str(path))
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".npz"):
        raise TrunkError(f"{path} is a checkpoint, not a trunk file. {_IMPORT}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise TrunkError(
            f"{path} is not a readable safetensors file ({first_line(error)}). A trunk file is "
            "what `vitwarm warmup` or `vitwarm handoff graft` writes; make it again or copy it "
            "whole."
        ) from error
    tensors = {name: tensors[name] for name in _check(path, tensors, metadata)}
    if "block_groups" in metadata:
        tensors, shared = untie(tensors, json.loads(metadata["block_groups"]))
        metadata["sources"] = json.dumps({n: f"{path} (shared: {s})" for n, s in shared.items()})
    return Trunk(
        tensors=tensors,
        metadata=metadata,
        sha256=content_sha256(tensors),
        path=path,
    )


def find_trunk(text: str) -> Path:
    """Returns the trunk file that a text means: a file, a run folder, a name in data/trunks, or
    `hf-hub:OWNER/NAME[@revision]`, which is fetched.

    Raises: TrunkError: none of them is there.
    """
    if text.startswith(PREFIX):
        return fetch(text, FILE_NAME)
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
    shipped = shipped_trunks()
    if text.removesuffix(".safetensors") in shipped:
        return shipped[text.removesuffix(".safetensors")]
    raise TrunkError(
        f"There is no trunk {text!r}: neither a file, nor a run folder, nor an export, nor one of "
        f"the shipped trunks ({', '.join(sorted(shipped)) or 'none'}), nor a tag of timm's, nor "
        "hf-hub:OWNER/NAME."
        f"{nearest(text, shipped)}"
    )


def shipped_trunks() -> dict[str, Path]:
    """Returns the trunks that ship with the package, name -> file."""
    return {p.stem: p for home in _trunk_homes() for p in sorted(home.glob("*.safetensors"))}


def content_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns 64 hex digits of names, shapes, dtypes and bytes, whatever the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _holds(kind: type) -> Callable[[str], bool]:
    def is_so(text: str) -> bool:
        try:
            return isinstance(json.loads(text), kind)
        except ValueError:
            return False

    return is_so


#: What metadata has to be where more is done with it than to show it.
_READ_AS: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("names", "block_groups"), _holds(list)),
    **dict.fromkeys(("model_args", "sources"), _holds(dict)),
    **dict.fromkeys(("depth", "samples", "tokens"), str.isdecimal),
    "verdict": ("not learned", "saturated early", "learned").__contains__,
}


def _check(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """Returns the names in the order of the model that they were saved from."""
    version = metadata.get("format_version")
    if version is None or "names" not in metadata:
        raise TrunkError(
            f"{path} is a safetensors file but no trunk: it has no list of trunk tensors. {_IMPORT}"
        )
    if version != str(FORMAT_VERSION):
        raise TrunkError(
            f"{path} has trunk format {version}; this version reads {FORMAT_VERSION}. "
            "Upgrade vitwarm."
        )
    for name in filter(metadata.__contains__, _READ_AS):
        if not _READ_AS[name](metadata[name]):
            raise TrunkError(
                f"{path} is damaged: its metadata says {name}={metadata[name]!r}. Make it again."
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

"""Files of weights that somebody wrote: tensors by name, read without running any code in them."""

from __future__ import annotations

import argparse
import pickletools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from vitwarm.errors import ModelError, first_line

#: Where a checkpoint holds its weights, the first that it has; timm's names and order, then DINO's.
PARTS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "student")


@dataclass(frozen=True)
class Weights:
    """The tensors of one model in a file."""

    tensors: dict[str, Tensor]
    """On the CPU, in the file's own dtypes; without `module.` and `_orig_mod.` before the names."""
    part: str = ""
    """The one of `PARTS` that they stand under; empty: none."""
    others: tuple[str, ...] = ()
    """What else the file holds: an optimiser, other weights, plain values."""


def read_weights(path: Path) -> Weights:
    """Reads safetensors, or what torch.save wrote of tensors and plain values.

    Raises: ModelError: neither of them, damaged, in need of code, or without a state dict.
    """
    if _is_safetensors(path):
        try:
            return Weights(clean_state_dict(load_file(path)))
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is not a readable safetensors file ({first_line(error)}). Copy it again, "
                "whole."
            ) from error
    found = _load_pickle(path)
    part = next((p for p in PARTS if isinstance(found.get(p), Mapping)), "")
    state = found[part] if part else found
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        keys = ", ".join(map(repr, list(found)[:6])) or "nothing"
        raise ModelError(
            f"{path} holds no weights: a checkpoint has tensors by their names, alone or under "
            f"{', '.join(PARTS[:-1])} or {PARTS[-1]}; this one has {keys}. Save model.state_dict()."
        )
    others = [*(k for k in found if part and k != part), *(k for k in state if k not in tensors)]
    return Weights(clean_state_dict(tensors), part, tuple(map(str, others)))


def _is_safetensors(path: Path) -> bool:
    """By the first bytes: files are renamed. A file of neither kind is what its name says."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path} is a pointer of Git LFS, not the weights themselves. Fetch them: git lfs pull."
        )
    if head[8:9] == b"{":  # behind the header's length, which may be any bytes
        return True
    is_pickle = head.startswith((b"PK", b"\x80"))  # what torch.save writes, or a plain one
    return not is_pickle and path.suffix == ".safetensors"


def _load_pickle(path: Path) -> Mapping[str, Any]:
    try:
        # timm's, DeiT's and MAE's checkpoints hold their command line, an argparse.Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with the file is said below
            with path.open("rb") as file:  # of a path torch would believe the ending
                found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever their opcodes come to
        code = _code_in(path)
        if code:
            raise ModelError(
                f"{path} is a pickle that needs code to be read ({code}), which could do "
                "anything, so it is not loaded. If you trust it, save only its tensors: "
                "torch.save(model.state_dict(), 'weights.pth')."
            ) from error
        raise ModelError(
            f"{path} is neither a safetensors file nor one that torch.save wrote, or it is cut "
            "short. Give a .safetensors file, or a .pth of model.state_dict(), whole."
        ) from error
    if not isinstance(found, Mapping):
        raise ModelError(
            f"{path} holds a {type(found).__name__}, not tensors by their names. "
            "Save model.state_dict()."
        )
    return found


def _code_in(path: Path) -> str:
    """The first classes and functions that a pickle asks for beyond tensors, in words."""
    try:
        with path.open("rb") as file:
            asked = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # torch.save did not write it
        asked = _named_in(path)
    return ", ".join(sorted(set(asked))[:3])


def _named_in(path: Path) -> list[str]:
    """The classes and functions that a plain pickle names, without running it."""
    named, texts = [], [""]
    try:
        with path.open("rb") as file:
            for code, word, _ in pickletools.genops(file):
                if isinstance(word, str) and code.name == "GLOBAL":
                    named.append(word.replace(" ", "."))
                elif isinstance(word, str):
                    texts.append(word)
                elif code.name == "STACK_GLOBAL":
                    named.append(".".join(texts[-2:]))
    except Exception:  # no pickle, or one that is cut short: what it named so far
        pass
    return named

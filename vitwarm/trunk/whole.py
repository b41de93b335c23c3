"""The trunk of a whole image model: an export folder, or timm's own weights by their tag."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import Tensor, nn

from vitwarm.errors import TrunkError, first_line
from vitwarm.seeding import torch_seeded
from vitwarm.trunk.family import model_facts, trunk_names


def find_whole(text: str) -> str | None:
    """Returns timm's name of the image model that a text means: an export folder, the run folder of
    a training, or a tag such as `vit_base_patch16_224.augreg_in1k`. None: it means none of them.
    """
    folder = Path(text).expanduser()
    for place in (folder, folder / "export"):
        if (place / "config.json").is_file() and (place / "model.safetensors").is_file():
            return f"local-dir:{place.resolve()}"
    is_tag = "." in text and ":" not in text and timm.is_model(text)
    return text if is_tag and timm.is_model_pretrained(text) else None


def read_whole(name: str, text: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of an image model's trunk, and what they are of.

    Args:
        name: as `find_whole` returns it.
        text: what the user called it.
    Raises:
        TrunkError: weights that cannot be had.
        ModelError: a model whose trunk is not known.
    """
    try:
        with torch_seeded(0, "model"):
            vit: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, the file and the hub each raise families of their own
        raise TrunkError(
            f"The weights of {text} cannot be loaded: {first_line(error)}. Give an export folder "
            "that is whole, or a timm tag while online."
        ) from error
    state = vit.state_dict()
    tensors = {name: state[name] for name in trunk_names(vit)}
    return tensors, {**model_facts(vit), "source": f"image model {text}"}

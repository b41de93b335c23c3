"""Models as folders that timm loads, in both of its ways."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from vitwarm.errors import RunError

#: What an export is replaced with; a hand-off's audit lies beside it.
_OF_AN_EXPORT = {"config.json", "model.safetensors", "audit.json"}


def export_model(vit: nn.Module, folder: str | Path, *, facts: Mapping[str, Any]) -> Path:
    """Writes a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    It holds `model.safetensors` (plain, as timm's --initial-checkpoint takes it) and `config.json`.
    An earlier export at `folder` is replaced once the new one is whole; nothing else ever is.

    Args:
        vit: a timm model.
        folder: the export folder.
        facts: `mean`, `std`, `crop_pct`, `interpolation`, `input_size` describe the preprocessing;
            `tag`, `license`, `origin` replace those of timm's own weights; everything else that is
            JSON goes to config.json under `vitwarm`.
    Raises: RunError: the folder cannot be written, or holds something else than an export.
    """
    folder = Path(folder)
    if foreign := sorted({path.name for path in _listed(folder)} - _OF_AN_EXPORT):
        raise RunError(
            f"{folder} holds {foreign[0]!r}, which is not of an export and would be lost. Give a "
            "new folder, an empty one, or that of an earlier export."
        )
    preprocessing = ("mean", "std", "crop_pct", "interpolation", "input_size", "crop_mode")
    data_config = {k: facts[k] for k in preprocessing if facts.get(k) is not None}
    described = {
        "tag": facts.get("tag", "vitwarm"),
        "license": facts.get("license", "unknown"),  # timm's own names the licence of ITS weights
        "origin_url": facts.get("origin", ""),
        "description": facts.get("description", "Trained with vitwarm."),
        "paper_name": "",
        "paper_ids": "",
        "notes": "",
    }
    known = {*preprocessing, "tag", "license", "origin", "description"}
    rest = {k: v for k, v in facts.items() if k not in known}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as made:
            new = Path(made) / "new"
            timm.models.save_for_hf(
                vit,
                str(new),
                model_config={"pretrained_cfg": described, "vitwarm": rest},
                safe_serialization=True,
                data_config=data_config or None,
            )
            for path in new.iterdir():  # safetensors leaves them readable by their owner alone
                path.chmod(0o644)
            if folder.exists():
                folder.rename(Path(made) / "old")
            new.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{folder} cannot be written: {reason}. Free some space or choose another folder."
        ) from error
    return folder


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []

"""What is pushed to the hub: a trunk or a trained model, with a card written from its record.

A repository of a trunk holds `trunk.safetensors`; one of a trained model is timm's, so that
`timm.create_model("hf-hub:OWNER/NAME", pretrained=True)` loads it. Paths of this machine stay here:
neither configs nor records are pushed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from vitwarm.errors import TrunkError
from vitwarm.records import Record, RunFolder
from vitwarm.trunk.file import FILE_NAME, load_trunk
from vitwarm.trunk.hub import upload


def push(source: str | Path, name: str, *, private: bool = False) -> str:
    """Uploads a trunk, or the export of a finished training, with its card.

    Args:
        source: a training's run folder; else a warm-up's, a trunk file or another trunk's name.
        name: `hf-hub:OWNER/NAME`; the repository is made if there is none.
        private: whether a new repository is visible to its owner alone.
    Returns: the name with the commit, `hf-hub:OWNER/NAME@commit`.
    Raises: TrunkError: nothing to push at `source`, or the hub refuses or is out of reach.
    """
    with tempfile.TemporaryDirectory() as made:
        card = _lay_out(Path(source), Path(made), name)
        (Path(made) / "README.md").write_text(str(card), encoding="utf-8")
        return upload(Path(made), name, private=private)


def _lay_out(source: Path, folder: Path, name: str) -> ModelCard:
    """Copies what is to be pushed into a folder and returns its card."""
    record = RunFolder(source).record if (source / "record.json").is_file() else None
    if record is not None and record.stage == "train":
        export = source / ("export_ema" if record.top1_weights == "ema" else "export")
        if not export.is_dir():
            raise TrunkError(f"{source} holds no {export.name}; run the training again.")
        shutil.copytree(export, folder, dirs_exist_ok=True)
        return _model_card(record, name)
    if (source / "config.json").is_file():
        raise TrunkError(f"{source} is an export; give its training's run folder, for the card.")
    trunk = load_trunk(str(source))
    if trunk.path is None or not trunk.path.is_file():
        raise TrunkError(f"{source} is an image model and no trunk file; there is none to push.")
    shutil.copyfile(trunk.path, folder / FILE_NAME)
    return _trunk_card({**trunk.facts, "content_sha256": trunk.sha256}, name)


def _trunk_card(facts: Mapping[str, Any], name: str) -> ModelCard:
    model = facts.get("model", "an unnamed model")
    bins = (facts.get("hidden_accuracy_by") or {}).get("match_distance", {})
    n_hidden = sum(one["n"] for one in bins.values())
    found, loss = facts.get("hidden_accuracy_percent"), facts.get("hidden_loss")
    arguments = facts.get("model_args") or {}
    rows = [
        ("made by", facts.get("source")),
        ("rule", facts.get("rule")),
        ("model", model),
        ("its arguments", arguments),
        ("blocks", facts.get("depth")),
        ("width", facts.get("width")),
        ("budget", _budget(facts.get("steps"), facts.get("samples"), facts.get("tokens"))),
        ("seed", facts.get("seed")),
        ("status", facts.get("status")),
        ("held-out accuracy on hidden tokens", _percent(found, n_hidden, "tokens")),
        ("chance (always the most frequent id)", _percent(facts.get("chance_percent"))),
        ("order-blind baseline", _percent(facts.get("order_blind_percent"))),
        ("loss, nats per hidden token", None if loss is None else f"{loss:.3f}"),
        ("verdict", facts.get("verdict")),
        ("code", facts.get("code_version")),
        ("sha256 of the tensors", facts["content_sha256"]),
    ]
    text = f"""\
The blocks and the last norm of a vision transformer that has seen no image: a start for image
training. Patch embedding, positions, tokens and head are not in the file; the hand-off makes them.

```python
import vitwarm

vit, audit = vitwarm.attach("{name}", model="{model}", **{arguments!r})
```

{_table(rows)}
"""
    return _card(name, text, library="vitwarm", tags=["vitwarm", "initialisation"])


def _model_card(record: Record, name: str) -> ModelCard:
    rows = [
        ("model", record.model),
        ("start", record.arm),
        ("rule of the warm-up", record.rule),
        ("its budget", _budget(None, record.warmup_samples, record.warmup_tokens)),
        ("its verdict", record.verdict),
        ("training images", _count(record.n_train_images)),
        ("share of the set", record.fraction),
        ("steps", _count(record.steps)),
        ("images seen", _count(record.images_seen)),
        ("top-1, after the last step", _percent(record.top1_percent, record.n_val_images)),
        ("top-5", _percent(record.top5_percent, record.n_val_images)),
        ("weights", record.top1_weights),
        ("runs", f"n = 1, seed {record.seed}: no spread over seeds is known from one run"),
        ("code", record.code_version),
        ("sha256 of the trunk it started from", record.trunk_sha256),
        ("config", record.config_hash),
    ]
    text = f"""\
```python
import timm

model = timm.create_model("{name}", pretrained=True)
```

{_table(rows)}
"""
    return _card(name, text, library="timm", tags=["timm", "image-classification", "vitwarm"])


def _card(name: str, text: str, *, library: str, tags: list[str]) -> ModelCard:
    head = ModelCardData(library_name=library, tags=tags).to_yaml()
    return ModelCard(f"---\n{head}\n---\n# {name.rpartition('/')[2]}\n\n{text}")


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [
        f"| {what} | {json.dumps(fact) if isinstance(fact, dict | list) else fact} |"
        for what, fact in rows
        if fact not in (None, "", {}, [])
    ]
    return "\n".join(["| | |", "|---|---|", *lines])


def _budget(steps: int | None, samples: int | None, tokens: int | None) -> str:
    said = ((steps, "steps"), (samples, "sequences"), (tokens, "tokens"))
    return ", ".join(f"{number:,} {what}" for number, what in said if number is not None)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _percent(value: float | None, n: int | None = None, what: str = "images") -> str:
    if value is None:
        return ""
    return f"{value:.2f} %" + (f" (n = {n:,} {what})" if n else "")

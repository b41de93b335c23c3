"""From words of the command line to models that are probed side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from vitwarm.config import TrainConfig
from vitwarm.config.ranges import is_plain
from vitwarm.errors import ConfigError
from vitwarm.handoff import attach, start_from
from vitwarm.trunk import build_model, build_shapes, load_trunk, model_facts
from vitwarm.trunk.inside import check_plain

COLD = "cold"


@dataclass(frozen=True)
class Probed:
    """A plain timm ViT that is probed, in eval mode."""

    label: str
    vit: Any
    start: str
    """Where its weights come from, in words."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, in [0, 1]."""

    def __post_init__(self) -> None:
        """Raises: ModelError, ConfigError: no plain ViT on square colour images."""
        check_plain(self.vit, self.label)
        height, width = self.vit.patch_embed.img_size
        if height != width:
            raise ConfigError(
                f"{self.label} takes images of {width} x {height} pixels; only square ones are "
                "probed. Give img_size as one number when it is handed off."
            )
        self.vit.eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """Pixels of both sides of the images that it takes."""
        return int(self.vit.patch_embed.img_size[0])

    @property
    def depth(self) -> int:
        """Blocks."""
        return len(self.vit.blocks)


def load_all(words: Sequence[str], *, seed: int) -> list[Probed]:
    """Builds the models that words mean, in their order.

    A word is an export folder or a run folder with one (as it is), a trunk file, a run folder of a
    warm-up or a shipped name (handed off: what is fresh comes from the seed), a timm name with the
    tag of its weights, or `cold`: timm's initialisation from the seed, of the first other model.
    `LABEL=WORD` names it in tables.

    Raises:
        ConfigError: `cold` alone, two models of one label, or a label that cannot name a file.
        ModelError, TrunkError, HandoffError: a word that means no model, or one that is no plain
            ViT on square colour images.
    """
    named = [_split(word) for word in words]
    labels = [label for label, _ in named]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        early, late = [word for label, word in named if label == twice][:2]
        raise ConfigError(
            f"Two models are called {twice!r}. Name them: vitwarm probe early={early} late={late}"
        )
    for label, word in named:
        if not is_plain(label):
            raise ConfigError(
                f"{label!r} cannot name a file on every system. Name the model so that it can, "
                f"without / \\ : * ? or quotes: vitwarm probe early={word}"
            )
    found = {label: _load(label, word, seed) for label, word in named if word != COLD}
    if not found:
        raise ConfigError(
            "cold is the initialisation of the first other model, and there is none. Give a run, "
            "an export or a trunk beside it."
        )
    first = next(iter(found.values()))
    return [found.get(label) or _cold(label, first, seed) for label in labels]


def _split(word: str) -> tuple[str, str]:
    """The label of a model, and what is left of its word."""
    label, equals, rest = word.partition("=")
    path = Path(word)
    if equals and label and not path.exists():
        return label, rest
    if path.name == "export" and path.resolve().parent.name:
        return path.resolve().parent.name, word
    return (path.name.removesuffix(".safetensors") or word), word


def _load(label: str, word: str, seed: int) -> Probed:
    folder = Path(word)
    export = folder / "export" if (folder / "export" / "config.json").is_file() else folder
    if (export / "config.json").is_file() or ("." in word and timm.is_model(word)):
        if timm.is_model(word):
            check_plain(build_shapes(word), label)
        vit, _ = start_from(word if export == folder else export, seed=seed)
        config: Any = vit.pretrained_cfg
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return Probed(label, vit, f"as exported: {export}", mean, std)
    trunk = load_trunk(word)
    kwargs = json.loads(trunk.metadata.get("model_args", "{}"))
    vit, _ = attach(trunk, model=trunk.metadata.get("model", ""), seed=seed, **kwargs)
    # What is not trained yet is shown images as `vitwarm train` would show them.
    mean, std = tuple(TrainConfig().mean), tuple(TrainConfig().std)
    verdict = trunk.metadata.get("verdict", "learned")
    said = word if verdict == "learned" else f"{word} ({verdict})"
    return Probed(label, vit, f"trunk {said}; the rest is fresh, seed {seed}", mean, std)


def _cold(label: str, like: Probed, seed: int) -> Probed:
    facts = model_facts(like.vit)
    vit = build_model(facts["model"], seed=seed, **json.loads(facts["model_args"]))
    return Probed(label, vit, f"timm's initialisation, seed {seed}", like.mean, like.std)

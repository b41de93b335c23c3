"""What happens to which image: RandAugment and 3-Augment by timm's names and definitions.

A policy turns a batch's random numbers into a plan: layers of (operation, which images, arguments).
The plan is made on the host, so that the device never has to ask which images an operation gets.
Source: timm 1.0.31, data/auto_augment.py (operations, level to argument, layers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vitwarm.augment.draws import Draws
from vitwarm.errors import ConfigError

#: Magnitudes are given out of ten.
LEVEL_MAX = 10.0


class Operation(NamedTuple):
    """One operation on some images of a batch."""

    kind: str
    """A name in `vitwarm.augment.pixels.OPERATIONS`."""
    which: np.ndarray
    """Which images: int64 [n], ascending."""
    args: np.ndarray
    """Per image: float32 [n, k], or uint8 [n, 256] for look-up tables."""


Plan = list[list[Operation]]

#: Column order is timm's list; `Increasing` variants grow stronger with the magnitude.
NAMES = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color",
    "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip

_KIND = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    **dict.fromkeys(("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness"), "table"),
    **dict.fromkeys(("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"), "affine"),
}


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Some random operations per image, timm's `rand-m9-mstd0.5-inc1`."""

    magnitude: float = 10.0
    magnitude_std: float = 0.0
    """Of the normal noise on the magnitude; infinite: uniform from 0 to the magnitude."""
    magnitude_max: float = LEVEL_MAX
    n_layers: int = 2
    prob: float = 0.5
    """Of each layer's operation being applied."""
    increasing: bool = False

    def choose(self, draws: Draws, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws one layer for every image.

        Returns: operation, int64 [b], index in NAMES or -1 for none; level, float64 [b] in
            [0, magnitude_max]; sign, float64 [b], -1 or 1.
        """
        which, applied, negative, spread = draws.uniform(
            *(f"layer{layer}/{name}" for name in ("which", "applied", "negative", "spread"))
        )
        chosen = np.where(applied < self.prob, np.floor(which * len(NAMES)), -1).astype(np.int64)
        level = np.full(len(draws), self.magnitude)
        if np.isinf(self.magnitude_std):
            level = spread * self.magnitude
        elif self.magnitude_std > 0:
            level = level + self.magnitude_std * draws.normal(f"layer{layer}/magnitude")
        return chosen, np.clip(level, 0, self.magnitude_max), np.where(negative < 0.5, -1.0, 1.0)

    def plan(self, draws: Draws, *, height: int, width: int) -> Plan:
        """Returns the layers of operations for a batch of images of this size."""
        layers: Plan = []
        for layer in range(self.n_layers):
            chosen, level, sign = self.choose(draws, layer)
            found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
            for number, name in enumerate(NAMES):
                index = np.flatnonzero(chosen == number)
                if len(index):
                    args = arguments(
                        name, level[index], sign[index],
                        increasing=self.increasing, height=height, width=width,
                    )  # fmt: skip
                    found.setdefault(_KIND[name], []).append((index, args))
            layers.append([])
            for kind, parts in found.items():
                which, args = (np.concatenate(part) for part in zip(*parts, strict=True))
                order = np.argsort(which)
                layers[-1].append(Operation(kind, which[order], args[order]))
        return layers


@dataclass(frozen=True, kw_only=True)
class ThreeAugment:
    """One of grey, solarise and blur per image (DeiT-III), timm's `3a`."""

    def plan(self, draws: Draws, *, height: int, width: int) -> Plan:
        """Returns one layer of operations for a batch."""
        which = draws.integers("three/which", 3)
        sigma = 0.1 + 1.9 * draws.uniform("three/sigma")[0]
        solarise, grey, blur = (np.flatnonzero(which == k) for k in range(3))
        table = arguments("Solarize", np.full(len(solarise), 5.0), np.ones(len(solarise)))
        return [
            [
                Operation("table", solarise, table),
                Operation("saturation", grey, np.zeros((len(grey), 1), np.float32)),
                Operation("blur", blur, sigma[blur, None].astype(np.float32)),
            ]
        ]


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast and saturation by random factors in a random order (torchvision)."""

    strength: float

    def plan(self, draws: Draws, *, height: int, width: int) -> Plan:
        """Returns one layer with one operation on all images."""
        factors = draws.uniform(*(f"jitter/{name}" for name in ("bright", "contrast", "color")))
        low = max(0.0, 1 - self.strength)
        bright, contrast, color = low + (1 + self.strength - low) * factors
        zero = np.zeros(len(draws))
        mixes = np.stack(
            [
                np.stack([bright, zero, zero], 1),
                np.stack([contrast, zero, 1 - contrast], 1),
                np.stack([color, 1 - color, zero], 1),
            ],
            axis=1,
        )
        order = np.argsort(draws.uniform("jitter/1st", "jitter/2nd", "jitter/3rd"), axis=0).T
        args = np.take_along_axis(mixes, order[:, :, None], axis=1).reshape(len(draws), 9)
        return [[Operation("jitter", np.arange(len(draws)), args.astype(np.float32))]]


Policy = RandAugment | ThreeAugment


def parse_policy(text: str | None) -> Policy | None:
    """Returns the policy of a timm name: `rand-m9-mstd0.5-inc1`, `3a`, or None for none.

    Raises: ConfigError: another name, a section that timm does not know, or a number that makes no
        sense there.
    """
    allowed = "rand-m9-mstd0.5-inc1 (sections m n p mstd mmax inc) or 3a; leave it out for none"
    if text is None or text in ("", "none"):
        return None
    if text == "3a":
        return ThreeAugment()
    name, *sections = text.split("-")
    if name != "rand":
        raise ConfigError(f"train.aa is {text!r}; allowed is {allowed}.")
    facts: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)([0-9]+\.?[0-9]*|\.[0-9]+|inf)", section)
        if match is None:
            raise ConfigError(
                f"train.aa is {text!r}; {section!r} is unknown. Allowed is {allowed}."
            )
        facts[match[1]] = float(match[2])
    _check_numbers(text, facts)
    std = facts.get("mstd", 0.0)
    return RandAugment(
        magnitude=facts.get("m", LEVEL_MAX),
        magnitude_std=np.inf if std > 100 else std,
        magnitude_max=facts.get("mmax", LEVEL_MAX),
        n_layers=int(facts.get("n", 2)),
        prob=facts.get("p", 0.5),
        increasing=bool(facts.get("inc", 0)),
    )


def _check_numbers(text: str, facts: dict[str, float]) -> None:
    magnitude, highest = facts.get("m", LEVEL_MAX), facts.get("mmax", LEVEL_MAX)
    if magnitude > highest:
        raise ConfigError(
            f"train.aa is {text!r}, but magnitudes go from 0 to {highest:g}; timm would clip it "
            f"silently. Use m{highest:g} or less (mmax, the highest, is 10 unless given)."
        )
    for name, meaning, low, high in (
        ("mmax", "the highest magnitude", 1, 100),
        ("n", "the number of operations per image, a whole number", 1, 100),
        ("p", "the probability of each operation", 0, 1),
    ):
        value = facts.get(name, 1)
        if not low <= value <= high or (name == "n" and value % 1):
            raise ConfigError(
                f"train.aa is {text!r}; {name}{value:g} is {meaning}, and must be from {low} to "
                f"{high}."
            )


def arguments(
    name: str,
    level: np.ndarray,
    sign: np.ndarray,
    *,
    increasing: bool = False,
    height: int = 1,
    width: int = 1,
) -> np.ndarray:
    """Returns what an operation of RandAugment gets at these levels.

    Args:
        level: [n] in [0, 10], or up to magnitude_max.  sign: [n], -1 or 1.
    Returns: float32 [n, k] or uint8 [n, 256], as the operation's kind in `pixels` takes it.
    """
    share = level / LEVEL_MAX
    if name in ("AutoContrast", "Equalize"):
        return np.zeros((len(level), 0), np.float32)
    if _KIND[name] == "affine":
        return _affine(name, share * sign, height=height, width=width)
    if name in ("Color", "Contrast", "Sharpness", "Brightness"):
        factor = np.maximum(0.1, 1 + sign * share * 0.9) if increasing else share * 1.8 + 0.1
        if name != "Brightness":
            return factor[:, None].astype(np.float32)
        return np.clip(factor[:, None] * np.arange(256), 0, 255).astype(np.uint8)
    return _table(name, share, increasing=increasing)


def _affine(name: str, amount: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """The map from output to input pixels, [n, 6]: x' = a x + b y + c, y' = d x + e y + f."""
    zero, one = np.zeros_like(amount), np.ones_like(amount)
    if name == "Rotate":  # up to 30 degrees about the centre
        angle = np.radians(-30 * amount)
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = width / 2, height / 2
        rows = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    elif name == "ShearX":
        rows = (one, 0.3 * amount, zero, zero, one, zero)
    elif name == "ShearY":
        rows = (one, zero, zero, 0.3 * amount, one, zero)
    elif name == "TranslateXRel":
        rows = (one, zero, 0.45 * amount * width, zero, one, zero)
    else:
        rows = (one, zero, zero, zero, one, 0.45 * amount * height)
    return np.stack(rows, axis=1).astype(np.float32)


def _table(name: str, share: np.ndarray, *, increasing: bool) -> np.ndarray:
    """Look-up tables [n, 256] of the operations that see one value at a time."""
    value = np.arange(256)[None]
    if name == "Invert":
        table = np.broadcast_to(255 - value, (len(share), 256))
    elif name == "Posterize":
        bits = np.minimum((share * 4).astype(int), 8)
        bits = (4 - bits if increasing else bits)[:, None]
        table = value & ~((1 << (8 - bits)) - 1)
    elif name == "Solarize":
        threshold = np.minimum(256, (share * 256).astype(int))[:, None]
        threshold = 256 - threshold if increasing else threshold
        table = np.where(value < threshold, value, 255 - value)
    else:
        add = np.minimum(128, (share * 110).astype(int))[:, None]
        table = np.where(value < 128, np.minimum(255, value + add), value)
    return np.ascontiguousarray(table, dtype=np.uint8)

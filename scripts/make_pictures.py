"""Draws the picture of the idea for README and docs: python scripts/make_pictures.py

The pictures of results come from `vitwarm report` on their records and are not drawn here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"
INK, WARM, FRESH, PAPER = "#24292f", "#f2b705", "#8ecae6", "#ffffff"
#: A balanced word of three kinds of brackets; its hidden tokens are the underlined ones.
WORD, HIDDEN = "([]{})[]", {2, 5}


def main() -> int:
    """Writes idea.svg."""
    plt.rcParams.update({"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10})
    figure, axes = plt.subplots(figsize=(9.0, 3.3), facecolor=PAPER)
    axes.set(xlim=(0, 90), ylim=(0, 33))
    axes.axis("off")
    _warm_up(axes)
    _arrow(axes, (31, 17), (38, 17), "trunk\nfile")
    _image_model(axes)
    _arrow(axes, (64.5, 17), (69, 17), "")
    _curve(axes)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        IMAGES / "idea.svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None}
    )
    print(IMAGES / "idea.svg")
    return 0


def _warm_up(axes: Axes) -> None:
    axes.text(15, 31, "1  warm up: no images", ha="center", weight="bold", color=INK)
    for place, token in enumerate(WORD):
        hidden = place in HIDDEN
        x = 3 + 3.2 * place
        _box(axes, x, 2, 2.4, 3.4, WARM if hidden else PAPER, "?" if hidden else token)
    axes.text(15, 6.8, "tokens, past the patch embedding", ha="center", fontsize=8, color=INK)
    for block in range(4):
        _box(axes, 5, 9 + 4.2 * block, 20, 3.4, WARM, "block")
    axes.text(15, 27, "what is hidden?   ]   )", ha="center", fontsize=9, color=INK)


def _image_model(axes: Axes) -> None:
    axes.text(51.5, 31, "2  hand off, 3  train", ha="center", weight="bold", color=INK)
    _box(axes, 40, 3.6, 23, 3.4, FRESH, "patch embedding")
    for block in range(4):
        _box(axes, 40, 9 + 4.2 * block, 23, 3.4, WARM, "block")
    _box(axes, 40, 26, 23, 3.4, FRESH, "head")
    axes.text(51.5, 1.2, "images: 1 %, 10 %, all", ha="center", fontsize=8, color=INK)


def _curve(axes: Axes) -> None:
    axes.text(81, 31, "4  compare", ha="center", weight="bold", color=INK)
    axes.plot([73, 73, 90], [27, 7, 7], color=INK, lw=1)
    axes.text(81.5, 3.8, "images  (a sketch, not a result)", ha="center", fontsize=8, color=INK)
    axes.text(72, 17, "accuracy", ha="right", va="center", rotation=90, fontsize=8, color=INK)
    axes.plot([74, 79, 84, 89], [11, 15, 19, 22], "o-", color="#4f6d7a", lw=1.6, ms=4)
    axes.plot([74, 79, 84, 89], [12.5, 17, 20.2, 22.6], "s-", color="#c98a00", lw=1.6, ms=4)
    axes.text(84, 12.5, "timm's start", fontsize=8, color="#4f6d7a")
    axes.text(74, 24.5, "warmed: better, worse\nor the same?", fontsize=8, color="#c98a00")


def _box(axes: Axes, x: float, y: float, w: float, h: float, fill: str, text: str) -> None:
    style = "round,pad=0,rounding_size=0.5"
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=fill, ec=INK, lw=0.8))
    axes.text(x + w / 2, y + h / 2 - 0.1, text, ha="center", va="center", color=INK, fontsize=9)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4})
    axes.text((start[0] + end[0]) / 2, start[1] + 1.2, text, ha="center", fontsize=8, color=INK)


if __name__ == "__main__":
    sys.exit(main())

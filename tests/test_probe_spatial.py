"""Frozen spatial quality: a probe must find squares on noise, and say what is wrong with scenes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitwarm.cli import main
from vitwarm.errors import ShardError
from vitwarm.handoff import export_model
from vitwarm.probe.images import ProbeImages, Scenes, region_boxes
from vitwarm.probe.spatial import (
    SpatialProbe,
    attended_box,
    confusion,
    lost_box,
    mean_iou,
    overlaps,
    patch_targets,
)
from vitwarm.shards.write.writer import Sample, write_shards
from vitwarm.trunk import build_model

SIZE, GRID = 32, (8, 8)
SMALL = {"img_size": SIZE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def scene(rng: np.random.Generator, label: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A bright square, reddish or bluish, somewhere on dark noise; its mask; its box."""
    width, height = (64, 32) if label else (32, 48)  # so that squeezing is tested too
    pixels = rng.normal(60, 25, (height, width, 3))
    w, h = (int(rng.integers(side * 3 // 8, side // 2)) for side in (width, height))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    pixels[y : y + h, x : x + w] = rng.normal(225, 25, (h, w, 3))
    pixels[y : y + h, x : x + w, 2 - 2 * label] -= 60
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1 + label
    return np.clip(pixels, 0, 255).astype(np.uint8), mask, [x, y, x + w, y + h]


def write_scenes(
    folder: Path,
    *,
    n: int = 64,
    boxes: str = "json",
    masks: bool = True,
    change: Callable[[int, np.ndarray], np.ndarray] = lambda k, mask: mask,
) -> Path:
    """Writes scenes as shards.

    Args:
        boxes: `json`, `none`, or `shuffled`, those of another image.
        change: of an image's number and its mask, what is written as its mask.
    """
    rng = np.random.default_rng(0)
    made = [scene(rng, k % 2) for k in range(n)]
    samples = []
    for k, (pixels, mask, box) in enumerate(made):
        beside = {}
        if masks:
            beside["mask.png"] = encode(change(k, mask))
        if boxes != "none":
            own = box if boxes == "json" else made[(k + 2) % n][2]
            beside["json"] = json.dumps({"label": k % 2, "boxes": [own]}).encode()
        samples.append(Sample(f"scene{k:03d}", "png", encode(pixels), k % 2, beside))
    write_shards(folder, "scenes", samples, n_samples=n, n_shards=2)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def attentive_model() -> Any:
    """Builds a model whose last class token attends to bright patches and to nothing else."""
    model = build_model("vit_tiny_patch16_224", seed=0, num_classes=0, **SMALL)
    state = model.state_dict()
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight"):
        state[name].zero_()
    for block in model.blocks:  # the residual stream stays as it is
        block.attn.proj.weight.data.zero_()
        block.mlp.fc2.weight.data.zero_()
    state["patch_embed.proj.weight"][0] = 1 / 48  # feature 0: brightness
    state["blocks.1.attn.qkv.weight"][[16, 24], 0] = 1.0  # key 0 of both heads: its sign
    state["blocks.1.attn.qkv.bias"][[0, 8]] = 10.0  # query 0: always asks for it
    return model


def probe(folder: Path, model: Any, data: Path) -> dict[str, Any]:
    export_model(model, folder / "model", facts={})
    words = [str(folder / "model"), "--data", str(data), "--out", str(folder / "out")]
    assert main(["probe", *words, "--images", "64", "--device", "cpu"]) == 0
    found: dict[str, Any] = json.loads((folder / "out" / "model.probe.json").read_text())
    return found


def test_squares_on_noise_are_found(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = probe(tmp_path, attentive_model(), scenes)
    assert (found["n_boxed"], found["n_masked"], found["n_masked_test"]) == (64, 64, 16)
    assert found["corloc_attention"] >= 95
    assert found["corloc_whole"] == 0
    assert "localisation, attention, % CorLoc" in capsys.readouterr().out
    # Without boxes they come from the masks' regions, and are the same.
    again = probe(tmp_path, attentive_model(), write_scenes(tmp_path / "m", boxes="none"))
    assert again["corloc_attention"] == found["corloc_attention"]
    # The boxes of other images are not found: the figure can fail.
    other = probe(tmp_path, attentive_model(), write_scenes(tmp_path / "s", boxes="shuffled"))
    assert other["corloc_attention"] < 40


def test_the_pages_example_makes_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "docs/probe.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found = probe(tmp_path, attentive_model(), Path("scenes.tar"))
    assert (found["n_masked"], found["n_boxed"]) == (64, 64)
    assert found["corloc_attention"] >= 95


def test_a_cold_start_separates_bright_from_dark(tmp_path: Path, scenes: Path) -> None:
    cold = build_model("vit_tiny_patch16_224", seed=0, num_classes=0, **SMALL)
    found = probe(tmp_path, cold, scenes)
    assert found["corloc_lost"] >= 85  # the keys of a bright and of a dark patch point apart
    assert found["corloc_attention"] < 40  # its class token attends to all alike
    assert found["miou"] > 60


def test_no_masks_no_figures(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "none", n=16, boxes="none", masks=False)
    found = probe(tmp_path, attentive_model(), data)
    assert found["miou"] is found["corloc_lost"] is None
    assert found["n_boxed"] == 0


def test_masks_of_one_bit_are_classes_too(tmp_path: Path) -> None:
    one_bit = write_scenes(tmp_path / "bit", boxes="none", change=lambda k, mask: mask > 0)
    bytes_ = write_scenes(
        tmp_path / "byte", boxes="none", change=lambda k, mask: (mask > 0) * np.uint8(1)
    )
    found = probe(tmp_path, attentive_model(), one_bit)
    assert found == probe(tmp_path, attentive_model(), bytes_) | {"images": found["images"]}
    assert found["n_boxed"] == 64
    assert found["miou"] < 100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda k, mask: mask * 0 + 255, "the masks hold one class alone"),
        (lambda k, mask: mask * 0, "the masks hold one class alone"),
        (lambda k, mask: mask if k < 4 else mask * 0 + 255, "of the masks to test on is 255"),
    ],
)
def test_masks_that_tell_nothing_give_no_figure(
    tmp_path: Path, change: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_scenes(tmp_path / "s", change=change)
    images = ProbeImages(data, n_images=64, seed=0)
    if "to test on" in says:  # the masks to learn from keep theirs
        keep = {int(images.rows[place]) for place in np.flatnonzero(images.is_fit)}
        data = write_scenes(
            tmp_path / "t", change=lambda k, mask: mask if k in keep else mask * 0 + 255
        )
    found = probe(tmp_path, attentive_model(), data)
    assert found["miou"] is None
    assert any(says in note for note in found["notes"])
    assert says in capsys.readouterr().out


def test_one_mask_is_too_few_and_said(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "s", n=16)
    scenes = Scenes(ProbeImages(data, n_images=16, seed=0))
    scenes.masked = scenes.masked[:1]
    (note,) = SpatialProbe(scenes, attentive_model()).found()["notes"]
    assert "give more images with masks" in note


def test_boxes_of_maps_by_hand() -> None:
    flat = np.full((4, 6), 0.001)
    flat[1:3, 2:4] = 1.0
    flat[0, 5] = 0.9  # strong, but not connected
    assert np.allclose(attended_box(flat), [2 / 6, 1 / 4, 4 / 6, 3 / 4])
    one = np.zeros((4, 6))
    one[3, 0] = 1
    assert np.allclose(attended_box(one), [0, 3 / 4, 1 / 6, 1])
    assert np.allclose(attended_box(np.ones((4, 6))), [0, 0, 1 / 6, 1 / 4])


def test_overlaps_by_hand() -> None:
    others = np.array([[0, 0, 1, 1], [0.5, 0, 1, 0.5], [0.6, 0.6, 1, 1], [0.25, 0, 0.75, 0.5]])
    assert overlaps(np.array([0, 0, 0.5, 0.5]), others).tolist() == pytest.approx(
        [1 / 4, 0, 0, 1 / 3]
    )


def test_lost_by_loops() -> None:
    rng = np.random.default_rng(5)
    grid = (5, 6)
    for _ in range(20):
        keys = rng.normal(size=(30, 3)) + np.array([0.7, 0, 0])
        friends = [sum(keys[p] @ keys[q] > 0 for q in range(30)) for p in range(30)]
        order = sorted(range(30), key=lambda p: (friends[p], p))
        seed = order[0]
        grown = [p for p in order[:4] if keys[seed] @ keys[p] > 0]
        kept = {p for p in range(30) if sum(keys[s] @ keys[p] for s in grown) > 0} | {seed}
        region, todo = {seed}, [seed]
        while todo:
            row, column = divmod(todo.pop(), 6)
            for r, c in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if 0 <= r < 5 and 0 <= c < 6 and 6 * r + c in kept - region:
                    region.add(6 * r + c)
                    todo.append(6 * r + c)
        rows, columns = zip(*(divmod(p, 6) for p in region), strict=True)
        box = [min(columns) / 6, min(rows) / 5, (max(columns) + 1) / 6, (max(rows) + 1) / 5]
        assert np.allclose(lost_box(torch.from_numpy(keys), grid), box)


def test_mean_iou_by_sets() -> None:
    rng = np.random.default_rng(6)
    true, guessed = rng.integers(0, 3, (2, 40)).astype(np.uint8)
    true[:5] = 255
    ious = []
    for k in range(3):
        a = {i for i in range(5, 40) if true[i] == k}
        b = {i for i in range(5, 40) if guessed[i] == k}
        ious.append(len(a & b) / len(a | b))
    counts = confusion(true, guessed, 5)  # two classes that do not occur
    assert mean_iou(counts) == pytest.approx(100 * sum(ious) / 3)


def test_patch_targets_by_loops() -> None:
    rng = np.random.default_rng(7)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, 8))
    mask[:4, :2] = 255
    shares, weights = patch_targets(mask, (2, 4), 3)
    for p in range(8):
        row, column = divmod(p, 4)
        patch = mask[4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
        n = (patch != 255).sum()
        assert weights[p] == n / 8
        expected = [(patch == k).sum() / max(n, 1) for k in range(3)]
        assert shares[p].tolist() == pytest.approx(expected)


def test_boxes_of_regions() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 1:4] = 2
    mask[4:, 6:] = 2
    mask[5, 0] = 1
    mask[0, 7] = 255
    assert region_boxes(mask) == [[0, 5, 1, 6], [1, 1, 4, 3], [6, 4, 8, 6]]


def test_masks_keep_their_place_when_squeezed(scenes: Path) -> None:
    images = ProbeImages(scenes, n_images=16, seed=0)
    found = Scenes(images)
    for place in range(16):
        mask = found.mask(place, 32) > 0
        x0, y0, x1, y1 = found.boxes[place][0] * 32
        rows, columns = np.nonzero(mask)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(edges, [x0, y0, x1, y1], atol=1)
        bright = images.pixels(32)[place].float().mean(dim=0).numpy()
        assert bright[mask].mean() > bright[~mask].mean() + 80


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"mask.png": encode(np.zeros((9, 8), np.uint8))}, "the mask has 8 x 9 pixels"),
        ({"mask.png": encode(np.zeros((8, 8, 3), np.uint8))}, "PNG of mode RGB"),
        ({"mask.png": b"\x89PNG no"}, "the mask does not decode"),
        ({"json": b'{"boxes": [[0, 0, 9, 4]]}'}, r"the box \[0, 0, 9, 4\] does not lie inside"),
        ({"json": b'{"boxes": [[4, 0, 4, 4]]}'}, "has no area"),
        ({"json": b'{"boxes": [[-1, 0, 4, 4]]}'}, "does not lie inside"),
        ({"json": b'{"boxes": [[0, 0, 4]]}'}, "holds no list of boxes"),
        ({"json": b'{"boxes": [["a", 0, 4, 4]]}'}, "holds no list of boxes"),
        ({"json": b'{"boxes": 7}'}, "holds no list of boxes"),
        ({"json": b"{"}, "holds no list of boxes"),
    ],
)  # fmt: skip
def test_scenes_that_cannot_be_used(tmp_path: Path, beside: dict[str, bytes], says: str) -> None:
    image = encode(np.zeros((8, 8, 3), np.uint8))
    samples = [Sample(f"k{k}", "png", image, 0, beside if k == 5 else {}) for k in range(10)]
    write_shards(tmp_path, "bad", samples, n_samples=10, n_shards=1)
    with pytest.raises(ShardError, match=says) as error:
        Scenes(ProbeImages(tmp_path, n_images=10, seed=0))
    assert "'k5'" in str(error.value)

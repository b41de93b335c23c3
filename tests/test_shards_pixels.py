"""What the loader's fast decoding and resizing shows is what Pillow would show."""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_maker import encode, sample, smooth, write_tar
from timm.data import create_transform

from vitwarm.shards import (
    EvalCrop,
    Order,
    ShardIndex,
    TrainCrop,
    make_train_loader,
    make_val_loader,
)
from vitwarm.shards.load import pixels as decode_module
from vitwarm.shards.load.pixels import Size, UnreadableImage, decode, read_header

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
N = 6
#: Levels of 255, per pixel and channel, on average over a batch.
ALLOWED = 2.0


def photographs(rng: np.random.Generator, height: int, width: int) -> list[bytes]:
    """JPEGs of soft forms, edges and fine texture, with and without chroma subsampling."""
    files = []
    for k in range(N):
        grain = rng.normal(0, 8, (height, width, 1))
        pixels = np.clip(smooth(rng, height, width) + grain, 0, 255).astype(np.uint8)
        files.append(encode(pixels, quality=90, subsampling=("4:4:4", "4:2:0")[k % 2]))
    return files


def write(folder: Path, files: list[bytes]) -> ShardIndex:
    members = [m for k, data in enumerate(files) for m in sample(f"im{k}", 0, data)]
    write_tar(folder / "photographs.tar", members)
    return ShardIndex.open(folder, cache=folder)


def mean_difference(
    shown: np.ndarray, files: list[bytes], theirs: Callable[[int, Image.Image], Image.Image]
) -> float:
    """Of uint8 [b, 3, S, S] and what Pillow makes of the same files."""
    pillow = np.stack([theirs(k, Image.open(io.BytesIO(data))) for k, data in enumerate(files)])
    return float(np.abs(shown.transpose(0, 2, 3, 1).astype(int) - pillow).mean())


@pytest.mark.parametrize(
    ("height", "width", "size", "reduction"),
    [
        (375, 500, 224, 1),
        (240, 180, 224, 1),
        (500, 375, 48, 4),
        (500, 500, 96, 2),
        (600, 800, 32, 8),
        (375, 500, (96, 224), 1),
        (500, 500, (120, 60), 2),
    ],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_training_crops_are_pillows(
    tmp_path: Path, rng: np.random.Generator, height: int, width: int, size: Size, reduction: int,
    interpolation: str,
) -> None:  # fmt: skip
    files = photographs(rng, height, width)
    index = write(tmp_path, files)
    crop = TrainCrop(size, interpolation=interpolation)  # type: ignore[arg-type]
    order = Order(index, np.arange(N), seed=0)
    (batch,) = make_train_loader(
        index, order, crop=crop, seed=0, batch_size=N, micro_batch_size=N, n_steps=1, workers=0
    )
    rows = batch.rows.numpy()
    boxes = crop.boxes(0, batch.epochs.numpy(), rows, height, width)
    assert crop.reduction(boxes).max() == reduction  # this case decodes at such a scale
    assert 0 < boxes[:, 4].sum() < N  # and flips some

    def theirs(k: int, image: Image.Image) -> Image.Image:
        top, left, box_height, box_width, flip = boxes[k].tolist()
        cut = image.crop((left, top, left + box_width, top + box_height))
        out = cut.resize(crop.sides[::-1], FILTERS[interpolation])
        return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else out

    assert mean_difference(batch.images.numpy(), [files[r] for r in rows], theirs) < ALLOWED


@pytest.mark.parametrize(
    ("height", "width", "size"), [(375, 500, 224), (150, 200, 224), (600, 450, 64)]
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_crops_are_pillows(
    tmp_path: Path, rng: np.random.Generator, height: int, width: int, size: int,
    interpolation: str,
) -> None:  # fmt: skip
    files = photographs(rng, height, width)
    crop = EvalCrop(size, interpolation=interpolation)  # type: ignore[arg-type]
    (batch,) = make_val_loader(write(tmp_path, files), crop=crop, batch_size=N, workers=0)

    def theirs(k: int, image: Image.Image) -> Image.Image:
        scale = math.floor(size / crop.crop_pct) / min(height, width)
        new_width, new_height = int(width * scale), int(height * scale)
        left, top = round((new_width - size) / 2), round((new_height - size) / 2)
        resized = image.resize((new_width, new_height), FILTERS[interpolation])
        return resized.crop((left, top, left + size, top + size))

    assert mean_difference(batch.images.numpy(), files, theirs) < ALLOWED


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (300, 300), (90, 400)])
@pytest.mark.parametrize("size", [(96, 224), (224, 96)])
def test_evaluation_crops_that_are_not_square_are_timms(
    tmp_path: Path, rng: np.random.Generator, height: int, width: int, size: tuple[int, int]
) -> None:
    files = photographs(rng, height, width)
    crop = EvalCrop(size, crop_pct=0.9)
    (batch,) = make_val_loader(write(tmp_path, files), crop=crop, batch_size=N, workers=0)
    timms = create_transform(
        (3, *size), interpolation="bicubic", crop_pct=0.9, use_prefetcher=True
    ).transforms[:-1]  # without the step to a tensor

    def theirs(k: int, image: Image.Image) -> Image.Image:
        for step in timms:
            image = step(image)
        assert image.size == size[::-1]
        return image

    assert mean_difference(batch.images.numpy(), files, theirs) < ALLOWED


@pytest.mark.parametrize(
    "how",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:0", "restart_marker_rows": 1},
        {"comment": b"\xff\xc0" * 20},
    ],
)
@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_the_rows_that_a_crop_needs_are_those_of_the_whole_image(
    rng: np.random.Generator, how: dict[str, object], reduction: int
) -> None:
    image = read_header(encode(smooth(rng, 207, 133), quality=90, **how))
    whole = decode(image, reduction=reduction)
    for rows in (1, 8, 64, 100, 177, 206, 207):
        upper = decode(image, reduction=reduction, rows=rows)
        needed = -(-rows // reduction)
        assert len(upper) >= needed
        assert np.array_equal(upper[:needed], whole[:needed])
    assert len(decode(image, reduction=reduction, rows=64)) <= 96 // reduction


def test_images_that_cannot_be_decoded_in_part_are_decoded_whole(rng: np.random.Generator) -> None:
    pixels = smooth(rng, 207, 133)
    jpeg = encode(pixels, quality=90)
    for data in (encode(pixels, quality=90, progressive=True), jpeg + b"\0", encode(pixels, "png")):
        image = read_header(data)
        assert np.array_equal(decode(image, rows=16), decode(image))
        assert len(decode(image)) == 207
    with pytest.raises(UnreadableImage):  # though the rows asked for are there
        decode(read_header(jpeg[: len(jpeg) * 3 // 4]), rows=16)


def test_where_simplejpeg_does_not_load_pillow_shows_the_same(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second copy of the module, loaded where the import fails; and a loader says it once."""
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    spec = importlib.util.find_spec(decode_module.__name__)
    assert spec is not None
    assert spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, alone)  # dataclasses look there for their module
    spec.loader.exec_module(alone)
    assert alone.simplejpeg is None
    files = [*photographs(rng, 207, 133), encode(smooth(rng, 64, 65), "png")]
    for data in files:
        for reduction in (1, 2, 4, 8):
            ours = decode(read_header(data), reduction=reduction, rows=64)
            theirs = alone.decode(alone.read_header(data), reduction=reduction, rows=64)
            assert ours.shape[1:] == theirs.shape[1:]
            needed = 64 // (reduction if len(ours) < 64 else 1)
            assert np.abs(ours[:needed].astype(int) - theirs[:needed]).max() <= 2
    for bad in (files[0][:-900], files[0][:30], b"no image"):
        with pytest.raises(alone.UnreadableImage):
            alone.decode(alone.read_header(bad))
    for _ in range(2):
        alone.tell_decoder()
    assert caplog.text.count("simplejpeg does not load (import of simplejpeg halted") == 1

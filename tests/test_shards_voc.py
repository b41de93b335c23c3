"""Pascal VOC's folders to shards: lists, masks and boxes arrive; what is missing is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitwarm.cli import main
from vitwarm.errors import ShardError
from vitwarm.probe.images import ProbeImages, Scenes
from vitwarm.shards import ShardIndex
from vitwarm.shards.write.voc import make_voc_shards, read_annotation

OBJECT = (
    "<object><name>{}</name><difficult>0</difficult><bndbox><ymin>{}</ymin><xmin>{}</xmin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_voc(home: Path) -> Path:
    """Ten images for each list; every other one has a mask. The dog is larger than the cat."""
    voc = home / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (voc / name).mkdir(parents=True)
    for folder in ("Main", "Segmentation"):
        (voc / "ImageSets" / folder).mkdir(parents=True)
    for split in ("train", "val"):
        keys = [f"2008_{split}{k:02d}" for k in range(10)]
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(keys) + "\n")
        (voc / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(keys[::2]))
        for number, key in enumerate(keys):
            Image.new("RGB", (50, 40), (number, 0, 0)).save(voc / "JPEGImages" / f"{key}.jpg")
            things = OBJECT.format("cat", 1, 1, 10, 10) + OBJECT.format("dog", 21, 11, 50, 40)
            xml = f"<annotation><filename>{key}.jpg</filename>{things}</annotation>"
            (voc / "Annotations" / f"{key}.xml").write_text(xml)
            if number % 2 == 0:
                mask = Image.new("P", (50, 40), 0)
                mask.putpalette(bytes(range(256)) * 3)
                mask.paste(12, (10, 20, 50, 40))
                mask.paste(255, (10, 20, 12, 40))
                mask.save(voc / "SegmentationClass" / f"{key}.png")
    return voc


def test_masks_and_boxes_arrive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc = write_voc(tmp_path)
    assert main(["shards", "voc", str(voc), str(tmp_path / "out")]) == 0
    assert f"data.val={tmp_path}/out/validation" in capsys.readouterr().out
    index = ShardIndex.open(tmp_path / "out/validation")
    assert index.n_images == 10
    assert index.n_classes == 20
    assert set(index.labels.tolist()) == {index.classes.index("dog")}
    images = ProbeImages(tmp_path / "out/train", n_images=10, seed=0)
    scenes = Scenes(images)
    assert len(scenes.masked) == 5
    assert scenes.n_classes == 13  # the dog is class 12 of a mask; 255 is none
    for boxes in scenes.boxes.values():
        assert np.allclose(boxes * [50, 40, 50, 40], [[0, 0, 10, 10], [10, 20, 50, 40]])
    mask = scenes.mask(scenes.masked[0], 100)
    assert np.unique(mask).tolist() == [0, 12, 255]
    assert (mask == 12).sum() == 76 * 50


def test_only_masked_images_and_the_same_bytes_again(tmp_path: Path) -> None:
    voc = write_voc(tmp_path)
    for name in ("a", "b"):
        counts = make_voc_shards(voc, tmp_path / name, masked_only=True)
        assert counts == {"train": 5, "validation": 5}
    tars = sorted(path.name for path in (tmp_path / "a").glob("*.tar"))
    assert tars == ["voc2012-train-0000.tar", "voc2012-validation-0000.tar"]
    for name in tars:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_no_voc_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="Give a folder with JPEGImages"):
        make_voc_shards(tmp_path, tmp_path / "out")
    voc = write_voc(tmp_path)
    with pytest.raises(ShardError, match="--images-per-shard is 0"):
        make_voc_shards(voc, tmp_path / "out", images_per_shard=0)
    one = voc / "Annotations/2008_val03.xml"
    for text, says in (
        ("<annotation>", "is not an annotation of VOC"),
        ("<annotation/>", "names no object"),
        (f"<annotation>{OBJECT.format('elk', 1, 1, 2, 2)}</annotation>", "'elk' is not a class"),
        (f"<annotation>{OBJECT.format('cat', 1, 'one', 2, 2)}</annotation>", "not an annotation"),
    ):
        one.write_text(text)
        with pytest.raises(ShardError, match=says):
            read_annotation(one)
    with pytest.raises(ShardError, match=r"2008_val03\.xml"):
        make_voc_shards(voc, tmp_path / "out")
    assert not list((tmp_path / "out").glob("voc2012-validation*"))


def test_the_image_is_carried_byte_for_byte(tmp_path: Path) -> None:
    voc = write_voc(tmp_path)
    make_voc_shards(voc, tmp_path / "out")
    images = ProbeImages(tmp_path / "out/train", n_images=10, seed=0)
    shown = images.pixels(8)[:, 0].float().mean(dim=(1, 2)).round().int().tolist()
    originals = []
    for row in images.rows.tolist():
        data = (voc / "JPEGImages" / f"{images.index.keys[row]}.jpg").read_bytes()
        originals.append(round(float(np.array(Image.open(io.BytesIO(data)))[..., 0].mean())))
    assert shown == originals

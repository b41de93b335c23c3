"""Image folders, tars and names as people have them: what is taken for what, and refused."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from shard_maker import encode, smooth, write_tar

from vitwarm.cli import main
from vitwarm.errors import ShardError
from vitwarm.shards import ShardIndex
from vitwarm.shards.read.labels import Labels
from vitwarm.shards.read.sources import find_shards
from vitwarm.shards.stream.tar import TarStream
from vitwarm.shards.write.make import find_images, make_shards

IMAGE = encode(smooth(np.random.default_rng(0), 8, 8))


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE)
    return root


def classes_of(source: Path) -> dict[str, int]:
    return dict(Counter(image.class_name for image in find_images(source)))


def made(source: Path, out: Path, **how: object) -> tuple[list[str], int]:
    make_shards(source, out, **how)  # type: ignore[arg-type]
    index = ShardIndex.open(f"{out}/train")
    return [*index.classes], index.n_images


def test_train_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    """CIFAR-100 has one."""
    vehicles = tree(tmp_path / "v", "bus/0.png", "bus/1.png", "train/2.png", "train/3.png")
    assert made(vehicles, tmp_path / "out") == (["bus", "train"], 4)
    split = tree(tmp_path / "s", "train/cat/0.png", "train/dog/1.png", "test/cat/2.png")
    assert made(split, tmp_path / "out2") == (["cat", "dog"], 2)
    unclear = tree(tmp_path / "u", "train/steam/0.png", "train/diesel/1.png", "bus/2.png")
    with pytest.raises(ShardError, match="beside bus: is it a split or a class"):
        make_shards(unclear, tmp_path / "out3")


@pytest.mark.parametrize("link", ["cat/all", "cat/deep/all", "self"])
def test_a_link_that_leads_back_is_refused(link: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "loop", "cat/0.png", "cat/deep/1.png", "dog/2.png")
    (root / link).symlink_to(root)
    with pytest.raises(ShardError, match=r"leads back to .*Remove the link"):
        find_images(root)
    (root / link).unlink()
    tree(tmp_path / "elsewhere", "3.png")
    (root / "fox").symlink_to(tmp_path / "elsewhere")  # a folder of another disk
    assert classes_of(root) == {"cat": 2, "dog": 1, "fox": 1}


def test_what_systems_add_is_no_class(tmp_path: Path) -> None:
    added = (".thumbs/t.png", "cat/.thumbs/0.png", "cat/@eaDir/0.png", "__MACOSX/cat/0.png")
    assert classes_of(tree(tmp_path / "h", "cat/0.png", "dog/1.png", *added)) == {
        "cat": 1,
        "dog": 1,
    }


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("a/cat/persian/0.png", "a/cat/siamese/1.png", "a/dog/pug/2.png"), {"cat": 2, "dog": 1}),
        (("./cat/0.png", "./dog/1.png"), {"cat": 1, "dog": 1}),
        (("cat/0.png", "cat/1.png"), {"cat": 2}),
    ],
)
def test_a_tar_has_the_classes_of_its_folder(
    names: tuple[str, ...], found: dict[str, int], tmp_path: Path
) -> None:
    packed = write_tar(tmp_path / "t.tar", [(name, IMAGE) for name in names])
    assert classes_of(packed) == found
    home = tree(tmp_path / "out", *names)
    assert classes_of(home / "a" if names[0].startswith("a/") else home) == found


def test_a_tar_of_two_splits_is_refused(tmp_path: Path) -> None:
    names = ("t/train/cat/0.png", "t/train/dog/1.png", "t/val/cat/2.png")
    packed = write_tar(tmp_path / "t.tar", [(name, IMAGE) for name in names])
    with pytest.raises(ShardError, match=r"holds train and val\. Unpack it"):
        find_images(packed)


def test_every_class_keeps_an_image_for_training(tmp_path: Path) -> None:
    names = [f"one{k}/0.png" for k in range(10)] + [
        f"ten{k}/{n}.png" for k in range(5) for n in range(10)
    ]
    make_shards(tree(tmp_path / "s", *names), tmp_path / "out", val_share=0.5)
    train = ShardIndex.open(f"{tmp_path}/out/train")
    assert np.bincount(train.labels, minlength=15).min() >= 1
    assert train.n_images + ShardIndex.open(f"{tmp_path}/out/validation").n_images == 60


def test_words_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "s", "train/cat/0.png", "train/dog/1.png", "val/cat/2.png")
    with pytest.raises(ShardError, match=r"--val-share is 0\.5, but .*val is the validation set"):
        make_shards(root, tmp_path / "out", val_share=0.5)
    (tmp_path / "labels.txt").write_text("0 cat\n")
    with pytest.raises(ShardError, match="--val-labels is given, but there is no validation set"):
        make_shards(root / "train", tmp_path / "out", val_labels=tmp_path / "labels.txt")


def test_names_and_classes_with_blanks_are_read_as_they_are(tmp_path: Path) -> None:
    train = tree(tmp_path / "t", "sea/0.png", "sea lion/1.png", "dog/2.png")
    val = tree(tmp_path / "v", "v0.png", "IMG 1.png", "v2.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("v0.png,sea lion\nIMG 1.png,dog\nv2.png,dog 3 4 5 6\n")
    make_shards(train, tmp_path / "out", val=val, val_labels=labels)
    index = ShardIndex.open(f"{tmp_path}/out/validation")
    names = {
        key: index.classes[label] for key, label in zip(index.keys[:], index.labels, strict=True)
    }
    assert names == {"v0": "sea lion", "IMG 1": "dog", "v2": "dog"}


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_class_folder_without_a_utf8_name_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "n", "dog/0.png")
    odd = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(odd)
    Path(os.fsdecode(odd), "1.png").write_bytes(IMAGE)
    with pytest.raises(ShardError, match="has no UTF-8 name"):
        make_shards(root, tmp_path / "out")


def pair(key: str, ending: str = "png", label: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.{ending}", IMAGE), (f"{key}.cls", str(label).encode())]


def test_images_of_one_key_side_by_side_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = write_tar(tmp_path / "a.tar", [*pair("x"), *pair("x", label=1), *pair("b")])
    with pytest.raises(ShardError, match="two images have the key 'x'"):
        ShardIndex.open(str(twice))
    assert main(["shards", "check", str(twice)]) == 1
    assert "two images have the key 'x'" in capsys.readouterr().out
    with pytest.raises(ShardError, match="two images have the key 'x'"):
        list(TarStream(io.BytesIO(twice.read_bytes()), "here", Labels(), None))
    folder = write_tar(tmp_path / "f.tar", [("cat/1.jpg", IMAGE), ("cat/1.png", IMAGE)])
    with pytest.raises(ShardError, match="two images have the key 'cat/1'"):
        ShardIndex.open(str(folder), label_from="folder")
    both = write_tar(tmp_path / "b.tar", [("x.jpg", IMAGE), *pair("x")])  # an image and its mask
    assert ShardIndex.open(str(both)).n_images == 1


def test_splits_are_told_by_whole_words(tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for split in ("train", "test"):
        write_tar(mixed / f"cifar-{split}-0000.tar", pair(split))
    with pytest.raises(ShardError, match=r"several splits \(test, train\)"):
        find_shards(str(mixed))
    one = tmp_path / "one"
    one.mkdir()
    write_tar(one / "carnival-train-0000.tar", pair("a"))
    assert len(find_shards(str(one)).paths) == 1


def test_a_folder_of_shards_is_the_same_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tree(tmp_path / "s", "cat/0.png", "dog/1.png"), tmp_path / "out")
    (tmp_path / "out" / "part").mkdir()
    (tar,) = (tmp_path / "out").glob("*.tar")
    tar.rename(tmp_path / "out" / "part" / "x-0000.tar")
    (tmp_path / "out" / "_info.json").write_text(
        '{"num_classes": 7, "splits": {"train": {"filenames": ["part/x-0000.tar"]}}}'
    )
    assert find_shards(f"{tmp_path}/out/part").info.n_classes == 7
    monkeypatch.chdir(tmp_path / "out" / "part")
    for source in (".", "x-*.tar", "../part"):
        assert find_shards(source).info.n_classes == 7, source


def test_odd_sources_get_a_sentence(tmp_path: Path) -> None:
    many = ",".join(f"{n:04}" for n in range(80))
    with pytest.raises(ShardError, match="80 of 80 shards are not there"):
        find_shards(f"{tmp_path}/imagenet-train-{{{many}}}.tar")
    with pytest.raises(ShardError, match="There is no"):
        find_shards("~nobodyhere/x")
    (tmp_path / "_info.json").write_text('{"splits": {"train": {"filenames": []}}}')
    with pytest.raises(ShardError, match="lists no shards"):
        find_shards(str(tmp_path))
    for part in ("p-0", "p-1"):
        (tmp_path / part).mkdir()
        write_tar(tmp_path / part / "t-0.tar", pair(part))
    assert len(find_shards(f"{tmp_path}/p-*/t-*.tar").paths) == 2


def test_an_index_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tar(tmp_path / "a.tar", pair("x"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    assert ShardIndex.open(str(tar)).n_images == 1


def test_a_list_may_name_keys_that_look_like_comments(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [*pair("#0"), *pair("k0"), *pair("k1")])
    listed = tmp_path / "list.txt"
    listed.write_text("\ufeffk0.png\n# a comment\n#0\n\n", encoding="utf-8")
    out = tmp_path / "out"
    assert main(["shards", "materialise", str(tar), str(out), "--list", str(listed)]) == 0
    assert sorted(ShardIndex.open(str(out)).keys[:]) == ["#0", "k0"]


def test_a_percent_sign_in_a_name_is_one(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [*pair("x"), *pair("y")])
    out = tmp_path / "half50%"
    assert main(["shards", "materialise", str(tar), str(out), "--fraction", "0.5"]) == 0
    assert ShardIndex.open(str(out)).n_images == 1

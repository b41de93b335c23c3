"""Tars as people have them: joined, made on a Mac, with names or folders for labels."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from shard_maker import encode, sample, smooth, write_set, write_tar
from tiny_images import write_tiny_shards

from vitwarm.cli import main
from vitwarm.config import TrainRun, load_config
from vitwarm.errors import ShardError
from vitwarm.shards import EvalCrop, ShardIndex, choose_fraction, make_val_loader, open_shards
from vitwarm.shards.read.labels import Labels, NoLabel
from vitwarm.shards.read.rows import read_shard
from vitwarm.shards.stream.tar import BROKEN, TarStream
from vitwarm.shards.write.checking import check_shards
from vitwarm.training import training_folder

PHOTO = encode(smooth(np.random.default_rng(0), 24, 24))
TINY = [
    "train.model_kwargs={embed_dim: 32, depth: 1, num_heads: 2, patch_size: 4}",
    "train.img_size=8", "train.precision=fp32", "train.batch_size=8", "train.steps=2",
    "train.evaluations=1", "run.progress=false", "run.device=cpu", "run.workers=0",
]  # fmt: skip


def photos(*keys: str, label: int = 0) -> list[tuple[str, bytes]]:
    return [member for key in keys for member in sample(key, label, PHOTO)]


def keys_of(path: Path, how: Labels | None = None) -> list[str]:
    """Of all three readers: the walk in Python, the compiled one, and the stream."""
    slow, fast = (read_shard(path, how, fast=fast) for fast in (False, True))
    streamed = list(TarStream(io.BytesIO(path.read_bytes()), "x", how or Labels(), None))
    keys = [key.decode() for key in slow.keys]
    assert [key.decode() for key in fast.keys] == keys
    assert [sample.name.split("image ")[1].strip("'") for sample in streamed] == keys
    labels = slow.labels.tolist()
    assert fast.labels.tolist() == [sample.label for sample in streamed] == labels
    assert [sample.data for sample in streamed] == [PHOTO] * len(keys)
    return keys


def join(out: Path, *parts: Path) -> Path:
    """As `cat` does it."""
    out.write_bytes(b"".join(part.read_bytes() for part in parts))
    return out


def gnu_tar(out: Path, folder: Path, *how: str) -> Path:
    subprocess.run(["tar", *how, "-cf", str(out), "-C", str(folder), "."], check=True)
    return out


needs_tar = pytest.mark.skipif(not shutil.which("tar"), reason="no tar program here")


# -- joined tars --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_joined_tars_are_read_to_the_end_and_said_to_be_joined(
    form: int, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    parts = [
        write_tar(tmp_path / f"part{k}", photos(f"a{k}", f"b{k}", label=k), form=form, mtime=1.5)
        for k in range(3)
    ]
    (tmp_path / "set").mkdir()
    joined = join(tmp_path / "set" / "all.tar", *parts)
    assert keys_of(joined) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    behind = joined.stat().st_size - parts[0].stat().st_size
    assert main(["shards", "info", str(tmp_path / "set"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    assert f"{joined} holds {behind:,} bytes after its end-of-archive mark" in caplog.text
    assert main(["shards", "check", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert f"note: {joined} has {behind:,} bytes after its first end-of-archive mark" in said
    assert "6 images of 3 classes in 1 shard, 6 decoded: 0 problems" in said
    index = ShardIndex.open(tmp_path / "set")
    loader = make_val_loader(index, crop=EvalCrop(24, crop_pct=1.0), batch_size=6, workers=0)
    (batch,) = loader
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert int(batch.unreadable) == 0


def test_very_many_joined_tars_are_one(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{k}.part", photos(f"k{k:04d}")) for k in range(40)]
    joined = join(tmp_path / "all.tar", *(parts * 30)[:1200])
    with pytest.raises(ShardError, match="two images have the key 'k0000'"):
        read_shard(joined)
    stream = TarStream(io.BytesIO(joined.read_bytes()), "x", Labels(), None)
    assert len(list(stream)) == 1200


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_joined_tars_in_a_compressed_stream(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Packed and then joined, or joined and then packed."""
    parts = [write_tar(tmp_path / f"{k}.tar", photos(f"k{k}")).read_bytes() for k in range(2)]
    for content in (pack(parts[0]) + pack(parts[1]), pack(parts[0] + parts[1])):
        assert len(list(TarStream(io.BytesIO(content), "x", Labels(), None))) == 2
        for length in (len(content) - 20, len(content) * 3 // 4, 100):
            with pytest.raises(BROKEN):
                list(TarStream(io.BytesIO(content[:length]), "x", Labels(), None))


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b"<html>error</html>" * 100, r"bytes lie after its end-of-archive mark.*truncate -s"),
        (b"\n", r"damaged: 1 bytes lie after its end-of-archive mark, and they are no tar"),
        (bytes(30_720) + b"x" * 512, r"damaged: 512 bytes lie after"),
        ("cut", r"all\.tar is cut short"),
        ("damaged", r"all\.tar is (damaged|cut short)"),
    ],
)
def test_what_is_no_whole_tar_behind_the_mark_is_refused(
    tail: bytes | str, says: str, tmp_path: Path
) -> None:
    one, two = (write_tar(tmp_path / f"{k}.part", photos(f"k{k}")).read_bytes() for k in range(2))
    if tail == "cut":
        tail = two[:1500]
    elif tail == "damaged":
        tail = two[:130] + b"?" + two[131:]
    assert isinstance(tail, bytes)
    path = tmp_path / "all.tar"
    path.write_bytes(one + tail)
    for fast in (False, True):
        with pytest.raises(ShardError, match=says):
            read_shard(path, fast=fast)
    with pytest.raises(BROKEN):
        list(TarStream(io.BytesIO(path.read_bytes()), "x", Labels(), None))
    findings = check_shards(str(path))
    assert len(findings.problems) == 1
    path.write_bytes(one + bytes(1 << 21))  # zeros are nothing
    assert keys_of(path) == ["k0"]
    assert read_shard(path).n_behind == 0


@needs_tar
def test_what_gnu_tar_makes_and_joins(tmp_path: Path) -> None:
    parts = []
    for k in range(2):
        folder = tmp_path / f"files{k}"
        folder.mkdir()
        for name, content in photos(f"k{k}"):
            (folder / name).write_bytes(content)
        parts.append(gnu_tar(tmp_path / f"part{k}.tar", folder, "--sort=name"))
    assert keys_of(join(tmp_path / "cat.tar", *parts)) == ["k0", "k1"]
    shutil.copy(parts[0], tmp_path / "gnu.tar")
    subprocess.run(["tar", "-Af", str(tmp_path / "gnu.tar"), str(parts[1])], check=True)
    assert keys_of(tmp_path / "gnu.tar") == ["k0", "k1"]


# -- what a Mac adds ----------------------------------------------------------------------------


def mac_members() -> Iterable[tuple[str, bytes]]:
    """In the order in which its tar writes them: before each file its shadow."""
    yield ".DS_Store", b"\0\0\0\1Bud1"
    for k in range(2):
        for name, content in photos(f"d/k{k}", label=k):
            folder, _, base = name.partition("/")
            yield f"{folder}/._{base}", b"\0\5\x16\7" + bytes(100)
            yield name, content
    yield "d/.DS_Store", b"\0\0\0\1Bud1"
    yield "__MACOSX/d/._k0.jpg", b"\0\5\x16\7"
    yield "__MACOSX/d/k0.cls", b"7"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_what_a_mac_adds_is_skipped_with_one_note(
    form: int, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "set"
    folder.mkdir()
    for shard in range(2):
        members = [(name.replace("d/", f"d{shard}/"), content) for name, content in mac_members()]
        write_tar(folder / f"{shard}.tar", members, form=form)
    assert keys_of(folder / "0.tar") == ["d0/k0", "d0/k1"]
    with caplog.at_level(logging.WARNING, "vitwarm"):
        assert ShardIndex.open(folder).n_images == 4
    (note,) = [record.getMessage() for record in caplog.records]
    assert "0.tar holds 8 member(s) added by macOS" in note
    assert "16 in all shards" in note
    assert main(["shards", "check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("note: ") == 1
    assert "note: 16 members that macOS added (._NAME, .DS_Store, __MACOSX/) are skipped." in said


def test_names_that_only_look_like_a_macs_are_kept(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos("a._b/x", "my__MACOSX/y", "._c/z"))
    assert keys_of(path) == ["a._b/x", "my__MACOSX/y", "._c/z"]


def test_make_skips_what_a_mac_adds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = [
        write_tar(tmp_path / f"{name}.tar", [("._1.JPEG", b"\0"), ("1.JPEG", PHOTO)])
        for name in ("ant", "bee")
    ]
    members = [(f"._{p.name}", b"\0") for p in inner] + [(p.name, p.read_bytes()) for p in inner]
    tar = write_tar(tmp_path / "all.tar", members)
    assert main(["shards", "make", str(tar), str(tmp_path / "out")]) == 0
    index = ShardIndex.open(tmp_path / "out")
    assert (index.n_images, index.classes) == (2, ("ant", "bee"))
    assert "all.tar holds 4 member(s) added by macOS" in caplog.text
    for name in ("ant/1.jpg", "bee/2.jpg", "__MACOSX/ant/._1.jpg", "ant/.DS_Store"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(PHOTO)
    assert main(["shards", "make", str(tmp_path / "files"), str(tmp_path / "two")]) == 0
    index = ShardIndex.open(tmp_path / "two")
    assert (index.n_images, index.classes) == (2, ("ant", "bee"))


# -- labels -------------------------------------------------------------------------------------

NAMES = ("n01440764", "n01443537", "great white shark, Carcharodon carcharias")


def named(source: str) -> list[tuple[str, bytes]]:
    """Three images of the classes 1, 2, 0, whose labels stand where `source` says."""
    members: list[tuple[str, bytes]] = []
    for k, name in enumerate((NAMES[1], NAMES[2], NAMES[0])):
        key = f"{name}/x{k}" if source == "folder" else f"x{k}"
        members.append((f"{key}.jpg", PHOTO))
        if source == "cls":
            members.append((f"{key}.cls", name.encode()))
        elif source == "text":
            members += [(f"{key}.cls", b"2"), (f"{key}.txt", name.encode() + b"\n")]
        elif source == "json":
            members += [(f"{key}.cls", b"2"), (f"{key}.json", json.dumps({"kind": name}).encode())]
    return members


@pytest.mark.parametrize("listed", ["given", "info", "classes.txt"])
@pytest.mark.parametrize("source", ["cls", "json", "folder", "text"])
def test_names_are_labels_wherever_they_stand(
    source: str, listed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "a.tar", named(source), form=tarfile.GNU_FORMAT)
    how = {"label_from": source, "label_key": "kind" if source == "json" else None}
    home = tmp_path if listed == "given" else folder
    if listed == "info":
        classes = home / "_info.json"
        classes.write_text(json.dumps({"classes": NAMES}))
    else:
        classes = home / "classes.txt"
        classes.write_text("\ufeff" + "\r\n".join([*NAMES, ""]), encoding="utf-8")
    words = ["--label-from", source] + (["--label-key", "kind"] if source == "json" else [])
    if listed == "given":
        how["classes"] = str(classes)
        words += ["--class-names", str(classes)]
    index = ShardIndex.open(folder, **how)  # type: ignore[arg-type]
    assert index.labels.tolist() == [1, 2, 0]
    assert (index.classes, index.n_classes) == (NAMES, 3)
    labels = Labels(source, how["label_key"], NAMES)  # type: ignore[arg-type]
    assert len(keys_of(folder / "a.tar", labels)) == 3
    for command in ("info", "check"):
        assert main(["shards", command, str(folder), *words]) == 0
    assert "3 images of 3 classes" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["shards", "materialise", str(folder), str(out), "--fraction", "1", *words]) == 0
    again = ShardIndex.open(out / "train")  # plain numbers from here on
    assert sorted(zip(again.keys, again.labels.tolist(), strict=True)) == sorted(
        zip(index.keys, [1, 2, 0], strict=True)
    )
    assert again.classes == NAMES


def test_labels_that_are_names_or_stand_elsewhere_are_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "cls.tar", named("cls"), form=tarfile.GNU_FORMAT)
    write_tar(tmp_path / "none.tar", named("folder"), form=tarfile.GNU_FORMAT)
    write_tar(tmp_path / "flat.tar", photos("x"))
    (tmp_path / "names").write_text("n01440764\nn01443536\n")

    def refuse(name: str, says: str, **how: object) -> None:
        with pytest.raises(ShardError, match=says):
            ShardIndex.open(tmp_path / name, **how)  # type: ignore[arg-type]

    options = r"data\.label_from=cls \| json \| folder \| text"
    refuse("cls.tar", r"x0\.cls holds no whole number as label \('n01443537'\)")
    refuse("cls.tar", rf"data\.classes=FILE.*{options}")
    refuse("none.tar", rf"image 'n01443537/x0' has no label; there is no .*x0\.cls.*{options}")
    refuse("none.tar", r"folder 'n01443537', which is not a number", label_from="folder")
    refuse("flat.tar", r"image 'x' lies in no folder, which data\.label_from=", label_from="folder")
    refuse("flat.tar", r"no x\.txt right beside it", label_from="text")
    refuse("flat.tar", r"no x\.json with a field 'fine' right", label_key="fine")
    names = str(tmp_path / "names")
    refuse(
        "none.tar",
        r"of the class 'n01443537', which is none of the 2 classes .*Did you mean n01443536",
        label_from="folder", classes=names,
    )  # fmt: skip
    refuse("flat.tar", r"data\.classes is '.*gone', which cannot be read", classes="/gone")
    (tmp_path / "bad.json").write_text("{}")
    refuse("flat.tar", r"bad\.json holds no class names", classes=tmp_path / "bad.json")
    (tmp_path / "bad.txt").write_text("\n\n")
    refuse("flat.tar", r"bad\.txt holds no class names", classes=tmp_path / "bad.txt")


def test_numbers_are_labels_whatever_the_classes_are_called() -> None:
    """A fraction of the digits 1 and 2 has the classes `1` and `2` and the labels 0 and 1."""
    how = Labels(names=("1", "2"))
    assert [how.read("cls", text) for text in (b"0", b" 1\n", b"+1")] == [0, 1, 1]
    assert how.read("json", b'{"label": 1.0}') == 1
    folder = Labels("folder", names=("1", "2"))
    assert [folder.of_folder(key) for key in (b"a/1/x", b"2/x")] == [0, 1]
    assert Labels("folder").of_folder(b"7/x") == 7
    for bad in (b'{"label": 1.5}', b'{"label": true}', b'{"label": null}', b'{"label": [1]}'):
        with pytest.raises(NoLabel, match="no whole number as label in its field 'label'"):
            how.read("json", bad)
    wordnet = Labels(names=("n01 tench, Tinca tinca", "n02 crane", "n03 crane"))
    assert [wordnet.read("cls", text) for text in (b"n02", b"n01 tench, Tinca tinca")] == [1, 0]
    assert Labels(names=("", "heron")).read("cls", b"heron") == 1  # of somebody's _info.json
    cranes = Labels(names=("crane", "heron", "crane"))
    assert cranes.read("cls", b"heron") == 1
    with pytest.raises(NoLabel, match="'crane', which is in the list of classes more than once"):
        cranes.read("cls", b"crane")


def test_the_index_is_kept_for_each_way_of_labelling(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "a.tar", named("text"), form=tarfile.GNU_FORMAT)
    (folder / "classes.txt").write_text("\n".join(NAMES))
    numbers = ShardIndex.open(folder)
    assert numbers.labels.tolist() == [2, 2, 2]
    names = ShardIndex.open(folder, label_from="text")
    assert names.labels.tolist() == [1, 2, 0]
    assert ShardIndex.open(folder).labels.tolist() == [2, 2, 2]
    other = tmp_path / "other.txt"
    other.write_text("\n".join(reversed(NAMES)))
    turned = ShardIndex.open(folder, label_from="text", classes=other)
    assert turned.labels.tolist() == [1, 0, 2]
    assert len({numbers.sha256, names.sha256, turned.sha256}) == 3


def test_a_list_of_classes_of_which_training_and_validation_disagree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = (write_set(tmp_path / name, size=8) for name in ("train", "val"))
    words = ["train", *TINY, f"data.train={train}", f"data.val={val}", f"run.root={tmp_path}/runs"]
    (train / "classes.txt").write_text("a\nb\nc\nd\n")
    (val / "classes.txt").write_text("a\nc\nb\nd\n")
    assert main([*words, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "disagree: class 1 is 'b' in training and 'c' in validation" in said
    assert "data.classes=FILE for both" in said
    (val / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert main([*words, "--dry-run"]) == 2
    assert "disagree: 4 classes in training and 5 in validation" in capsys.readouterr().err
    assert main([*words, "--dry-run", f"data.classes={train}/classes.txt"]) == 0
    (val / "classes.txt").write_text("0\n1\n2\n3\n")  # what materialise writes without names
    assert main([*words, "--dry-run"]) == 0
    (val / "classes.txt").write_text("0\n1\n2\n4\n")
    assert main([*words, "--dry-run"]) == 2
    (val / "classes.txt").unlink()
    assert main([*words, "--dry-run"]) == 0


def test_a_training_is_the_same_run_wherever_its_labels_stand(tmp_path: Path) -> None:
    """Labels enter the hash by content: not where they stood, not what the list is called."""
    plain, texts = tmp_path / "plain", tmp_path / "texts"
    write_tiny_shards(plain)
    texts.mkdir()
    names = ["red", "green", "blue", "grey"]
    for path in plain.glob("*.tar"):
        with tarfile.open(path) as tar:
            contents = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        write_tar(
            texts / path.name,
            [
                (f"{name[:-3]}txt", names[int(data)].encode())
                if name[-3:] == "cls"
                else (name, data)
                for name, data in contents.items()
            ],
        )
    for file, order in (("a.txt", names), ("b.txt", names), ("turned.txt", names[::-1])):
        (tmp_path / file).write_text("\n".join(order))

    def folder(home: Path, *words: str) -> str:
        common = [*TINY, f"data.val={home}/tiny-validation-*.tar", *words]
        config = load_config(TrainRun, None, [*common, f"data.train={home}/tiny-train-*.tar"])
        return training_folder(config).name

    here = folder(plain)
    assert folder(texts, "data.label_from=text", f"data.classes={tmp_path}/a.txt") == here
    assert folder(texts, "data.label_from=text", f"data.classes={tmp_path}/b.txt") == here
    assert folder(texts, "data.label_from=text", f"data.classes={tmp_path}/turned.txt") != here


@pytest.mark.parametrize("source", ["cls", "json", "folder", "text"])
def test_a_stream_takes_names_from_everywhere(source: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", named(source), form=tarfile.GNU_FORMAT)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    how = {
        "label_from": source, "label_key": "kind" if source == "json" else None,
        "classes": tmp_path / "names.txt", "allow_pipe": True,
    }  # fmt: skip
    index = open_shards(f"pipe:cat {path}|3", **how)  # type: ignore[arg-type]
    assert (index.n_classes, index.classes) == (3, NAMES)
    loader = make_val_loader(index, crop=EvalCrop(24), batch_size=3, workers=0)
    (batch,) = loader
    assert batch.labels.tolist() == [1, 2, 0]
    plain = open_shards(f"pipe:cat {path}|3", allow_pipe=True)
    assert plain.sha256 != index.sha256  # nothing else tells what its labels will be


def test_a_stream_says_once_what_a_mac_added(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(2):
        write_tar(tmp_path / f"{k}.tar", mac_members())
    index = open_shards(f"pipe:cat {tmp_path}/{{0..1}}.tar|4", allow_pipe=True)
    loader = make_val_loader(index, crop=EvalCrop(24), batch_size=4, workers=0)
    assert [batch.labels.tolist() for batch in loader] == [[0, 1, 0, 1]]
    assert caplog.text.count("added by macOS") == 1
    assert "0.tar holds 8 member(s)" in caplog.text


def test_fractions_do_not_depend_on_where_labels_stand(tmp_path: Path) -> None:
    members = [(f"{k % 2}/k{k}.jpg", PHOTO) for k in range(8)]
    write_tar(tmp_path / "folder.tar", members)
    write_tar(tmp_path / "cls.tar", [m for k in range(8) for m in sample(f"{k % 2}/k{k}", k % 2)])
    one = ShardIndex.open(tmp_path / "folder.tar", label_from="folder")
    two = ShardIndex.open(tmp_path / "cls.tar")
    assert one.labels.tolist() == two.labels.tolist()
    shas = [choose_fraction(index, 0.5, seed=1).sha256 for index in (one, two)]
    assert shas[0] == shas[1]


# -- folders joined by :: -----------------------------------------------------------------------


def write_half(
    folder: Path, first: int, n: int, *, classes: str = "", in_folder: str = "", **split: object
) -> Path:
    """Writes one tar, called as that of every other folder, and an info file that counts it."""
    (folder / in_folder).mkdir(parents=True)
    file = f"{in_folder}x-0000.tar"
    members = [m for k in range(first, first + n) for m in sample(f"k{k}", k % 2, PHOTO)]
    write_tar(folder / file, members)
    train = {"name": "train", "filenames": [file], "shard_lengths": [n], **split}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": train}}))
    if classes:
        (folder / "classes.txt").write_text("\n".join(classes.split()))
    return folder


def test_joined_folders_whose_tars_have_equal_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an info file says counts for the tars of its own folder."""
    one, two = write_half(tmp_path / "a", 0, 4, classes="0 1"), write_half(tmp_path / "b", 4, 6)
    three = write_half(tmp_path / "c", 10, 2, classes="cat dog", in_folder="train/")
    source = f"{one}::{two}/x-*.tar::{three}/train"
    index = ShardIndex.open(source)
    assert (index.n_images, index.classes) == (12, ("cat", "dog"))
    assert main(["shards", "check", source]) == 0
    assert "12 images of 2 classes in 3 shards, 12 decoded: 0 problems" in capsys.readouterr().out
    write_tar(two / "x-0000.tar", [m for k in range(4, 8) for m in sample(f"k{k}", 0, PHOTO)])
    with pytest.raises(ShardError, match=rf"{two}/x-0000.tar holds 4 labelled.* says 6"):
        ShardIndex.open(source)
    write_tar(three / "train/x-0000.tar", sample("k0", 0, PHOTO))
    for path in (two, three):
        (path / "_info.json").unlink()
    with pytest.raises(ShardError, match=rf"{one}/x-0000.tar and {three}/train/x-0000.tar both"):
        ShardIndex.open(f"{one}::{two}::{three}/train")


def test_joined_folders_that_mean_different_things_are_refused(tmp_path: Path) -> None:
    one = write_half(tmp_path / "a", 0, 4, classes="cat dog")
    other = write_half(tmp_path / "b", 4, 4, classes="dog cat", alt_label="kind")
    with pytest.raises(ShardError, match=rf"class 0 is 'cat' in {one} and 'dog' in {other}"):
        ShardIndex.open(f"{one}::{other}")
    with pytest.raises(ShardError, match=rf"alt_label=None for {one}/x-0000.tar and 'kind' for"):
        ShardIndex.open(f"{one}::{other}", classes=one / "classes.txt")
    index = ShardIndex.open(f"{one}::{other}", classes=one / "classes.txt", label_from="cls")
    assert index.n_images == 8


def test_images_that_a_dot_hides_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As in Kaggle's cats and dogs; an image beside another of its key is a mask, and harmless."""
    masked = [*sample("im0", 0, PHOTO)[:1], ("im0.mask.png", PHOTO), *sample("im0", 0)[1:]]
    dotted = [m for k in range(3) for m in sample(f"cat.{k}", 1, PHOTO)]
    path = write_tar(tmp_path / "a.tar", masked)
    assert main(["shards", "check", str(path)]) == 0
    write_tar(path, masked + dotted)
    assert ShardIndex.open(path).n_images == 1
    assert f"{path} holds 3 image(s) that are not read (3 in all shards). A key" in caplog.text
    assert main(["shards", "check", str(path)]) == 1
    assert f"PROBLEM: {path} holds 3 unread images. A key ends at" in capsys.readouterr().out
    write_tar(path, dotted)
    with pytest.raises(ShardError, match=r"no labelled images.*`cat\.0\.jpg` is of the key `cat`"):
        ShardIndex.open(path)


def test_what_lies_beside_a_label_instead_of_an_image_is_named(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", [*sample("im0", 0, PHOTO), *sample("im1", 0, ending="tif")]
    )
    with pytest.raises(
        ShardError, match=r"im1\.cls has no image beside it \(.*\), only im1\.tif\."
    ):
        ShardIndex.open(path)


def test_every_kind_of_member_name_and_of_ending_is_read(tmp_path: Path) -> None:
    """GNU tar's five formats, names beyond 100 bytes in any script, endings in upper case."""
    folder = f"{'d' * 90}/große Straße/日本 犬"
    endings = ["JPEG", "Jpg", "jpeg", "PNG", "WEBP"]
    (tmp_path / "tree" / folder).mkdir(parents=True)
    for k, ending in enumerate(endings):
        (tmp_path / "tree" / folder / f"im{k}.{ending}").write_bytes(PHOTO)
    (tmp_path / "classes.txt").write_text("cat\n日本 犬\n", encoding="utf-8")
    for form in ("gnu", "oldgnu", "posix"):
        path = tmp_path / f"{form}.tar"
        command = [
            "tar",
            f"--format={form}",
            "--sort=name",
            "-cf",
            path,
            "-C",
            tmp_path / "tree",
            ".",
        ]
        subprocess.run(command, check=True)
        index = ShardIndex.open(path, label_from="folder")
        assert list(index.keys) == [f"{folder}/im{k}" for k in range(len(endings))]
        assert set(index.labels.tolist()) == {1}
        assert check_shards(str(path), label_from="folder").n_decoded == len(endings)

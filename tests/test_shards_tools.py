"""`vitwarm shards make | info | check | materialise`, as a user calls them."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_maker import encode, sample, smooth, write_set, write_tar
from timm.data import create_dataset

from vitwarm.cli import main
from vitwarm.shards import ShardIndex, choose_fraction
from vitwarm.shards.bars import make_bar
from vitwarm.shards.write.checking import check_shards
from vitwarm.shards.write.make import ImageFile

#: timm's reader leaves the tars to the garbage collector.
timm_leaves_files_open = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning",
    "ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning",
)


def photo(number: int, size: int = 24) -> bytes:
    return encode(smooth(np.random.default_rng(number), size, size))


def pack(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar as ImageNet's are."""
    return write_tar(path, members, form=tarfile.GNU_FORMAT)


def contents(source: str | Path) -> dict[str, tuple[int, bytes]]:
    """Label and encoded image by key, read with nothing of ours but the index's places."""
    index = ShardIndex.open(source)
    found = {}
    for row, key in enumerate(index.keys[:]):
        path = index.paths[index.shard_of[row]]
        first = int(index.offsets[row])
        data = path.read_bytes()[first : first + int(index.sizes[row])]
        found[key] = (int(index.labels[row]), data)
    return found


def timm_reads(folder: Path, split: str, n: int) -> list[tuple[tuple[int, int], int]]:
    """Size and label of every image as timm's own reader has them, sorted."""
    data = create_dataset(f"wds/{folder.name}", root=str(folder), split=split)
    assert len(data) == n
    return sorted((image.size, label) for image, label in data)


# -- make ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train and val of three classes; sizes tell the images apart."""
    root = tmp_path_factory.mktemp("pets")
    for split, n in (("train", 6), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for k in range(n):
                size = 24 + 8 * label + k
                (root / split / name / f"{k}.JPEG").write_bytes(photo(10 * label + k, size))
    return root


@timm_leaves_files_open
def test_make_from_class_folders(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["shards", "make", str(folders), str(out), "--images-per-shard", "5"]) == 0
    said = capsys.readouterr().out
    assert f"train: 18 images, data.train={out}/train" in said
    assert f"validation: 6 images, data.val={out}/validation" in said
    name = folders.name.replace("-", "_")  # as pytest calls it
    assert sorted(path.name for path in out.glob("*.tar")) == [
        *(f"{name}-train-{k:04d}.tar" for k in range(4)), f"{name}-validation-0000.tar",
    ]  # fmt: skip
    assert (out / "classes.txt").read_text().split() == ["ant", "bee", "cat"]
    found = contents(f"{out}/train")
    assert len(found) == 18
    for key, (label, data) in found.items():
        # Their base names repeat, so that the class stands in the key.
        name, _, k = key.partition("_")
        assert data == (folders / "train" / name / f"{k}.JPEG").read_bytes()
        assert label == ["ant", "bee", "cat"].index(name)
    assert len(contents(f"{out}/validation")) == 6
    assert not ShardIndex.open(f"{out}/train").is_class_sorted
    expected = sorted(((24 + 8 * label + k,) * 2, label) for label in range(3) for k in range(6))
    assert timm_reads(out, "train", 18) == expected
    assert len(timm_reads(out, "validation", 6)) == 6

    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert main(["shards", "make", str(folders), str(out)]) == 2
    assert "holds shards already (_info.json)" in capsys.readouterr().err
    again = tmp_path / "again"
    assert main(["shards", "make", str(folders), str(again), "--images-per-shard", "5"]) == 0
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before


def test_make_takes_a_share_for_validation(folders: Path, tmp_path: Path) -> None:
    words = ["shards", "make", str(folders / "train"), str(tmp_path / "out"), "--val-share", "0.34"]
    assert main(words) == 0
    train, val = (contents(tmp_path / "out" / split) for split in ("train", "validation"))
    assert len(val) == 6
    assert not train.keys() & val.keys()
    assert len(train) + len(val) == 18
    assert np.bincount([label for label, _ in val.values()]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("numbers", [False, True], ids=["wnids", "labels"])
def test_make_from_the_original_tars(numbers: bool, tmp_path: Path) -> None:
    """ILSVRC2012_img_train.tar is a tar of a tar per class; the validation tar is flat."""
    wnids = ["n01440764", "n01443537"]
    inner = {}
    for label, wnid in enumerate(wnids):
        members = [(f"{wnid}_{k}.JPEG", photo(10 * label + k)) for k in range(4)]
        inner[wnid] = pack(tmp_path / f"{wnid}.tar", members).read_bytes()
    train = pack(
        tmp_path / "ILSVRC2012_img_train.tar",
        [(f"{wnid}.tar", inner[wnid]) for wnid in reversed(wnids)],
    )
    names = [f"ILSVRC2012_val_{k:08d}" for k in range(3)]
    val = pack(
        tmp_path / "ILSVRC2012_img_val.tar",
        [(f"{name}.JPEG", photo(90 + k)) for k, name in enumerate(names)],
    )
    labels = tmp_path / "labels.txt"
    if numbers:
        lines = [f"{name}.JPEG {label}" for name, label in zip(names, (1, 0, 1), strict=True)]
    else:
        right = [wnids[label] for label in (1, 0, 1)]
        lines = [f"{name},{wnid} 1 2 3 4" for name, wnid in zip(names, right, strict=True)]
    labels.write_text("ImageId,PredictionString\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    words = ["--val", str(val), "--val-labels", str(labels)]
    assert main(["shards", "make", str(train), str(out), *words, "--name", "imagenet1k"]) == 0
    assert sorted(path.name for path in out.glob("*.tar")) == [
        "imagenet1k-train-0000.tar", "imagenet1k-validation-0000.tar",
    ]  # fmt: skip
    assert contents(out / "train") == {
        f"{wnid}_{k}": (label, photo(10 * label + k))
        for label, wnid in enumerate(wnids)
        for k in range(4)
    }
    assert [contents(out / "validation")[name][0] for name in names] == [1, 0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{d}/nowhere", "{o}"], "There is no {d}/nowhere. Give a folder of class folders"),
        (["{d}/note.txt", "{o}"], "note.txt is not a readable tar"),
        (["{d}/empty", "{o}"], "{d}/empty holds no images"),
        (["{d}/flat", "{o}"], "image a.jpg is in no class folder"),
        (["{d}/pets", "{o}", "--val-share", "1.5"], "--val-share is 1.5; it must be at least 0"),
        (["{d}/pets", "{o}", "--val-share", "0.01"], "leaves one of the two sets empty"),
        (["{d}/pets", "{o}", "--images-per-shard", "0"], "--images-per-shard is 0; it must be at"),
        (["{d}/pets", "{o}", "--name", "a/b"], "--name is 'a/b'; it begins the tars' names"),
        (["{d}/pets", "{o}", "--val", "{d}/dogs"], "the class 'dogs' is not one of the 2 training"),
        (["{d}/pets", "{o}", "--val", "{d}/flat"], "(--val-labels)"),
        (
            ["{d}/pets", "{o}", "--val", "{d}/flat", "--val-labels", "{d}/note.txt"],
            "note.txt has no line for the image a.jpg. Lines read NAME CLASS",
        ),
        (["{d}/pets", "{o}", "--val", "{d}/flat", "--val-labels", "{d}/no"], "cannot be read: No"),
        (["{d}/pets", "{o}", "--val", "{d}/flat", "--val-labels", "{d}/latin1.txt"], "no UTF-8"),
        (["{d}/pets"], "Two paths are needed, the images and where to write, but"),
        (["{d}/pets", "{d}/note.txt"], "note.txt cannot be written: File exists"),
        (["--digits", "{d}/pets", "{o}"], "--digits needs only the folder to write to"),
    ],
)
def test_mistakes_of_make_get_a_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pets/cat/1.jpg", "pets/dog/2.jpg", "dogs/dogs/3.jpg", "flat/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photo(0))
    (tmp_path / "note.txt").write_text("hello\n")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9 cat\n")
    (tmp_path / "empty").mkdir()
    known = {"d": tmp_path, "o": tmp_path / "out"}
    assert main(["shards", "make", *(word.format(**known) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message.format(**known) in said
    assert not (tmp_path / "out").exists()


def test_make_leaves_nothing_when_it_is_terminated(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the middle of a shard, as a job's end sends it."""

    def read(image: ImageFile) -> bytes:
        if image.name == "3.JPEG":
            os.kill(os.getpid(), signal.SIGTERM)
        return b"image"

    monkeypatch.setattr(ImageFile, "read", read)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(["shards", "make", str(folders), str(tmp_path / "out")])
    assert ended.value.code == 143
    assert not list((tmp_path / "out").iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bar_needs_no_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    bar = make_bar("work", total=2, unit="")
    bar.update(2)
    bar.close()


def test_make_goes_on_where_a_killed_one_left_tars(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "pets-train-0007.tar").write_bytes(b"half")
    assert main(["shards", "make", str(folders), str(out), "--name", "pets"]) == 0
    assert len(contents(out / "train")) == 18
    assert not (out / "pets-train-0007.tar").exists()


# -- info ---------------------------------------------------------------------------------------


def test_info_states_the_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_set(tmp_path / "set", n_shards=2, per_shard=10)
    assert main(["shards", "info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    index = ShardIndex.open(folder)
    expected = {
        "shards": 2, "images": 20, "classes": 4, "images_per_class": [5, 5], "empty_classes": 0,
        "images_per_shard": [10, 10], "image_bytes_total": int(index.sizes.sum()),
        "sorted_by_class": False, "first_key": "im00000", "sha256": index.sha256,
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    assert main(["shards", "info", str(folder)]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name: lines[name].strip() for name in ("shards", "images", "images per shard")}
    assert shown == {"shards": "2", "images": "20", "images per shard": "10 to 10"}


# -- check --------------------------------------------------------------------------------------


def test_check_finds_everything_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut tar, a twin key, a label beyond the classes, garbage and a miscount, in one go."""
    folder = write_set(tmp_path / "set", n_shards=3, per_shard=8, info=True, bad=(5,))
    whole = (folder / "tiny-0002.tar").read_bytes()
    (folder / "tiny-0002.tar").write_bytes(whole[: len(whole) // 2])
    more = sample("im00001", 2, photo(0)) + sample("far", 7, photo(1))
    kept = contents(folder / "tiny-0001.tar")
    members = [m for key, (label, data) in kept.items() for m in sample(key, label, data, "png")]
    write_tar(folder / "tiny-0001.tar", members + more)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    for words in ([], ["--workers", "2"]):
        assert main(["shards", "check", str(folder), *words]) == 1
        lines = capsys.readouterr().out.splitlines()
        problems = sorted(line for line in lines if line.startswith("PROBLEM: "))
        for problem, words in zip(
            problems,
            [
                "tiny-0000.tar and tiny-0001.tar have 1 key(s) in common, 'im00001' first.",
                "tiny-0000.tar: image 'im00005' does not decode (",
                "tiny-0001.tar holds 10 labelled images, but the info file beside it says 8.",
                "tiny-0001.tar: image 'far' has the label 7, but the set has 4 classes; labels",
                "tiny-0002.tar is cut short: it ends at byte",
            ],
            strict=True,
        ):
            assert words in problem
        assert lines[-1] == ("18 images of 4 classes in 3 shards, 17 of 18 decoded: 5 problems")
    assert main(["shards", "check", str(folder), "--json", "--no-decode"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["n_images"], found["n_decoded"], len(found["problems"])) == (18, 0, 4)


def test_check_of_whole_shards_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set", info=True)
    assert main(["shards", "check", str(folder)]) == 0
    assert capsys.readouterr().out == (
        "32 images of 4 classes in 2 shards, 32 decoded: 0 problems\n"
    )


def test_check_notes_what_is_odd_but_may_be_meant(tmp_path: Path) -> None:
    """Sorted by class, a class without images, labels that do not follow the WordNet ids."""
    wnids = ("n02", "n01", "n03")
    for shard in range(2):
        members = []
        for label, wnid in enumerate(wnids):
            for k in range(4):
                members += sample(f"{wnid}000000_{shard}{k}", label, photo(0))
        write_tar(tmp_path / f"a-{shard}.tar", members)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    findings = check_shards(str(tmp_path), decode=False)
    assert findings.problems == []
    notes = "\n".join(findings.notes)
    assert "1 of 4 classes have no image (class 3 first)" in notes
    assert "the labels do not follow the sorted WordNet ids" in notes
    assert "sorted by class (" in notes
    assert "data.order=full" in notes

    write_tar(tmp_path / "a-2.tar", sample("n01000000_99", 2, photo(0)))
    (problem,) = check_shards(str(tmp_path), decode=False).problems
    assert "'n01000000_99' has the label 2, others of n01000000 have 1" in problem
    write_tar(tmp_path / "a-2.tar", sample(os.fsdecode(b"n01000000_\xff"), 2, photo(0)))
    (problem,) = check_shards(str(tmp_path), decode=False).problems
    assert "has the label 2, others of n01000000 have 1" in problem


def test_check_counts_very_many_bad_images_without_naming_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [m for k in range(70) for m in sample(f"k{k}", 0)])
    findings = check_shards(str(tmp_path))
    assert findings.n_undecodable == 70
    assert len(findings.problems) == 51
    assert findings.problems[-1] == "70 images in all do not decode."


def test_an_info_file_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set")
    for text in ("{", "[]", '{"splits": {"train": {}}}', '{"num_classes": "many"}'):
        (folder / "_info.json").write_text(text)
        for command in ("info", "check"):
            assert main(["shards", command, str(folder)]) == 2
            said = capsys.readouterr().err
            assert f"{folder}/_info.json is not an info file of shards" in said
            assert "Fix or remove it" in said


# -- materialise --------------------------------------------------------------------------------


@timm_leaves_files_open
@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_a_fraction_becomes_tars_of_its_own(
    fraction: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set", n_shards=3, per_shard=16, info=True)
    (folder / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    index = ShardIndex.open(folder)
    subset = choose_fraction(index, fraction, seed=3)
    out = tmp_path / "part"
    words = ["shards", "materialise", str(folder), str(out)]
    assert main([*words, "--fraction", str(fraction), "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert f"{round(48 * fraction)} of 48 images, data.train={out}/train" in said
    assert f"subset sha256 {subset.sha256}" in said

    every = contents(folder)
    keys = [index.keys[int(row)] for row in subset.rows]
    assert contents(f"{out}/train") == {key: every[key] for key in keys}
    assert (out / "subset.txt").read_text().split() == keys
    assert (out / "classes.txt").read_text() == "ant\nbee\ncat\ndog\n"
    labels = [label for _, label in timm_reads(out, "train", len(keys))]
    assert sorted(labels) == sorted(every[key][0] for key in keys)

    # Its list is one that a training takes, and a fraction of it is one of the whole.
    again = tmp_path / "again"
    assert main([*words[:3], str(again), "--list", str(out / "subset.txt")]) == 0
    assert contents(f"{again}/train") == contents(f"{out}/train")
    assert main(["shards", "check", str(out)]) == 0
    capsys.readouterr()


def test_fractions_of_a_fraction_are_those_of_the_whole(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", n_shards=4, per_shard=16)
    out = tmp_path / "half"
    assert main(["shards", "materialise", str(folder), str(out), "--fraction", "0.5"]) == 0
    whole, half = ShardIndex.open(folder), ShardIndex.open(out)
    eighth = choose_fraction(whole, 0.125, seed=0)
    assert choose_fraction(half, 0.25, seed=0).sha256 == eighth.sha256


def test_keys_keep_their_folders_and_their_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder may hold a dot, and a name bytes that are no UTF-8."""
    odd = os.fsdecode(b"d.x/caf\xe9")
    members = [*sample(odd, 0, photo(0)), *sample("e/plain", 1, photo(1))]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "a.tar", members, form=tarfile.GNU_FORMAT)
    out = tmp_path / "out"
    assert main(["shards", "info", str(tmp_path / "set")]) == 0
    assert "d.x/caf\N{REPLACEMENT CHARACTER}" in capsys.readouterr().out
    words = ["shards", "materialise", str(tmp_path / "set"), str(out), "--fraction", "1"]
    assert main(words) == 0
    assert contents(f"{out}/train") == {odd: (0, photo(0)), "e/plain": (1, photo(1))}
    lines = (out / "subset.txt").read_bytes().splitlines()
    assert lines == [b"d.x/caf\xe9", b"e/plain"]
    again = [*words[:3], str(tmp_path / "again"), "--list", str(out / "subset.txt")]
    assert main(again) == 0


def test_the_ending_says_what_the_bytes_are(tmp_path: Path) -> None:
    """A PNG named JPEG is a PNG from then on: others believe the name."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "a.tar", sample("p", 0, png.getvalue()))
    words = ["shards", "materialise", str(tmp_path / "set"), str(tmp_path / "out")]
    assert main([*words, "--fraction", "1"]) == 0
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        assert sorted(tar.getnames()) == ["p.cls", "p.png"]


def test_materialise_leaves_the_shards_it_reads_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set")
    before = sorted(folder.iterdir())
    words = ["shards", "materialise", str(folder)]
    assert main([*words, str(folder), "--fraction", "0.5"]) == 2
    assert "set holds shards already (tiny-0000.tar)" in capsys.readouterr().err
    (tmp_path / "file").write_text("no folder")
    assert main([*words, str(tmp_path / "file" / "out"), "--fraction", "0.5"]) == 2
    assert f"{tmp_path / 'file' / 'out'} cannot be written" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out"), "--fraction", "0"]) == 2
    assert "data.fraction is 0.0; it must lie above 0" in capsys.readouterr().err
    assert sorted(folder.glob("*.tar")) == before


@pytest.mark.parametrize("command", ["info", "check", "materialise"])
def test_streamed_shards_are_refused_by_name(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "o"), "--fraction", "1"] if command == "materialise" else []
    assert main(["shards", command, "https://host/a.tar|10", *words]) == 2
    said = capsys.readouterr().err
    assert f"'https://host/a.tar|10' is streamed; `vitwarm shards {command}` reads shards" in said

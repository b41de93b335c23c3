"""`vitwarm shards materialise --classes`: some classes as their own set, as ImageNet-100 is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shard_maker import write_set

from vitwarm.cli import main
from vitwarm.shards import ShardIndex, choose_fraction
from vitwarm.shards.choose.fraction import choose_classes

NAMES = ("n01 ant, Formica", "n02 bee", "n03 great cat, Felis", "n04 dog", "n05 5", "n06 elk")


@pytest.fixture
def six(tmp_path: Path) -> Path:
    """48 images of six classes, as training and validation sets of the same folder name."""
    folder = write_set(tmp_path / "six", n_shards=3, per_shard=16, n_classes=6)
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def labels_of(source: str | Path) -> dict[str, int]:
    index = ShardIndex.open(source)
    return dict(zip(index.keys[:], index.labels.tolist(), strict=True))


def expected(folder: Path, kept: list[int]) -> dict[str, int]:
    return {key: kept.index(old) for key, old in labels_of(folder).items() if old in kept}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("n04,n01", [0, 3]),
        ("n04 dog, n02 bee", [1, 3]),
        ("5,0", [0, 5]),
        ("n06, 2 ,n01", [0, 2, 5]),
        ("0,1,2,3,4,5", [0, 1, 2, 3, 4, 5]),
        ("file:n03\n# a comment\n\nn01 ant, Formica\n", [0, 2]),
        ("file:\ufeffn05 something else\r\nn02\r\n", [1, 4]),
    ],
)
def test_classes_are_named_by_name_word_label_or_file(
    text: str, kept: list[int], six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text.startswith("file:"):
        (tmp_path / "classes100.txt").write_text(text[5:], encoding="utf-8")
        text = str(tmp_path / "classes100.txt")
    out = tmp_path / "out"
    assert main(["shards", "materialise", str(six), str(out), "--classes", text]) == 0
    wanted = expected(six, kept)
    assert labels_of(out / "train") == wanted
    assert f"{len(wanted)} of 48 images, data.train={out}/train" in capsys.readouterr().out
    assert (out / "classes.txt").read_text().splitlines() == [NAMES[k] for k in kept]
    assert json.loads((out / "_info.json").read_text())["num_classes"] == len(kept)
    assert main(["shards", "check", str(out)]) == 0


def test_with_a_fraction_it_is_that_of_these_classes(six: Path, tmp_path: Path) -> None:
    words = ["shards", "materialise", str(six)]
    some = ["--classes", "n02,n05", "--seed", "3"]
    assert main([*words, str(tmp_path / "half"), *some, "--fraction", "0.5"]) == 0
    index = ShardIndex.open(six)
    among = choose_classes(index, [1, 4])
    half = choose_fraction(index, 0.5, seed=3, among=among)
    assert len(half) == len(among) // 2
    assert sorted(labels_of(tmp_path / "half" / "train")) == sorted(
        index.keys[row] for row in half.rows
    )
    # The fraction of the new shards is the same: classes are told apart, not counted.
    assert main([*words, str(tmp_path / "all"), *some]) == 0
    whole = ShardIndex.open(tmp_path / "all" / "train")
    assert set(whole.keys[:]) == {index.keys[row] for row in among.rows}
    quarter = choose_fraction(index, 0.25, seed=3, among=among)
    assert set(quarter.rows.tolist()) < set(half.rows.tolist())


def test_with_a_list_both_must_name_an_image(
    six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = labels_of(six)
    (tmp_path / "list.txt").write_text("\n".join(list(every)[:20]))
    words = ["shards", "materialise", str(six), str(tmp_path / "out"), "--classes", "n01,n03"]
    assert main([*words, "--list", str(tmp_path / "list.txt")]) == 0
    wanted = {key: new for key, new in expected(six, [0, 2]).items() if key in list(every)[:20]}
    assert wanted
    assert labels_of(tmp_path / "out" / "train") == wanted
    only = [key for key, label in every.items() if label == 5]
    (tmp_path / "other.txt").write_text("\n".join(only))
    words[3] = str(tmp_path / "nothing")
    assert main([*words, "--list", str(tmp_path / "other.txt")]) == 2
    assert "names no image of the classes" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


def test_validation_is_labelled_anew_in_the_same_way(six: Path, tmp_path: Path) -> None:
    """Whatever the order in which the classes are named, and though others are in it."""
    val = write_set(tmp_path / "val", n_shards=1, per_shard=24, n_classes=6, name="val")
    (val / "classes.txt").write_text((six / "classes.txt").read_text())
    for source, out, text in ((six, "a", "n06,n02,n03"), (val, "b", "2,n06 elk,1")):
        words = ["shards", "materialise", str(source), str(tmp_path / out), "--classes", text]
        assert main(words) == 0
        assert labels_of(tmp_path / out / "train") == expected(source, [1, 2, 5])
    lists = [(tmp_path / name / "classes.txt").read_text() for name in ("a", "b")]
    assert lists[0] == lists[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n01,n0l", "--classes names 'n0l', which is not a class here. Did you mean n0"),
        ("n01,9", "--classes names '9', which is not a class here"),
        ("n01,0", "--classes names '0' twice"),
        (",", "--classes is ',', which names no class"),
        ("", "--classes is '', which names no class"),
        ("x" * 5000, "which is not a class here"),
        ("{b}", "not a text file"),
        ("-1", "--classes names '-1', which is not a class here"),
    ],
)
def test_mistakes_get_a_sentence(
    text: str, says: str, six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    text = text.format(b=tmp_path / "binary")
    words = ["shards", "materialise", str(six), str(tmp_path / "out"), f"--classes={text}"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_class_without_images_is_refused_and_one_of_very_many_is_found(
    six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"n{k:08d}" for k in range(200)]
    (six / "classes.txt").write_text("\n".join(names))
    words = ["shards", "materialise", str(six), str(tmp_path / "out"), "--classes"]
    assert main([*words, ",".join(names[:100])]) == 2  # longer than a file's name may be
    assert "Class 6 has no image in" in capsys.readouterr().err
    assert main([*words, ",".join(names[:6])]) == 0
    assert main(["shards", "materialise", str(six), str(tmp_path / "none")]) == 2
    assert "Give --fraction 0.1, --list FILE or --classes" in capsys.readouterr().err

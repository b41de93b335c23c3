"""The index finds every image once, or says in one sentence why it cannot."""

from __future__ import annotations

import io
import json
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_maker import sample, tiny_set, write_set, write_tar

from vitwarm.errors import ShardError
from vitwarm.shards import ShardIndex, open_shards
from vitwarm.shards.read.labels import Labels
from vitwarm.shards.read.rows import read_shard, split_name
from vitwarm.shards.read.sources import find_shards
from vitwarm.shards.read.walk import scan_tar

__all__ = ["tiny_set"]

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def rows_of(path: Path) -> list[tuple[bytes, int, int, int]]:
    """What both walks say of a tar; they must agree."""
    slow, fast = (read_shard(path, fast=fast) for fast in (False, True))
    columns = [
        list(zip(r.keys, r.labels.tolist(), r.offsets.tolist(), r.sizes.tolist(), strict=True))
        for r in (slow, fast)
    ]
    assert columns[0] == columns[1]
    return columns[0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mtime", [0, 1.5])
@pytest.mark.parametrize("stem", ["plain", "d/" * 40 + "x" * 60, "y" * 140, "ü" * 30])
def test_every_kind_of_header_is_read_as_tarfile_reads_it(
    tmp_path: Path, form: str, mtime: float, stem: str
) -> None:
    if form == "ustar" and len(stem) == 140:
        pytest.skip("ustar cannot hold it")
    members = [m for k in range(3) for m in sample(f"{stem}{k}", k, b"i" * (700 * k + 1))]
    path = write_tar(tmp_path / "a.tar", members, form=FORMATS[form], mtime=mtime)
    with tarfile.open(path) as tar:
        theirs = [(one.name, one.offset_data, one.size) for one in tar]
    assert [m[:3] for m in scan_tar(path, lambda name: False).members] == theirs
    rows = rows_of(path)
    assert [row[1] for row in rows] == [0, 1, 2]
    assert [row[2:] for row in rows] == [one[1:] for one in theirs[::2]]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    form=st.sampled_from(sorted(FORMATS)),
    mtime=st.sampled_from([0, 0.5]),
    cls_first=st.booleans(),
)
def test_offsets_and_labels_for_any_sizes(
    tmp_path: Path, sizes: list[int], form: str, mtime: float, cls_first: bool
) -> None:
    members = []
    for k, size in enumerate(sizes):
        image, label = sample(f"k{k}", k, bytes([65 + k]) * size or b"")
        members += [label, image] if cls_first else [image, label]
    path = write_tar(tmp_path / "a.tar", members, form=FORMATS[form], mtime=mtime)
    content = path.read_bytes()
    for k, (key, label, offset, size) in enumerate(rows_of(path)):
        assert (key, label) == (f"k{k}".encode(), k)
        assert content[offset : offset + size] == (members[2 * k + cls_first][1])


def test_what_webdataset_writes(tmp_path: Path) -> None:
    """Its own writer puts a pax header before every member, for the time."""
    path = tmp_path / "a.tar"
    with wds.TarWriter(str(path)) as writer:
        for k in range(50):
            facts = json.dumps({"label": k + 100, "fine": 7}).encode()
            writer.write(
                {"__key__": f"n{k}", "jpg": b"x" * (k * 997), "cls": b"%d" % k, "json": facts}
            )
    assert [row[1] for row in rows_of(path)] == list(range(50))
    for fast in (False, True):
        other = read_shard(path, Labels(field="fine"), fast=fast)
        assert other.labels.tolist() == [7] * 50


def test_names_are_split_as_webdataset_splits_them() -> None:
    for name in ("a.jpg", "d/e.f/a.seg.png", "./a.JPG", "a", "d.x/a"):
        ours = split_name(name.encode())
        theirs = wds.tariterators.base_plus_ext(name.removeprefix("./"))
        assert theirs[0] is None or ours == (theirs[0].encode(), theirs[1].lower().encode())


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_tar(
        tmp_path / "whole.tar", [m for k in range(3) for m in sample(f"k{k}", k, b"i" * 900)]
    ).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # behind the last member
    path = tmp_path / "cut.tar"
    for length in [*range(0, end, 500), end - 512, end, end + 511, end + 512, end + 1023]:
        path.write_bytes(whole[:length])
        for fast in (False, True):
            with pytest.raises(ShardError, match=r"cut\.tar (is cut short|is damaged)"):
                read_shard(path, fast=fast)
    path.write_bytes(whole[: end + 1024])
    assert len(rows_of(path)) == 3


def test_damage_in_a_header_is_found(tmp_path: Path) -> None:
    whole = bytearray(write_tar(tmp_path / "a.tar", sample("a", 1) + sample("b", 2)).read_bytes())
    for place in (3, 130, 150, 1024 + 5, 2048 + 156):
        broken = bytearray(whole)
        broken[place] ^= 0x15
        (tmp_path / "b.tar").write_bytes(broken)
        for fast in (False, True):
            with pytest.raises(ShardError, match=r"b\.tar is (damaged|cut short)"):
                read_shard(tmp_path / "b.tar", fast=fast)
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b" + bytes(whole))
    with pytest.raises(ShardError, match=r"compressed.*gunzip"):
        read_shard(tmp_path / "c.tar")


@pytest.mark.parametrize(
    ("kind", "word"), [(tarfile.SYMTYPE, "symbolic"), (tarfile.LNKTYPE, "hard"), (b"3", "device")]
)
def test_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ShardError, match=word):
        read_shard(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"i")], r"image 'a' has no label.*a\.cls"),
        ([("a.cls", b"1")], r"a\.cls has no image"),
        (sample("a", 1) + sample("b", 1) + sample("a", 1), r"two images have the key 'a'"),
        ([("a.jpg", b"i"), ("a.cls", b"cat")], r"no whole number as label"),
        ([("a.jpg", b"i"), ("a.cls", b"")], r"no whole number as label"),
        ([("a.jpg", b"i"), ("a.cls", b"-1")], r"has the label -1; labels count from 0"),
        ([("a.jpg", b"i"), ("a.cls", b"99999999999")], r"has the label 99999999999"),
        ([("a.jpg", b"i"), ("a.json", b'{"name": 1}')], r"in its field 'label'"),
        ([("a.jpg", b"i"), ("a.json", b"[" * 100_000)], r"no whole number as label"),
        ([("a.jpg", b"i"), ("a.cls", b"1" * 2_000_000)], r"2,000,000 bytes; a label file may have"),
        ([("readme.txt", b"hi")], r"hold no labelled images"),
        ([], r"hold no labelled images"),
    ],
)
def test_bad_samples_get_their_sentence(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ShardError, match=message) as caught:
        ShardIndex.open(tmp_path / "x.tar", cache=tmp_path / "cache")
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_two_shards_with_one_key_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample("k", 1))
    write_tar(tmp_path / "b.tar", sample("j", 1) + sample("k", 2))
    with pytest.raises(ShardError, match=r"a\.tar and b\.tar both have an image with the key 'k'"):
        ShardIndex.open(tmp_path)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample("j", 0) + sample("k", 5))
    (tmp_path / "classes.txt").write_text("x\ny\n")
    with pytest.raises(ShardError, match=r"image 'k' has the label 5, but the set has 2 classes"):
        ShardIndex.open(tmp_path)


class Bomb:
    """Says so when somebody unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle ran')",))


def test_pickles_in_a_tar_never_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evil = pickle.dumps(Bomb())
    members = [("k.cls", b"1"), ("k.jpg", b"i"), ("k.pyd", evil), ("k.pth", evil), ("k.txt", b"t")]
    write_tar(tmp_path / "a.tar", members)
    with caplog.at_level(logging.WARNING, "vitwarm"):
        index = ShardIndex.open(tmp_path)
    assert index.keys[:] == ["k"]
    assert "2 member(s) that are pickles" in caplog.text


def test_the_index_is_cached_mapped_and_renewed_per_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "set", n_shards=3, per_shard=4)
    scanned: list[str] = []

    def spy(path: Path, *how: object) -> object:
        scanned.append(path.name)
        return read_shard(path, *how)  # type: ignore[arg-type]

    monkeypatch.setattr("vitwarm.shards.read.scan.read_shard", spy)
    first = ShardIndex.open(folder)
    assert len(scanned) == 3
    assert (folder / ".vitwarm-index").is_dir()
    again = ShardIndex.open(folder)
    assert len(scanned) == 3
    assert again.sha256 == first.sha256
    assert not again.labels.flags.writeable  # the file's pages, shared by all processes
    write_tar(folder / "tiny-0001.tar", sample("new", 2))
    changed = ShardIndex.open(folder)
    assert scanned[3:] == ["tiny-0001.tar"]
    assert changed.n_images == 9
    assert changed.keys[4] == "new"
    assert changed.sha256 != first.sha256
    write_tar(folder / "tiny-0003.tar", sample("more", 1))
    assert ShardIndex.open(folder).n_images == 10
    assert scanned[4:] == ["tiny-0003.tar"]


def test_an_index_goes_to_other_processes_as_the_name_of_its_file(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", n_shards=1)
    index = ShardIndex.open(folder)
    packed = pickle.dumps(index)
    assert len(packed) < 2000
    copy = pickle.loads(packed)
    assert copy.keys[:] == index.keys[:]
    assert (copy.n_classes, copy.sha256) == (index.n_classes, index.sha256)
    write_tar(folder / "tiny-0001.tar", sample("more", 1))
    ShardIndex.open(folder)
    with pytest.raises(ShardError, match="was replaced while it was in use"):
        pickle.loads(packed)


def test_read_only_shards_keep_their_index_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "set")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder.chmod(0o555)
    try:
        index = ShardIndex.open(folder)
    finally:
        folder.chmod(0o755)
    assert not (folder / ".vitwarm-index").exists()
    assert index.file is not None
    assert index.file.is_relative_to(tmp_path / "home")


def test_an_index_that_cannot_be_kept_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_set(tmp_path / "set")
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, "vitwarm"):
        index = ShardIndex.open(folder, cache=tmp_path / "file")
    assert index.file is None
    assert "cannot be cached" in caplog.text
    assert pickle.loads(pickle.dumps(index)).n_images == 32


def test_a_damaged_cache_is_thrown_away(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    file = ShardIndex.open(folder).file
    assert file is not None
    for content in (b"", b"\xff" * 100, file.read_bytes()[:200]):
        file.write_bytes(content)
        assert ShardIndex.open(folder).n_images == 32


def test_sources(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a set", n_shards=3, per_shard=2, info=True)
    names = [f"tiny-000{k}.tar" for k in range(3)]
    for text in (
        folder,
        f"{folder}/train",
        f"{folder}/tiny-{{0000..0002}}.tar",
        f"{folder}/tiny-*.tar",
        f"{folder}/tiny-*.tar|6",
        f"{folder}/tiny-0000.tar::{folder}/tiny-0001.tar::{folder}/tiny-0002.tar",
    ):
        assert ShardIndex.open(text).shard_names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{d}/nothing", "splits train"),
        ("{d}/tiny-{{0000..0009}}.tar", r"8 of 10 shards are not there.*tiny-0002"),
        ("{d}/tiny-0009.tar", r"There is no .*Did you mean tiny-000"),
        ("{d}/no-*.tar", "No file matches"),
        ("{d}/tiny-0000.tar::{d}/tiny-0000.tar", "twice"),
        ("{d}/tiny-*.tar|31", "states 31 images, but the shards hold 32"),
        ("{d}/tiny-*.tar|x", "must be the number of images"),
        ("{d}/empty", "holds no tars"),
        ("s3://bucket/a.tar", "scheme"),
        ("pipe:cat a.tar", r"runs a shell command.*data\.allow_pipe=true"),
    ],
)
def test_sources_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = write_set(tmp_path, info=True)
    (folder / "empty").mkdir()
    with pytest.raises(ShardError, match=message):
        open_shards(text.format(d=folder))


def test_a_folder_that_mixes_splits_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, name="x-train")
    write_set(tmp_path, name="x-validation")
    with pytest.raises(ShardError, match="several splits"):
        find_shards(str(tmp_path))


def test_a_count_that_differs_from_the_info_file_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path, info=True)
    write_tar(folder / "tiny-0001.tar", sample("k", 1))
    with pytest.raises(ShardError, match=r"tiny-0001\.tar holds 1 labelled.*says 16"):
        ShardIndex.open(folder)


def test_class_sorted_shards_are_noticed(tmp_path: Path) -> None:
    for k in range(4):
        write_tar(tmp_path / f"s-{k}.tar", [m for j in range(8) for m in sample(f"{k}-{j}", k)])
    assert ShardIndex.open(tmp_path).is_class_sorted
    assert not ShardIndex.open(write_set(tmp_path / "mixed")).is_class_sorted


def test_keys_are_a_sequence(tiny_set: Path) -> None:
    keys = ShardIndex.open(tiny_set, cache=tiny_set / "c").keys
    assert list(keys) == keys[:] == [f"im{k:05d}" for k in range(32)]
    assert keys[-1] == keys[31] == "im00031"
    with pytest.raises(IndexError):
        keys[32]


def test_base_256_sizes(tmp_path: Path) -> None:
    """Members beyond 8 GB have them; here a small one is written that way."""
    path = write_tar(tmp_path / "a.tar", sample("k", 3, b"i" * 10))
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + (10).to_bytes(11, "big")
    total = sum(content[:148]) + 8 * 32 + sum(content[156:512])
    content[148:156] = b"%06o\0 " % total
    path.write_bytes(content)
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        assert tar.getmembers()[0].size == 10
    assert rows_of(path)[0][3] == 10
    assert np.array_equal(read_shard(path).labels, [3])

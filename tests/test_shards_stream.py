"""Shards behind an http server or a command: trained on like others, with fewer promises."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from shard_maker import encode, sample, smooth, write_set, write_tar
from tiny_images import write_tiny_shards

from vitwarm.cli import main
from vitwarm.errors import ShardError
from vitwarm.records import read_metrics, read_records
from vitwarm.shards import (
    EvalCrop,
    Order,
    ShardIndex,
    TrainCrop,
    make_train_loader,
    make_val_loader,
    open_shards,
)
from vitwarm.shards.stream import loader as stream_loader

PHOTO = encode(smooth(np.random.default_rng(0), 40, 48))
TINY = [
    "train.model_kwargs={embed_dim: 32, depth: 1, num_heads: 2, patch_size: 4}",
    "train.img_size=8", "train.precision=fp32", "train.batch_size=8", "train.lr=2e-3",
    "train.steps=24", "train.evaluations=2", "run.progress=false", "run.log_every_steps=4",
    "run.device=cpu", "run.workers=0",
]  # fmt: skip


class Server(NamedTuple):
    """A folder behind http, and what was asked for."""

    url: str
    folder: Path
    asked: list[str]

    def tars(self) -> list[str]:
        """The shards that were fetched, in order."""
        return [name for name in self.asked if name.endswith(".tar")]


class Handler(SimpleHTTPRequestHandler):
    """Remembers instead of printing."""

    def __init__(self, *args: Any, asked: list[str], **how: Any) -> None:
        self.asked = asked
        super().__init__(*args, **how)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.asked.append(self.path.removeprefix("/"))

    def log_error(self, form: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else tens of tiny shards are fetched before the first image."""
    monkeypatch.setattr(stream_loader, "BUFFER", 16)
    monkeypatch.setattr(stream_loader, "BUFFER_FIRST", 8)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, which addresses are fetched with")
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []
    handler = partial(Handler, directory=str(folder), asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_address[1]}", folder, asked)
        http.shutdown()
        thread.join()


def open_stream(source: str) -> ShardIndex:
    index = open_shards(source, allow_pipe=True)
    assert index.streaming
    return index


def train_loader(index: ShardIndex, *, micro: int = 8, **how: Any) -> Any:
    rows = np.arange(index.n_images)
    crop = TrainCrop(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    order = Order(index, rows, seed=0)
    how = {"n_steps": 8, "workers": 0, **how}
    return make_train_loader(
        index, order, crop=crop, seed=0, batch_size=8, micro_batch_size=micro, **how
    )


def val_images(index: ShardIndex, **how: Any) -> list[tuple[int, bytes]]:
    crop = EvalCrop(size=32, crop_pct=1.0)
    loader = make_val_loader(index, crop=crop, batch_size=5, **how)
    return [
        (int(label), image.numpy().tobytes())
        for batch in loader
        for image, label in zip(batch.images, batch.labels, strict=True)
    ]


# -- training from it ---------------------------------------------------------------------------


def test_a_training_from_a_server_resumes_and_says_what_it_cannot_promise(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_shards(server.folder)
    words = [
        "train", *TINY, f"run.root={tmp_path / 'runs'}",
        f"data.train={server.url}/tiny-train-{{0000..0001}}.tar",
        f"data.val={server.url}/tiny-validation-{{0000..0001}}.tar",
    ]  # fmt: skip
    assert main([*words, "run.time_limit_minutes=1e-9"]) == 75
    assert not read_records(tmp_path / "runs")
    assert main(words) == 0
    (record,) = read_records(tmp_path / "runs")
    facts = {"steps": 24, "images_seen": 192, "n_train_images": 64, "n_val_images": 27}
    assert {name: getattr(record, name) for name in facts} == facts
    assert record.top1_percent is not None
    assert record.top1_percent > 40  # of four classes
    (folder,) = (tmp_path / "runs").iterdir()
    lines = read_metrics(folder)
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [12, 24]
    assert json.loads((folder / "subset.json").read_text())["per_class"] == []
    for words_of_it in (
        f"{server.url}/tiny-train-0000.tar is streamed, which guarantees less",
        "the order depends on the number of processes and workers",
        "a resume continues at a shard boundary",
        "fractions and image lists are refused",
    ):
        assert words_of_it in caplog.text


def test_a_permitted_command_is_a_source(tmp_path: Path) -> None:
    """With a pipe in it, and of a compressed tar."""
    write_tiny_shards(tmp_path)
    words = [
        "train", *TINY, f"run.root={tmp_path / 'runs'}", "train.steps=2", "data.allow_pipe=true",
        f"data.train=pipe:gzip -c {tmp_path}/tiny-train-{{0000..0001}}.tar | cat|64",
        f"data.val={tmp_path}/tiny-validation-*.tar",
    ]  # fmt: skip
    assert main(words) == 0
    (record,) = read_records(tmp_path / "runs")
    assert (record.n_train_images, record.n_classes) == (64, 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.fraction=0.5"], "data.fraction is 0.5, but the source is streamed"),
        (["data.image_list=a.txt"], "data.image_list is 'a.txt', but the source is streamed"),
        (["data.resident=on"], "data.resident is on, but the source is streamed. Use"),
        (["data.train={u}/no-{{0..1}}.tar"], "nothing says how many images it has"),
        (["data.train={u}/a b/no.tar"], "nothing says how many images it has"),
        (["data.train={u}/no.tar|64"], "exit code 22, the server refuses it or has no such file"),
        (["data.train=http://127.0.0.1:1/no.tar|64"], "exit code 7, the host refuses connections"),
        (["data.train=ftp://host/a.tar|64"], "has an unsupported scheme. Give http(s)://"),
        (["data.train=s3://host/a.tar|64"], "For object stores: pipe:aws s3 cp s3://BUCKET/"),
        (["data.train=pipe:cat {d}/tiny-train-0000.tar|64"], "allow it: data.allow_pipe=true"),
        (
            ["data.train={u}/tiny-train-0000.tar::pipe:cat {d}/tiny-train-0000.tar|64"],
            "'pipe:cat {d}/tiny-train-0000.tar' runs a shell command",
        ),
        (
            ["data.train=pipe:false|64", "data.allow_pipe=true"],
            "pipe:false cannot be streamed: its command ended with the exit code 1",
        ),
        (
            ["data.train=pipe:cat {d}/x.tar|64", "data.val=pipe:cat x.tar|64",
             "data.allow_pipe=true"],
            "nothing says how many classes the streamed shards have",
        ),
        (["train.num_classes=3", "data.val={d}/few.tar"], "has the label 3, but the set has 3"),
    ],
)  # fmt: skip
def test_mistakes_get_a_sentence(
    words: list[str], message: str, server: Server, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_tiny_shards(server.folder)
    write_tar(server.folder / "few.tar", [m for k in range(3) for m in sample(f"k{k}", k, PHOTO)])
    known = {"u": server.url, "d": server.folder}
    fields = {
        "data.train": f"{server.url}/tiny-train-{{0000..0001}}.tar",
        "data.val": f"{server.folder}/validation",
        "run.root": str(tmp_path / "runs"),
    }
    fields |= dict(word.format(**known).split("=", 1) for word in words)
    given = [f"{field}={value}" for field, value in fields.items()]
    assert main(["train", *TINY, "train.steps=40", *given]) == 2
    said = capsys.readouterr().err
    assert message.format(**known) in said
    assert "Traceback" not in said


# -- what comes out of it -----------------------------------------------------------------------


@pytest.mark.slow
def test_spawned_workers_stream_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    write_set(server.folder, n_shards=3, per_shard=7, info=True)
    index = open_stream(f"{server.url}/tiny-{{0000..0002}}.tar")
    assert sorted(val_images(index, workers=2)) == sorted(val_images(index, workers=0))
    assert len(list(train_loader(index, workers=1))) == 8


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_validation_image_comes_once(server: Server, world: int, workers: int) -> None:
    write_set(server.folder, n_shards=3, per_shard=7, info=True)
    index = open_stream(f"{server.url}/tiny-{{0000..0002}}.tar")
    how = {"workers": workers, "world_size": world}
    found = [image for rank in range(world) for image in val_images(index, rank=rank, **how)]
    assert sorted(found) == sorted(val_images(ShardIndex.open(server.folder), workers=0))
    assert sorted(server.tars()) == [f"tiny-{k:04d}.tar" for k in range(3)]


def test_every_epoch_takes_every_shard_once_and_a_resume_begins_at_an_edge(
    server: Server,
) -> None:
    write_set(server.folder, n_shards=4, per_shard=8, info=True)
    index = open_stream(f"{server.url}/tiny-{{0000..0003}}.tar")
    batches = list(train_loader(index))
    assert [len(batch.images) for batch in batches] == [8] * 8
    whole = server.tars()
    epochs = [whole[k : k + 4] for k in range(0, len(whole) - 3, 4)]
    assert all(sorted(epoch) == [f"tiny-{k:04d}.tar" for k in range(4)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = list(train_loader(index))
    assert all((a.images == b.images).all() for a, b in zip(batches, again, strict=True))

    # A batch is a shard's worth of images here, so that three steps are three shards.
    server.asked.clear()
    assert len(list(train_loader(index, start_step=3))) == 5
    assert server.tars()[:8] == whole[3:11]

    # Two processes share the sequence out among themselves.
    parts = []
    for rank in range(2):
        server.asked.clear()
        list(train_loader(index, micro=4, rank=rank, world_size=2))
        parts.append(server.tars())
    assert [name for pair in zip(*parts, strict=True) for name in pair][:8] == whole[:8]


# -- streams that are not whole -----------------------------------------------------------------


def cut_in_an_image(whole: bytes) -> bytes:
    return whole[:1000]


def cut_between_members(whole: bytes) -> bytes:
    return whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 512]


def no_images(whole: bytes) -> bytes:
    return bytes(10240)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut_in_an_image, "unexpected end of data"),
        (cut_between_members, "it ends without the end-of-archive mark"),
        (no_images, "it holds no labelled images"),
    ],
)
def test_a_stream_that_breaks_is_left_out_in_training_and_stops_a_validation(
    spoil: Any, why: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(server.folder, n_shards=2, per_shard=8)
    path = server.folder / "tiny-0001.tar"
    path.write_bytes(spoil(path.read_bytes()))
    index = open_stream(f"{server.url}/tiny-{{0000..0001}}.tar|16")
    assert len(list(train_loader(index))) == 8
    assert f"{server.url}/tiny-0001.tar broke off: {why}" in caplog.text
    with pytest.raises(ShardError, match=rf"tiny-0001\.tar cannot be streamed: {why}"):
        val_images(index, workers=0)
    with pytest.raises(ShardError, match="Check the address and the network"):
        list(train_loader(open_stream(f"{server.url}/tiny-0001.tar|16")))


def test_a_shard_with_fewer_images_than_stated_is_noticed(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(server.folder, n_shards=2, per_shard=8, info=True)
    write_tar(server.folder / "tiny-0001.tar", sample("k", 1, PHOTO))
    list(train_loader(open_stream(f"{server.url}/tiny-{{0000..0001}}.tar"), n_steps=1))
    assert "holds 1 labelled images, but the info file says 8" in caplog.text


def test_images_that_do_not_decode_are_named_counted_and_left_out(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(server.folder, n_shards=2, per_shard=8, info=True, bad=(3,))
    index = open_stream(f"{server.url}/tiny-{{0000..0001}}.tar")
    batches = list(train_loader(index, n_steps=14))
    assert 4 < sum(int(batch.unreadable) for batch in batches) < 10  # one of 16, 112 images
    assert f"{server.url}/tiny-0000.tar: image 'im00003' does not decode (" in caplog.text
    assert len(val_images(index, workers=0)) == 16  # black, but there: the count holds

    write_set(server.folder, n_shards=1, per_shard=8, name="bad", bad=tuple(range(8)))
    nothing = open_stream(f"{server.url}/bad-0000.tar|8")
    with pytest.raises(ShardError, match=r"and 99 images before it do not decode.*shards check"):
        list(train_loader(nothing))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", PHOTO)], r"a\.tar: image 'a' has no label; there is no a\.cls"),
        ([("a.jpg", PHOTO), ("a.cls", b"cat")], r"a\.cls holds no whole number as label \('cat'\)"),
        ([("a.jpg", PHOTO), ("a.cls", b"-1")], "image 'a' has the label -1; labels count from 0"),
        ([("a.jpg", PHOTO), ("a.cls", b"9")], "'a' has the label 9, but the set has 4 classes"),
        ([("a.jpg", PHOTO), ("a.json", b"[" * 100_000)], "RecursionError"),
        ([("a.cls", b"1" * 2_000_000)], r"a\.cls has 2,000,000 bytes; at most 1,048,576 are read"),
    ],
)
def test_bad_samples_get_their_sentence(
    members: list[tuple[str, bytes]], message: str, server: Server
) -> None:
    write_tar(server.folder / "a.tar", members)
    (server.folder / "_info.json").write_text('{"num_classes": 4}')
    for fails in (
        lambda index: list(train_loader(index)),
        lambda index: val_images(index, workers=1),
    ):
        with pytest.raises(ShardError, match=message):
            fails(open_stream(f"{server.url}/a.tar|8"))


def test_an_info_file_that_is_none_is_named(server: Server) -> None:
    (server.folder / "_info.json").write_text('{"splits": []}')
    with pytest.raises(ShardError, match=r"_info\.json is not an info file of shards"):
        open_stream(f"{server.url}/a.tar")


def test_joined_addresses_whose_tars_have_equal_names(server: Server) -> None:
    """Each folder's own info file counts its tars."""
    for name, per_shard in (("one", 3), ("two", 5)):
        write_set(server.folder / name, n_shards=1, per_shard=per_shard, info=True)
    index = open_shards(f"{server.url}/one/tiny-0000.tar::{server.url}/two/tiny-0000.tar")
    assert index.n_images == 8
    loader = make_val_loader(index, crop=EvalCrop(32), batch_size=8, workers=0)
    assert [len(batch.images) for batch in loader] == [8]

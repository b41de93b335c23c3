"""Shards that somebody damaged or prepared: each gets its sentence and code, and nothing runs."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_maker import encode, sample, smooth, write_tar

from vitwarm.cli import main
from vitwarm.errors import ShardError
from vitwarm.shards import EvalCrop, ShardIndex, make_val_loader
from vitwarm.shards.read.labels import Labels
from vitwarm.shards.read.rows import read_shard
from vitwarm.shards.stream.tar import TarStream

TINY = [
    "train.model_kwargs={embed_dim: 32, depth: 1, num_heads: 2, patch_size: 8}",
    "train.img_size=16", "train.precision=fp32", "train.batch_size=8", "train.steps=8",
    "train.evaluations=1", "run.progress=false", "run.device=cpu", "run.workers=0",
]  # fmt: skip

PHOTO = encode(smooth(np.random.default_rng(0), 40, 48))


class Mine:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, (f"import pathlib; pathlib.Path({str(self.trace)!r}).touch()",))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb() -> bytes:
    """A true PNG of 100 megapixels in 12 kB: one bit each, all of them zero."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(10_000 * 1_251), 1)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    """A JPEG whose header claims 120 megapixels."""
    data = bytearray(PHOTO)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 10_000, 12_000)
    return bytes(data)


def text_bomb() -> bytes:
    """A small PNG with a comment of 80 MB in 80 kB."""
    png = encode(np.zeros((8, 8, 3), np.uint8), "png")
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 1))
    return png[:33] + comment + png[33:]


def write_photos(folder: Path, *members: tuple[str, bytes], n: int = 16) -> Path:
    """One tar of `n` whole photographs of four classes, and then what else is given."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = [member for k in range(n) for member in sample(f"good{k:02d}", k % 4, PHOTO)]
    write_tar(folder / "x-0000.tar", [*whole, *members])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


def train_words(train: Path | str, val: Path, out: Path) -> list[str]:
    return ["train", *TINY, f"data.train={train}", f"data.val={val}", f"run.root={out}"]


# -- tars that cannot be read at all ------------------------------------------------------------


def cut(folder: Path) -> str:
    path = write_photos(folder) / "x-0000.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    return "x-0000.tar is cut short: it ends at byte 20,000, after good0"


def label_of_the_wrong_set(folder: Path) -> str:
    write_photos(folder, *sample("far", 9, PHOTO))
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    return "image 'far' has the label 9, but the set has 4 classes"


def label_below_zero(folder: Path) -> str:
    write_photos(folder, *sample("under", -3, PHOTO))
    return "image 'under' has the label -3; labels count from 0"


def pickled_label(folder: Path) -> str:
    mine = pickle.dumps(Mine(folder / "ran"))
    write_photos(folder, ("p.jpg", PHOTO), ("p.cls", mine))
    return "p.cls holds no whole number as label"


def one_key_in_two_shards(folder: Path) -> str:
    write_tar(write_photos(folder) / "x-0001.tar", sample("good03", 1, PHOTO))
    return "x-0000.tar and x-0001.tar"


def web_page(folder: Path) -> str:
    write_photos(folder)
    (folder / "x-0000.tar").write_bytes(b"<html>404 not found</html>" * 100)
    return "x-0000.tar is damaged: byte 0 is no tar header"


@pytest.mark.parametrize(
    "spoil",
    [cut, label_of_the_wrong_set, label_below_zero, pickled_label, one_key_in_two_shards, web_page],
    ids=lambda spoil: spoil.__name__,
)
def test_every_command_says_what_is_wrong(
    spoil: object, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    sentence = spoil(bad)  # type: ignore[operator]
    for words in (
        ["shards", "info", str(bad)],
        ["shards", "materialise", str(bad), str(tmp_path / "out"), "--fraction", "0.5"],
        train_words(bad, photos, tmp_path / "runs"),
        train_words(photos, bad, tmp_path / "runs"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert "Traceback" not in said
        assert said.count("\n") == 1
    assert main(["shards", "check", str(bad)]) == 1
    found = capsys.readouterr().out
    assert sentence in found
    assert "1 problem" in found
    assert not (bad / "ran").exists()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def whole_tars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One tar as tarfile writes it, one as webdataset does, with a pax header before each member.

    Without the zeros that fill the last 10 kB: where they are cut nothing is lost.
    """
    folder = tmp_path_factory.mktemp("whole")
    members = [m for k in range(4) for m in sample(f"k{k}", k, PHOTO[: 300 + 411 * k])]
    tars = {"plain": write_tar(folder / "plain.tar", members, form=tarfile.GNU_FORMAT).read_bytes()}
    with wds.TarWriter(str(folder / "pax.tar")) as writer:
        for k in range(4):
            writer.write({"__key__": f"k{k}", "jpg": PHOTO[: 300 + 411 * k], "cls": b"%d" % k})
    tars["pax"] = (folder / "pax.tar").read_bytes()
    for form, data in tars.items():
        tars[form] = data[: -(-len(data.rstrip(b"\0")) // 512) * 512 + 1024]
    return tars


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), form=st.sampled_from(["plain", "pax"]), fast=st.booleans())
def test_a_tar_cut_at_any_byte_is_refused(
    tmp_path: Path, whole_tars: dict[str, bytes], data: st.DataObject, form: str, fast: bool
) -> None:
    """Bytes and edges of blocks alike: inside a header, a label, an image, the end mark."""
    whole = whole_tars[form]
    blocks = st.integers(0, len(whole) // 512 - 1).map(lambda block: block * 512)
    length = data.draw(st.one_of(st.integers(0, len(whole) - 1), blocks))
    path = tmp_path / "cut.tar"
    path.write_bytes(whole)
    assert len(read_shard(path, fast=fast).keys) == 4
    path.write_bytes(whole[:length])
    with pytest.raises(ShardError, match=r"cut\.tar is (cut short|damaged).*[Cc]opy or download"):
        read_shard(path, fast=fast)


# -- images that cannot be decoded --------------------------------------------------------------

BAD_IMAGES = {
    "garbage": (b"\x00 garbage" * 50, "jpg", "it is no JPEG, PNG or WebP"),
    "empty": (b"", "jpg", "it is no JPEG, PNG or WebP"),
    "cut": (PHOTO[: len(PHOTO) // 2], "jpg", "runcated"),
    "png bomb": (png_bomb(), "png", "claims 10,000 x 10,000 pixels; at most 67,108,864 are"),
    "jpeg bomb": (jpeg_bomb(), "jpg", "claims 12,000 x 10,000 pixels; at most 67,108,864 are"),
    "text bomb": (text_bomb(), "png", "Decompressed data too large"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_does_not_decode_is_named_and_counted(
    name: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    data, ending, why = BAD_IMAGES[name]
    bad = write_photos(tmp_path / "bad", (f"odd.{ending}", data), ("odd.cls", b"1"))
    assert main(["shards", "check", str(bad)]) == 1
    found = capsys.readouterr().out
    assert f"{bad}/x-0000.tar: image 'odd' does not decode (" in found
    assert why in found
    assert "17 images of 4 classes in 1 shard, 16 of 17 decoded: 1 problem" in found

    # One of 17 is more than a training puts up with, however good the others are.
    assert main(train_words(bad, photos, tmp_path / "runs")) == 1
    assert "did not decode; allowed is 0.1%. `vitwarm shards check` lists them" in (
        capsys.readouterr().err
    )
    assert "image 'odd' does not decode" in caplog.text
    assert why in caplog.text


def test_odd_images_are_what_pillow_makes_of_them(tmp_path: Path) -> None:
    """CMYK, a PNG or WebP named JPEG, grey, with transparency; turned by EXIF: as it is stored.

    Of 16 bits of grey, X-rays above all, Pillow's own conversion makes white.
    """
    pixels = smooth(np.random.default_rng(1), 32, 32)
    image = Image.fromarray(pixels)
    forms = {
        "cmyk": (image.convert("CMYK"), "JPEG"),
        "png": (image, "PNG"),
        "webp": (image, "WEBP"),
        "grey": (image.convert("L"), "JPEG"),
        "clear": (image.convert("RGBA"), "PNG"),
        "palette": (image.convert("P"), "PNG"),
        "deep": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 256), "PNG"),
    }
    turned = Image.Exif()
    turned[0x0112] = 6
    members, wanted = [], []
    for label, (key, (form, kind)) in enumerate(forms.items()):
        buffer = io.BytesIO()
        form.save(buffer, kind, exif=turned)
        members += sample(key, label, buffer.getvalue())
        shown = Image.fromarray(pixels[..., 0]) if key == "deep" else Image.open(buffer)
        wanted.append(np.array(shown.convert("RGB")).astype(int))
    write_tar(tmp_path / "a.tar", members)
    assert main(["shards", "check", str(tmp_path)]) == 0
    loader = make_val_loader(
        ShardIndex.open(tmp_path), crop=EvalCrop(size=32, crop_pct=1.0), batch_size=8, workers=0
    )
    (batch,) = loader
    assert int(batch.unreadable) == 0
    for ours, theirs in zip(batch.images.permute(0, 2, 3, 1).numpy(), wanted, strict=True):
        assert np.abs(ours - theirs).mean() < 2  # two decoders may round differently


# -- code inside a shard, or inside its name ----------------------------------------------------


def test_no_command_unpickles_what_lies_beside_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "ran"
    mine = pickle.dumps(Mine(trace))
    pickle.loads(mine)
    trace.unlink()  # fails unless the pickle does what it is here for
    members = [(f"good00x.{ending}", mine) for ending in ("pyd", "pth", "pkl", "npy", "ten", "mp")]
    evil = write_photos(tmp_path / "evil", ("good00x.jpg", PHOTO), ("good00x.cls", b"1"), *members)
    assert main(["shards", "info", str(evil)]) == 0
    assert main(["shards", "check", str(evil)]) == 0
    assert "6 members are neither image nor label and are never read; 3 of them are pickles" in (
        capsys.readouterr().out
    )
    assert main(
        ["shards", "materialise", str(evil), str(tmp_path / "part"), "--fraction", "1"]
    ) == 0  # fmt: skip
    with tarfile.open(next((tmp_path / "part").glob("*.tar"))) as tar:
        assert {Path(name).suffix for name in tar.getnames()} == {".jpg", ".cls"}
    assert main(train_words(evil, evil, tmp_path / "runs")) == 0
    with open(evil / "x-0000.tar", "rb") as stream:
        assert len(list(TarStream(stream, "http://host/x.tar", Labels(), None))) == 17
    assert not trace.exists()


@pytest.mark.parametrize("field", ["data.train", "data.val"])
def test_a_command_in_place_of_shards_needs_a_permission(
    field: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "ran"
    words = train_words(photos, photos, tmp_path / "runs")
    words = [word for word in words if not word.startswith(field)]
    words.append(f"{field}=pipe:touch {trace}|16")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"'pipe:touch {trace}' runs a shell command" in said
    assert "allow it: data.allow_pipe=true" in said
    for command in ("info", "check"):
        assert main(["shards", command, f"pipe:touch {trace}|16"]) == 2
        capsys.readouterr()
    assert not trace.exists()

"""Micro-batches out of streams: webdataset's openers and shuffle buffer, our members and pixels."""

from __future__ import annotations

import json
import logging
import random
import re
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from vitwarm.errors import ShardError, VitwarmError
from vitwarm.seeding import hash_bits, mix_u64, seed_of
from vitwarm.shards.crops import EvalCrop, TrainCrop
from vitwarm.shards.cutting import centre, cut_out
from vitwarm.shards.decode import Encoded, UnreadableImage, decode, quiet, read_header
from vitwarm.shards.index import ShardIndex
from vitwarm.shards.shardrows import (
    IMAGE_ENDINGS,
    MAX_CLASSES,
    MAX_MEMBER_BYTES,
    hash_key,
    split_name,
)
from vitwarm.shards.stream import WARNING, StreamIndex
from vitwarm.shards.tarscan import MAX_CONTENT_BYTES
from vitwarm.shards.workers import Failure, empty_images, make_data_loader, start_workers

log = logging.getLogger("vitwarm")

#: Encoded images that a worker mixes, and how many it wants before it hands out the first.
BUFFER, BUFFER_FIRST = 1000, 250

#: Streams that break one after another, and images on end that do not decode, before the run is
#: stopped: what comes next is no better.
MAX_BROKEN = 5
MAX_BAD = 100

#: Why curl gave up, by its exit code.
_CURL = {
    3: "the address is malformed", 6: "the host is not known", 7: "the host refuses connections",
    18: "the connection ended early", 22: "the server refuses it or has no such file",
    28: "it took too long", 56: "the connection broke",
}  # fmt: skip


class Raw(NamedTuple):
    """A labelled image as it came out of a stream."""

    key: int
    """63 bits of its hash: what crops are seeded with in place of a row."""
    epoch: int
    data: bytes
    label: int
    name: str
    """Address and key, for messages."""


class _Stream(IterableDataset[Any]):
    """Micro-batches of one worker: its own shards out of the one sequence of all epochs."""

    def __init__(
        self,
        index: StreamIndex,
        crop: TrainCrop | EvalCrop,
        *,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        workers: int,
        first_image: int,
    ) -> None:
        self.index, self.crop, self.seed, self.batch_size = index, crop, seed, batch_size
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self.first_image = first_image

    @property
    def trains(self) -> bool:
        """Whether shards come for ever and in random order."""
        return isinstance(self.crop, TrainCrop)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = self.rank * max(1, self.workers) + (info.id if info else 0)
        stages: list[Any] = [lambda: self._shards(worker), self._samples]
        if self.trains:
            rng = random.Random(seed_of(self.seed, "stream", worker, self.first_image))
            stages.append(wds.shuffle(BUFFER, initial=BUFFER_FIRST, rng=rng))
        try:
            yield from self._batches(iter(wds.DataPipeline(*stages)))
        except VitwarmError as error:
            yield Failure.of(error)

    def _shards(self, worker: int) -> Iterator[dict[str, Any]]:
        """Every `all workers`-th shard of the sequence, from where the first image lies."""
        urls = self.index.urls
        n_workers = self.world_size * max(1, self.workers)
        if not self.trains:
            for shard in range(worker, len(urls), n_workers):
                yield {"shard": shard, "epoch": 0}
            return
        place = self.first_image * len(urls) // self.index.n_images + worker
        while True:
            epoch, item = divmod(place, len(urls))
            key = hash_bits(self.seed, "stream", "shards", epoch)
            turn = np.argsort(mix_u64(np.arange(len(urls)), key))
            yield {"shard": int(turn[item]), "epoch": epoch}
            place += n_workers

    def _samples(self, shards: Iterator[dict[str, Any]]) -> Iterator[Raw]:
        index, broken = self.index, 0
        for shard in shards:
            url, stated, n = index.urls[shard["shard"]], index.lengths[shard["shard"]], 0
            try:
                with wds.gopen(url) as stream:
                    for sample in _read_tar(stream, url, index.label_key, index.known_classes):
                        n += 1
                        yield sample._replace(epoch=shard["epoch"])
                if n != (stated or n or 1):
                    raise EOFError(
                        f"it holds {n:,} labelled images, but the info file says {stated:,}"
                        if stated
                        else "it holds no labelled images"
                    )
                broken = 0
            except (OSError, tarfile.TarError, EOFError) as error:
                broken += 1
                if not self.trains or broken >= MAX_BROKEN:
                    raise ShardError(
                        f"{url} cannot be streamed: {_reason(url, error)}. Check the address and "
                        "the network, and give the same command again; it resumes."
                    ) from error
                log.warning("%s broke off: %s", url, _reason(url, error))

    def _batches(self, samples: Iterator[Raw]) -> Iterator[Any]:
        images = empty_images(self.batch_size, self.crop.size)
        numbers = np.zeros((3, self.batch_size), np.int64)
        n = bad = on_end = 0
        for sample in samples:
            try:
                images.numpy()[n] = self._pixels(sample).transpose(2, 0, 1)
                on_end = 0
            except UnreadableImage as error:
                bad, on_end = bad + 1, on_end + 1
                log.warning("%s does not decode (%s)", sample.name, error)
                if on_end >= MAX_BAD:
                    raise ShardError(
                        f"{sample.name} and {MAX_BAD - 1} images before it do not decode ({error})."
                        " Copy the shards to a disk and run `vitwarm shards check` on them."
                    ) from None
                if self.trains:
                    continue  # the next one of the stream stands in
                images.numpy()[n] = 0  # counted, with its own label: the number of images holds
            numbers[:, n] = sample.label, sample.key, sample.epoch
            n += 1
            if n == self.batch_size:
                yield images, *numbers.copy(), bad
                images = empty_images(self.batch_size, self.crop.size)
                n = bad = 0
        if n:
            yield images[:n], *numbers[:, :n].copy(), bad

    def _pixels(self, sample: Raw) -> np.ndarray:
        with quiet():
            return self._crop(sample, read_header(sample.data))

    def _crop(self, sample: Raw, image: Encoded) -> np.ndarray:
        if isinstance(self.crop, EvalCrop):
            return centre(decode(image), self.crop)
        box = self.crop.box(self.seed, sample.epoch, sample.key, image.height, image.width)
        reduction = int(self.crop.reduction(np.array([box], np.float32))[0])
        pixels = decode(image, reduction=reduction)
        if reduction > 1 and pixels.shape[0] < image.height:
            box = (*(side // reduction for side in box[:4]), box[4])  # type: ignore[assignment]
        return cut_out(pixels, box, self.crop.size, interpolation=self.crop.interpolation)


class StreamLoader:
    """Micro-batches of a streamed training set; promises as many as asked for, see WARNING."""

    def __init__(
        self,
        index: ShardIndex,
        *,
        crop: TrainCrop,
        seed: int,
        micro: int,
        micros: int,
        rank: int,
        world_size: int,
        start_step: int,
        n_steps: int,
        workers: int,
        pin_memory: bool,
    ) -> None:
        """Prepares the steps from `start_step` to `n_steps`; arguments as `make_train_loader`."""
        assert isinstance(index, StreamIndex)
        self.index, self.crop, self.seed = index, crop, seed
        self.micro, self.micros = micro, micros
        self.rank, self.world_size = rank, world_size
        self.start_step, self.n_steps = start_step, n_steps
        self.workers, self.pin_memory = workers, pin_memory
        self._steps_done = start_step
        if rank == 0:
            log.warning(WARNING, index.urls[0])

    def __len__(self) -> int:
        return max(0, self.n_steps - self.start_step) * self.micros

    def __iter__(self) -> Iterator[Any]:
        local = self.micro * self.micros
        self._steps_done = self.start_step
        loader = _stream_loader(
            self.index,
            self.crop,
            seed=self.seed,
            batch_size=self.micro,
            rank=self.rank,
            world_size=self.world_size,
            workers=self.workers,
            first_image=self.start_step * local * self.world_size,
            pin_memory=self.pin_memory,
        )
        shipped = start_workers(loader)
        for number in range(1, len(self) + 1):
            step, micro = divmod(number - 1, self.micros)
            first = ((self.start_step + step) * self.world_size + self.rank) * local
            self._steps_done = self.start_step + number // self.micros
            yield _unpack(next(shipped), first + micro * self.micro)

    def state_dict(self) -> dict[str, int]:
        """The number of steps whose micro-batches have all been handed out."""
        return {"steps_done": self._steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration start behind so many steps, at the edge of a shard."""
        self._steps_done = self.start_step = int(state["steps_done"])


class StreamValLoader:
    """One process's share of a streamed validation set: whole shards, each once."""

    def __init__(self, loader: Any, n_batches: int) -> None:
        self.loader = loader
        self.n_batches = n_batches

    def __len__(self) -> int:
        """About so many batches: how the images spread over the shards is not known."""
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        first = 0
        for shipped in start_workers(self.loader):
            batch = _unpack(shipped, first)
            first += len(batch.images)
            yield batch


def make_stream_val_loader(
    index: ShardIndex,
    *,
    crop: EvalCrop,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
) -> StreamValLoader:
    """Returns a process's share of a streamed validation set; arguments as `make_val_loader`."""
    assert isinstance(index, StreamIndex)
    loader = _stream_loader(
        index,
        crop,
        seed=0,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        workers=workers,
        first_image=0,
        pin_memory=pin_memory,
    )
    return StreamValLoader(loader, -(-index.n_images // (world_size * batch_size)))


def _stream_loader(
    index: StreamIndex,
    crop: TrainCrop | EvalCrop,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    **how: int,
) -> Any:
    return make_data_loader(
        _Stream(index, crop, batch_size=batch_size, workers=workers, **how),
        sampler=None,
        workers=workers,
        pin_memory=pin_memory,
        start_method="fork",
        batch_bytes=3 * batch_size * crop.size**2,
        persistent=False,  # each iteration starts at another image
    )


def _unpack(shipped: Any, first: int) -> Any:
    from vitwarm.shards.loader import ImageBatch

    if isinstance(shipped, Failure):
        raise shipped.kind(shipped.text)
    images, labels, keys, epochs, bad = shipped
    return ImageBatch(
        images=images,
        labels=torch.from_numpy(labels),
        rows=torch.from_numpy(keys),
        positions=torch.arange(first, first + len(labels)),
        epochs=torch.from_numpy(epochs),
        unreadable=torch.tensor(bad),
    )


def _read_tar(stream: Any, url: str, label_key: str | None, n_classes: int | None) -> Iterator[Raw]:
    """Yields the labelled images of one tar; members of one key follow one another."""
    key = b""
    parts: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            name, ending = split_name(member.name.encode("utf-8", "surrogateescape"))
            wanted = ending.decode("ascii", "replace")
            if not member.isreg() or wanted not in (*IMAGE_ENDINGS, "cls", "json"):
                continue
            limit = MAX_MEMBER_BYTES if wanted in IMAGE_ENDINGS else MAX_CONTENT_BYTES
            if member.size > limit:
                raise ShardError(
                    f"{url}: member {member.name} has {member.size:,} bytes; at most {limit:,} are "
                    "read. Take it out of the shard."
                )
            if name != key:
                yield from _whole(key, parts, url, label_key, n_classes)
                key, parts = name, {}
            content = tar.extractfile(member)
            assert content is not None
            parts[wanted] = content.read()
        end = tar.fileobj.read(tarfile.BLOCKSIZE)  # the second of the two blocks of zeros
    yield from _whole(key, parts, url, label_key, n_classes)
    if end != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut between two members for the end
        raise EOFError("it ends without the end-of-archive mark")
    while stream.read(1 << 16):  # a command whose output nobody reads ends with an error
        pass


def _whole(
    key: bytes, parts: dict[str, bytes], url: str, label_key: str | None, n_classes: int | None
) -> Iterator[Raw]:
    image = next((parts[ending] for ending in IMAGE_ENDINGS if ending in parts), None)
    if image is None:
        return
    name = f"{url}: image {key.decode(errors='replace')!r}"
    try:
        if label_key or "cls" not in parts:
            label = int(json.loads(parts["json"])[label_key or "label"])
        else:
            label = int(parts["cls"])
        if not 0 <= label < MAX_CLASSES:
            raise ValueError(f"{label} is out of range")
    except (KeyError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ShardError(
            f"{name} has no whole number as label ({type(error).__name__}: {str(error)[:60]}). "
            "Mend it, or name the field of KEY.json that is the label: data.label_key=..."
        ) from None
    if n_classes is not None and label >= n_classes:
        raise ShardError(
            f"{name} has the label {label}, but the set has {n_classes} classes; labels count from "
            "0. Mend the label, the num_classes of the _info.json beside it, or train.num_classes."
        )
    yield Raw(hash_key(key) >> 1, 0, image, label, name)


def _reason(url: str, error: BaseException) -> str:
    """Says why a stream ended early; webdataset's own text is the whole call of the command."""
    text = str(error).partition("\n")[0]
    if found := re.search(r": exit (\d+) ", text):
        if url.startswith("pipe:"):
            return f"its command ended with the exit code {found[1]}"
        why = _CURL.get(int(found[1]), "see the manual of curl")
        return f"curl ended with the exit code {found[1]}, {why}"
    return text[:160] or type(error).__name__

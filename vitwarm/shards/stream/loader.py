"""Micro-batches out of streams: webdataset's openers and shuffle buffer, our members and pixels."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from vitwarm.errors import ShardError, VitwarmError
from vitwarm.seeding import hash_bits, mix_u64, seed_of
from vitwarm.shards.choose.order import Share
from vitwarm.shards.load.pixels import (
    EvalCrop,
    TrainCrop,
    UnreadableImage,
    centre,
    cut_out,
    decode,
    quiet,
    read_header,
)
from vitwarm.shards.load.workers import Failure, Shipped, empty_images
from vitwarm.shards.read.rows import tell_litter
from vitwarm.shards.stream.index import WARNING, StreamIndex
from vitwarm.shards.stream.tar import BROKEN, Raw, TarStream

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


@dataclass(eq=False)
class Stream(IterableDataset[Any]):
    """Micro-batches of one worker: its own shards out of the one sequence of all epochs.

    Of a stream that trains, see WARNING; for validation these are whole shards, each once.
    """

    index: StreamIndex
    share: Share
    crop: TrainCrop | EvalCrop
    seed: int
    start_step: int = 0
    """Where an iteration begins."""
    told: bool = False
    """What a Mac added was said."""

    def __post_init__(self) -> None:
        if self.share.rank == 0 and self.trains:
            log.warning(WARNING, self.index.urls[0])

    @property
    def trains(self) -> bool:
        """Whether shards come for ever and in random order."""
        return isinstance(self.crop, TrainCrop)

    @property
    def first_image(self) -> int:
        """Where an iteration begins, in images of all processes."""
        return self.start_step * self.share.batch_size

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        number, n_own = (info.id, info.num_workers) if info else (0, 1)
        worker = self.share.rank * n_own + number
        n_workers = self.share.world_size * n_own
        stages: list[Any] = [lambda: self._shards(worker, n_workers), self._samples]
        if self.trains:
            rng = random.Random(seed_of(self.seed, "stream", worker, self.first_image))
            stages.append(wds.shuffle(BUFFER, initial=BUFFER_FIRST, rng=rng))
        try:
            yield from self._batches(iter(wds.DataPipeline(*stages)))
        except VitwarmError as error:
            yield Failure(type(error), str(error))

    def _shards(self, worker: int, n_workers: int) -> Iterator[tuple[int, int]]:
        """Every `n_workers`-th shard of the sequence from the first image on, and its epoch."""
        urls = self.index.urls
        if not self.trains:
            yield from ((shard, 0) for shard in range(worker, len(urls), n_workers))
            return
        place = self.first_image * len(urls) // self.index.n_images + worker
        while True:
            epoch, item = divmod(place, len(urls))
            key = hash_bits(self.seed, "stream", "shards", epoch)
            turn = np.argsort(mix_u64(np.arange(len(urls)), key))
            yield int(turn[item]), epoch
            place += n_workers

    def _samples(self, shards: Iterator[tuple[int, int]]) -> Iterator[Raw]:
        index, broken = self.index, 0
        for shard, epoch in shards:
            url, stated, n = index.urls[shard], index.lengths[shard], 0
            try:
                with wds.gopen(url) as stream:
                    tar = TarStream(stream, url, index.how, index.known_classes)
                    for sample in tar:
                        n += 1
                        yield sample._replace(epoch=epoch)
                if tar.n_skipped and not self.told:
                    self.told = True
                    tell_litter(url, tar.n_skipped, also=", here and in other shards")
                if n != (stated or n or 1):
                    raise EOFError(
                        f"it holds {n:,} labelled images, but the info file says {stated:,}"
                        if stated
                        else "it holds no labelled images"
                    )
                broken = 0
            except BROKEN as error:
                broken += 1
                if not self.trains or broken >= MAX_BROKEN:
                    raise ShardError(
                        f"{url} cannot be streamed: {_reason(url, error)}. Check the address and "
                        "the network, and run the same command again; it resumes."
                    ) from error
                log.warning("%s broke off: %s", url, _reason(url, error))

    def _batches(self, samples: Iterator[Raw]) -> Iterator[Any]:
        images = empty_images(self.share.micro, self.crop.sides)
        numbers = np.zeros((4, self.share.micro), np.int64)
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
            numbers[:, n] = sample.label, sample.key, -1, sample.epoch
            n += 1
            if n == self.share.micro:
                yield Shipped._make((images, *numbers.copy(), bad))
                images = empty_images(self.share.micro, self.crop.sides)
                n = bad = 0
        if n:
            yield Shipped._make((images[:n], *numbers[:, :n].copy(), bad))

    def _pixels(self, sample: Raw) -> np.ndarray:
        crop = self.crop
        with quiet():
            image = read_header(sample.data)
            if isinstance(crop, EvalCrop):
                return centre(decode(image), crop)
            who = np.array([sample.epoch]), np.array([sample.key])
            box = crop.boxes(self.seed, *who, image.height, image.width)
            reduction = int(crop.reduction(box)[0])
            pixels = decode(image, reduction=reduction)
            if reduction > 1 and pixels.shape[0] < image.height:
                box[:, :4] //= reduction
            return cut_out(pixels, box[0].tolist(), crop.sides, interpolation=crop.interpolation)


def _reason(url: str, error: BaseException) -> str:
    """Says why a stream ended early; webdataset's own text is the whole call of the command."""
    text = str(error).partition("\n")[0]
    if found := re.search(r": exit (\d+) ", text):
        if url.startswith("pipe:"):
            return f"its command ended with the exit code {found[1]}"
        why = _CURL.get(int(found[1]), "see the manual of curl")
        return f"curl ended with the exit code {found[1]}, {why}"
    return text[:160] or type(error).__name__

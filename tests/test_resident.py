"""The device-resident path gives the loader path's batches, to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_images import write_tiny_shards

from vitwarm.augment import Augmentation, Mixing
from vitwarm.loop.plan import cut_batch
from vitwarm.shards import (
    EvalCrop,
    Order,
    ShardIndex,
    TrainCrop,
    choose_fraction,
    decode_all,
    make_train_loader,
)
from vitwarm.shards.load.pixels import Size, centre, cut_out
from vitwarm.training.data import LoaderFeed
from vitwarm.training.module import TrainBatch
from vitwarm.training.resident import ResidentFeed, ResidentImages, resample, resize_and_crop
from vitwarm.world import World

CPU = torch.device("cpu")


def pictures(rng: np.random.Generator, n: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, (n, 3, height, width), np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["rrc", "pad"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (12, 12, 40), (40, 30, 16), (30, 40, (16, 40)), (40, 30, (40, 16))],
)
def test_crops_are_the_loaders(
    rng: np.random.Generator, height: int, width: int, size: Size, mode: str, interpolation: str
) -> None:
    n = 40
    images = pictures(rng, n, height, width)
    crop = TrainCrop(size, interpolation=interpolation, mode=mode)  # type: ignore[arg-type]
    boxes = crop.boxes(0, np.zeros(n, int), np.arange(n), height, width)
    out = resample(
        images,
        torch.from_numpy(boxes),
        crop.sides,
        interpolation=interpolation,
        reflect=mode == "pad",
    )
    theirs = [
        cut_out(
            images[k].permute(1, 2, 0).numpy(), boxes[k], crop.sides, interpolation=interpolation
        )
        for k in range(n)
    ]
    off = (out.int() - torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2).int()).abs().float()
    assert off.mean() < 0.1
    assert off.max() <= 2


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [24, (24, 40), (40, 24)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 31), (64, 40)])
def test_evaluation_crops_are_the_loaders(
    rng: np.random.Generator, height: int, width: int, size: Size, interpolation: str
) -> None:
    images = pictures(rng, 5, height, width)
    crop = EvalCrop(size, 0.875, interpolation)  # type: ignore[arg-type]
    out = resize_and_crop(images, crop)
    theirs = [centre(image.permute(1, 2, 0).numpy(), crop) for image in images]
    off = (out.int() - torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2).int()).abs().float()
    assert off.mean() < (0.06 if size == 24 else 0.12)  # which of two levels half of one is
    assert off.max() <= 2


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("shards")
    write_tiny_shards(folder, n_train=37, bad=(5,))
    return ShardIndex.open(f"{folder}/tiny-train-*.tar", cache=folder)


def feeds(
    index: ShardIndex, *, micro: int, world: World, start: int = 0, chunk: int | None = None,
    plain: bool = False,
) -> tuple[list[TrainBatch], list[TrainBatch]]:  # fmt: skip
    """Seven steps of 16 from both ways, over four epochs of 29 images."""
    subset = choose_fraction(index, 0.8, seed=0)
    order = Order(index, subset.rows, seed=0, window_shards=1)
    crop = TrainCrop(12)
    augment = Augmentation(
        seed=0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
        aa=None if plain else "rand-m9-mstd0.5-inc1", reprob=0.0 if plain else 0.25,
        mixing=Mixing(mixup=0.8, cutmix=1.0),
    )  # fmt: skip
    cut = cut_batch(16, micro, world, field="train")
    decoded = decode_all(index, subset.rows)
    images = ResidentImages(decoded.images, decoded.labels, subset.rows)
    resident = ResidentFeed(
        images, order, crop=crop, augment=augment, seed=0, cut=cut, world=world, start_step=start,
        n_steps=7, device=CPU, unreadable=decoded.unreadable, chunk_images=chunk,
    )  # fmt: skip
    loader = make_train_loader(
        index, order, crop=crop, seed=0, batch_size=16, micro_batch_size=micro, rank=world.rank,
        world_size=world.size, start_step=start, n_steps=7, workers=0,
    )  # fmt: skip
    streamed = LoaderFeed(loader, augment, CPU)
    assert len(resident) == len(streamed)
    return list(resident), list(streamed)


@pytest.mark.parametrize(
    ("micro", "world", "start"), [(16, World(0, 1), 0), (4, World(0, 1), 3), (2, World(1, 2), 1)]
)
def test_batches_are_the_loaders(index: ShardIndex, micro: int, world: World, start: int) -> None:
    resident, streamed = feeds(index, micro=micro, world=world, start=start, plain=True)
    assert len(resident) == len(streamed) == (7 - start) * 16 // world.size // micro
    n_bad = 0
    for ours, theirs in zip(resident, streamed, strict=True):
        assert (ours.images - theirs.images).abs().mean() < 0.002  # of values between -2 and 2
        for a, b in zip(ours.targets, theirs.targets, strict=True):
            assert torch.equal(a, b)
        assert ours.n_unreadable == theirs.n_unreadable
        n_bad += ours.n_unreadable
    assert (n_bad > 0) == (5 in choose_rows(index))


def choose_rows(index: ShardIndex) -> set[int]:
    """The numbers of the images in the fraction, by their keys."""
    return {int(index.keys[int(row)][-4:]) for row in choose_fraction(index, 0.8, seed=0).rows}


def test_chunks_ranks_and_micro_batches_change_no_bit(index: ShardIndex) -> None:
    whole, _ = feeds(index, micro=16, world=World(0, 1))
    images = torch.cat([batch.images for batch in whole])
    labels = torch.cat([batch.targets.labels for batch in whole])
    for chunk in (1, 48, 10_000):
        parts, _ = feeds(index, micro=4, world=World(0, 1), chunk=chunk)
        assert torch.equal(torch.cat([batch.images for batch in parts]), images)
    ranks = [feeds(index, micro=4, world=World(rank, 2))[0] for rank in range(2)]
    rank_images = [torch.cat([b.images for b in batches]).unflatten(0, (7, 8)) for batches in ranks]
    assert torch.equal(torch.cat(rank_images, dim=1).flatten(0, 1), images)
    rank_labels = [torch.cat([b.targets.labels for b in some]).view(7, 8) for some in ranks]
    assert torch.equal(torch.cat(rank_labels, dim=1).flatten(), labels)

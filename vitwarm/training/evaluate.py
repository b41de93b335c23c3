"""Top-1 and top-5 on the whole validation set: summed counts, and the count is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from vitwarm.augment import normalise, scaling
from vitwarm.errors import TrainingFailed
from vitwarm.loop.module import StepCallback
from vitwarm.loop.saving import StopRequest
from vitwarm.loop.start import Say
from vitwarm.records import RunFolder
from vitwarm.training.module import ImageModule, check_decoded

#: Batches between two looks at the stop flag inside an evaluation.
CHECK_EVERY_BATCHES = 20


@dataclass(frozen=True, eq=False)
class Validation:
    """The validation images as the model sees them, this process's share of them."""

    batches: Callable[[], Iterable[tuple[Tensor, Tensor, int]]]
    """Gives uint8 images [b, 3, H, W], int64 labels, and how many of these images did not decode
    and were replaced, anew at each call; no image twice, and all of them over all processes."""
    _: KW_ONLY
    n_images: int
    """Of the whole set."""
    n_common: int
    """Batches that every process has at least."""
    mean: Sequence[float]
    """Per channel, in [0, 1]; one mean and one deviation make the images grey."""
    std: Sequence[float]

    def on(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yields normalised images and labels on a device, and how many were replaced."""
        scale, shift = scaling(self.mean, self.std).to(device)
        for images, labels, n_unreadable in self.batches():
            there = normalise(images.to(device, non_blocking=True), scale, shift)
            yield there, labels.to(device, non_blocking=True), n_unreadable


def evaluation_sums(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Returns [loss, top-1 hits, top-5 hits, images], summed; float64.

    A label among five classes or fewer is always a top-5 hit.
    """
    logits_BC = logits_BC.float()
    loss = F.cross_entropy(logits_BC, labels_B, reduction="sum")
    best = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
    hits = best == labels_B[:, None]
    images = torch.full((), len(labels_B), dtype=torch.float64, device=logits_BC.device)
    return torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double(), images])


@torch.no_grad()
def evaluate(
    vits: Sequence[nn.Module],
    validation: Validation,
    *,
    device: torch.device,
    bf16: bool,
    world_size: int = 1,
    between: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """Measures models on the whole validation set, in one pass over the images.

    Args:
        vits: on `device`; left in the mode (training or not) that they are in.
        bf16: autocast.
        world_size: with several processes a collective; every one gets the same numbers.
        between: called every few batches, by all processes alike.
    Returns: per model `top1_percent`, `top5_percent`, `val_loss` in nats per image, and
        `unreadable_val_images`, which were replaced by others.
    Raises: TrainingFailed: not every image of the set was seen exactly once, more than 0.1 % of
        them did not decode, or a loss is no finite number.
    """
    modes = [vit.training for vit in vits]
    for vit in vits:
        vit.eval()
    sums = torch.zeros(len(vits), 5, dtype=torch.float64, device=device)
    n_bad = 0
    for number, (images, labels, n_unreadable) in enumerate(validation.on(device), 1):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = [vit(images) for vit in vits]
        sums[:, :4] += torch.stack([evaluation_sums(logits_BC, labels) for logits_BC in logits])
        n_bad += n_unreadable
        if between and number % CHECK_EVERY_BATCHES == 0 and number <= validation.n_common:
            between()
    for vit, mode in zip(vits, modes, strict=True):
        vit.train(mode)
    sums[:, 4] = n_bad
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    found, n_bad = round(float(sums[0, 3])), round(float(sums[0, 4]))
    if found != validation.n_images:
        raise TrainingFailed(
            f"The evaluation saw {found:,} images, but data.val holds {validation.n_images:,}. "
            "Run `vitwarm shards check` on it; where it is streamed, fix the number in its "
            "_info.json or after |."
        )
    check_decoded(n_bad, found, "validation images")
    if not torch.isfinite(sums[:, 0]).all():
        raise TrainingFailed(
            "The validation loss is not a finite number: the outputs of the model overflow. Start "
            "another run with a lower learning rate, clipped gradients, or precision=fp32."
        )
    return [
        {
            "top1_percent": 100 * hits1 / found,
            "top5_percent": 100 * hits5 / found,
            "val_loss": loss / found,
            "unreadable_val_images": n_bad,
        }
        for loss, hits1, hits5, _, _ in sums.tolist()
    ]


def figures_of(found: dict[str, float], weights: Literal["raw", "ema"]) -> dict[str, float]:
    """Returns what an `Evaluation` found for one kind of weights, under the plain names."""
    raw = {k.removeprefix("raw_"): v for k, v in found.items() if k.startswith("raw_")}
    plain = {name: value for name, value in found.items() if not name.startswith("raw_")}
    return {**plain, **(raw if weights == "raw" else {})}


@dataclass(eq=False, kw_only=True)
class Evaluation(StepCallback):
    """Evaluates after certain steps and writes what it found to metrics.jsonl."""

    validation: Validation
    steps: set[int]
    run: RunFolder
    stop: StopRequest
    bf16: bool
    images_per_step: int
    say: Say

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        # A run that was stopped inside an evaluation makes up for it. Not in on_train_start, which
        # comes before `stop` hears signals.
        self._evaluate_if_due(trainer, pl_module)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        self._evaluate_if_due(trainer, module)

    def _evaluate_if_due(self, trainer: Trainer, module: ImageModule) -> None:
        step = module.steps_done
        if step not in self.steps or module.evaluation.get("step") == step:
            return
        self.evaluate(
            module,
            self.validation,
            world_size=trainer.world_size,
            between=lambda: self.stop.check(trainer, module),
        )
        self.say(
            f"step {step:,}: top-1 {module.evaluation['top1_percent']:.2f} %, "
            f"validation loss {module.evaluation['val_loss']:.4f}"
        )

    def evaluate(self, module: ImageModule, validation: Validation, **how: Any) -> None:
        """Evaluates a module where it stands, and notes what was found; `how` as `evaluate`.

        That is the figures of the moving average where one is kept, with those of the raw weights
        under `raw_top1_percent` …; else those of the raw weights.
        """
        step = module.steps_done
        vits = [module.vit, *([module.ema_vit] if module.ema_vit is not None else [])]
        found, *ema = evaluate(vits, validation, device=module.device, bf16=self.bf16, **how)
        if ema:
            del found["unreadable_val_images"]  # of the images, not of the weights
            found = {**ema[0], **{f"raw_{name}": value for name, value in found.items()}}
        module.evaluation = {"step": step, **found}
        if module.world.is_zero:
            seen = step * self.images_per_step
            self.run.append_metrics(kind="eval", step=step, images_seen=seen, **found)

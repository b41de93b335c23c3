"""The image model as Lightning trains it: loss, optimiser, schedule, moving average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from vitwarm.augment import Targets
from vitwarm.errors import TrainingFailed
from vitwarm.loop.module import Checkpoint, SteppedModule
from vitwarm.loop.plan import Cut, Schedule, Updates
from vitwarm.trunk import trunk_names
from vitwarm.world import World

#: More unreadable images than this share stop a run.
UNREADABLE_SHARE = 0.001


class TrainBatch(NamedTuple):
    """A micro-batch on the device, ready for the model."""

    images: Tensor
    """float32 [b, c, H, W], normalised and augmented."""
    targets: Targets
    n_unreadable: int
    """Images among them that did not decode and were replaced."""


@dataclass(frozen=True, kw_only=True)
class ImageUpdates(Updates):
    """What a step does to an image model: see TrainConfig for the numbers."""

    opt_betas: Sequence[float] | None = None
    momentum: float = 0.9
    layer_decay: float | None = None
    smoothing: float = 0.0
    bce: bool = False
    ema_decay: float | None = None
    """Of the moving average; None: none is kept."""


class LossParts(NamedTuple):
    """What a micro-batch contributes."""

    loss: Tensor
    """Mean over the images, in nats per image (BCE: per image and class). A scalar."""


def image_loss(
    logits_BC: Tensor, targets: Targets, *, smoothing: float = 0.0, bce: bool = False
) -> LossParts:
    """Compares logits with (mixed) labels.

    Args:
        logits_BC: one row per image, any float dtype; the loss is computed in float32.
        smoothing: share of the target that is spread evenly over all classes.
        bce: a binary question per class; every label that shows in a mixed image counts fully.
    Source: softmax: timm's SoftTargetCrossEntropy. BCE: DeiT-III (arXiv 2204.07118, Sec. 3.1 and
        its code, which sets mixed targets above zero to one).
    """
    logits_BC = logits_BC.float()
    if bce:
        present = torch.zeros_like(logits_BC).scatter_(1, targets.labels[:, None], 1.0)
        if targets.partners is not None and targets.shares is not None:
            shown = (targets.shares < 1).to(present.dtype)[:, None]
            partner = torch.zeros_like(logits_BC).scatter_(1, targets.partners[:, None], shown)
            own = (targets.shares > 0).to(present.dtype)[:, None]
            present = torch.maximum(present * own, partner)
        present = present * (1 - smoothing) + smoothing / logits_BC.shape[1]
        return LossParts(F.binary_cross_entropy_with_logits(logits_BC, present))
    if targets.partners is None:
        return LossParts(F.cross_entropy(logits_BC, targets.labels, label_smoothing=smoothing))
    soft = targets.soft(logits_BC.shape[1], smoothing=smoothing)
    return LossParts(F.cross_entropy(logits_BC, soft))


def check_decoded(n_bad: int, n: int, what: str) -> None:
    """Raises: TrainingFailed: more than 0.1 % of `n` images (`what`) did not decode."""
    if n_bad > UNREADABLE_SHARE * n:
        raise TrainingFailed(
            f"{n_bad:,} of {n:,} {what} ({n_bad / n:.2%}) did not decode; allowed is "
            f"{UNREADABLE_SHARE:.1%}. `vitwarm shards check` lists them; fix or remove them and "
            "run the same command again."
        )


class ImageModule(SteppedModule):
    """A timm model with its optimiser, schedule and (optional) moving average of its weights."""

    def __init__(
        self,
        vit: nn.Module,
        schedule: Schedule,
        cut: Cut,
        world: World,
        updates: ImageUpdates | None = None,
        *,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """Takes a model as it starts training.

        Args:
            describe: words that name the images of a step, for messages.
        """
        self.how = updates or ImageUpdates()
        super().__init__(schedule, cut, world, self.how)
        self.vit = vit
        self.evaluation: dict[str, float] = {}
        """The newest evaluation, with its `step`."""
        self.n_unreadable = 0
        """Over the whole run and, after a look at the meters, over all processes."""
        self._describe = describe
        self._loss: Tensor | None = None
        self._n_losses = 0
        self._fresh_unreadable = 0
        # In a list, so that it is no submodule: neither DDP nor state_dict shall see it.
        self._ema: list[ModelEmaV3] = []
        self._ema_state: dict[str, Tensor] | None = None

    # -- a step ------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [b, n_classes]."""
        logits: Tensor = self.vit(images)
        return logits

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        logits, how = self.vit(batch.images), self.how
        parts = image_loss(logits, batch.targets, smoothing=how.smoothing, bce=how.bce)
        loss = parts.loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss
        self._n_losses += 1
        self._fresh_unreadable += batch.n_unreadable
        return parts.loss

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch  # it was made there

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._ema:
            self._ema[0].update(self.vit, step=self.steps_done)

    # -- optimiser ---------------------------------------------------------------------------

    def make_optimizer(self) -> Optimizer:
        how, extra = self.how, dict(self.fused)
        if how.opt_betas is not None:
            extra["betas"] = tuple(how.opt_betas)
        self.make_ema()
        return create_optimizer_v2(
            self.vit,
            opt=how.opt,
            lr=self.schedule.lr,
            weight_decay=how.weight_decay,
            momentum=how.momentum,
            layer_decay=how.layer_decay,
            **extra,
        )

    def make_ema(self) -> None:
        """Starts the moving average where the weights are now, or restores it."""
        if self.how.ema_decay is not None:
            self._ema = [ModelEmaV3(self.vit, decay=self.how.ema_decay, use_warmup=True)]
            if self._ema_state is not None:
                self._ema[0].module.load_state_dict(self._ema_state)
                self._ema_state = None

    # -- what is known of it -----------------------------------------------------------------

    @property
    def ema_vit(self) -> nn.Module | None:
        """The model with the averaged weights, or None."""
        return self._ema[0].module if self._ema else None

    def read_meters(self) -> dict[str, float]:
        if self._loss is None:
            return {}
        sums = torch.stack(
            [self._loss.double(), torch.full_like(self._loss, self._fresh_unreadable).double()]
        )
        if self.world.size > 1:
            torch.distributed.all_reduce(sums)
        loss, unreadable = sums.tolist()
        count = self._n_losses * self.world.size
        self._loss, self._n_losses, self._fresh_unreadable = None, 0, 0
        self.n_unreadable += round(unreadable)
        return {"loss": loss / count}

    def check_unreadable(self, images_seen: int) -> None:
        """Raises: TrainingFailed: as `check_decoded`, of the images seen so far."""
        check_decoded(self.n_unreadable, images_seen, "images")

    def describe_batch(self, step: int) -> str:
        return self._describe(step) if self._describe else super().describe_batch(step)

    # -- saving and restoring ----------------------------------------------------------------

    def checkpoint_state(self) -> dict[str, Any]:
        state = super().checkpoint_state()
        if self._ema:
            state["ema"] = self._ema[0].module.state_dict()
        return state

    def checkpoint_facts(self) -> dict[str, Any]:
        facts = super().checkpoint_facts()
        return {**facts, "evaluation": self.evaluation, "n_unreadable": self.n_unreadable}

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        self._ema_state = checkpoint.state.get("ema")
        self.evaluation = dict(checkpoint.facts["evaluation"])
        self.n_unreadable = int(checkpoint.facts["n_unreadable"])


def freeze(vit: nn.Module, what: str) -> None:
    """Stops tensors from training.

    Args:
        what: `none`, `trunk` (blocks and final norm), or `all_but_head` (a linear probe).
    """
    if what == "none":
        return
    frozen = set(trunk_names(vit))
    if what == "all_but_head":
        classifier: Any = vit.get_classifier()  # type: ignore[operator]
        heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
        kept = {id(p) for head in heads for p in head.parameters()}
        frozen = {name for name, p in vit.named_parameters() if id(p) not in kept}
    for name, parameter in vit.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)

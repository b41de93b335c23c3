"""The image model as Lightning trains it: loss, optimiser, schedule, moving average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from vitwarm.augment import Targets
from vitwarm.errors import TrainingFailed
from vitwarm.loop import Checkpoint, Cut, Schedule, SteppedModule
from vitwarm.training.losses import image_loss
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


class ImageModule(SteppedModule):
    """A timm model with its optimiser, schedule and (optional) moving average of its weights."""

    def __init__(
        self,
        vit: nn.Module,
        schedule: Schedule,
        cut: Cut,
        world: World,
        *,
        opt: str = "adamw",
        opt_betas: Sequence[float] | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        clip_grad: float | None = None,
        smoothing: float = 0.0,
        bce: bool = False,
        ema_decay: float | None = None,
        seed: int = 0,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """Takes a model as it starts training; see TrainConfig for the numbers.

        Args:
            ema_decay: of the moving average; None: none is kept.
            describe: words that name the images of a step, for messages.
        """
        super().__init__(
            schedule, cut, world, opt=opt, weight_decay=weight_decay, clip_grad=clip_grad, seed=seed
        )
        self.vit = vit
        self.opt_betas, self.momentum = opt_betas, momentum
        self.layer_decay = layer_decay
        self.smoothing, self.bce = smoothing, bce
        self.ema_decay = ema_decay
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
        parts = image_loss(
            self.vit(batch.images), batch.targets, smoothing=self.smoothing, bce=self.bce
        )
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
        extra = dict(self.fused)
        if self.opt_betas is not None:
            extra["betas"] = tuple(self.opt_betas)
        self.make_ema()
        return create_optimizer_v2(
            self.vit,
            opt=self.opt,
            lr=self.schedule.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            layer_decay=self.layer_decay,
            **extra,
        )

    def make_ema(self) -> None:
        """Starts the moving average where the weights are now, or restores it."""
        if self.ema_decay is not None:
            self._ema = [ModelEmaV3(self.vit, decay=self.ema_decay, use_warmup=True)]
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
        """Refuses to go on with too many images that do not decode.

        Raises: TrainingFailed: more than 0.1 % of the images seen so far.
        """
        if self.n_unreadable > UNREADABLE_SHARE * images_seen:
            share = self.n_unreadable / images_seen
            raise TrainingFailed(
                f"{self.n_unreadable:,} of {images_seen:,} images ({share:.2%}) did not decode; "
                f"allowed is {UNREADABLE_SHARE:.1%}. `vitwarm shards check` lists them; fix or "
                "remove them and run the same command again."
            )

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

    def restore(self, checkpoint: Checkpoint | None) -> None:
        super().restore(checkpoint)
        if checkpoint is not None:
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

"""TokenModel and a linear head as Lightning trains them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from vitwarm.loop.module import Checkpoint, SteppedModule
from vitwarm.loop.plan import Cut, Schedule, Updates
from vitwarm.rules.masking import IGNORE
from vitwarm.seeding import seed_of
from vitwarm.trunk import TokenModel
from vitwarm.warmup.sequences import WarmupBatch
from vitwarm.world import World


class HiddenLoss(NamedTuple):
    """Sums over the hidden tokens of a micro-batch."""

    loss: Tensor
    """Cross-entropy in nats, summed."""
    correct: Tensor
    n_hidden: Tensor


def hidden_loss(logits_KV: Tensor, targets_K: Tensor) -> HiddenLoss:
    """Sums cross-entropy and hits over hidden tokens.

    Args:
        logits_KV: one row per hidden token, padded rows included.
        targets_K: int64 ids, IGNORE in padded rows.
    """
    loss = nn.functional.cross_entropy(
        logits_KV.float(), targets_K, ignore_index=IGNORE, reduction="sum"
    )
    with torch.no_grad():
        correct = (logits_KV.argmax(dim=-1) == targets_K).sum()
        n_hidden = (targets_K != IGNORE).sum()
    return HiddenLoss(loss, correct, n_hidden)


class WarmupModule(SteppedModule):
    """TokenModel and a linear head, with logits only where a token is hidden."""

    def __init__(
        self,
        tokens: TokenModel,
        schedule: Schedule,
        cut: Cut,
        world: World,
        updates: Updates,
        *,
        n_ids: int,
    ) -> None:
        super().__init__(schedule, cut, world, updates)
        self.tokens = tokens
        self.head = nn.Linear(tokens.width, n_ids)
        generator = torch.Generator().manual_seed(seed_of(updates.seed, "warmup head"))
        with torch.no_grad():
            nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.head.bias)
        self._meters: Tensor | None = None

    def forward(self, input_ids_BT: Tensor, hidden_K: Tensor) -> Tensor:
        """Returns logits [K, n_ids] of the tokens at the flat positions `hidden_K`."""
        x_BTD = self.tokens(input_ids_BT)
        logits_KV: Tensor = self.head(x_BTD.flatten(0, 1)[hidden_K])
        return logits_KV

    def training_step(self, batch: WarmupBatch, batch_idx: int) -> Tensor:
        sums = hidden_loss(self(batch.input_ids, batch.hidden), batch.targets)
        part = torch.stack([sums.loss.detach(), sums.correct.float(), sums.n_hidden.float()])
        self._meters = part if self._meters is None else self._meters + part
        # Lightning divides by the accumulation and DDP by the processes; what is left is the mean
        # over the hidden tokens of the whole batch, wherever they were computed.
        return sums.loss * (self.accumulate * self.world.size / batch.n_hidden)

    def make_optimizer(self) -> Optimizer:
        # A list, not the module: the published recipe decays biases and norms too.
        parameters = [p for p in self.parameters() if p.requires_grad]
        how = {"lr": self.schedule.lr, "weight_decay": self.updates.weight_decay, **self.fused}
        return create_optimizer_v2(parameters, opt=self.updates.opt, **how)

    def read_meters(self) -> dict[str, float]:
        if self._meters is None:
            return {}
        sums = self._meters
        if self.world.size > 1:
            torch.distributed.all_reduce(sums)
        loss, correct, count = sums.tolist()
        self._meters = None
        count = max(count, 1.0)
        return {"loss": loss / count, "hidden_accuracy_percent": 100 * correct / count}

    def checkpoint_state(self) -> dict[str, Any]:
        # The sums of the present log interval, so that a resumed run's next line covers all of it.
        # One process's: on several, the line after a resume leaves out what the others had.
        meters = {} if self._meters is None else {"meters": self._meters}
        return {**super().checkpoint_state(), **meters}

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        if self.world.is_zero:
            self._meters = checkpoint.state.get("meters")

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._meters is not None:
            self._meters = self._meters.to(self.device)

    def describe_batch(self, step: int) -> str:
        return f"sequences of seed {self.updates.seed} at step {step:,}"

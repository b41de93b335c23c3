"""The moment at which callbacks act: after an optimiser step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


class StepCallback(Callback):
    """A callback that acts after optimiser steps, not after micro-batches."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.at_step_end(batch_idx):
            self.on_step_end(trainer, pl_module)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        """Called when a `SteppedModule` has done an optimiser step."""
        raise NotImplementedError(f"{type(self).__name__} must say what it does after a step")

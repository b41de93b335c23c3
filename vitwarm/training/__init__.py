"""Image classification on shards (Lightning).

    config ─► plan ─► hand-off ─► batches, augmented on the device ─► timm model ─► record.json,
    export/ (a timm folder)

A run is resumed by the same command, bit for bit on a CPU; a finished one is not run again.
"""

from __future__ import annotations

from pathlib import Path

from vitwarm.config import TrainRun
from vitwarm.training.plan import TrainPlan, make_model, make_module, plan_training
from vitwarm.training.run import run_training, show_plan

__all__ = [
    "TrainPlan",
    "make_model",
    "make_module",
    "plan_training",
    "run_training",
    "show_plan",
    "training_folder",
]


def training_folder(config: TrainRun) -> Path:
    """Returns the run folder that this config has, or will have."""
    return plan_training(config).folder

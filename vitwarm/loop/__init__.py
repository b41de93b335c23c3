"""The loop that warm-up and image training share: Lightning, counted in optimiser steps."""

from vitwarm.loop.callback import StepCallback
from vitwarm.loop.meters import Metrics, WaitMeter
from vitwarm.loop.module import SteppedModule
from vitwarm.loop.optimizer import check_optimizer
from vitwarm.loop.plan import Cut, Plan, Schedule, cut_batch, evaluation_steps
from vitwarm.loop.saving import Checkpoint, StopRequest, TimedCheckpoint
from vitwarm.loop.start import (
    Say,
    choose_attention,
    compile_blocks,
    facts_of_run,
    find_checkpoint,
    make_trainer,
    run_once,
    show,
    take_up,
    time_step,
)

__all__ = [
    "Checkpoint",
    "Cut",
    "Metrics",
    "Plan",
    "Say",
    "Schedule",
    "StepCallback",
    "SteppedModule",
    "StopRequest",
    "TimedCheckpoint",
    "WaitMeter",
    "check_optimizer",
    "choose_attention",
    "compile_blocks",
    "cut_batch",
    "evaluation_steps",
    "facts_of_run",
    "find_checkpoint",
    "make_trainer",
    "run_once",
    "show",
    "take_up",
    "time_step",
]

"""The loop that warm-up and image training share: Lightning, counted in optimiser steps."""

from vitwarm.loop.meters import Estimate, Metrics, WaitMeter
from vitwarm.loop.module import Checkpoint, StepCallback, SteppedModule
from vitwarm.loop.plan import (
    Cut,
    Plan,
    Schedule,
    Updates,
    check_optimizer,
    cut_batch,
    evaluation_steps,
)
from vitwarm.loop.saving import StopRequest, TimedCheckpoint
from vitwarm.loop.start import (
    Fit,
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
    "Estimate",
    "Fit",
    "Metrics",
    "Plan",
    "Say",
    "Schedule",
    "StepCallback",
    "SteppedModule",
    "StopRequest",
    "TimedCheckpoint",
    "Updates",
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

"""What it means for a run that memory ran out, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vitwarm.config import WarmupRun
from vitwarm.errors import TrainingFailed, first_line
from vitwarm.loop.plan import Plan


@contextmanager
def memory_in_words(plan: Plan, n_samples: int | None = None) -> Iterator[None]:
    """Says what to do where memory ran out, or where a worker of the loader was killed for it.

    Args:
        n_samples: of a pass that only takes its time; None: a run's own micro-batch.
    Raises: TrainingFailed: what makes a step smaller and changes no result.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch has a class of its own on GPUs alone
        if "DataLoader worker" in str(error):
            raise TrainingFailed(
                f"A process that loads images has ended ({first_line(error)}). If memory ran out, "
                "use fewer run.workers; the same command goes on from the last checkpoint."
            ) from error
        short = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not short and "DefaultCPUAllocator" not in str(error):
            raise
        section = "warmup" if isinstance(plan.config, WarmupRun) else "train"
        goes_on = ", and the same command with it goes on from the last checkpoint"
        raise TrainingFailed(
            f"The memory of the {plan.device.type} ran out with "
            f"{n_samples or plan.cut.micro_batch_size} "
            f"samples in a forward pass. Use {section}.micro_batch_size with a smaller number, or "
            f"{section}.grad_checkpointing=true: the batch stays the same"
            f"{'' if n_samples else goes_on}."
        ) from error

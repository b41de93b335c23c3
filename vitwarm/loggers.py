"""Curves in TensorBoard, W&B, MLflow and CSV, through Lightning's own loggers.

metrics.jsonl is the record; a logger mirrors it under the names `train/loss`, `eval/top1_percent`,
... (numbers; what is nested stands in the JSONL alone). Each works in a thread of its own: one that
fails, hangs or is offline costs its curves and neither stops nor slows a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from vitwarm.config import TrainRun, WarmupRun, to_plain
from vitwarm.errors import ConfigError, Stopped
from vitwarm.informing import attempt
from vitwarm.records import RunFolder, read_json, read_metrics

#: Name -> what has to be imported for it; imported before threads and loader processes start.
MODULES = {
    "tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow.tracking",
    "csv": "csv",
}  # fmt: skip
#: How long the end of a run waits for what is still to be sent.
LEAVE_SECONDS = 30.0


def check_loggers(names: Sequence[str]) -> None:
    """Raises: ConfigError: the package of one of `run.logger` is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"run.logger has {name!r}, but the package {name} is not installed. "
                f"Install it with: pip install 'vitwarm[loggers-{name}]', or leave it out."
            )


@contextmanager
def mirrored(
    run: RunFolder, config: WarmupRun | TrainRun, *, start_step: int, writer: bool
) -> Iterator[None]:
    """Mirrors every line that the block appends to a run's metrics.jsonl, and ends with the block.

    A logger that has this run already goes on in it; another is told the earlier lines first.

    Args:
        start_step: the step that the run goes on from.
        writer: False on ranks above zero, which mirror nothing.
    """
    names = config.run.logger if writer else []
    earlier = [one for one in read_metrics(run.path) if one["step"] <= start_step] if names else []
    mirrors = [_Mirror(name, run, to_plain(config), earlier, start_step) for name in names]
    run.watchers += [mirror.lines.put for mirror in mirrors]
    status = "failed"
    try:
        yield
        status = "success"
    except Stopped:
        status = "KILLED"  # MLflow's word; to the others it is no success
        raise
    finally:
        run.watchers.clear()
        deadline = time.monotonic() + LEAVE_SECONDS
        for mirror in mirrors:
            mirror.lines.put(status)
        for mirror in mirrors:
            mirror.leave(deadline)


def to_curves(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of metrics.jsonl by the names that every logger has."""
    return {
        f"{line['kind']}/{name}": float(value)
        for name, value in line.items()
        if name not in ("kind", "step")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


@dataclass
class _Mirror:
    """One logger and the thread that feeds it."""

    name: str
    run: RunFolder
    config: Mapping[str, Any]
    earlier: Sequence[Mapping[str, Any]]
    start_step: int
    lines: queue.SimpleQueue[Mapping[str, Any] | str] = field(default_factory=queue.SimpleQueue)
    """Lines of metrics.jsonl; at last, how the run ended."""

    def __post_init__(self) -> None:
        self.said = f"run.logger {self.name}"
        # Here, not in the thread: a loader process that is forked meanwhile would get its locks.
        attempt(self.said, importlib.import_module, MODULES[self.name])
        self.thread = threading.Thread(target=self._work, name=self.said, daemon=True)
        self.thread.start()

    def leave(self, deadline: float) -> None:
        """Waits for the thread, but not for ever."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            attempt(self.said, self._say_unsent)

    def _say_unsent(self) -> None:
        raise TimeoutError(f"not everything was sent within {LEAVE_SECONDS:g} s of the run's end")

    def _work(self) -> None:
        opened = attempt(self.said, _OPENERS[self.name], self.run, self.start_step)
        if opened is None:
            return
        logger, knows_run = opened
        if not knows_run:
            attempt(self.said, logger.log_hyperparams, dict(self.config))
            for one in self.earlier:
                attempt(self.said, _tell, logger, one)
        while not isinstance(line := self.lines.get(), str):
            attempt(self.said, _tell, logger, line)
        attempt(self.said, _close, logger, line)


def _tell(logger: Logger, line: Mapping[str, Any]) -> None:
    logger.log_metrics(to_curves(line), step=line["step"])
    logger.save()


def _close(logger: Logger, status: str) -> None:
    logger.finalize(status)
    if isinstance(logger, WandbLogger):  # Lightning leaves it open for a next fit
        logger.experiment.finish(exit_code=0 if status == "success" else 1)


def _open_tensorboard(run: RunFolder, start_step: int) -> tuple[Logger, bool]:
    folder = run.path / "tensorboard"
    known = folder.exists()
    # What an execution that was killed did after its last checkpoint is purged, and done again.
    purge: Any = {"purge_step": start_step + 1} if known else {}
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False, **purge), known


def _open_csv(run: RunFolder, start_step: int) -> tuple[Logger, bool]:
    """Lightning's own starts its file anew at a resume; it is told the earlier lines again."""
    shutil.rmtree(run.path / "csv", ignore_errors=True)
    return CSVLogger(run.path / "csv", name="", version="", flush_logs_every_n_steps=1), False


def _open_wandb(run: RunFolder, start_step: int) -> tuple[Logger, bool]:
    """WANDB_MODE, WANDB_PROJECT, ... count; the run's terminal output is not sent."""
    known = _read_id(run, "wandb")
    project = os.environ.get("WANDB_PROJECT", "vitwarm")
    logger = WandbLogger(
        name=run.path.name, id=known, save_dir=run.path, project=project,
        settings={"console": "off"},
    )  # fmt: skip
    _write_id(run, "wandb", logger.experiment.id)
    return logger, known is not None


def _open_mlflow(run: RunFolder, start_step: int) -> tuple[Logger, bool]:
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME count; without, mlflow.db beside the runs."""
    database = f"sqlite:///{run.path.parent.resolve()}/mlflow.db"  # MLflow 3 refuses plain files
    known = _read_id(run, "mlflow")
    logger = MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "vitwarm"),
        run_name=run.path.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", database),
        run_id=known,
    )
    _write_id(run, "mlflow", logger.run_id)
    return logger, known is not None


_OPENERS: dict[str, Callable[[RunFolder, int], tuple[Logger, bool]]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "csv": _open_csv,
}


def _read_id(run: RunFolder, name: str) -> str | None:
    return (read_json(run.path / f"{name}.json") or {}).get("id")


def _write_id(run: RunFolder, name: str, found: str | None) -> None:
    run.write_json(f"{name}.json", {"id": found})

"""Quick stand-ins for the stages that a sweep runs: they write the same files in milliseconds.

What a training does is told by its arm's label: `fails`, `crashes`, `slow` (waits to be stopped).
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from vitwarm.config import TrainRun, WarmupRun, config_hash, save_config
from vitwarm.errors import Stopped, TrainingFailed
from vitwarm.files import sha256_of
from vitwarm.sweep.rows import Config, InitConfig
from vitwarm.sweep.stages import Stages, WarmupFacts
from vitwarm.units import parse_budget

N_IMAGES = 1000


def plan_warmup(config: WarmupRun) -> WarmupFacts:
    warm = config.warmup
    budget = parse_budget(
        warm.budget, batch_size=warm.batch_size, n_tokens=196, base_images=warm.base_images,
        base_epochs=warm.base_epochs,
    )  # fmt: skip
    rule = json.dumps({"n_kinds": 64, **config.rule.params}, sort_keys=True)
    digest = config_hash(config, {"rule.params": rule})
    folder = Path(config.run.root) / f"{config.name}-{digest[:8]}"
    return WarmupFacts(
        folder=folder, samples=budget.samples, steps=budget.steps, tokens=budget.tokens
    )


def count_images(config: TrainRun) -> int:
    return round(config.data.fraction * N_IMAGES)


def find_training(config: TrainRun) -> Path:
    trunk = config.handoff.trunk
    content = sha256_of(Path(trunk)) if trunk else None
    digest = config_hash(config, {"handoff.trunk": content})
    return Path(config.run.root) / f"{config.name}-{digest[:8]}"


def run_row(config: Config) -> None:
    if isinstance(config, InitConfig):
        Path(config.path).parent.mkdir(parents=True, exist_ok=True)
        Path(config.path).write_text(json.dumps([config.name, config.seed, config.params]))
    elif isinstance(config, WarmupRun):
        _run_warmup(config)
    else:
        _run_training(config)


def _run_warmup(config: WarmupRun) -> None:
    facts = plan_warmup(config)
    learned = not config.rule.name.startswith("shuffled")
    record = {
        "stage": "warmup", "seed": config.seed, "steps": facts.steps,
        "warmup_samples": facts.samples, "hidden_accuracy_percent": 96.0 if learned else 13.0,
        "chance_percent": 12.5, "verdict": "learned" if learned else "not learned",
        "rule": {"name": config.rule.name, "params": {}}, "trunk_sha256": config_hash(config),
    }  # fmt: skip
    facts.folder.mkdir(parents=True, exist_ok=True)
    (facts.folder / "trunk.safetensors").write_text(config_hash(config))
    _write(facts.folder, config, record)


def _run_training(config: TrainRun) -> None:
    folder, arm = find_training(config), str(config.arm)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "started").write_text(f"{os.getpid()}\n{os.environ.get('OMP_NUM_THREADS')}\n")
    save_config(config, folder / "config.yaml")
    (folder / "env.json").write_text("{}")
    print(f"training {arm}")
    if arm == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if arm == "fails":
        (folder / "failure.json").write_text('{"error": "TrainingFailed", "message": "loss nan"}')
        raise TrainingFailed("The loss stopped being a finite number at step 7.")
    if arm == "slow":
        _wait_for_a_signal(folder)
    steps = config.train.steps or round(
        config.train.epochs * count_images(config) / config.train.batch_size
    )
    warm = bool(config.handoff.trunk and "inits" not in config.handoff.trunk)
    record = {
        "stage": "train", "seed": config.seed, "arm": arm, "match": config.match,
        "pair": f"{config.data.fraction}/{config.seed}", "steps": steps,
        "n_train_images": count_images(config), "images_seen": steps * config.train.batch_size,
        "fraction": config.data.fraction, "top1_percent": 60.0 + 10 * config.data.fraction,
        "warmup_samples": 12_800 if warm else None, "n_val_images": 200, "model": "vit",
        "verdict": "learned" if warm else None, "images_per_second": 100.0,
    }  # fmt: skip
    _write(folder, config, record)


def _wait_for_a_signal(folder: Path) -> None:
    """As a real run does: the first signal is noted, the run saves and leaves."""
    noted: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: noted.append(signum))
    (folder / "waiting").touch()
    until = time.monotonic() + 120
    while not noted and time.monotonic() < until:
        time.sleep(0.01)
    (folder / "saved").touch()
    raise Stopped("saved", exit_code=143)


def _write(folder: Path, config: WarmupRun | TrainRun, record: dict[str, Any]) -> None:
    save_config(config, folder / "config.yaml")
    (folder / "env.json").write_text("{}")
    facts = {
        "name": config.name, "config_hash": config_hash(config), "code_version": "0",
        "status": "finished", "model": "vit",
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(facts | record))


def check_init(init: str, params: dict[str, Any]) -> dict[str, str]:
    return {}


def check_trunk(label: str, warm: WarmupRun, train: TrainRun) -> None:
    pass


def check_start(label: str, train: TrainRun) -> None:
    pass


FAKE = Stages(
    plan_warmup=plan_warmup,
    count_images=count_images,
    find_training=find_training,
    check_init=check_init,
    check_trunk=check_trunk,
    check_start=check_start,
    run_row=run_row,
)

"""Run folders and sweep manifests as the stages leave them, made in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_run(
    root: Path, name: str, record: dict[str, Any] | None, *, config: str, failure: str = ""
) -> Path:
    """Writes a run folder; without a record it is unfinished, with a failure it failed."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "env.json").write_text("{}")
    if record is not None:
        (folder / "record.json").write_text(json.dumps(record))
    if failure:
        (folder / "failure.json").write_text(json.dumps({"error": "X", "message": failure}))
    return folder


def train_config(seed: int, fraction: float, trunk: str | None = None, **train: Any) -> str:
    fields = {"model": "vit", "epochs": 30.0, "steps": 600, **train}
    return json.dumps(  # JSON is YAML
        {
            "name": "toy", "seed": seed, "arm": None, "match": None,
            "data": {"train": "digits", "fraction": fraction},
            "handoff": {"trunk": trunk}, "train": fields,
        }
    )  # fmt: skip


def write_training(
    root: Path,
    *,
    arm: str = "default",
    seed: int = 0,
    n_images: int = 100,
    top1: float | None = 50.0,
    full: int = 1000,
    warmup_samples: int | None = None,
    steps: int = 600,
    failure: str = "",
    name: str = "",
    verdict: str | None = None,
    curve: bool = True,
    **facts: Any,
) -> Path:
    """Writes one image training; `top1=None` leaves it unfinished."""
    folder_name = name or f"toy-{arm.replace(' ', '_')}-{n_images}-{seed}"
    record: dict[str, Any] | None = None
    if top1 is not None:
        record = {
            "stage": "train", "status": "finished", "name": "toy", "seed": seed,
            "config_hash": folder_name,
            "code_version": "0.1.0", "arm": arm, "pair": f"{n_images}/{seed}", "model": "vit",
            "steps": steps, "fraction": n_images / full, "n_train_images": n_images,
            "n_val_images": 500, "n_classes": 10, "images_seen": steps * 64, "top1_percent": top1,
            "top5_percent": min(100.0, top1 + 10), "best_top1_percent": top1 + 0.3,
            "top1_weights": "raw", "wall_seconds": 13.2, "images_per_second": 2900.0,
            "subset_sha256": f"{n_images:08x}{seed:056x}",
            "warmup_samples": warmup_samples, "verdict": verdict,
            "trunk_sha256": "ab" * 32 if warmup_samples else None, **facts,
        }  # fmt: skip
    trunk = "warm/trunk.safetensors" if warmup_samples else None
    config = train_config(seed, n_images / full, trunk)
    folder = write_run(root, folder_name, record, config=config, failure=failure)
    if top1 is not None and curve:
        lines = [
            {"kind": "eval", "step": steps * i // 10,
             "top1_percent": top1 * (1 - np.exp(-i / 2.5)) / (1 - np.exp(-4))}
            for i in range(1, 11)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_warmup(
    root: Path, *, arm: str, seed: int = 0, accuracy: float = 96.0, verdict: str = "learned"
) -> Path:
    """Writes one warm-up of 374 steps of 256."""
    inner = {"name": "dyck", "params": {"n_kinds": 8}}
    rule = {"name": "shuffled", "params": {"of": inner}} if arm == "shuffled" else inner
    record = {
        "stage": "warmup", "status": "finished", "name": "toy", "seed": seed, "model": "vit",
        "config_hash": f"{arm}{seed}",
        "code_version": "0.1.0", "steps": 374, "warmup_samples": 374 * 256, "rule": rule,
        "hidden_accuracy_percent": accuracy, "chance_percent": 12.5, "hidden_loss": 0.2,
        "verdict": verdict, "wall_seconds": 21.0,
        "saturated_at_step": 120 if verdict == "saturated early" else None,
        "order_blind_percent": 31.0,
        "hidden_accuracy_by": {
            "match_distance": {
                "1": {"n": 900, "accuracy_percent": 99.0},
                "2-3": {"n": 100, "accuracy_percent": 71.5},
            },
        },
    }  # fmt: skip
    folder = write_run(root, f"warm-{arm}-{seed}", record, config='{"warmup": {}, "seed": 0}')
    lines = [
        {"kind": "train", "step": s, "hidden_accuracy_percent": accuracy * (1 - np.exp(-s / 90))}
        for s in range(10, 380, 28)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_manifest(root: Path, rows: Sequence[dict[str, Any]], **facts: Any) -> Path:
    """Writes a sweep's manifest; a row's folder is given as a path."""
    name = str(facts.get("name", "toy"))
    home = root / "sweeps" / name
    home.mkdir(parents=True, exist_ok=True)
    plain = [
        {**row, "folder": f"../../{Path(row['folder']).name}" if row.get("folder") else None}
        for row in rows
    ]
    content = {
        "format": 1, "name": name, "match": "steps", "warmup_seeds": "shared", **facts,
        "rows": plain,
    }  # fmt: skip
    (home / "manifest.json").write_text(json.dumps(content))
    return home


def write_sweep(
    root: Path,
    *,
    arms: dict[str, Callable[[float], float]],
    sizes: Sequence[int] = (100, 300, 1000),
    seeds: int = 3,
    noise: float = 0.5,
    skip: Sequence[tuple[str, int, int]] = (),
    name: str = "toy",
    match: str = "steps",
) -> Path:
    """Writes a whole sweep. An arm's function gives its true top-1 at a number of images.

    Arms whose name begins with `longer` trained longer by the samples of `dyck`'s warm-up.
    """
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    warm = [arm for arm in arms if arm.startswith(("dyck", "shuffled"))]
    for arm in warm:
        verdict = "not learned" if arm == "shuffled" else "learned"
        accuracy = 14.0 if arm == "shuffled" else 96.1
        folder = write_warmup(root, arm=arm, accuracy=accuracy, verdict=verdict)
        rows.append(
            {"kind": "warmup", "arms": [arm], "seed": 0, "folder": folder, "state": "finished"}
        )
    for n_images in sizes:
        for seed in range(seeds):
            shared = rng.normal(0, 2 * noise)
            for arm, truth in arms.items():
                missing = (arm, n_images, seed) in skip
                longer = arm.startswith("longer")
                kind = "longer" if longer else "warm" if arm in warm else "cold"
                kind = "init" if arm == "mimetic" else kind
                folder = None
                if not missing:
                    folder = write_training(
                        root, arm=arm, seed=seed, n_images=n_images, full=max(sizes),
                        top1=min(99.9, truth(n_images) + shared + rng.normal(0, noise)),
                        warmup_samples=374 * 256 if arm in warm else None,
                        verdict="learned" if arm in warm else None,
                        steps=600 + (374 * 4 if longer else 0),
                    )  # fmt: skip
                rows.append(
                    {
                        "kind": "train", "arm": arm, "arm_kind": kind, "seed": seed,
                        "fraction": n_images / max(sizes), "n_images": n_images, "folder": folder,
                        "state": "failed" if missing else "finished",
                        "reason": "worker ended by SIGKILL" if missing else None,
                        "extra_samples_of": "dyck" if longer else None,
                    }
                )  # fmt: skip
    return write_manifest(root, rows, name=name, match=match)

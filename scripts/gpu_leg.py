"""One leg of scripts/gpu_legs.py, which starts it.

    python scripts/gpu_leg.py LEG --work FOLDER --seconds N

Results go to legs.jsonl in the work folder, a line at a time.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_legs import HOME, read_lines

from vitwarm.config import SweepConfig, WarmupRun, load_config
from vitwarm.errors import Stopped, VitwarmError
from vitwarm.records import Record, code_version, read_records
from vitwarm.sweep import run_sweep
from vitwarm.trunk import load_trunk, save_trunk
from vitwarm.warmup import run_warmup, warmup_folder

#: Dense bf16 products, TFLOP/s, as the makers state them, by a word of the card's name.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}
SEEDS = {"10": [0, 1, 2, 3, 4], "100": [0, 1, 2]}
#: Runs side by side that are tried, one after the other, on the first seeds.
SIDE_BY_SIDE = (1, 2, 4)
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
TINY_WARMUP = [
    f"warmup.model_kwargs={json.dumps({**TINY, 'img_size': 32})}", "warmup.budget=30steps",
    "warmup.batch_size=8", "warmup.eval_sequences=16", "rule.params.n_kinds=4", "run.threads=1",
]  # fmt: skip
TINY_TRAINING = {
    "train.model_kwargs": TINY, "train.epochs": 1, "train.warmup_epochs": 0.1, "train.aa": None,
    "train.batch_size": 16, "train.evaluations": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a leg is told."""

    leg: str
    work: Path
    seconds: float
    rehearse: bool

    def say(self, **facts: Any) -> None:
        """Appends a result to legs.jsonl."""
        with open(self.work / "legs.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"leg": self.leg, **facts, "on": _here()}) + "\n")


@functools.cache
def _here() -> str:
    """Card, torch and code of every line: the next visit may have others."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{card}, torch {torch.__version__}, vitwarm {code_version()}"


def main(argv: list[str] | None = None) -> int:
    """Does one leg; 75 where it is to be gone on with, as the package has it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("leg", choices=tuple(WORK))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args(argv)
    try:
        return WORK[args.leg](Task(args.leg, args.work.resolve(), args.seconds, args.rehearse))
    except Stopped as error:
        print(error)
        return 75
    except VitwarmError as error:
        print(error, file=sys.stderr)
        return 1


def facts(task: Task) -> int:
    """Notes versions and the card, and runs the tests that need one."""
    names = ("torch", "torchvision", "timm", "lightning", "numba", "numpy", "omegaconf")
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    task.say(
        python=platform.python_version(),
        versions={name: _version(name) for name in names},
        card=card.name if card else None,
        card_gib=round(card.total_memory / 2**30, 1) if card else None,
        cuda=torch.version.cuda,
        cores=os.cpu_count(),
        code_version=code_version(),
    )
    if importlib.util.find_spec("pytest") is None:
        task.say(tests="not run: there is no pytest here")
        return 0
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider",
               "-o", "addopts=", "-m", "gpu", "-v", "-rfs", "tests/test_gpu.py"]  # fmt: skip
    outcomes: dict[str, list[str]] = {}
    last = ""
    with subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
            if found := re.match(r"\S+::(\S+) (PASSED|FAILED|SKIPPED|ERROR)", line):
                outcomes.setdefault(found[2].lower(), []).append(found[1])
                if found[2] != "SKIPPED":
                    task.say(test=found[1], outcome=found[2].lower())
    task.say(tests=last, skipped=len(outcomes.get("skipped", [])))
    return 1 if tests.returncode else 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def speed(task: Task) -> int:
    """Runs the benchmarks, the most telling first; each line is noted as it comes.

    A later visit takes those up of which `done` does not tell.
    """
    failed = 0
    told = {str(line["done"]) for line in read_lines(task.work) if "done" in line}
    for name, words in _benches(task.rehearse):
        if " ".join([name, *words]) in told:  # by an earlier visit
            continue
        command = [sys.executable, str(HOME / "scripts" / f"bench_{name}.py"), *words]
        bench = subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True)
        assert bench.stdout is not None
        for line in bench.stdout:
            print(line, end="")
            if line.startswith("{"):
                found = json.loads(line)
                task.say(bench=name, words=" ".join([name, *words]), **found, **_utilisation(found))
        failed += bool(bench.wait())
        if bench.returncode:
            task.say(failed=" ".join([name, *words]), exit_code=bench.returncode)
        else:
            task.say(done=" ".join([name, *words]))
    return 1 if failed else 0


def _benches(rehearse: bool) -> Iterator[tuple[str, list[str]]]:
    models = [f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")]
    small = ["--model-kwargs", json.dumps({"img_size": 32, "patch_size": 4})]
    if rehearse:
        short = ["--rounds", "1"]
        yield "warmup", ["--batch", "2", "--steps", "1", *short]
        yield "train", ["--batch", "2", "--steps", "1", *small, *short]
        yield "augment", ["--batch", "4", "--size", "32", "--recipe", "three", *short]
        return
    short = ["--rounds", "3", "--steps", "20"]
    for model in models[:1]:
        yield "warmup", ["--model", model, "--batch", "256", "--compile", *short]
        yield "train", ["--model", model, "--batch", "512", *small, *short]
    for model in models[1:]:
        yield "warmup", ["--model", model, "--batch", "256", "--compile", *short]
    yield "augment", ["--recipe", "randaugment", "--rounds", "3"]
    yield "train", ["--model", models[0], "--batch", "256", *short]
    for model in models:
        yield "warmup", ["--model", model, "--batch", "256", *short]


def _utilisation(found: dict[str, Any]) -> dict[str, float]:
    """Model FLOPs per second over what the card can do, where both are known."""
    card = str(found.get("device"))
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in card), None)
    if peak is None or "model_tflops_per_second" not in found:
        return {}
    return {"flop_utilisation_percent": round(100 * found["model_tflops_per_second"] / peak, 2)}


def trunk(task: Task) -> int:
    """Warms up ViT-T on 64-kind Dyck words."""
    return warm(task, "vit_tiny_dyck64", [])


def warm(task: Task, name: str, words: list[str]) -> int:
    """Goes on with a warm-up until it is done or the time is; its trunk is kept in bf16."""
    if find_trunk(task, name, unfinished=False):
        return 0
    config = load_config(
        WarmupRun,
        HOME / "configs" / "warmup" / "vit_tiny_dyck64.yaml",
        [
            f"name={name}", f"run.root={task.work / 'runs'}", "run.progress=false",
            f"warmup.checkpoint_minutes={0.01 if task.rehearse else 1}",
            f"run.time_limit_minutes={max(1.0, task.seconds - 10) / 60}", *words,
            *(TINY_WARMUP if task.rehearse else []),
        ],
    )  # fmt: skip
    folder = warmup_folder(config)
    began = time.monotonic()
    try:
        record: Record | None = run_warmup(config)
    except Stopped:
        record = None
    made = load_trunk(folder / "trunk.safetensors")
    kept = {k: v for k, v in made.metadata.items() if k not in ("names", "format_version")}
    tensors = {name: tensor.bfloat16() for name, tensor in made.tensors.items()}
    save_trunk(task.work / "trunks" / f"{name}.safetensors", tensors, {**kept, "dtype": "bf16"})
    task.say(
        trunk=name, status=made.metadata.get("status"), seconds=round(time.monotonic() - began, 1),
        steps=made.facts.get("steps"), sequences_per_second=_rate(record),
        hidden_accuracy_percent=record and record.hidden_accuracy_percent,
        wall_seconds=record and record.wall_seconds, verdict=record and record.verdict,
    )  # fmt: skip
    return 0 if record else 75


def _rate(record: Record | None) -> float | None:
    if record is None or not record.wall_seconds or record.warmup_samples is None:
        return None
    return round(record.warmup_samples / record.wall_seconds, 1)


def find_trunk(task: Task, name: str, *, unfinished: bool = True) -> Path | None:
    """Returns the bf16 trunk of a warm-up, if it is there (and finished)."""
    path = task.work / "trunks" / f"{name}.safetensors"
    if not path.is_file():
        return None
    whole = load_trunk(path).metadata.get("status") == "finished"
    return path if whole or unfinished else None


def row(task: Task) -> int:
    """Trains the paired arms; one whose trunk is not finished says so in its name."""
    arms: dict[str, Any] = {"default": {}}
    if path := find_trunk(task, "vit_tiny_dyck64"):
        whole = find_trunk(task, "vit_tiny_dyck64", unfinished=False) is not None
        arms["dyck" if whole else "dyck_unfinished"] = {
            "trunk": str(path),
            "train": {"handoff.allow_failed": task.rehearse},  # thirty steps learn nothing
        }
    arms["mimetic"] = {"init": "mimetic"}
    code = train_arms(task, arms)
    return code if "dyck" in arms else code or 75


def control(task: Task) -> int:
    """Warms up on shuffled Dyck words and trains that arm on the row's seeds."""
    code = warm(task, "vit_tiny_shuffled64", ["rule.name=shuffled:dyck"])
    path = find_trunk(task, "vit_tiny_shuffled64", unfinished=False)
    if code or path is None:
        return code or 75
    return train_arms(
        task, {"shuffled": {"trunk": str(path), "train": {"handoff.allow_failed": True}}}
    )


def train_arms(task: Task, arms: dict[str, Any]) -> int:
    """Trains arms seed by seed, first on 10 % of the images, then on all that are there."""
    data = task.work / "data"
    train = sorted(data.glob("part*-train"))
    val = data / "part1-validation"
    if not train or not val.is_dir():
        raise VitwarmError("--data holds no part 1 of CIFAR-100; make it by pack_cifar100.py.")
    subsets = {"10": train[:1], **({"100": train} if len(train) > 2 else {})}
    code = 0 if len(subsets) == 2 else 75  # the rest waits for its images
    for share, folders in subsets.items():
        source = "::".join(map(str, folders))
        for seeds, slots in _turns(task, SEEDS[share], arms):
            recipe = task.work / "runs" / f"{task.leg}-{share}-{seeds[0]}.yaml"
            recipe.write_text(json.dumps({
                "base": str(HOME / "configs" / "train" / "cifar100_vit_tiny_32.yaml"),
                "match": "epochs", "warmup_seeds": "shared", "arms": arms, "seeds": seeds,
                "slots": slots,
                "set": {"data.train": source, "data.val": str(val),
                        **(TINY_TRAINING if task.rehearse else {})},
                "run": {"root": str(task.work / "runs"), "progress": False},
            }))  # fmt: skip
            before = {(r.config_hash) for r in read_records(task.work / "runs")}
            result = run_sweep(load_config(SweepConfig, recipe), recipe=recipe)
            fresh = [r for r in read_records(task.work / "runs") if r.config_hash not in before]
            _tell(task, share, [r for r in fresh if r.stage == "train"], slots, len(arms))
            code = result.exit_code or code
    return code


def _turns(task: Task, seeds: list[int], arms: dict[str, Any]) -> Iterator[tuple[list[int], int]]:
    """Yields seeds and the runs side by side: first each number that is not yet measured, then all
    the others with the best."""
    seeds = list(seeds[:1] if task.rehearse else seeds)
    untried = [n for n in SIDE_BY_SIDE if n not in _measured(task)] if len(arms) > 1 else []
    for n in untried[: 1 if task.rehearse else None]:
        if seeds:
            yield [seeds.pop(0)], n
    if seeds:
        measured = _measured(task)
        yield seeds, max(measured, key=lambda n: measured[n]) if measured else 1


def _measured(task: Task) -> dict[int, float]:
    """Images per second of the whole card, by runs side by side."""
    lines: list[dict[str, Any]] = read_lines(task.work)
    return {int(x["slots"]): float(x["card_images_per_second"]) for x in lines if "slots" in x}


def _tell(task: Task, share: str, records: list[Record], slots: int, n_arms: int) -> None:
    for one in records:
        task.say(
            percent=share, arm=one.arm, seed=one.seed, top1_percent=one.top1_percent,
            n_train_images=one.n_train_images, wall_seconds=one.wall_seconds,
            images_per_second=one.images_per_second,
        )  # fmt: skip
    rates = [r.images_per_second for r in records if r.images_per_second]
    if n_arms > 1 and rates:
        together = min(slots, n_arms)
        rate = round(together * statistics.median(rates))
        task.say(slots=slots, side_by_side=together, card_images_per_second=rate)


WORK = {"facts": facts, "speed": speed, "trunk": trunk, "row": row, "control": control}

if __name__ == "__main__":
    sys.exit(main())

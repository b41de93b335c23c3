"""Check this machine, and which timm models can be warmed up.

    vitwarm doctor
    vitwarm doctor --models            a table per class of models
    vitwarm doctor --models --json     one line per model: {"model": ..., "ok": ..., "why": ...}
    vitwarm doctor --model vit_base_patch14_dinov2

Models are checked for real on torch's meta device (everything but the numbers), those whose class
takes a depth with four blocks; all of them take some minutes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import asdict

from vitwarm.commands.shared import columns
from vitwarm.informing import shows_bars

#: Said of a model where nothing is wrong.
WORKS = "can be warmed up and handed off"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--models", action="store_true", help="check every transformer of timm")
    either.add_argument("--model", metavar="NAME", action="append", help="check this one")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Prints the check; returns 1 where something that should work does not."""
    if args.models or args.model:
        return _models(args)
    from vitwarm.commands.check_machine import check_machine

    findings = check_machine()
    if args.json:
        print("\n".join(json.dumps(asdict(finding)) for finding in findings))
    else:
        print(columns([(_marked(one.name, one.ok), one.text) for one in findings]))
    return 0 if all(finding.ok for finding in findings) else 1


def _marked(name: str, ok: bool) -> str:
    return f"{'ok' if ok else 'BAD':3} {name}"


def _models(args: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from vitwarm.commands.check_models import (
        OTHER_TRANSFORMERS,
        PATCH_TRANSFORMERS,
        check_model,
        model_names,
    )
    from vitwarm.trunk import check_name

    for name in args.model or []:
        check_name(name)
    modules = {
        name: module
        for module in (*PATCH_TRANSFORMERS, *OTHER_TRANSFORMERS)
        for name in model_names((module,))
    }
    names = args.model or list(modules)
    works: dict[str, Counter[bool]] = defaultdict(Counter)
    reasons: dict[str, str] = {}
    rows: list[tuple[str, str]] = []
    for name in tqdm(names, disable=not shows_bars(), unit="model"):
        verdict = check_model(name)
        module = modules.get(name, "other")
        works[module][verdict.ok] += 1
        if args.json:
            print(json.dumps(asdict(verdict)), flush=True)
        elif args.model:
            rows.append((_marked(name, verdict.ok), verdict.why or WORKS))
        elif not verdict.ok:
            reasons.setdefault(module, verdict.why.split("cannot be warmed up: ")[-1])
    expected = sum(works[m][True] for m in PATCH_TRANSFORMERS)
    if rows:
        print(columns(rows))
    if not args.json and not args.model:
        for module, counts in works.items():
            print(f"{counts[True]:4} of {counts.total():4}  {module:28}{reasons.get(module, '')}")
        total = sum(works[module].total() for module in PATCH_TRANSFORMERS)
        print(f"\n{expected} of {total} names of timm's patch transformers can be warmed up")
    failed = sum(works[module][False] for module in (*PATCH_TRANSFORMERS, "other"))
    return 1 if failed else 0

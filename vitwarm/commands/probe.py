"""What a warm-up or a training did to the network: weights, attention, frozen features.

    vitwarm probe runs/warmup-1a2b3c4d runs/train-5e6f7a8b cold --data shards/validation
    vitwarm probe early=EXPORT_A late=EXPORT_B --data shards/validation --images 1000 --out probe

MODEL is an export folder or a run folder of a training (as it is), a run folder of a warm-up, a
trunk file or a shipped name (handed off; what is fresh comes from the seed), a timm name with the
tag of its weights, or `cold`: timm's initialisation of the first other model. Models stand side by
side; LABEL=MODEL names one. Plain timm ViTs only. Give images that no model was trained on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from vitwarm.config.ranges import whole_number
from vitwarm.errors import ConfigError
from vitwarm.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `vitwarm probe`."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="what to probe, or cold")
    parser.add_argument("--data", required=True, metavar="SHARDS", help="as data.val takes it")
    parser.add_argument("--images", type=int, default=1000, help="at most (default 1,000)")
    parser.add_argument("--out", type=Path, default=Path("probe"), help="folder (default: probe)")
    seeds = "of fresh tensors and of the choice"
    parser.add_argument("--seed", type=whole_number(), default=0, help=seeds)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])


def run(args: argparse.Namespace) -> int:
    """Probes, writes a JSON for each model and a page, and prints the tables and its path."""
    from vitwarm.config import RunConfig
    from vitwarm.hardware import choose_device
    from vitwarm.probe.images import ProbeImages
    from vitwarm.probe.models import load_all
    from vitwarm.probe.page import SUFFIX, make_probe_page
    from vitwarm.probe.run import run_probe
    from vitwarm.probe.show import terminal_tables

    device = choose_device(RunConfig(device=args.device), called="--device")
    try:  # said now, not after the whole probe
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        raise ConfigError(
            f"--out is {args.out}, which cannot be written: {error.strerror}. Choose another."
        ) from error
    models = load_all(args.models, seed=args.seed)
    images = ProbeImages(args.data, n_images=args.images, seed=args.seed)
    founds = run_probe(models, images, device=device)
    for found in founds:
        write_text(
            args.out / f"{found['label']}{SUFFIX}",
            json.dumps(found, indent=1, allow_nan=False) + "\n",
        )
    write_text(args.out / "index.html", make_probe_page(founds))
    print(f"{terminal_tables(founds)}\n\n{args.out / 'index.html'}")
    return 0

"""Does this trunk help on my images? The smallest honest answer within a stated time.

    vitwarm transfer runs/warmup-1a2b3c4d --data shards --minutes 30

Trains the trunk's model from the trunk, from timm's own initialisation and from the mimetic one on
as many of the images as the time allows, over paired seeds, and ends in sentences with their
intervals. Training is short: a difference here is a hint about a long training, not its result. So
a quarter of the steps is trained too, where the time allows, to show where the difference goes.
The sign can hang on the augmentation: --like takes that of the training you plan, and words such
as train.img_size=32 or train.aa=3a change the image training of all three.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitwarm.config import RunConfig, SweepConfig, TrainRun, find_recipe, load_config
from vitwarm.errors import ConfigError, ShardError
from vitwarm.units import format_seconds

if TYPE_CHECKING:
    from vitwarm.report import Analysis
    from vitwarm.report.facts import Difference

#: Steps of the run that measures the time of a step.
PILOT_STEPS = 30
#: A training shorter than this has hardly left its ramp.
LEAST_STEPS = 100
#: More passes than this over few images measure how a start overfits.
MOST_PASSES = 64
#: Share of the stated time that is planned for; the rest is for what the pilot cannot see.
PLANNED = 0.85
#: The short training is this many times shorter than the long one.
SHORTER = 4
#: What the command itself says, from its arguments and its pilot.
_CHOSEN = frozenset(
    {"train.steps", "train.epochs", "data.fraction", "data.image_list", "data.train", "data.val",
     "train.model", "handoff.trunk", "handoff.init", "arms", "base", "extends", "match", "n_seeds",
     "name", "over", "run.root", "seed", "seeds", "set", "warmup_seeds"}
)  # fmt: skip
#: Fields of a recipe that --like takes: how images are altered and fitting is held back.
AUGMENTATION = (
    "aa", "bce_loss", "color_jitter", "crop_pct", "cutmix", "drop_path", "hflip", "interpolation",
    "mean", "mixup", "mixup_prob", "mixup_switch_prob", "ratio", "reprob", "scale", "smoothing",
    "std", "train_crop", "weight_decay",
)  # fmt: skip


@dataclass(frozen=True)
class Pilot:
    """What a short run of the default arm said."""

    step_seconds: float
    other_seconds: float
    """Per run: building, evaluating, exporting."""
    n_images: int
    n_classes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the words of `vitwarm transfer`."""
    add = parser.add_argument
    add("trunk", help="trunk file, run folder, shipped name or hf-hub:OWNER/NAME")
    shards = "the folder of both splits, or as data.train takes it"
    add("--data", required=True, metavar="SHARDS", help=shards)
    add("--val", metavar="SHARDS", help="default: DATA/validation")
    like = "the training you plan: take its augmentation and regularisation; default: light"
    add("--like", metavar="RECIPE", help=like)
    add("--minutes", type=float, default=30.0, help="time it may take, default 30")
    add("--seeds", type=int, default=5, help="paired seeds, at least 3; default 5")
    add("--out", type=Path, default=Path("transfer"), help="folder for everything")
    add("overrides", nargs="*", metavar="section.field=value")


def run(args: argparse.Namespace) -> int:
    """Times a pilot, plans what fits, runs it, and prints the differences in words."""
    from vitwarm.report import run_report
    from vitwarm.sweep import run_sweep
    from vitwarm.sweep.worker import find_slots

    if not 0 < args.minutes < math.inf:
        raise ConfigError(f"--minutes is {args.minutes:g}; give the time it may take, such as 30.")
    if args.seeds < 3:
        raise ConfigError(f"--seeds is {args.seeds}; an interval needs at least 3 paired seeds.")
    for name in (word.split("=")[0] for word in args.overrides):
        if name in _CHOSEN or name.split(".")[0] in _CHOSEN:
            raise ConfigError(
                f"{name} is given, which follows from this command's own arguments (--minutes, "
                "--seeds, --data, --val, --out). Use `vitwarm sweep` for an experiment of your own."
            )
    began = time.monotonic()
    base = _sweep(args, [PILOT_STEPS])
    _check_data(base)
    print(f"A pilot of {PILOT_STEPS} steps tells what fits in {args.minutes:g} min.", flush=True)
    train = load_config(TrainRun, find_recipe(base.base), fields=base.set)
    slots, n_runs = find_slots(base.run, base.slots), len(base.arms) * args.seeds
    pilot = time_pilot(train, base.run, args.out, threads=int(slots[0]["OMP_NUM_THREADS"]))
    left = args.minutes * 60 - (time.monotonic() - began)
    batch_size, share = train.train.batch_size, PLANNED * left
    lengths, fraction = plan_probe(
        pilot, seconds=share, n_runs=n_runs, n_slots=len(slots), batch_size=batch_size
    )
    augmented = f"augmented as {args.like}" if args.like else "lightly augmented (see --like)"
    print(
        f"{round(fraction * pilot.n_images):,} of {pilot.n_images:,} images, "
        f"{' and '.join(f'{n:,}' for n in lengths)} steps, {args.seeds} paired seeds, "
        f"{len(base.arms)} starts, {len(slots)} at a time, {augmented}: about "
        f"{format_seconds(_duration(pilot, lengths, n_runs, len(slots)))}",
        flush=True,
    )
    result = run_sweep(_sweep(args, lengths, {"data.fraction": fraction}))
    paths = run_report([result.folder], args.out / "report", title="Transfer", figures=False)
    sections = sorted(paths.analyses, key=lambda one: one.setting.get("train.steps", 0))
    print(f"\n{say_result(sections[-1], args.trunk, mimetic='mimetic' in base.arms)}")
    if len(sections) > 1:
        print(say_trend(sections[0], sections[-1], lengths))
    print(paths.page)
    return result.exit_code


def time_pilot(config: TrainRun, run: RunConfig, out: Path, *, threads: int) -> Pilot:
    """Trains the default arm for a few steps and returns what a step and the rest of a run take."""
    from vitwarm.training import run_training

    run = replace(
        config.run, root=str(out / "pilot"), threads=threads, workers=threads - 1, progress=False,
        device=run.device,
    )  # fmt: skip
    began = time.monotonic()
    record = run_training(replace(config, run=run), fresh=True)
    seconds = time.monotonic() - began
    step = config.train.batch_size / max(record.images_per_second or 0.0, 1e-9)
    other = max(0.0, seconds - PILOT_STEPS * step)
    return Pilot(step, other, record.n_train_images or 0, record.n_classes or 0)


def plan_probe(
    pilot: Pilot, *, seconds: float, n_runs: int, n_slots: int, batch_size: int
) -> tuple[list[int], float]:
    """Returns the steps of a short and a long training and the fraction of the images that fit.

    The images are as many as the steps show `MOST_PASSES` times, ten of each class at least. There
    is no short training where it would have fewer than `LEAST_STEPS` steps.

    Raises: ConfigError: the time is too short for `LEAST_STEPS` steps; it says what is needed.
    """
    one_slot = seconds / math.ceil(n_runs / n_slots)
    steps = int((one_slot - 2 * pilot.other_seconds) / pilot.step_seconds / (1 + 1 / SHORTER))
    if steps < SHORTER * LEAST_STEPS:
        steps = int((one_slot - pilot.other_seconds) / pilot.step_seconds)
        steps = min(steps, SHORTER * LEAST_STEPS - 1)
    if steps < LEAST_STEPS:
        needed = _duration(pilot, [LEAST_STEPS], n_runs, n_slots) / PLANNED / 60
        raise ConfigError(
            f"--minutes leaves {max(steps, 0)} steps a run; {LEAST_STEPS} are the least. Give "
            f"--minutes {math.ceil(needed + 1)}, smaller images (train.img_size=...) or a GPU."
        )
    wanted = max(10 * pilot.n_classes, round(steps * batch_size / MOST_PASSES))
    n_images = min(wanted, pilot.n_images)
    most = math.ceil(MOST_PASSES * n_images / batch_size)
    steps = min(steps, max(most, LEAST_STEPS))
    lengths = [steps // SHORTER, steps] if steps >= SHORTER * LEAST_STEPS else [steps]
    return lengths, n_images / pilot.n_images


def say_result(analysis: Analysis, trunk: str, *, mimetic: bool) -> str:
    """Returns the differences to the default start in words, with their intervals.

    Args: mimetic: whether there is a mimetic start for the model.
    """
    lines = []
    for name, what in (("warmed", f"The trunk {trunk}"), ("mimetic", "The mimetic start")):
        found = _find(analysis, name)
        if name == "mimetic" and not mimetic:
            lines.append(f"{what} is not defined for this model.")
            continue
        if not found:
            lines.append(f"{what} has no finished pair; see the report.")
            continue
        one = found.difference
        text = f"{what}: {one.mean:+.1f} points against timm's own initialisation with"
        text += f" {found.n_images:,} images (n = {one.n} paired seeds"
        if one.low is None or one.high is None:
            lines.append(f"{text}): too few for an interval.")
            continue
        text += f", 95 % CI {one.low:+.1f} to {one.high:+.1f})"
        verdict = "it harms here" if one.high < 0 else "no significant difference"
        verdict = "it helps here" if one.low > 0 else verdict
        lines.append(f"{text}: {verdict}.")
    return "\n".join(lines)


def say_trend(short: Analysis, long: Analysis, lengths: list[int]) -> str:
    """Returns in words where the trunk's difference to the default goes with longer training."""
    from vitwarm.report.curves import mean_interval, paired_differences

    before, after = _find(short, "warmed"), _find(long, "warmed")
    values = [{str(p.seed): p.value for p in d.points} if d else {} for d in (after, before)]
    change = list(paired_differences(*values)[0].values())
    if not before or not change:
        return "No seed has both lengths; see the report."
    first, moved = before.difference, mean_interval(change)
    text = f"After {lengths[0]:,} steps the trunk's difference was {first.mean:+.1f} points; "
    text += f"{SHORTER} times as long moves it by {moved.mean:+.1f}"
    if moved.low is None or moved.high is None:
        return f"{text} (n = {moved.n}): too few for an interval."
    text += f" (95 % CI {moved.low:+.1f} to {moved.high:+.1f})"
    verdict = "no significant trend, so a long training may differ either way"
    verdict = "expect less of the trunk in a long training" if moved.high < 0 else verdict
    verdict = "a longer training may gain more of it" if moved.low > 0 else verdict
    return f"{text}: {verdict}."


def _find(analysis: Analysis, arm: str) -> Difference | None:
    found = analysis.matched_images
    return next((d for d in found if (d.arm, d.reference) == (arm, "default")), None)


def _sweep(
    args: argparse.Namespace, lengths: list[int], fields: dict[str, Any] | None = None
) -> SweepConfig:
    from vitwarm.inits.mimetic import has_mimetic
    from vitwarm.trunk import build_shapes, load_trunk

    facts = load_trunk(args.trunk).facts
    shape = dict(facts.get("model_args") or {})
    mimetic = {"mimetic": {"init": "mimetic"}}
    if not has_mimetic(build_shapes(facts["model"], **shape)):
        mimetic = {}
    size = shape.pop("img_size", None)
    train = _train_of(args.data)
    val = args.val or f"{train.removesuffix('/train')}/validation"
    words = [word for word in args.overrides if word.split(".")[0] in ("train", "data", "handoff")]
    others = [word for word in args.overrides if word not in words]
    given = {
        "data.train": train, "data.val": val, "train.model": facts["model"],
        "train.model_kwargs": shape, "train.img_size": size, "train.steps": lengths[-1],
        **(fields or {}),
    }  # fmt: skip
    if args.like:
        data = {name: given[name] for name in ("data.train", "data.val")}
        plan = load_config(TrainRun, find_recipe(args.like), fields=data).train
        given |= {f"train.{name}": getattr(plan, name) for name in AUGMENTATION}
    over = {"train.steps": lengths} if len(lengths) > 1 else {}
    sweep = {
        "name": "transfer", "base": "train/transfer.yaml", "match": "steps", "over": over,
        "warmup_seeds": "shared", "seeds": list(range(args.seeds)), "set": given,
        "arms": {
            "default": {},
            "warmed": {"trunk": str(args.trunk), "train": {"handoff.allow_failed": True}},
            **mimetic,
        },
        "run.root": str(args.out / "runs"),
    }  # fmt: skip
    words = [*(f"set.{word}" for word in words), *others]
    return load_config(SweepConfig, None, words, fields=sweep)


def _train_of(data: str) -> str:
    """The training split of a folder that holds several; anything else as it is given."""
    from vitwarm.shards.read.sources import find_shards

    home = data.rstrip("/")
    try:
        find_shards(f"{home}/train")
    except ShardError:
        return home
    return f"{home}/train"


def _check_data(base: SweepConfig) -> None:
    """Refuses shards that are not there before anything is announced."""
    from vitwarm.shards.read.sources import find_shards, is_streamed

    for split in ("data.train", "data.val"):
        if not is_streamed(base.set[split]):
            find_shards(base.set[split])


def _duration(pilot: Pilot, lengths: list[int], n_runs: int, n_slots: int) -> float:
    one = len(lengths) * pilot.other_seconds + sum(lengths) * pilot.step_seconds
    return math.ceil(n_runs / n_slots) * one

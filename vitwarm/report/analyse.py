"""A section of runs in, every number of its report out; figures and page draw from this alone.

Two comparisons are kept apart. *Matched images seen*: arms that saw as many images as the default,
so that a warmed arm had its warm-up on top. *Matched total samples*: a warmed arm against the arm
that trained longer by that warm-up's samples, so that both went through equally many samples.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections import Counter
from typing import Any

from vitwarm.records import Record
from vitwarm.report.curves import equal_accuracy, mean_interval, paired_differences
from vitwarm.report.facts import (
    Analysis,
    Arm,
    Cell,
    Difference,
    Point,
    Saving,
)
from vitwarm.report.gains import list_gains, rank_correlations
from vitwarm.report.lines import converge, describe_warmups, to_line
from vitwarm.report.trials import Kind, Section, Trial

#: Colours of the arms that most sweeps have.
_COLORS = {"default": 0, "dyck": 1, "shuffled": 2, "mimetic": 3, "longer": 4}


def analyse(section: Section) -> Analysis:
    """Computes a section's report. Runs without a result are named, never averaged over."""
    trials = section.trials
    _fill_sizes(trials)
    problems = list(section.problems)
    records = [trial.record for trial in trials if trial.record and trial.state == "finished"]
    compared = trials if section.compared else []
    arms = _describe_arms(compared)
    sizes = sorted({t.n_images for t in compared if t.n_images})
    cells = [
        cell for arm in arms for size in sizes if (cell := _cell(arm.label, size, trials, problems))
    ]
    reference = _choose_reference(arms)
    analysis = Analysis(
        title=section.title,
        slug=re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "report",
        match=section.match,
        warmup_seeds=section.warmup_seeds,
        setting=section.setting,
        model=_one(record.model for record in records),
        n_val_images=_one(record.n_val_images for record in records),
        n_classes=_one(record.n_classes for record in records),
        weights=sorted({r.top1_weights for r in records if r.top1_weights}),
        seeds=sorted({trial.seed for trial in trials}),
        sizes=sizes,
        reference=reference,
        arms=arms,
        cells=cells,
        matched_images=[],
        matched_total=[],
        savings=[],
        convergence=[line for trial in compared if (line := converge(trial))],
        warmups=describe_warmups(section),
        gains=[],
        rank_correlations=[],
        runs=[to_line(trial) for trial in trials],
        subsets=_subsets(records),
        problems=problems,
    )
    if section.compared:
        _check_comparable(records, problems)
    if reference is None:
        return analysis
    done = _finished(trials)
    matched = _matched_images(analysis, done, reference)
    gains = list_gains(matched, analysis.warmups)
    return dataclasses.replace(
        analysis,
        matched_images=matched,
        gains=gains,
        rank_correlations=list(rank_correlations(gains)),
        matched_total=_matched_total(analysis, done, trials),
        savings=_savings(analysis, done, matched, reference),
    )


Done = dict[tuple[str, int], dict[str, tuple[int, float]]]


def _finished(trials: list[Trial]) -> Done:
    """(arm, images) -> pair -> (seed, top-1)."""
    done: Done = {}
    for trial in trials:
        top1 = _top1(trial)
        if top1 is None or trial.n_images is None:
            continue
        pair = trial.record.pair if trial.record else None
        # A run that names no pair is compared with none, rather than with a lookalike.
        key = pair or f"unpaired {trial.folder}"
        done.setdefault((trial.arm, trial.n_images), {})[key] = (trial.seed, top1)
    return done


def _top1(trial: Trial) -> float | None:
    if trial.state != "finished" or trial.record is None:
        return None
    return trial.record.top1_percent


def _fill_sizes(trials: list[Trial]) -> None:
    """A run that never finished has no record to tell its images; its neighbours know them."""
    known: dict[float | None, int] = {
        t.fraction: t.n_images for t in trials if t.n_images and t.fraction is not None
    }
    for trial in trials:
        if trial.record is not None and trial.record.n_train_images:
            trial.n_images = trial.record.n_train_images
        elif trial.n_images is None:
            trial.n_images = known.get(trial.fraction)


def _describe_arms(trials: list[Trial]) -> list[Arm]:
    arms = []
    labels = list(dict.fromkeys(trial.arm for trial in trials))
    colors = choose_colors(labels)
    for label in labels:
        own = [trial for trial in trials if trial.arm == label]
        records = [trial.record for trial in own if trial.record]
        arms.append(
            Arm(
                label=label,
                color=colors[label],
                kind=own[0].kind,
                longer_than=own[0].longer_than,
                warmup_samples=_one(record.warmup_samples for record in records),
                verdicts=dict(Counter(t.verdict for t in own if t.verdict)),
            )
        )
    return arms


def choose_colors(labels: list[str]) -> dict[str, int]:
    """Returns a number per arm that depends on its label alone while no two want the same one."""
    found: dict[str, int] = {}
    for label in sorted(labels, key=lambda label: (label not in _COLORS, label)):
        wanted = _COLORS.get(label, 1 + zlib.crc32(label.encode("utf-8", "replace")) % 8)
        around = [*range(wanted, 9), *range(1, wanted)]
        taken = set(found.values())
        found[label] = next(
            color for turn in range(len(labels) + 1) for place in around
            if (color := place + 9 * turn) not in taken
        )  # fmt: skip
    return found


def _choose_reference(arms: list[Arm]) -> str | None:
    cold = [arm.label for arm in arms if arm.kind == "cold"]
    return "default" if "default" in cold else next(iter(cold), None)


def _cell(arm: str, n_images: int, trials: list[Trial], problems: list[str]) -> Cell | None:
    own = [t for t in trials if t.arm == arm and t.n_images == n_images and t.state != "left out"]
    if not own:
        return None
    points, missing = [], []
    for trial in sorted(own, key=lambda t: t.seed):
        top1 = _top1(trial)
        if top1 is not None:
            points.append(Point(seed=trial.seed, value=top1))
            continue
        state = trial.state if trial.state != "finished" else "finished without a top-1"
        why = f" ({trial.reason})" if trial.reason else ""
        missing.append(f"seed {trial.seed}: {state}{why}")
    records = [t.record for t in own if t.record and _top1(t) is not None]
    seen = _one(record.images_seen for record in records)
    total = _one((r.images_seen or 0) + (r.warmup_samples or 0) for r in records)
    if records and seen is None:
        problems.append(
            f"The seeds of {arm} at {n_images:,} images saw different numbers of images; they are "
            "shown, but take part in no comparison."
        )
    return Cell(
        arm=arm,
        n_images=n_images,
        fraction=_one(t.fraction for t in own),
        images_seen=seen,
        total_samples=total if seen is not None else None,
        top1=mean_interval([p.value for p in points]) if points else None,
        points=points,
        missing=missing,
    )


def _matched_images(analysis: Analysis, done: Done, reference: str) -> list[Difference]:
    found = []
    for cell in analysis.cells:
        other = analysis.cell(reference, cell.n_images)
        if cell.arm == reference or other is None or cell.images_seen is None:
            continue
        if cell.images_seen == other.images_seen:
            found.append(_difference(done, cell.arm, reference, cell.n_images))
    return [difference for difference in found if difference]


def _matched_total(analysis: Analysis, done: Done, trials: list[Trial]) -> list[Difference]:
    """Warmed arms against what the same number of samples does as more image training."""
    batch = _largest_batch(trials)
    found = []
    for longer in (cell for cell in analysis.cells if _kind(analysis, cell.arm) == "longer"):
        for cell in analysis.cells:
            if cell.n_images != longer.n_images or _kind(analysis, cell.arm) == "longer":
                continue
            if cell.total_samples is None or longer.total_samples is None:
                continue
            if cell.total_samples == cell.images_seen:  # no warm-up stands behind it
                continue
            if abs(cell.total_samples - longer.total_samples) <= batch:
                found.append(_difference(done, cell.arm, longer.arm, cell.n_images))
    return [difference for difference in found if difference]


def _difference(done: Done, arm: str, reference: str, n_images: int) -> Difference | None:
    mine, theirs = done.get((arm, n_images), {}), done.get((reference, n_images), {})
    shared, alone = paired_differences(
        {pair: value for pair, (_, value) in mine.items()},
        {pair: value for pair, (_, value) in theirs.items()},
    )
    if not shared:
        return None
    both = {**theirs, **mine}
    return Difference(
        arm=arm,
        reference=reference,
        n_images=n_images,
        difference=mean_interval(list(shared.values())),
        points=sorted(
            (Point(seed=mine[pair][0], value=value) for pair, value in shared.items()),
            key=lambda point: point.seed,
        ),
        unpaired=sorted(
            f"seed {both[pair][0]} ({arm if pair in mine else reference} alone)" for pair in alone
        ),
    )


def _savings(
    analysis: Analysis, done: Done, matched: list[Difference], reference: str
) -> list[Saving]:
    """Reads each arm's curve at the reference's accuracies; seeds are the curves."""
    told = {(d.arm, d.n_images): d.difference.excludes_zero for d in matched}
    found = []
    for arm in analysis.arms:
        sizes = [size for size in analysis.sizes if (arm.label, size) in told]
        if len(sizes) < 2:
            continue
        curves: dict[str, list[float]] = {}
        for seed in analysis.seeds:
            values = [_of_seed(done, arm.label, size, seed) for size in sizes]
            known = [value for value in values if value is not None]
            if len(known) == len(sizes):
                curves[str(seed)] = known
        for size in sizes:
            at = {
                str(seed): value
                for seed in analysis.seeds
                if (value := _of_seed(done, reference, size, seed)) is not None
            }
            needs = equal_accuracy(sizes, curves, at)
            if needs is not None:
                used = [at[seed] for seed in needs.per_seed]
                found.append(
                    Saving(
                        arm=arm.label, reference=reference, n_images=size,
                        accuracy=sum(used) / len(used), needs=needs,
                        told=told.get((arm.label, size)),
                    )
                )  # fmt: skip
    return found


def _of_seed(done: Done, arm: str, n_images: int, seed: int) -> float | None:
    found = [value for own, value in done.get((arm, n_images), {}).values() if own == seed]
    return found[0] if found else None


def _subsets(records: list[Record]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for record in records:
        if record.n_train_images and record.subset_sha256:
            found.setdefault(str(record.n_train_images), set()).add(record.subset_sha256)
    return {size: sorted(hashes) for size, hashes in sorted(found.items(), key=lambda i: int(i[0]))}


def _check_comparable(records: list[Record], problems: list[str]) -> None:
    for name, what in (
        ("n_val_images", "were evaluated on different numbers of images"),
        ("model", "have different models"),
        ("top1_weights", "report the accuracy of different weights (raw and EMA)"),
    ):
        values = sorted({str(getattr(record, name)) for record in records})
        if len(values) > 1:
            problems.append(f"Runs {what} ({', '.join(values)}); do not compare them.")
    versions = sorted({record.code_version for record in records})
    if len(versions) > 1:
        problems.append(f"Runs were made by several versions of the code: {', '.join(versions)}.")
    unread = sum(record.unreadable_images or 0 for record in records)
    if unread:
        what = "image did not decode and was" if unread == 1 else "images did not decode and were"
        problems.append(f"{unread:,} {what} replaced, over all runs.")


def _largest_batch(trials: list[Trial]) -> float:
    records = [trial.record for trial in trials if trial.record]
    return max((r.images_seen / r.steps for r in records if r.images_seen and r.steps), default=0)


def _kind(analysis: Analysis, label: str) -> Kind:
    return next(arm.kind for arm in analysis.arms if arm.label == label)


def _one(values: Any) -> Any:
    """The one value that all of them are, or None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None

"""A section of runs in, every number of its report out; figures and page draw from this alone.

Two comparisons are kept apart. *Matched images seen*: arms that saw as many images as the default,
so that a warmed arm had its warm-up on top. *Matched total samples*: a warmed arm against the arm
that trained longer by that warm-up's samples, so that both went through equally many samples.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

from vitwarm.records import Record
from vitwarm.report.curves import (
    Interval,
    Reading,
    equal_accuracy,
    mean_interval,
    paired_differences,
)
from vitwarm.report.facts import (
    Analysis,
    Arm,
    Cell,
    Convergence,
    Difference,
    Point,
    Saving,
    Section,
    Trial,
)
from vitwarm.report.gains import list_gains, rank_correlations

#: Colours of the arms that most sweeps have.
_COLORS = {"default": 0, "dyck": 1, "shuffled": 2, "mimetic": 3, "longer": 4}
T = TypeVar("T")
Done = dict[tuple[str, int], dict[str, Point]]
"""(arm, images) -> pair -> the top-1 of its seed."""


def analyse(section: Section) -> Analysis:
    """Computes a section's report. Runs without a result are named, never averaged over."""
    trials, problems = section.trials, list(section.problems)
    _fill_sizes(trials)
    compared = trials if section.compared else []
    records = [trial.record for trial in trials if trial.record and trial.state == "finished"]
    arms, done = _describe_arms(compared), _finished(compared)
    sizes = sorted({trial.n_images for trial in compared if trial.n_images})
    cells = [cell for arm in arms for size in sizes if (cell := _cell(arm, size, trials, problems))]
    if section.compared:
        _check_comparable(records, problems)
        _check_apart(compared, problems)
    cold = [arm.label for arm in arms if arm.kind == "cold"]
    reference = "default" if "default" in cold else next(iter(cold), None)
    matched = _matched_images(cells, done, reference)
    gains = list_gains(matched, section.warmups)
    return Analysis(
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
        matched_images=matched,
        matched_total=_matched_total(arms, cells, done, trials) if reference else [],
        savings=_savings(done, matched),
        convergence=[line for trial in compared if (line := _converge(trial))],
        warmups=section.warmups,
        gains=gains,
        rank_correlations=list(rank_correlations(gains)),
        runs=trials,
        subsets=_subsets(records),
        problems=problems,
    )


def _finished(trials: list[Trial]) -> Done:
    done: Done = defaultdict(dict)
    for trial in trials:
        if trial.top1 is not None and trial.n_images is not None:
            # A run that names no pair is compared with none, rather than with a lookalike.
            pair = trial.fact("pair") or f"unpaired {id(trial)}"
            point = Point(seed=trial.seed, value=trial.top1)
            done[trial.arm, trial.n_images][pair] = point
    return done


def _fill_sizes(trials: list[Trial]) -> None:
    """A run that never finished has no record to tell its images; its neighbours know them."""
    known: dict[float | None, int] = {
        t.fraction: t.n_images for t in trials if t.n_images and t.fraction is not None
    }
    for trial in trials:
        told = trial.fact("n_train_images") or trial.n_images
        trial.n_images = known.get(trial.fraction) if told is None else told


def _describe_arms(trials: list[Trial]) -> list[Arm]:
    arms = []
    labels = list(dict.fromkeys(trial.arm for trial in trials))
    colors = choose_colors(labels)
    for label in labels:
        own = [trial for trial in trials if trial.arm == label]
        arms.append(
            Arm(
                label=label,
                color=colors[label],
                kind=own[0].kind,
                longer_than=own[0].longer_than,
                warmup_samples=_one(t.record.warmup_samples for t in own if t.record),
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


def _cell(arm: Arm, n_images: int, trials: list[Trial], problems: list[str]) -> Cell | None:
    own = [t for t in trials if (t.arm, t.n_images) == (arm.label, n_images)]
    own = sorted((t for t in own if t.state != "left out"), key=lambda t: t.seed)
    if not own:
        return None
    points, missing = [], []
    for trial in own:
        if trial.top1 is not None:
            points.append(Point(seed=trial.seed, value=trial.top1))
            continue
        state = trial.state if trial.state != "finished" else "finished without a top-1"
        why = f" ({trial.reason})" if trial.reason else ""
        missing.append(f"seed {trial.seed}: {state}{why}")
    records = [t.record for t in own if t.record and t.top1 is not None]
    seen = _one(record.images_seen for record in records)
    total = _one((r.images_seen or 0) + (r.warmup_samples or 0) for r in records)
    if records and seen is None:
        problems.append(
            f"The seeds of {arm.label} at {n_images:,} images saw different numbers of images; "
            "they are shown, but take part in no comparison."
        )
    return Cell(
        arm=arm.label,
        n_images=n_images,
        fraction=_one(t.fraction for t in own),
        images_seen=seen,
        total_samples=total if seen is not None else None,
        top1=mean_interval([p.value for p in points]) if points else None,
        points=points,
        missing=missing,
    )


def _matched_images(cells: list[Cell], done: Done, reference: str | None) -> list[Difference]:
    seen = {cell.n_images: cell.images_seen for cell in cells if cell.arm == reference}
    return [
        found
        for cell in cells
        if cell.arm != reference and cell.images_seen is not None
        if cell.images_seen == seen.get(cell.n_images)
        if (found := _difference(done, cell.arm, str(reference), cell.n_images))
    ]


def _matched_total(
    arms: list[Arm], cells: list[Cell], done: Done, trials: list[Trial]
) -> list[Difference]:
    """Warmed arms against what the same number of samples does as more image training."""
    records = [trial.record for trial in trials if trial.record]
    batches = [r.images_seen / r.steps for r in records if r.images_seen and r.steps]
    batch = max(batches, default=0)
    longer_arms = {arm.label for arm in arms if arm.kind == "longer"}
    found = []
    for longer, cell in itertools.product(cells, cells):
        if longer.arm not in longer_arms or cell.arm in longer_arms:
            continue
        if cell.total_samples is None or longer.total_samples is None:
            continue
        is_warm = cell.total_samples != cell.images_seen
        is_near = abs(cell.total_samples - longer.total_samples) <= batch
        if is_warm and is_near and cell.n_images == longer.n_images:
            found.append(_difference(done, cell.arm, longer.arm, cell.n_images))
    return [difference for difference in found if difference]


def _difference(done: Done, arm: str, reference: str, n_images: int) -> Difference | None:
    mine, theirs = done.get((arm, n_images), {}), done.get((reference, n_images), {})
    shared, alone = paired_differences(
        {pair: point.value for pair, point in mine.items()},
        {pair: point.value for pair, point in theirs.items()},
    )
    if not shared:
        return None
    points = [Point(seed=mine[pair].seed, value=value) for pair, value in shared.items()]
    return Difference(
        arm=arm,
        reference=reference,
        n_images=n_images,
        difference=mean_interval(list(shared.values())),
        means=(
            fmean(mine[one].value for one in shared),
            fmean(theirs[one].value for one in shared),
        ),
        points=sorted(points, key=lambda point: point.seed),
        unpaired=sorted(
            f"seed {(mine | theirs)[pair].seed} ({arm if pair in mine else reference} alone)"
            for pair in alone
        ),
    )


def _savings(done: Done, matched: list[Difference]) -> list[Saving]:
    """Reads each arm's curve at the reference's accuracies; seeds are the curves."""
    differences: dict[str, dict[int, Interval]] = defaultdict(dict)
    for d in matched:
        differences[d.arm][d.n_images] = d.difference
    found = []
    for arm, sizes in differences.items():
        if len(sizes) < 2:
            continue
        at = [_by_seed(done[arm, size]) for size in sizes]
        whole = [seed for seed in at[0] if all(seed in one for one in at)]
        curves = {seed: [one[seed] for one in at] for seed in whole}
        for size in sizes:
            targets = _by_seed(done[matched[0].reference, size])
            needs = equal_accuracy(list(sizes), curves, targets)
            if needs is not None:
                told = sizes[size].excludes_zero
                if told and _contradicts(needs.estimate, size, above=sizes[size].mean > 0):
                    unread = Reading(None, "?", fitted=True)
                    needs = replace(needs, estimate=unread, low=unread, high=unread)
                used = [targets[seed] for seed in needs.per_seed]
                found.append(
                    Saving(
                        arm=arm, reference=matched[0].reference, n_images=size,
                        accuracy=sum(used) / len(used), needs=needs, told=told,
                    )
                )  # fmt: skip
    return found


def _contradicts(read: Reading, size: int, *, above: bool) -> bool:
    """Whether an arm that lies above the reference with `size` images is read to need more there.

    Or one below it to need fewer: the isotonic fit of a curve that is not monotone can say so.
    """
    if read.images is None:
        return False
    return read.images > size * (1 + 1e-9) if above else read.images < size * (1 - 1e-9)


def _by_seed(points: dict[str, Point]) -> dict[str, float]:
    """Of two that claim one seed the first counts."""
    return {str(point.seed): point.value for point in reversed(points.values())}


def _converge(trial: Trial) -> Convergence | None:
    """A finished run's accuracy while it trained, or None where it left no evaluations."""
    steps, seen = trial.fact("steps"), trial.fact("images_seen")
    curve = trial.curve("eval", "top1_percent") if trial.state == "finished" else []
    if not curve or not steps or not seen:
        return None
    return Convergence(
        arm=trial.arm,
        n_images=trial.n_images,
        seed=trial.seed,
        steps=[step for step, _ in curve],
        images_seen=[round(step * seen / steps) for step, _ in curve],
        top1=[value for _, value in curve],
    )


def _subsets(records: list[Record]) -> dict[str, list[str]]:
    found: dict[int, set[str]] = defaultdict(set)
    for record in records:
        if record.n_train_images and record.subset_sha256:
            found[record.n_train_images].add(record.subset_sha256)
    return {str(size): sorted(hashes) for size, hashes in sorted(found.items())}


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


def _check_apart(trials: list[Trial], problems: list[str]) -> None:
    """Two arms of equal configs share their runs, and differ by nothing whatever was meant."""
    arms: dict[str, list[str]] = defaultdict(list)
    for trial in trials:
        if trial.folder and trial.arm not in arms[trial.folder]:
            arms[trial.folder].append(trial.arm)
    for shared in sorted({tuple(labels) for labels in arms.values() if len(labels) > 1}):
        problems.append(
            f"The arms {' and '.join(shared)} are the same runs: their configs do not differ, so "
            "a difference of zero between them says nothing."
        )


def _one(values: Iterable[T | None]) -> T | None:
    """The one value that all of them are, or None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None

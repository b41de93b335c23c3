"""The shape of a section's report: filled by `analyse`, drawn by figures, page and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitwarm.report.curves import EqualAccuracy, Interval
from vitwarm.report.trials import Kind


@dataclass(frozen=True, kw_only=True)
class Point:
    """One seed's value."""

    seed: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm of a section, in the order of the sweep's recipe."""

    label: str
    kind: Kind
    longer_than: str | None
    warmup_samples: int | None
    """Samples of its warm-up; None without one, or where its seeds differ."""
    color: int
    """Its colour, marker and dashes: by its label, the same in every report where it can be."""
    verdicts: dict[str, int]
    """Verdict of the warm-up -> number of trainings that start from one."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm at one number of images."""

    arm: str
    n_images: int
    fraction: float | None
    images_seen: int | None
    """None where the seeds do not agree."""
    total_samples: int | None
    """Images seen plus the warm-up's samples."""
    top1: Interval | None
    """Percent; None where no seed finished."""
    points: list[Point]
    missing: list[str]
    """`seed 2: failed (...)` for every seed that should be here and is not."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Arm minus reference at one number of images, paired over seeds; percentage points."""

    arm: str
    reference: str
    n_images: int
    difference: Interval
    points: list[Point]
    unpaired: list[str]
    """Seeds that only one of the two finished."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Images an arm needs for the accuracy that the reference has with `n_images`."""

    arm: str
    reference: str
    n_images: int
    accuracy: float
    """The reference's mean, percent, over the seeds used."""
    needs: EqualAccuracy
    told: bool | None
    """Whether the arms' paired difference with `n_images` is significant; None: too few seeds.
    Only then does the reading mean a saving: a flat curve turns noise into any number of images."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """One run's accuracy while it trained."""

    arm: str
    n_images: int | None
    seed: int
    steps: list[int]
    images_seen: list[int]
    top1: list[float]


@dataclass(frozen=True, kw_only=True)
class WarmupLine:
    """One warm-up as the report shows it."""

    arms: list[str]
    rule: str
    seed: int
    state: str
    reason: str
    samples: int | None
    steps: int | None
    hidden_accuracy_percent: float | None
    chance_percent: float | None
    order_blind_percent: float | None
    ceiling_percent: float | None
    """What no model exceeds."""
    hidden_loss: float | None
    saturated_at_step: int | None
    verdict: str | None
    wall_seconds: float | None
    folder: str
    curve_steps: list[int]
    curve_percent: list[float]
    """Accuracy on hidden tokens of the training batches."""
    hidden_accuracy_by: dict[str, dict[str, dict[str, float]]]
    """As a record has it, at the end."""
    probes: list[dict[str, Any]]
    """The looks on the way: step, accuracy on held-out sequences, norms of the blocks."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What an arm's warm-ups reached, and what the arm gained by them with one number of images."""

    arm: str
    n_images: int
    gain: Interval
    """Paired difference to the reference, points."""
    figures: dict[str, float | None]
    """By the names of `gains.FIGURES`, means over the arm's warm-ups; None: never reached."""


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """How arms ranked by a figure of their warm-ups agree with arms ranked by their gain."""

    figure: str
    n_images: int
    n_arms: int
    rho: float
    """Spearman's."""
    p_value: float
    """Two-sided, over all orders of the arms; over 50,000 random ones from nine arms on."""


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One image training as the table of runs shows it."""

    arm: str
    fraction: float | None
    n_images: int | None
    seed: int
    state: str
    reason: str
    top1_percent: float | None
    top5_percent: float | None
    best_top1_percent: float | None
    top1_weights: str | None
    val_loss: float | None
    steps: int | None
    images_seen: int | None
    warmup_samples: int | None
    wall_seconds: float | None
    images_per_second: float | None
    subset_sha256: str | None
    trunk_sha256: str | None
    verdict: str | None
    code_version: str | None
    folder: str


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Every number of a section's report."""

    title: str
    slug: str
    match: str | None
    warmup_seeds: str | None
    setting: dict[str, Any]
    model: str | None
    n_val_images: int | None
    n_classes: int | None
    weights: list[str]
    seeds: list[int]
    sizes: list[int]
    """Numbers of images, ascending."""
    reference: str | None
    arms: list[Arm]
    cells: list[Cell]
    matched_images: list[Difference]
    """Arms that saw as many images as the reference."""
    matched_total: list[Difference]
    """Warmed arms against the arm that trained longer by their warm-up's samples."""
    savings: list[Saving]
    convergence: list[Convergence]
    warmups: list[WarmupLine]
    gains: list[Gain]
    """At sizes where enough arms have warm-ups that differ."""
    rank_correlations: list[RankCorrelation]
    runs: list[RunLine]
    subsets: dict[str, list[str]]
    """Images -> sha256 of the subsets used, one per seed."""
    problems: list[str]

    def cell(self, arm: str, n_images: int) -> Cell | None:
        """Returns an arm's cell at one size, or None."""
        return next((c for c in self.cells if (c.arm, c.n_images) == (arm, n_images)), None)

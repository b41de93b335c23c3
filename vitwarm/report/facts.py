"""The shapes of a report: runs in sections, and what `analyse` makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitwarm.records import FoundRun, Record, read_metrics
from vitwarm.report.curves import EqualAccuracy, Interval

State = Literal[
    "finished", "unfinished", "failed", "refused", "missing", "unreadable", "left out"
]  # fmt: skip
Kind = Literal["cold", "init", "warm", "longer"]


@dataclass(kw_only=True)
class Run:
    """A run that should be there, whether it finished or not."""

    seed: int
    state: State
    reason: str
    """Why it is not finished, or left out."""
    found: FoundRun | None

    @property
    def record(self) -> Record | None:
        """What it says of itself, where there is a record that can be used."""
        return self.found.record if self.found else None

    @property
    def folder(self) -> str:
        """Name of its folder, empty where there is none."""
        return self.found.path.name if self.found else ""

    def fact(self, name: str) -> Any:
        """Returns a field of its record, or None."""
        return getattr(self.record, name, None)

    def facts(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns what these names mean: its own where it has them, else those of its record."""
        return {name: getattr(self, name, self.fact(name)) for name in names}

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """Returns its lines of a kind, oldest first."""
        lines = read_metrics(self.found.path) if self.found else []
        return [line for line in lines if line.get("kind") == kind]

    def curve(self, kind: str, name: str) -> list[tuple[int, float]]:
        """Returns step and percentage of its lines of a kind; lines without one are left out."""
        found = [(int(line["step"]), as_percent(line.get(name))) for line in self.metrics(kind)]
        return [(step, value) for step, value in found if value is not None]


@dataclass(kw_only=True)
class Trial(Run):
    """One image training."""

    arm: str
    kind: Kind
    fraction: float | None
    n_images: int | None
    """Distinct images of its fraction."""
    longer_than: str | None
    """For `longer`: the arm whose warm-up's samples were added to the images seen."""
    verdict: str | None
    """On the warm-up that it starts from."""

    @property
    def top1(self) -> float | None:
        """Percent; None where it did not finish."""
        return self.record.top1_percent if self.record and self.state == "finished" else None


@dataclass(kw_only=True)
class Warmup(Run):
    """One warm-up, and the arms that start from it."""

    arms: list[str]
    rule: str
    samples: int | None
    verdict: str | None
    ceiling_percent: float | None
    """What no model exceeds."""
    hidden_accuracy_by: dict[str, dict[str, dict[str, float]]]
    """As a record has it, at the end."""
    curve_steps: list[int] = field(default_factory=list)
    curve_percent: list[float] = field(default_factory=list)
    """Accuracy on hidden tokens of the training batches."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """The looks on the way: step, accuracy on held-out sequences, norms of the blocks."""


@dataclass(kw_only=True)
class Section:
    """Runs that may be compared: one sweep at one setting, or runs of equal configs."""

    title: str
    match: str | None = None
    """`steps` or `epochs`; None: not known."""
    warmup_seeds: str | None = None
    """`shared` or `paired`."""
    setting: dict[str, Any] = field(default_factory=dict)
    """What this section of a sweep holds fixed and its sisters do not."""
    trials: list[Trial] = field(default_factory=list)
    warmups: list[Warmup] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    compared: bool = True
    """False: runs of different configs in one table, none compared with another."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One seed's value."""

    seed: int
    value: float


def say_setting(setting: Mapping[str, Any]) -> str:
    """Returns what a section's title adds to its sweep's name: ` · steps = 100`."""
    return "".join(f" · {name.split('.')[-1]} = {value}" for name, value in setting.items())


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
    means: tuple[float, float]
    """Of the arm and of the reference, percent, over the pairs alone."""
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
    warmups: list[Warmup]
    gains: list[Gain]
    """At sizes where enough arms have warm-ups that differ."""
    rank_correlations: list[RankCorrelation]
    runs: list[Trial]
    subsets: dict[str, list[str]]
    """Images -> sha256 of the subsets used, one per seed."""
    problems: list[str]

    @property
    def matched(self) -> dict[str, list[Difference]]:
        """The differences by what both arms had equally much of."""
        return {"images seen": self.matched_images, "total samples": self.matched_total}

    @property
    def colors(self) -> dict[str, int]:
        """Each arm's colour, by its label."""
        return {arm.label: arm.color for arm in self.arms}

    def cell(self, arm: str, n_images: int) -> Cell | None:
        """Returns an arm's cell at one size, or None."""
        return next((c for c in self.cells if (c.arm, c.n_images) == (arm, n_images)), None)


def as_percent(value: Any) -> float | None:
    """Returns a percentage that a file holds, or None where it holds something else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 100 else None

"""Where differences go with a setting: sections of one sweep that differ in one number."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vitwarm.report.drawings import HALF, Spot, draw_spots, over_places, shown_by, value_scale
from vitwarm.report.facts import Analysis, Arm, say_setting
from vitwarm.report.panel import Panel, ticks
from vitwarm.report.words import count, interval, signed

#: Settings are set out on a log scale where the largest is so many times the smallest.
_LOG_FROM = 3.0


class Varied(NamedTuple):
    """Sections of one sweep at one number of images that differ in one number alone."""

    title: str
    slug: str
    setting: str
    """The field: `train.steps`."""
    n_images: int
    sections: list[tuple[float, Analysis]]
    """Ascending in that number."""

    @property
    def heading(self) -> str:
        return f"{self.title}, by {self.setting}, with {count(self.n_images)} images"

    @property
    def arms(self) -> list[Arm]:
        """Those with a difference at that size, each once."""
        drawn = {(d.arm, d.n_images) for _, one in self.sections for d in one.matched_images}
        arms = {arm.label: arm for _, one in self.sections for arm in one.arms}
        return [arm for label, arm in arms.items() if (label, self.n_images) in drawn]


def find_varied(analyses: Sequence[Analysis]) -> Iterator[Varied]:
    """Yields what at least two sections let be set out against a number."""
    groups: dict[tuple[Any, ...], list[tuple[float, Analysis]]] = defaultdict(list)
    for one in analyses:
        for name, value in one.setting.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                rest = {key: other for key, other in one.setting.items() if key != name}
                # A second sweep of the name keeps its number, and so a picture of its own.
                title = one.title.replace(say_setting(one.setting), "") + say_setting(rest)
                groups[title, name].append((value, one))
    for (title, name), sections in groups.items():
        sections.sort(key=lambda pair: pair[0])
        sizes = [{d.n_images for d in one.matched_images} for _, one in sections]
        for n_images in sorted(set.intersection(*sizes)) if len(sections) > 1 else []:
            slug = re.sub(r"[^a-z0-9]+", "-", f"{title} by {name} {n_images}".lower())
            yield Varied(title, slug, name, n_images, sections)


def draw_varied(varied: Varied, width: int = HALF) -> Panel:
    """Draws paired differences against the setting: every pair, mean and interval, zero marked."""
    where = f"{varied.setting.split('.')[-1]} ="
    found = [
        (value, d)
        for value, one in varied.sections
        for d in one.matched_images
        if d.n_images == varied.n_images
    ]
    spots = [
        Spot(
            d.arm, value, d.difference, d.points, f"{d.arm} − {d.reference} · {where} {value:,g}",
            f"{interval(d.difference)} points",
        )
        for value, d in found
    ]  # fmt: skip
    y = value_scale([*shown_by(spots), 0.0], 320 if width > 400 else 270)
    values = [value for value, _ in varied.sections]
    is_log = values[0] > 0 and values[-1] >= _LOG_FROM * values[0]
    title = f"Paired differences with {count(varied.n_images)} images against {varied.setting}"
    panel = over_places(values, varied.arms, width, width - 14.0, y, title, is_log)
    panel.y_axis(ticks(y.low, y.high, 5), "difference in top-1, points")
    panel.line_at(panel.left, y(0), panel.right, y(0), "zero")
    label = f"{varied.setting}{' (log scale)' if is_log else ''}"
    panel.x_axis([(value, f"{value:,g}") for value in values], label)
    draw_spots(panel, varied.arms, spots, lambda value: signed(value, 2), "curve thin")
    panel.words = "; ".join(f"{s.arm} at {where} {s.at:,g} {interval(s.mean)}" for s in spots)
    panel.heads = "arm", "reference", varied.setting, "images", "seed", "difference_points"
    panel.numbers = [
        (d.arm, d.reference, value, d.n_images, p.seed, p.value)
        for value, d in found
        for p in d.points
    ]
    return panel

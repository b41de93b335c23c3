"""Sections of one sweep that differ in a number are set out against it."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from fake_runs import write_manifest, write_training

from vitwarm.report import ReportPaths, run_report
from vitwarm.report.settings import draw_varied, find_varied

KINDS = {"default": "cold", "dyck": "init"}
GAINS = {100: 7.0, 200: 4.0, 800: -3.0}


def report_on(tmp_path: Path, settings: list[dict[str, Any]], gains: list[float]) -> ReportPaths:
    rows = []
    for i, (setting, gain) in enumerate(zip(settings, gains, strict=True)):
        for seed in range(3):
            for arm, top1 in (("default", 50.0), ("dyck", 50.0 + gain + 0.1 * seed)):
                name = f"{arm}-{i}-{seed}"
                folder = write_training(tmp_path / "runs", arm=arm, seed=seed, top1=top1, name=name)
                rows.append(
                    {"kind": "train", "arm": arm, "arm_kind": KINDS[arm],
                     "seed": seed, "fraction": 0.1, "n_images": 100, "folder": folder,
                     "state": "finished", "setting": setting}
                )  # fmt: skip
    write_manifest(tmp_path / "runs", rows, name="toy", match="steps")
    return run_report([tmp_path / "runs"], tmp_path / "out", figures=True)


def test_a_number_that_varies_gets_a_picture(tmp_path: Path) -> None:
    steps = [{"train.steps": n} for n in (200, 100, 800)]
    report = report_on(tmp_path, steps, [GAINS[n["train.steps"]] for n in steps])
    (varied,) = find_varied(report.analyses)
    assert (varied.title, varied.setting, varied.n_images) == ("toy", "train.steps", 100)
    assert [value for value, _ in varied.sections] == [100, 200, 800]
    assert [arm.label for arm in varied.arms] == ["dyck"]
    panel = draw_varied(varied)
    assert panel.x.is_log
    assert "dyck at steps = 100 +7.1 (" in panel.words
    assert len(panel.numbers) == 9
    means = {n: fmean(r[-1] for r in panel.numbers if r[2] == n) for n in GAINS}  # type: ignore[misc]
    assert means == pytest.approx({n: gain + 0.1 for n, gain in GAINS.items()})

    page = report.page.read_text(encoding="utf-8")
    assert page.index("toy, by train.steps, with 100 images</h2>") < page.index(
        "toy · steps = 100</h2>"
    )
    assert f'id="{varied.slug}"' in page
    assert f'href="#{varied.slug}"' in page
    names = {path.name for path in report.figures}
    assert {"toy-by-train-steps-100.svg", "toy-by-train-steps-100.png"} <= names


def test_what_is_no_number_or_stands_alone_gets_none(tmp_path: Path) -> None:
    settings = [{"train.aa": None}, {"train.aa": "3a"}, {"train.ema": True}, {"train.lr": 0.1}]
    assert list(find_varied(report_on(tmp_path, settings, [1.0, 2.0, 3.0, 4.0]).analyses)) == []


def test_two_numbers_that_vary_are_each_set_out_at_every_value_of_the_other(tmp_path: Path) -> None:
    grid = [(a, b) for a in (0.0, 0.1) for b in (0.05, 0.3)]
    settings = [{"train.drop_path": a, "train.weight_decay": b} for a, b in grid]
    found = list(find_varied(report_on(tmp_path, settings, [1.0, 2.0, 3.0, 4.0]).analyses))
    assert [(v.title, v.setting) for v in found] == [
        ("toy · weight_decay = 0.05", "train.drop_path"),
        ("toy · drop_path = 0.0", "train.weight_decay"),
        ("toy · weight_decay = 0.3", "train.drop_path"),
        ("toy · drop_path = 0.1", "train.weight_decay"),
    ]
    assert not draw_varied(found[0]).x.is_log  # zero has no logarithm
    assert draw_varied(found[1]).x.is_log
    slugs = [v.slug for v in found]
    assert len(set(slugs)) == 4
    assert all(re.fullmatch(r"[a-z0-9-]+", slug) for slug in slugs)


def test_two_sweeps_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    steps = [{"train.steps": n} for n in (100, 200)]
    for folder, gain in (("a", 1.0), ("b", 5.0)):
        report_on(tmp_path / folder, steps, [gain, gain])
    both = run_report([tmp_path / "a" / "runs", tmp_path / "b" / "runs"], tmp_path / "out")
    found = list(find_varied(both.analyses))
    assert [v.title for v in found] == ["toy", "toy (2)"]
    assert [[value for value, _ in v.sections] for v in found] == [[100, 200], [100, 200]]
    assert len({v.slug for v in found}) == 2

"""Arms compared by what their warm-ups reached: ranks, their p-value, the picture, the files."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_sweep
from scipy import stats

from vitwarm.report import ReportPaths, run_report

#: Arm -> (held-out accuracy, gain).
FOUND = {
    "dyck_a": (90.0, 3.0), "dyck_b": (70.0, 4.0), "dyck_c": (50.0, -1.0), "dyck_d": (33.0, -2.0),
    "dyck_e": (40.0, 1.0),
}  # fmt: skip


def report_on(tmp_path: Path, found: dict[str, tuple[float, float]]) -> ReportPaths:
    arms = {"default": lambda n: 50.0}
    arms |= {arm: lambda n, gain=gain: 50.0 + gain for arm, (_, gain) in found.items()}
    root = tmp_path / "runs"
    write_sweep(root, arms=arms, sizes=(130,), noise=0.01)
    for arm, (accuracy, _) in found.items():
        path = root / f"warm-{arm}-0" / "record.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"hidden_accuracy_percent": accuracy})
        )
        curve = root / f"warm-{arm}-0" / "metrics.jsonl"
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
        for line in lines:
            line["hidden_accuracy_percent"] *= accuracy / 96.1
        curve.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_report([root], tmp_path / "out", figures=True)


def test_arms_are_ranked_by_each_figure(tmp_path: Path) -> None:
    paths = report_on(tmp_path, FOUND)
    section = json.loads(paths.json.read_text(), parse_constant=pytest.fail)["sections"][0]
    accuracy, gain = zip(*FOUND.values(), strict=True)
    ranks = {line["figure"]: line for line in section["rank_correlations"]}
    expected = stats.spearmanr(accuracy, gain).statistic
    for figure in ("held-out accuracy", "held-out accuracy − order-blind baseline"):
        assert ranks[figure]["rho"] == pytest.approx(expected)
        assert (ranks[figure]["n_arms"], ranks[figure]["n_images"]) == (5, 130)
        # All 120 orders, counted here by hand.
        orders = [stats.spearmanr(accuracy, p).statistic for p in itertools.permutations(gain)]
        assert ranks[figure]["p_value"] == pytest.approx(np.mean(np.abs(orders) >= expected - 1e-9))
    assert "order-blind baseline" not in ranks  # the same for every arm: nothing to rank
    # Three arms never get to half of the hidden tokens right: they tie for last.
    steps = {
        one["arm"]: one["figures"]["steps to 50 % of the hidden tokens"] for one in section["gains"]
    }
    assert [arm for arm, value in steps.items() if value is None] == ["dyck_c", "dyck_d", "dyck_e"]
    never = [np.inf if steps[arm] is None else steps[arm] for arm in FOUND]
    rho = ranks["steps to 50 % of the hidden tokens"]["rho"]
    assert rho == pytest.approx(stats.spearmanr(never, gain).statistic)


def test_the_page_and_the_files_show_them(tmp_path: Path) -> None:
    paths = report_on(tmp_path, FOUND)
    page = paths.page.read_text()
    assert "Which warm-up helps?" in page
    assert page.count('data-name="gains_130"') == 1
    (rows,) = [p for p in paths.csvs if p.stem == "gains"]
    table = list(csv.DictReader(rows.read_text().splitlines()))
    assert [row["arm"] for row in table] == list(FOUND)
    assert [float(row["mean"]) for row in table] == pytest.approx(
        [gain for _, gain in FOUND.values()], abs=0.05
    )
    assert {p.suffix for p in paths.figures if p.stem == "gains_130"} == {".png", ".svg"}


def test_arms_that_share_what_they_reached_are_not_ranked(tmp_path: Path) -> None:
    same = {arm: (90.0, gain) for arm, (_, gain) in FOUND.items()}
    paths = report_on(tmp_path, same)
    section = json.loads(paths.json.read_text())["sections"][0]
    assert (section["gains"], section["rank_correlations"]) == ([], [])
    assert "Which warm-up helps?" not in paths.page.read_text()

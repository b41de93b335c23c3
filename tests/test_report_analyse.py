"""What the report compares, what it refuses to average, and what it says about the rest."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_manifest, write_sweep, write_training, write_warmup

from vitwarm.cli import main
from vitwarm.errors import ReportError, RunError
from vitwarm.report import run_report
from vitwarm.report.analyse import analyse
from vitwarm.report.facts import Analysis
from vitwarm.report.figures import write_figures
from vitwarm.report.gather import gather
from vitwarm.report.page_tables import saving_table
from vitwarm.report.tables import terminal_table
from vitwarm.report.words import headlines, method_notes


def law(n: float) -> float:
    return float(100 - (3 + 270 * n**-0.42))


ARMS = {
    "default": law, "dyck": lambda n: law(n * 1.4), "mimetic": lambda n: law(n * 1.1),
    "longer": lambda n: law(n * 1.2),
}  # fmt: skip
SIZES = (100, 300, 1000)


def only(root: Path) -> Analysis:
    sections = gather([root])
    assert len(sections) == 1
    return analyse(sections[0])


def test_matched_images_and_matched_total_samples_stand_apart(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=ARMS, sizes=SIZES)
    found = only(tmp_path)
    assert found.reference == "default"
    assert {(d.arm, d.reference) for d in found.matched_images} == {
        ("dyck", "default"), ("mimetic", "default"),
    }  # fmt: skip
    assert {(d.arm, d.reference) for d in found.matched_total} == {("dyck", "longer")}
    for size in SIZES:
        warm, longer = found.cell("dyck", size), found.cell("longer", size)
        assert warm is not None
        assert longer is not None
        assert warm.total_samples == longer.total_samples
        assert warm.images_seen != longer.images_seen
    assert {s.arm for s in found.savings} == {"dyck", "mimetic"}
    dyck = {arm.label: arm for arm in found.arms}["dyck"]
    assert (dyck.warmup_samples, dyck.verdicts) == (374 * 256, {"learned": 9})


def test_unequal_totals_are_not_called_equal(tmp_path: Path) -> None:
    for arm, samples, steps in (("default", None, 600), ("dyck", 6400, 600), ("longer", None, 650)):
        write_training(tmp_path, arm=arm, warmup_samples=samples, steps=steps)
    rows = [
        {"kind": "train", "arm": arm, "arm_kind": kind, "seed": 0, "state": "finished",
         "folder": tmp_path / f"toy-{arm}-100-0", "n_images": 100, "fraction": 0.1}
        for arm, kind in (("default", "cold"), ("dyck", "warm"), ("longer", "longer"))
    ]  # fmt: skip
    write_manifest(tmp_path, rows)
    assert only(tmp_path).matched_total == []  # 50 steps of 64 are not 6,400 samples


def test_a_paired_difference_needs_the_same_pair(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_training(tmp_path, seed=seed, top1=50.0 + 10 * seed)
        write_training(
            tmp_path, arm="dyck", seed=seed, top1=51.0 + 10 * seed, warmup_samples=10,
            pair="another" if seed == 2 else f"100/{seed}",
        )  # fmt: skip
    (found,) = only(tmp_path).matched_images
    assert [(p.seed, p.value) for p in found.points] == [(0, 1.0), (1, 1.0)]
    assert found.difference.low is None  # two pairs: no interval
    assert found.unpaired == ["seed 2 (default alone)", "seed 2 (dyck alone)"]


def test_missing_and_failed_runs_are_named_and_never_averaged(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=ARMS, sizes=SIZES, skip=[("dyck", 300, 1), ("default", 1000, 2)])
    write_training(tmp_path, arm="dyck", seed=7, top1=None, failure="loss nan", name="stray")
    sections = gather([tmp_path])
    assert len(sections) == 2  # the stray run belongs to no sweep
    found = analyse(sections[0])
    cell = found.cell("dyck", 300)
    assert cell is not None
    assert cell.top1 is not None
    assert [p.seed for p in cell.points] == [0, 2]
    assert cell.top1.mean == pytest.approx(sum(p.value for p in cell.points) / 2)
    assert cell.missing == ["seed 1: failed (worker ended by SIGKILL)"]
    # A curve with a hole is read for the seeds that have it whole, in both arms.
    saving = next(s for s in found.savings if (s.arm, s.n_images) == ("dyck", 1000))
    assert set(saving.needs.per_seed) == {"0"}
    stray = analyse(sections[1])
    assert [(r.state, r.reason) for r in stray.runs] == [("failed", "loss nan")]
    assert headlines(stray) == ["No image training has finished yet."]


def test_two_runs_that_claim_one_cell_are_both_left_out(tmp_path: Path) -> None:
    write_training(tmp_path, seed=0, top1=50.0)
    write_training(tmp_path, seed=0, top1=60.0, name="again")
    write_training(tmp_path, seed=1, top1=70.0)
    found = only(tmp_path)
    (cell,) = found.cells
    assert [(p.seed, p.value) for p in cell.points] == [(1, 70.0)]
    assert "2 finished runs claim arm default, 100 images, seed 0" in found.problems[0]
    copy = tmp_path / "copy" / "of"
    write_training(copy, seed=1, top1=70.0)
    (cell,) = only(tmp_path).cells
    assert [(p.seed, p.value) for p in cell.points] == [(1, 70.0)]  # a copy counts once


def test_steps_and_epochs_are_never_mixed(tmp_path: Path) -> None:
    arms = {"default": law, "dyck": law}
    write_sweep(tmp_path / "a", arms=arms, name="one", match="steps")
    write_sweep(tmp_path / "b", arms=arms, name="two", match="epochs")
    found = [analyse(section) for section in gather([tmp_path])]
    assert sorted((a.title, a.match, len(a.runs)) for a in found) == [
        ("one", "steps", 18), ("two", "epochs", 18),
    ]  # fmt: skip
    texts = [" ".join(method_notes(analysis)) for analysis in found]
    assert sum("Matched steps:" in text for text in texts) == 1
    assert sum("Matched epochs:" in text for text in texts) == 1


def test_sweeps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for root in ("a", "b"):
        write_sweep(tmp_path / root, arms={"default": law}, sizes=(100,), seeds=1)
    paths = run_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out", figures=False)
    assert [(one.title, one.slug) for one in paths.analyses] == [
        ("toy", "toy"), ("toy (2)", "toy-2"),
    ]  # fmt: skip
    inside = gather([tmp_path / "a" / "sweeps" / "toy"])
    assert [section.title for section in inside] == ["toy"]


def test_runs_of_other_recipes_are_other_sections(tmp_path: Path) -> None:
    write_training(tmp_path, seed=0)
    folder = write_training(tmp_path, seed=1)
    plain = json.loads((folder / "config.yaml").read_text())
    plain["train"]["lr"] = 0.5
    (folder / "config.yaml").write_text(json.dumps(plain))
    assert sorted(len(section.trials) for section in gather([tmp_path])) == [1, 1]


def test_incomparable_runs_are_flagged(tmp_path: Path) -> None:
    write_training(tmp_path, seed=0)
    write_training(
        tmp_path, seed=1, n_val_images=100, top1_weights="ema", unreadable_images=3,
        code_version="0.2.0",
    )  # fmt: skip
    problems = " ".join(only(tmp_path).problems)
    for text in ("different numbers of images (100, 500)", "raw and EMA", "3 images did not decode",
                 "0.1.0, 0.2.0"):  # fmt: skip
        assert text in problems


def test_warmups_carry_their_verdicts(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms={"default": law, "dyck": law, "shuffled": law})
    found = only(tmp_path)
    verdicts = {line.arms[0]: (line.rule, line.verdict) for line in found.warmups}
    assert verdicts == {
        "dyck": ("dyck", "learned"), "shuffled": ("shuffled (dyck)", "not learned"),
    }  # fmt: skip
    write_warmup(tmp_path / "alone", arm="dyck")
    other = gather([tmp_path / "alone"])
    assert [len(section.warmups) for section in other] == [1]


def test_headline_speaks_of_the_recipes_first_arm_and_says_what_it_cannot(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=ARMS, sizes=SIZES, noise=0.05)
    texts = headlines(only(tmp_path))
    assert texts[0].startswith("With all 1,000 images dyck reaches")
    assert "95 % CI +" in texts[0]
    assert "n = 3 paired seeds" in texts[0]
    assert texts[1].startswith("With 100 images dyck reaches")
    assert texts[2].startswith("Differences from default with 1,000 images, in points")
    assert "; mimetic " in texts[2]
    assert "no CI below 6 seeds" in texts[3]
    assert "fewer images" in texts[3]
    assert texts[4].startswith("At equal total samples")


def test_a_null_is_called_one(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms={"default": law, "dyck": law}, sizes=SIZES, noise=1.0)
    found = only(tmp_path)
    texts = headlines(found)
    assert "points, not significant (95 % CI" in texts[0]
    # A curve read inside its noise gives any number of images: none is claimed.
    assert "No saving of images is claimed for dyck" in texts[2]
    assert not any("fewer images" in text for text in texts)
    largest = [saving for saving in found.savings if saving.n_images == SIZES[-1]]
    assert [saving.told for saving in largest] == [False]
    assert saving_table(largest).rows[0][4].text == "no significant difference"


def test_an_accuracy_out_of_reach_is_a_bound_in_words(tmp_path: Path) -> None:
    arms = {"default": law, "dyck": lambda n: law(n * 0.5)}
    write_sweep(tmp_path, arms=arms, sizes=SIZES, noise=0.01)
    text = " ".join(headlines(only(tmp_path)))
    assert "does not reach" in text
    assert "more than the 1,000 measured" in text


def test_a_curve_that_falls_is_reported_as_undetermined(tmp_path: Path) -> None:
    arms = {"default": lambda n: 62.0 + n / 1000, "dyck": lambda n: 65.0 if n < 200 else 60.0}
    write_sweep(tmp_path / "runs", arms=arms, sizes=(100, 1000), noise=0.01)
    paths = run_report([tmp_path / "runs"], tmp_path / "out")
    assert "is undetermined: its accuracy falls" in " ".join(headlines(paths.analyses[0]))
    assert "the curve falls" in paths.page.read_text()


@pytest.mark.parametrize(
    ("dyck", "default", "size"),
    [
        ([60.0, 59.0, 63.0], [59.6, 61.0, 62.5], 100),  # above; the fit says with 310 images
        ([60.0, 40.0, 62.0], [58.0, 59.0, 60.0], 100),
        ([40.0, 60.0, 50.0], [30.0, 45.0, 52.0], 1000),  # below; the fit says with 241 images
    ],
)
def test_a_saving_that_the_difference_contradicts_is_undetermined(
    dyck: list[float], default: list[float], size: int, tmp_path: Path
) -> None:
    arms = {
        "default": lambda n: default[SIZES.index(n)],
        "dyck": lambda n: dyck[SIZES.index(n)],
    }
    write_sweep(tmp_path, arms=arms, sizes=SIZES, seeds=6, noise=0.01)
    found = only(tmp_path)
    (saving,) = [s for s in found.savings if s.n_images == size]
    assert (saving.told, saving.needs.estimate.bound) == (True, "?")
    assert "is undetermined" in " ".join(headlines(found)) or size != SIZES[-1]


def test_a_sentence_compares_the_same_seeds(tmp_path: Path) -> None:
    """Where seeds are missing, means of all that ended do not differ by the paired difference."""
    skip = [("dyck", SIZES[-1], seed) for seed in (0, 1, 2)]
    write_sweep(tmp_path, arms=ARMS, sizes=SIZES, seeds=6, noise=2.0, skip=skip)
    found = only(tmp_path)
    text = headlines(found)[0]
    said = re.search(r"dyck reaches ([\d.]+) % and default ([\d.]+) %: ([+−][\d.]+) points", text)
    assert said, text
    mine, theirs, difference = (float(one.replace("−", "-")) for one in said.groups())
    assert mine - theirs == pytest.approx(difference, abs=0.11)
    (whole,) = [c for c in found.cells if (c.arm, c.n_images) == ("default", SIZES[-1])]
    assert whole.top1 is not None
    assert abs(whole.top1.mean - theirs) > 0.2


def test_one_seed_shows_points_alone(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=ARMS, sizes=SIZES, seeds=1)
    found = only(tmp_path)
    assert all(cell.top1 is not None and cell.top1.low is None for cell in found.cells)
    assert "Too few seeds" in headlines(found)[0]
    assert "±" not in terminal_table([found])


def test_files_hold_every_number(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", arms=ARMS, sizes=SIZES, skip=[("dyck", 300, 1)])
    paths = run_report([tmp_path / "runs"], tmp_path / "out", figures=True)
    plain: dict[str, Any] = json.loads(paths.json.read_text())
    (section,) = plain["sections"]
    assert (plain["format"], section["match"], section["warmup_seeds"]) == (1, "steps", "shared")
    tables = {p.stem: list(csv.DictReader(p.read_text().splitlines())) for p in paths.csvs}
    assert set(tables) == {
        "runs", "accuracy", "differences", "equal_accuracy", "warmups", "convergence",
    }  # fmt: skip
    assert len(tables["runs"]) == 36
    assert len(tables["accuracy"]) == 12
    assert {row["matched"] for row in tables["differences"]} == {"images seen", "total samples"}
    assert {path.suffix for path in paths.figures} == {".png", ".svg"}
    assert all(path.stat().st_size > 2000 for path in paths.figures)
    assert {path.stem for path in paths.figures} >= {
        "accuracy", "differences", "matched_total", "equal_accuracy", "warmups", "convergence_300",
    }  # fmt: skip


def test_the_same_records_give_the_same_pictures(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", arms={"default": law, "x": law}, sizes=(100,), seeds=1)
    analysis = only(tmp_path / "runs")
    made = [write_figures([analysis], tmp_path / name) for name in ("a", "b")]
    assert made[0]
    assert [p.read_bytes() for p in made[0]] == [p.read_bytes() for p in made[1]]


def test_nothing_to_report_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="There are no runs in"):
        run_report([tmp_path], tmp_path / "out")
    with pytest.raises(RunError, match="There is no folder"):
        run_report([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    home = tmp_path / "sweeps" / "x"
    home.mkdir(parents=True)
    (home / "manifest.json").write_text("{}")
    with pytest.raises(ReportError, match="is not a sweep manifest"):
        run_report([tmp_path], tmp_path / "out")


def test_the_command_prints_a_table_and_the_pages_path_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "runs", arms=ARMS, sizes=SIZES)
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out), "--no-figures"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(out / "index.html")
    assert any(line.startswith("default") and "±" in line for line in lines)
    assert main(["report", str(tmp_path / "no"), "--out", str(out)]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    write_training(tmp_path / "runs")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        run_report([tmp_path / "runs"], tmp_path / "out")


def test_of_many_arms_the_findings_name_the_significant_ones(tmp_path: Path) -> None:
    arms = {"default": law, "dyck, k=1": lambda n: law(n * 1.5)}
    arms |= {f"dyck, k={i}": law for i in range(2, 9)}
    write_sweep(tmp_path, arms=arms, sizes=(100, 1000), noise=0.02)
    (text,) = [text for text in headlines(only(tmp_path)) if "significantly" in text]
    assert "1 of 8 arms differs significantly from default with 1,000 images, in points" in text
    assert "dyck, k=1 +" in text


def test_a_run_without_a_record_is_named_by_its_hand_off(tmp_path: Path) -> None:
    for seed in range(3):
        write_training(tmp_path, seed=seed)
    write_training(tmp_path, seed=3, top1=None)
    write_training(tmp_path, seed=4, top1=None, warmup_samples=10, name="warmed")
    found = only(tmp_path)
    assert {run.seed: run.arm for run in found.runs if run.state != "finished"} == {
        3: "default", 4: "unnamed",
    }  # fmt: skip

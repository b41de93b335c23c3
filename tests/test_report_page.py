"""The page is whole by itself: no network, well-formed, every label escaped, numbers in tables."""

from __future__ import annotations

import csv
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import write_sweep, write_training
from hypothesis import given
from hypothesis import strategies as st

from vitwarm.cli import main
from vitwarm.errors import ReportError
from vitwarm.report import run_report
from vitwarm.report.analyse import choose_colors
from vitwarm.report.compare import compare
from vitwarm.report.drawings import draw_all
from vitwarm.report.panel import Scale, ratio_ticks, spread, tick_text, ticks
from vitwarm.report.tables import picture_csv

VOID = {"meta", "link", "line", "path", "circle", "rect", "polygon", "br"}


class Nesting(HTMLParser):
    """Collects the open elements, and what would load something from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.errors: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            inside = (value or "").startswith(("#", "data:"))
            if name in ("src", "href", "srcset", "xlink:href") and not inside:
                self.loads.append(f"{tag} {name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def law(n: float) -> float:
    return float(100 - (3 + 270 * n**-0.42))


def page_of(root: Path, out: Path) -> tuple[str, Nesting]:
    text = run_report([root], out, figures=False).page.read_text()
    parsed = Nesting()
    parsed.feed(text)
    return text, parsed


def test_page_is_self_contained_and_well_formed(tmp_path: Path) -> None:
    arms = {"default": law, "dyck": lambda n: law(n * 1.4), "longer": law}
    write_sweep(tmp_path / "runs", arms=arms, skip=[("dyck", 300, 1)])
    text, parsed = page_of(tmp_path / "runs", tmp_path / "out")
    assert parsed.errors == []
    assert parsed.open == []
    assert parsed.loads == []
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    words = " ".join(parsed.texts)
    for heading in (
        "Accuracy against images", "At matched images seen", "At matched total samples",
        "Convergence", "Warm-ups", "Runs: 26 of 27 finished", "How to read this",
    ):  # fmt: skip
        assert heading in words
    assert "worker ended by SIGKILL" in words
    assert "2 of 3 seeds" in words
    # Every picture says in words what it shows; every table has its headings.
    pictures = re.findall(r"<svg viewBox[^>]*>", text)
    assert all('role="img" aria-label="' in svg for svg in pictures)
    assert text.count("<table") == text.count("<caption") == text.count("<thead")


@pytest.mark.parametrize("n_arms", [1, 12])
def test_page_takes_any_number_of_arms(tmp_path: Path, n_arms: int) -> None:
    names = ["default", *(f"dyck, n_kinds={i}" for i in range(n_arms - 1))]
    write_sweep(tmp_path / "runs", arms=dict.fromkeys(names, law), seeds=2)
    text, parsed = page_of(tmp_path / "runs", tmp_path / "out")
    assert parsed.errors == []
    assert text.count('<button type="button" data-arm') == n_arms


def test_labels_from_recipes_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\""
    arms = {"default": law, "dyck": law, f"dyck {evil}": law}
    write_sweep(tmp_path / "runs", arms=arms, name="toy")
    write_training(tmp_path / "runs", arm="default", seed=5, top1=None, failure=evil, name="bad")
    text, parsed = page_of(tmp_path / "runs", tmp_path / "out")
    assert "<script>alert" not in text
    assert parsed.errors == []
    assert text.count("<script>") == 1


def test_a_page_of_one_fraction_or_of_no_result_still_works(tmp_path: Path) -> None:
    write_sweep(tmp_path / "one", arms={"default": law, "dyck": law}, sizes=(1000,))
    write_training(tmp_path / "none", top1=None)
    for name in ("one", "none"):
        _, parsed = page_of(tmp_path / name, tmp_path / "out")
        assert parsed.errors == []
    assert "No image training has finished yet." in " ".join(parsed.texts)


numbers = st.floats(-1e6, 1e6)


@given(st.lists(st.floats(-50, 350), min_size=1, max_size=12))
def test_spread_keeps_labels_apart_and_in_order(values: list[float]) -> None:
    placed = spread(values, gap=16, low=0, high=300)
    order = sorted(range(len(values)), key=lambda i: values[i])
    for a, b in itertools.pairwise(order):
        assert placed[b] - placed[a] >= 16 - 1e-6
    assert all(0 - 1e-6 <= place <= 300 + 1e-6 for place in placed)
    if len(values) == 1:
        assert placed[0] == pytest.approx(min(max(values[0], 0), 300))


@given(numbers, st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 8
    assert all(low - span * 1e-6 <= value <= low + span * (1 + 1e-6) for value in found)


@given(st.floats(0.05, 1.0), st.floats(1.0, 20.0))
def test_ratio_ticks_hold_one(low: float, high: float) -> None:
    found = ratio_ticks(low, high)
    assert 1.0 in found
    assert all(low <= value <= high for value in found)


def test_numbers_on_axes() -> None:
    assert tick_text(-0.5, 0.5) == "−0.5"
    assert tick_text(2.5, 2.5) == "2.5"
    assert tick_text(12_000, 2000) == "12,000"
    assert tick_text(-0.0, 1) == "0"
    scale = Scale(10, 1000, 0, 100, is_log=True)
    assert scale(100) == pytest.approx(50)


def test_a_report_is_compared_with_an_earlier_one(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", arms={"default": law, "dyck": law}, seeds=3)
    write_sweep(tmp_path / "b", arms={"default": law, "dyck": lambda n: law(n) + 1, "x": law})
    run_report([tmp_path / "a"], tmp_path / "old")
    page = run_report([tmp_path / "b"], tmp_path / "new", against=tmp_path / "old").page
    parsed = Nesting()
    parsed.feed(page.read_text())
    assert parsed.errors == []
    analyses = run_report([tmp_path / "b"], tmp_path / "new").analyses
    rows = {(row[1].text, row[2].text): row for row in compare(analyses, tmp_path / "old").rows}
    assert len(rows) == 9
    assert rows["x", "100"][3].text == "–"
    assert rows["x", "100"][-1].text == ""
    then, now = (float(rows["dyck", "1,000"][i].text.split()[0]) for i in (3, 5))
    assert float(rows["dyck", "1,000"][-1].text) == pytest.approx(now - then, abs=0.11)
    for content in ("{}", '{"sections": [{"title": "x"}]}', "[", '{"sections": 3}'):
        (tmp_path / "old" / "report.json").write_text(content)
        with pytest.raises(ReportError, match="Give the folder of an earlier report"):
            compare(analyses, tmp_path / "old")


def test_the_terminal_says_what_differs_from_an_earlier_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "a", arms={"default": law, "dyck": law}, seeds=3)
    write_sweep(tmp_path / "b", arms={"default": law, "dyck": lambda n: law(n) - 9, "x": law})
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    assert main(["report", str(tmp_path / "a"), "--out", old]) == 0
    assert "Against" not in capsys.readouterr().out
    assert main(["report", str(tmp_path / "b"), "--out", new, "--against", old]) == 0
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("Against"))
    assert "6 of 9 accuracies are in both reports; the largest change is −" in line
    assert "points, dyck with " in line


def test_a_saving_says_how_many_seeds_it_is_from(tmp_path: Path) -> None:
    lost = [("dyck", 300, seed) for seed in range(3, 8)]
    arms = {"default": law, "dyck": lambda n: law(n * 1.4)}
    write_sweep(tmp_path / "runs", arms=arms, seeds=8, skip=lost)
    text, parsed = page_of(tmp_path / "runs", tmp_path / "out")
    said = (
        r"To match the [0-9.]+ % of default with 1,000 images \(n = 3 seeds that have every size\)"
    )
    assert re.search(said, text.replace("\xa0", " "))
    assert "Images needed for equal accuracy: seeds that have every size" in "".join(parsed.texts)


def test_a_pictures_numbers_are_those_of_every_seed(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", arms={"default": law, "a, b": law}, seeds=3)
    (analysis,) = run_report([tmp_path / "runs"], tmp_path / "out").analyses
    texts = {name: picture_csv(draw(width)) for name, width, draw in draw_all(analysis)}
    for name, text in texts.items():
        rows = list(csv.reader(text.splitlines()))
        assert len(rows) > 3, name
        assert {len(row) for row in rows} == {len(rows[0])}
        assert not re.search("[−–]", text)
    rows = list(csv.reader(texts["accuracy"].splitlines()))
    assert rows[0] == ["arm", "images", "seed", "top1_percent"]
    points = {(c.arm, c.n_images, p.seed): p.value for c in analysis.cells for p in c.points}
    assert {(a, int(n), int(s)): float(v) for a, n, s, v in rows[1:]} == pytest.approx(points)


def test_tables_for_papers_are_escaped(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", arms={"default": law, "dyck, a_b & 5 %": law})
    text = run_report([tmp_path / "runs"], tmp_path / "out").latex.read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"dyck, a\_b \& 5 \% & " in text
    assert r"$\pm$" in text
    for line in text.splitlines():  # every row has as many cells as the table has columns
        if line.startswith(r"\begin{tabular}"):
            n_columns = len(line.split("{")[-1].rstrip("}"))
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == n_columns - 1


def test_the_page_is_opened_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)))
    write_training(tmp_path / "runs")
    words = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert opened == []
    assert main([*words, "--open"]) == 0
    assert opened == [(tmp_path / "out" / "index.html").as_uri()]
    assert "no web browser" in capsys.readouterr().err


def test_an_arm_keeps_its_colour_whatever_stands_beside_it() -> None:
    alone = choose_colors(["default", "dyck", "grammar k=8"])
    many = choose_colors(["mimetic", "grammar k=8", "dyck", "shuffled", "default", "longer"])
    assert {label: many[label] for label in alone} == alone
    labels = [f"arm {i}" for i in range(40)]
    assert len(set(choose_colors(labels).values())) == 40


def test_the_page_of_two_hundred_runs_is_small(tmp_path: Path) -> None:
    arms = dict.fromkeys(["default", "dyck", "shuffled", "mimetic", "longer"], law)
    write_sweep(tmp_path / "runs", arms=arms, sizes=(100, 200, 500, 1000), seeds=10)
    assert run_report([tmp_path / "runs"], tmp_path / "out").page.stat().st_size < 500_000

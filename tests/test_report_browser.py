"""The report in headless Chromium: desktop and phone, light and dark, without any network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_sweep
from PIL import Image

from vitwarm.report import run_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

SVG = "{http://www.w3.org/2000/svg}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium here (apt install chromium)"),
]

#: Loads the report at a desktop's and a phone's width, works its buttons, writes down what it sees.
HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="desktop" src="index.html" style="width:1280px;height:900px;border:0"></iframe>
<iframe id="phone" src="index.html" style="width:390px;height:800px;border:0"></iframe>
<script>
function look(name) {
  const view = document.getElementById(name).contentWindow, page = view.document;
  const seen = [...page.querySelectorAll("figure svg")].filter((s) => s.clientWidth > 0);
  const shown = (e) => e.getClientRects().length > 0;
  const first = page.querySelector("section.report");
  const drawn = () => [...first.querySelectorAll('svg [data-arm="1"]')].filter(shown).length;
  const button = first.querySelectorAll(".legend button")[1];
  const parts = drawn();
  button.click();
  const hidden = drawn();
  const pressed = button.getAttribute("aria-pressed");
  button.click();
  const table = page.querySelector("table.sortable"), head = table.tHead.rows[0].cells;
  const column = [...head].findIndex((c) => c.textContent === "held-out accuracy");
  head[column].querySelector("button").click();
  const sorted = [...table.tBodies[0].rows].map((r) => parseFloat(r.cells[column].textContent));
  const small = [...page.querySelectorAll("figure svg text")].filter(shown)
    .map((t) => t.getBoundingClientRect().height).filter((h) => h > 0);
  let saved = "";
  const Real = view.Blob;
  view.Blob = function (parts, kind) { saved = parts[0]; return new Real(parts, kind); };
  const [asCsv, asSvg] = page.querySelectorAll('figure[data-name="differences"] .tool');
  asCsv.click();
  const csv = saved;
  asSvg.click();
  const tools = page.querySelectorAll(".tool").length;
  const homes = 2 * page.querySelectorAll("figure").length + page.querySelectorAll("table").length;
  const copy = [...page.querySelectorAll(".scroll")].map((s) => {
    const button = s.querySelector("caption .tool").getBoundingClientRect();
    const box = s.getBoundingClientRect();
    return button.left >= box.left && button.right <= box.right;
  });
  const captions = [...page.querySelectorAll("caption")];
  const paired = captions.find((c) => c.textContent.startsWith("Matched"));
  let copied = "";
  page.execCommand = () => { copied = page.activeElement.value; return true; };
  paired.querySelector(".tool").click();
  const box = page.querySelector("figure").getBoundingClientRect();
  const marker = page.querySelector("figure svg [data-tip]");
  const move = {bubbles: true, clientX: 9, clientY: 9};
  marker.dispatchEvent(new view.PointerEvent("pointermove", move));
  return {
    scroll: page.documentElement.scrollWidth, width: view.innerWidth, pictures: seen.length,
    left: box.left, right: box.right, parts, hidden, pressed, sorted,
    saved, csv, copy, copied, tools, homes, smallest: Math.min(...small),
    tip: page.getElementById("tip").textContent,
    paper: view.getComputedStyle(page.body).backgroundColor,
    ink: view.getComputedStyle(page.body).color,
    line: view.getComputedStyle(page.querySelector("svg .curve")).stroke,
    fetched: view.performance.getEntriesByType("resource").map((e) => e.name),
  };
}
addEventListener("load", () => {
  const found = JSON.stringify([look("desktop"), look("phone")]);
  const told = document.createElement("pre");
  told.textContent = found;
  document.body.replaceChildren(told);
});
</script>"""


def law(n: float) -> float:
    return float(100 - (3 + 270 * n**-0.42))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    arms = {
        "default": law, "dyck": lambda n: law(n * 1.4), "shuffled": lambda n: law(n * 0.9),
        "longer": lambda n: law(n * 1.1),
    }  # fmt: skip
    write_sweep(folder / "runs", arms=arms, skip=[("dyck", 300, 1)], name="one")
    write_sweep(folder / "more", arms=arms, seeds=7, name="two", match="epochs")
    page = run_report([folder / "runs", folder / "more"], folder / "out", figures=False).page
    (page.parent / "harness.html").write_text(HARNESS)
    return page.parent


def browse(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = folder / f"profile{len(list(folder.iterdir()))}"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--log-level=0", f"--user-data-dir={profile}", *words,
        (folder / name).as_uri(),
    ]  # fmt: skip
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.TimeoutExpired:  # a browser that hangs as it starts, on a busy machine
        shutil.rmtree(profile, ignore_errors=True)
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def luminance(color: str) -> float:
    red, green, blue = (int(part) for part in re.findall(r"\d+", color)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize(("scheme", "number"), [("dark", 0), ("light", 1)])
def test_page_works_on_desktop_and_phone(report: Path, scheme: str, number: int) -> None:
    asked = f"--blink-settings=preferredColorScheme={number}"
    done = browse(report, "harness.html", asked, "--window-size=1800,1000", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    text = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert text, done.stdout[:500]
    views: list[dict[str, Any]] = json.loads(html.unescape(text[1]))
    for view in views:
        assert view["scroll"] <= view["width"]
        assert 0 <= view["left"] < view["right"] <= view["width"]
        assert view["pictures"] >= 12
        assert view["fetched"] == []
        assert view["tools"] == view["homes"]  # CSV and SVG of a picture, Copy of a table
        assert all(view["copy"])  # within the frame, however wide the table
        assert view["csv"].startswith("arm,reference,images,seed,difference_points\ndyck,default,")
        assert "dyck - default\t1000\t" in view["copied"]
        assert not re.search(r"−|\d,\d{3}", view["copied"])
        words = [text.text for text in ElementTree.fromstring(view["saved"]).iter(f"{SVG}text")]
        assert words[-2:] == ["dyck", "shuffled"]  # the legend, in a file that is XML
        assert ".whisker" in view["saved"]
        assert view["parts"] > 0
        assert (view["hidden"], view["pressed"]) == (0, "false")
        assert view["sorted"] == sorted(view["sorted"])
        assert len(view["sorted"]) == 2
        assert view["smallest"] >= 10  # pixels: readable on a phone as well
        assert "%" in view["tip"]
        paper, ink, line = (luminance(view[name]) for name in ("paper", "ink", "line"))
        assert (paper < 0.2) == (scheme == "dark")
        assert abs(paper - ink) > 0.6
        assert abs(paper - line) > 0.25


@pytest.mark.parametrize(("scheme", "number"), [("dark", 0), ("light", 1)])
def test_pictures_are_drawn(report: Path, scheme: str, number: int) -> None:
    shot = report / f"{scheme}.png"
    browse(
        report, "index.html", f"--blink-settings=preferredColorScheme={number}",
        f"--screenshot={shot}", "--window-size=1280,1400",
    )  # fmt: skip
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert (pixels.mean() < 80) == (scheme == "dark")
    lower = pixels[700:]  # the accuracy figure: coloured lines, not only greys
    colourful = (lower.max(axis=2) - lower.min(axis=2)) > 60
    assert colourful.sum() > 1500

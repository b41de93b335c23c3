"""What a release says of itself: citation, changelog, tag, and what is packed."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def test_the_citation_is_whole() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2511.13945"


def test_a_tagged_commit_has_its_chapter_in_the_changelog() -> None:
    git = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"]
    try:
        tags = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    chapters = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert chapters
    for tag in tags:
        assert tag.removeprefix("v") in chapters


@pytest.mark.slow
def test_the_distributions_are_whole_and_fit_for_the_index(tmp_path: Path) -> None:
    """The wheel is built from the sdist, as an index's users get it, and holds what it needs."""
    for module in ("build", "twine"):
        pytest.importorskip(module)
    python = ["python", "-m"]
    subprocess.run([*python, "build", "--outdir", str(tmp_path), str(ROOT)], check=True)
    files = sorted(map(str, tmp_path.iterdir()))
    assert len(files) == 2
    said = subprocess.run(
        [*python, "twine", "check", "--strict", *files], check=False, capture_output=True, text=True
    )
    assert said.stdout.count("PASSED") == 2, said.stdout + said.stderr
    wheel, sdist = sorted(files, key=lambda path: path.endswith(".tar.gz"))
    (version,) = re.findall(r"^vitwarm-(\d+\.\d+[\w.]*)-py3-none-any\.whl$", Path(wheel).name)
    assert Path(sdist).name == f"vitwarm-{version}.tar.gz"
    tracked = {
        f"vitwarm/{path.relative_to(ROOT / 'vitwarm')}" for path in (ROOT / "vitwarm").rglob("*.py")
    }
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert tracked <= inside
    assert {"vitwarm/report/page.html", "vitwarm/probe/section.html"} <= inside
    assert "vitwarm/configs/sweep/quickstart.yaml" in inside
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "CHANGELOG.md", "LICENSE", "tests/test_release.py"} <= names

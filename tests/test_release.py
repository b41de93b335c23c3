"""What a release says of itself agrees: version, citation, changelog, tag, and what is packed."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from vitwarm import __version__

ROOT = Path(__file__).parent.parent


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_a_tag_of_this_commit_is_the_version() -> None:
    git = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"]
    try:
        tags = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    assert [tag for tag in tags if tag.startswith("v")] in ([], [f"v{__version__}"])


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
    assert Path(wheel).name == f"vitwarm-{__version__}-py3-none-any.whl"
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

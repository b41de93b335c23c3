"""The notebook runs from its first cell to its last, in less than five minutes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/five-minutes.ipynb"
nbformat = pytest.importorskip("nbformat")


def test_the_notebook_that_is_committed_shows_results_and_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 120_000
    assert text.count('"image/png"') == 2
    for word in ("/root", "/home", "Traceback", "Warning", "stderr"):
        assert word not in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what runs notebooks
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell["outputs"] = []
    began = time.monotonic()
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    assert time.monotonic() - began < 300
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    said = "".join(one.get("text", "") for one in outputs if one.get("name") == "stdout")
    assert said.count("top-1") == 6
    assert "dyck − default: " in said
    assert sum("image/png" in one.get("data", {}) for one in outputs) == 2
    assert (tmp_path / "report/index.html").exists()

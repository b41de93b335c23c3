"""Python's own door: the page on it runs as it stands, and names are a config's fields."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

import vitwarm
from vitwarm.commands.python import to_fields
from vitwarm.config import TrainRun, WarmupRun, load_config
from vitwarm.errors import ConfigError
from vitwarm.report import run_report
from vitwarm.shards.write.digits import write_digits

PAGE = Path(__file__).parent.parent / "docs" / "api.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Runs the page from top to bottom; returns its folder and what it defined."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("page")
    write_digits(folder / "quickstart" / "shards")
    names: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for text in blocks():
            if "transformers" not in text or importlib.util.find_spec("transformers"):
                exec(compile(text, str(PAGE), "exec"), names)
    return folder, names


@pytest.mark.slow
def test_the_page_runs_as_it_stands(page: tuple[Path, dict[str, Any]]) -> None:
    folder, names = page
    assert len(blocks()) == 9
    assert (folder / "runs" / names["warmed"].folder_name / "trunk.safetensors").is_file()
    assert {arm.label for arm in names["found"].analyses[0].arms} == {"default", "dyck"}
    assert names["found"].paths.page == Path("report/index.html")
    assert "blocks.0.attn.qkv.weight" in names["audit"].carried
    assert len(names["tenth"].rows) == 130


@pytest.mark.slow
def test_figures_are_the_written_pictures(
    page: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, names = page
    written = run_report([folder / "runs"], tmp_path, figures=True)
    pictures = {path.stem: path for path in written.figures if path.suffix == ".png"}
    assert pictures.keys() == names["found"].figures.keys()
    for name, figure in names["found"].figures.items():
        figure.savefig(tmp_path / "again.png", dpi=200)
        again, there = (
            matplotlib.image.imread(p) for p in (tmp_path / "again.png", pictures[name])
        )
        assert again.shape == there.shape
        assert (again == there).all()


def test_the_import_is_cheap_and_nothing_is_hidden() -> None:
    code = "import sys, vitwarm; sys.exit(bool({'torch', 'numpy', 'omegaconf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {"warm_up", "attach", "train", "report"} <= set(dir(vitwarm))
    assert callable(vitwarm.report)
    assert vitwarm.report is sys.modules["vitwarm.report"]
    with pytest.raises(AttributeError, match="no attribute 'warmup_'"):
        _ = vitwarm.warmup_


@pytest.mark.parametrize(
    ("schema", "given", "field", "value"),
    [
        (WarmupRun, {"lr": 1e-3}, "warmup.lr", 1e-3),
        (WarmupRun, {"warmup.lr": 1e-3}, "warmup.lr", 1e-3),
        (WarmupRun, {"warmup": {"lr": 1e-3}}, "warmup.lr", 1e-3),
        (WarmupRun, {"warmup": {"min_lr": 0}, "lr": 1e-3}, "warmup.lr", 1e-3),
        (WarmupRun, {"rule": "copy"}, "rule.name", "copy"),
        (WarmupRun, {"rule": {"name": "copy"}}, "rule.name", "copy"),
        (WarmupRun, {"budget": 0.02}, "warmup.budget", "0.02"),
        (WarmupRun, {"seed": 3}, "seed", 3),
        (TrainRun, {"fraction": 0.1}, "data.fraction", 0.1),
        (TrainRun, {"train": {"epochs": 3, "warmup_epochs": 1}}, "train.epochs", 3.0),
        (TrainRun, {"logger": ["csv"]}, "run.logger", ["csv"]),
    ],
)
def test_a_name_is_a_field(schema: Any, given: dict[str, Any], field: str, value: Any) -> None:
    needed = {"data.train": "x", "data.val": "x"} if schema is TrainRun else {}
    found: Any = load_config(schema, fields={**needed, **to_fields(schema, given)})
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value


def test_a_mistyped_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no field 'bugdet'.*warmup\.budget"):
        vitwarm.warm_up(bugdet="100steps")
    with pytest.raises(ConfigError, match=r"train is 'shards/train'; it is a section"):
        vitwarm.train(train="shards/train")

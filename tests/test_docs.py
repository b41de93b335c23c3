"""What README and docs tell people to type runs, at toy size; pages and links are there."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_stages import FAKE

from tests.tiny_images import write_tiny_shards
from vitwarm.cli import main
from vitwarm.commands import COMMANDS, load_command
from vitwarm.config import SweepConfig, WarmupRun, find_recipe, load_config
from vitwarm.sweep import show_plan
from vitwarm.warmup import run_warmup, warmup_folder

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("data/*.md")]
#: At the end of a command, so that it takes seconds: what each stage gets.
TOY = {
    "mix": "",  # of a hand-off
    "warmup": "warmup.budget=2steps warmup.batch_size=2 warmup.eval_sequences=2 run.device=cpu",
    "train": "train.steps=2 train.batch_size=4 train.evaluations=1 train.micro_batch_size=2 "
    "run.device=cpu run.workers=0 handoff.allow_failed=true",
    "sweep": "--dry-run",
    "handoff": "--allow-failed",
}
#: Not run here, and where it is.
ELSEWHERE = {
    "pip ": ".ci/run types it",
    "vitwarm quickstart": ".ci/run types it, with --smoke",
    "vitwarm transfer": "tests/test_transfer.py: its pilot takes minutes",
    "mkdocs ": ".ci/run builds the pages strictly",
    "vitwarm doctor --models": "tests/test_coverage_models.py",
    "my_sweep.yaml": "tests/test_slurm.py: the reader's own file, on a cluster",
    "--nnodes": "tests/test_two_hosts.py: two hosts",
    "scripts/make_shards.py": "tests/test_shards_tools.py: the original tars",
    "shards voc": "tests/test_shards_voc.py",
    "vitwarm probe": "tests/test_probe.py",
    "handoff import": "tests/test_foreign.py: others' files",
    "handoff expand": "tests/test_expand.py",
    "base.safetensors": "tests/test_expand.py makes it",
    "handoff push": "tests/test_hub.py: a server",
}


def commands() -> list[tuple[str, str]]:
    """Every command that the pages show, with the page's name."""
    found = []
    for page in PAGES:
        for language, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M):
            if language not in ("", "bash"):
                continue
            for line in body.replace("\\\n", " ").splitlines():
                line = re.sub(r"\s+#.*|^\$ ", "", line).strip()
                if re.match(r"(vitwarm|python|torchrun|pip|mkdocs) ", line):
                    found.append((page.name, line))
    return found


def is_elsewhere(command: str) -> bool:
    return any(part in command for part in ELSEWHERE)


def test_the_pages_are_full_of_commands() -> None:
    assert len(commands()) > 25
    shown = [command for _, command in commands()]
    assert all(any(part in command for command in shown) for part in ("pip ", "--nnodes"))


def load_hooks() -> Any:
    """The module that mkdocs calls."""
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts/make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_bars_in_tables_are_right_on_the_site() -> None:
    shown = load_hooks().on_page_markdown("| `a` | `0\\|1<2` |\n`x\\|y` is no table\n")
    assert shown == "| `a` | <code>0&#124;1&lt;2</code> |\n`x\\|y` is no table\n"


def test_links_of_the_notebook_lead_to_pages_and_to_files() -> None:
    text = (ROOT / "docs/five-minutes.ipynb").read_text()
    links = re.findall(r"\]\(([\w./-]+\.(?:md|ipynb))\)", text)
    assert len(links) == 3
    assert all((ROOT / "docs" / link).exists() for link in links)  # as GitHub shows it
    asked: list[str] = []
    files = SimpleNamespace(
        get_file_from_path=lambda name: asked.append(name) or files,
        url_relative_to=lambda page: f"../{Path(asked[-1]).stem}/",
    )
    page = SimpleNamespace(file=SimpleNamespace(src_uri="five-minutes.ipynb"))
    for link in links:
        shown = load_hooks().on_page_content(f'<a href="{link}">', page=page, files=files)
        assert shown == f'<a href="../{Path(link).stem.lower()}/">'


def test_what_a_call_returns_and_raises_stands_apart() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference.md"))
    text = "<p>Does.</p>\n<p>Returns: it.\nRaises:\n    AError: a.\n    BError: b.</p>"
    assert load_hooks().on_page_content(text, page=page, files=None).split("\n") == [
        "<p>Does.</p>", "", "<p><b>Returns</b>: it.</p>",
        "<p><b>Raises</b>: AError: a.<br>BError: b.</p>",
    ]  # fmt: skip


def test_names_of_the_reference_can_be_imported() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    names = re.findall(r"^::: ([\w.]+)$|heading: ([\w.]+)", text, re.M)
    for name in ["".join(pair) for pair in names]:
        home, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(home), last), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    made = load_hooks()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        is_made = page.parent.name == "docs" and target in made.PAGES  # no file on GitHub
        if target.startswith("http") or (is_made and target not in made._PAGE_OF.values()):
            continue
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short_and_its_pictures_small() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    assert sum(path.stat().st_size for path in (ROOT / "docs/images").iterdir()) < 300_000


def test_the_readme_draws_brackets_as_the_command_prints_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = r"^```\n\$ vitwarm (rules show [^#\n]*[^# \n])[^\n]*\n(.*?)^```"
    block = re.search(shown, (ROOT / "README.md").read_text(), re.S | re.M)
    assert block is not None
    assert main(shlex.split(block[1])) == 0
    assert capsys.readouterr().out == block[2]


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_commands_that_are_said_to_have_a_dry_run_have_one(page: str) -> None:
    (said,) = re.findall(r"^(.*) have `--dry-run`", (ROOT / page).read_text(), re.M)
    has = [n for n in COMMANDS if "--dry-run" in load_command(n)[1].format_help()]
    assert sorted(re.findall(r"`(\w+)`", said)) == sorted(has)


def test_a_sweep_that_a_page_shows_whole_is_one(tmp_path: Path) -> None:
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs/imagenet.md").read_text(), re.S | re.M
    )
    for number, text in enumerate(blocks):
        (tmp_path / f"{number}.yaml").write_text(text)
        config = load_config(SweepConfig, tmp_path / f"{number}.yaml")
        assert "14 image trainings" in show_plan(config, recipe=None, stages=FAKE)
        assert find_recipe(config.base).is_file()
        assert all(find_recipe(arm.warmup) for arm in config.arms.values() if arm.warmup)
    assert len(blocks) == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything lies that the pages speak of."""
    home = tmp_path_factory.mktemp("reader")
    write_tiny_shards(home / "shards", n_train=80, n_val=8, size=32, ending="jpg")
    for name in ("imagenet-1k-wds", "shards"):
        shutil.copytree(home / "shards", home / "data" / name)
    for split in ("train", "validation"):
        for number, tar in enumerate(sorted((home / "shards").rglob(f"*{split}*.tar"))):
            for folder in (home / "data", home / "data/imagenet-1k-wds"):
                shutil.copy(tar, folder / f"imagenet1k-{split}-{number:04d}.tar")
    write_pictures(home / "cifar100")
    shutil.copytree(home / "cifar100/train", home / "my_images")
    for root, name, recipe, more in (
        ("runs", "warmup", None, []),
        ("runs", "vit_base_dyck64", "warmup/vit_base_dyck64", []),
        ("laptop", "warmup", None, words_of_the_laptop()),
    ):
        words = [*TOY["warmup"].split(), f"run.root={home}/{root}", "warmup.micro_batch_size=null"]
        path = None if recipe is None else find_recipe(recipe)
        config = load_config(WarmupRun, path, [*words, *more])
        run_warmup(config)
        (home / f"{root}/{name}-1a2b3c4d").symlink_to(warmup_folder(config))
    return home


def words_of_the_laptop() -> list[str]:
    """The words of the laptop's own model, whose trunk its training takes."""
    text = (ROOT / "docs/laptop.md").read_text()
    return re.findall(r'"(warmup\.model_kwargs=[^"]*)"', text)


def write_pictures(folder: Path) -> None:
    """Image folders, as a reader has them."""
    from PIL import Image

    for split in ("train", "val"):
        for label in range(3):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (32, 32), (80 * label, 20 * number, 9)).save(
                    place / f"{number}.png"
                )


def at_toy_size(command: str, home: Path) -> list[str]:
    """The command's words, with the reader's folder and few steps."""
    command = re.sub(r"imagenet1k-(\w+)-\{0000\.\.\d+\}", r"imagenet1k-\1-{0000..0001}", command)
    shutil.rmtree(home / "my_images_made", ignore_errors=True)  # two pages have the command
    command = re.sub(r"( cifar100| my_images) shards", r"\1\1_made", command)  # `shards` is there
    command = command.replace("/data/", f"{home}/data/").replace("...", f"{home}/shards/train")
    words = [re.sub(r"^run\.devices=8$", "run.devices=2", word) for word in shlex.split(command)]
    stage = next((name for name in TOY if name in words or f"scripts/{name}.py" in words), "")
    return [*words, *TOY.get(stage, "").split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "command"), [pair for pair in dict.fromkeys(commands()) if not is_elsewhere(pair[1])]
)
def test_what_the_pages_tell_people_to_type_runs(
    page: str, command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = at_toy_size(command, place)
    if words[0] == "torchrun":
        words = ["2" if word == "8" else word for word in words]
        script = words.index(next(word for word in words if word.startswith("scripts/")))
        words[script] = str(ROOT / words[script])
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]]
        done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return
    if words[0] == "python":
        words = ["vitwarm", Path(words[1]).stem, *words[2:]]
    assert main(words[1:]) == 0

"""Arrows point one way, light parts stay light, and every public function says what it does."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vitwarm"

#: From the ground up: a module imports only from lines above its own.
HOUSE = [
    "errors", "informing", "interrupts", "files", "seeding", "units", "config", "hardware",
    "records", "rules", "trunk", "inits", "loggers", "world", "loop", "warmup",
    "handoff", "shards", "augment", "training", "sweep", "report", "probe",
    "commands", "cli",
]  # fmt: skip

#: Arrows that the order alone would allow and that must not be.
FORBIDDEN = {
    ("handoff", "warmup"), ("handoff", "loop"), ("shards", "warmup"), ("report", "sweep"),
    ("report", "training"), ("report", "trunk"), ("report", "config"), ("training", "warmup"),
}  # fmt: skip


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitwarm."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {n.name.split(".")[1] for n in node.names if n.name.startswith("vitwarm.")}
    return found


#: The longest that a file and a function may be.
MOST_LINES, MOST_FUNCTION_LINES = 350, 60

#: What docs/architecture.md tells a newcomer to read first, and how long all of it may be.
READING_ROAD = (
    "config/schema.py", "rules/dyck.py", "warmup/run.py", "handoff/attach.py", "training/run.py",
    "report/curves.py",
)  # fmt: skip
MOST_OF_THE_ROAD = 1000

#: Modules at the top of the package; the others stand in rooms.
MOST_AT_THE_TOP = 12


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules_imported(path: Path) -> set[str]:
    """The package's modules that a module imports as it loads; not those of its functions."""
    found = set()
    known = {_dotted(other) for other in _modules()}
    body = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom)]
    for node in body:
        for name in node.names:
            inner = f"{node.module}.{name.name}"
            found.add(inner if inner in known else str(node.module))
    return {name for name in found & known if name != _dotted(path)}


def test_every_module_has_its_line_in_the_house() -> None:
    assert {_room(path) for path in _modules()} - {"__init__"} <= set(HOUSE)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_up(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    for other in _imports(path) - {room}:
        assert HOUSE.index(other) < HOUSE.index(room), f"{path.name} imports {other}"
        assert (room, other) not in FORBIDDEN, f"{path.name} imports {other}"


@pytest.mark.parametrize(
    "module",
    [
        "rules",
        "rules.masking",
        "rules.look",
        "report",
        "commands.report",
        "records",
        "cli",
        "shards.tools",
    ],
)
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, vitwarm.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_hold_one_idea(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n_lines = (node.end_lineno or 0) - node.lineno + 1
            assert n_lines <= MOST_FUNCTION_LINES, f"{path.name}: {node.name} has {n_lines} lines"


def test_the_reading_road_is_short_and_as_the_docs_have_it() -> None:
    texts = [(PACKAGE / name).read_text() for name in READING_ROAD]
    assert sum(text.count("\n") for text in texts) <= MOST_OF_THE_ROAD
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    _, _, rest = page.partition("## What to read first")
    section, _, _ = rest.partition("\n## ")
    assert tuple(re.findall(r"`(\w+/\w+\.py)`", section)) == READING_ROAD


def test_what_serves_one_room_alone_stands_in_it() -> None:
    """A module at the top is imported by two rooms at least, the command line apart."""
    assert len(list(PACKAGE.glob("*.py"))) - 1 <= MOST_AT_THE_TOP
    for top in PACKAGE.glob("*.py"):
        if top.stem in ("__init__", "cli"):
            continue
        users = {_room(path) for path in _modules() if top.stem in _imports(path)}
        assert len(users - {top.stem}) >= 2, f"{top.name} serves {users} alone"


def test_no_two_modules_import_each_other() -> None:
    """Not even inside of a room, and not through others."""
    arrows = {_dotted(path): _modules_imported(path) for path in _modules()}
    order = TopologicalSorter(arrows)
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("words", [[], ["--help"], ["warmup", "--help"], ["train", "--help"]])
def test_the_command_line_starts_without_heavy_libraries(words: list[str]) -> None:
    code = (
        "import sys\nfrom vitwarm.cli import main\n"
        f"try:\n    main({words!r}) if {words!r} else None\nexcept SystemExit:\n    pass\n"
        "sys.exit(', '.join({'torch', 'timm', 'numba', 'matplotlib'} & set(sys.modules)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"loads {run.stderr}"


JOURNEYS = re.split(
    r"\n\*\*",
    (PACKAGE.parent / "docs" / "architecture.md").read_text().split("## Five journeys")[1],
)[1:]


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda text: text.split("**")[0])
def test_journeys_pass_what_is_there(journey: str) -> None:
    stops = re.findall(r"^\| `.*$", journey, re.MULTILINE)
    assert 5 <= len(stops) <= 7
    for row in stops:
        names: set[str] = set()
        for file in re.findall(r"`([\w/]+\.py)`", row):
            tree = ast.walk(ast.parse((PACKAGE / file).read_text()))
            names |= {n.name for n in tree if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        told = set(re.findall(r"`(\w+)`", row))
        assert told
        assert told <= names, f"{told - names} is not in {row}"


def test_the_picture_shows_every_room() -> None:
    picture = (PACKAGE.parent / "docs" / "architecture.md").read_text().split("```")[1]
    assert set(HOUSE) <= set(re.findall(r"[a-z]+", picture))

"""Arrows point one way, light parts stay light, and every public function says what it does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vitwarm"

#: From the ground up: a module imports only from lines above its own.
HOUSE = [
    "errors", "files", "seeding", "units", "config", "records", "rules", "masking", "sequences",
    "trunk", "inits", "callbacks", "loop", "verdict", "warmup", "handoff", "shards", "augment",
    "resident", "training", "sweep", "report", "doctor", "commands", "cli",
]  # fmt: skip

#: Arrows that the order alone would allow and that must not be.
FORBIDDEN = {
    ("handoff", "warmup"), ("handoff", "callbacks"), ("shards", "warmup"), ("report", "sweep"),
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


@pytest.mark.parametrize("module", ["rules", "masking", "report", "records", "cli", "shards.tools"])
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

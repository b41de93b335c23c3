"""The shards' room: arrows between its floors point one way, and no two files know each other."""

from __future__ import annotations

import ast
from pathlib import Path

ROOM = Path(__file__).parent.parent / "vitwarm" / "shards"

#: From the ground up: a floor imports only from those before it.
FLOORS = ["bars", "read", "choose", "load", "stream", "write", "loaders", "tools"]


def imports(path: Path) -> set[str]:
    """Files of this room that a file imports, anywhere in it: `read.index`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitwarm.shards."):
            found.add((node.module or "").removeprefix("vitwarm.shards."))
    return found


def files() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOM).with_suffix("").parts): path
        for path in ROOM.rglob("*.py")
        if path.stem != "__init__"
    }


def test_floors_only_know_those_below() -> None:
    for name, path in files().items():
        floor = FLOORS.index(name.partition(".")[0])
        for other in imports(path):
            assert FLOORS.index(other.partition(".")[0]) <= floor, f"{name} imports {other}"


def test_no_circle_between_files() -> None:
    knows = {name: imports(path) for name, path in files().items()}

    def reached(name: str, seen: frozenset[str]) -> None:
        assert name not in seen, f"a circle through {name}: {sorted(seen)}"
        for other in knows[name]:
            reached(other, seen | {name})

    for name in knows:
        reached(name, frozenset())


def test_files_and_functions_stay_small() -> None:
    for name, path in files().items():
        text = path.read_text()
        assert len(text.splitlines()) <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                n_lines = (node.end_lineno or 0) - node.lineno + 1
                assert n_lines <= 60, f"{name}.{node.name}: {n_lines}"

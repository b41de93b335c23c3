"""The reference of fields, made from the schema: type, default, what is allowed, what it means.

The meaning is the string below the field in its class; Python keeps none, so the source is read.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_origin

from vitwarm.config.check import default_of, describe, hints_of, inner_type
from vitwarm.config.schema import TrainRun, WarmupRun
from vitwarm.config.sweep import SweepConfig

#: Command -> the schema of its config.
SCHEMAS: dict[str, type] = {"warmup": WarmupRun, "train": TrainRun, "sweep": SweepConfig}
#: Stands for the user's own label in the names of an arm's fields.
LABEL = "LABEL"


@dataclass(frozen=True, kw_only=True)
class FieldFacts:
    """What the schema says of one field."""

    name: str
    """Dotted, as in recipes and on the command line."""
    default: str
    """As one writes it: `0.001`, `none`, or empty where a value has to be given."""
    allowed: str
    """In words, with `none` where it may be left empty."""
    meaning: str
    hashed: bool
    """Whether it changes the result, and with it the run's folder."""

    @property
    def section(self) -> str:
        """The dotted name of the section it stands in, empty at the top."""
        return self.name.rpartition(".")[0]


def fields_of(schema: type, prefix: str = "") -> Iterator[FieldFacts]:
    """Yields every field of a schema, sections in their order, an arm's as `arms.LABEL.field`."""
    meanings = _docstrings(schema)
    for item in dataclasses.fields(schema):
        kind, optional = inner_type(hints_of(schema)[item.name])
        name, default = f"{prefix}{item.name}", default_of(item)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from fields_of(kind, f"{name}.")
            continue
        yield FieldFacts(
            name=name,
            default=_say(default),
            allowed=describe(schema, item.name) + (", or none" if optional else ""),
            meaning=meanings[item.name],
            hashed=item.metadata.get("hashed", True) is not False,
        )
        if get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]):
            yield from fields_of(get_args(kind)[1], f"{name}.{LABEL}.")


def to_text(facts: FieldFacts) -> str:
    """Returns a field in a few lines for the terminal."""
    default = f"default {facts.default}" if facts.default else "has to be given"
    body = textwrap.fill(
        f"{facts.meaning} {facts.allowed[0].upper()}{facts.allowed[1:]}; {default}.",
        width=96, initial_indent="    ", subsequent_indent="    ",
    )  # fmt: skip
    return f"{facts.name}\n{body}"


def to_markdown() -> str:
    """Returns the reference of every config as one page."""
    lines = [
        "# Every field of the configs",
        "",
        "Made from the configs' classes by `vitwarm configs fields --markdown`. A recipe "
        "(YAML) holds what differs from the defaults; `section.field=value` on the command line "
        "comes last. Numbers may be written `2e3`, `15k`, `3.84M` or, where they are shares, "
        "`10%`; `none` empties a field that may be empty. Fields marked † do not change the "
        "result and are not part of a run's hash.",
    ]
    for command, schema in SCHEMAS.items():
        lines += ["", f"## `vitwarm {command}`", "", inspect.getdoc(schema) or ""]
        section = None
        for facts in fields_of(schema):
            if facts.section != section:
                section = facts.section
                title = [f"### `{section}`", ""] if section else []
                head = "| field | allowed | default | meaning |"
                lines += ["", *title, head, "|---|---|---|---|"]
            mark = "" if facts.hashed else " †"
            default = f"`{facts.default}`" if facts.default else "to be given"
            cells = [f"`{facts.name}`{mark}", facts.allowed, default, facts.meaning]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


@cache
def _docstrings(schema: type) -> dict[str, str]:
    """Field -> the string below it, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    found = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if said else ""  # type: ignore[attr-defined]
            found[node.target.id] = " ".join(text.split())
    return found


def _say(default: Any) -> str:
    if default is None:
        return "none"
    if default == "???":
        return ""
    if isinstance(default, dict) and any(map(dataclasses.is_dataclass, default.values())):
        return "{" + ", ".join(f"{label}: {{}}" for label in default) + "}"
    return default if isinstance(default, str) else json.dumps(default)

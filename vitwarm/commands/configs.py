"""Find, read and copy the recipes that ship, and look up the fields of a config.

vitwarm configs list
vitwarm configs show train/deit_small
vitwarm configs copy sweep/cifar100_cpu
vitwarm configs fields mixup train.lr
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitwarm.config import find_recipe, list_recipes, read_yaml
from vitwarm.config.fields import SCHEMAS, fields_of, to_markdown, to_text
from vitwarm.config.reading import read_text
from vitwarm.errors import ConfigError, nearest
from vitwarm.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds list, show, copy and fields."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    commands.add_parser("list", help="every recipe, and what it is")
    show = commands.add_parser("show", help="print a recipe")
    copy = commands.add_parser("copy", help="copy a recipe and those it names, for editing")
    for command in (show, copy):
        command.add_argument("name", help="such as train/deit_small, or a path")
    copy.add_argument(
        "to", nargs="?", default="configs", help="a folder (default: configs), or FILE.yaml"
    )
    fields = commands.add_parser("fields", help="what every field means, allows and defaults to")
    either = fields.add_mutually_exclusive_group()
    either.add_argument(
        "words", nargs="*", default=[], metavar="WORD", help="part of a field's name; none: all"
    )
    either.add_argument("--markdown", action="store_true", help="as one page, for documentation")


def run(args: argparse.Namespace) -> int:
    """Runs the look-up that the arguments describe."""
    if args.what == "list":
        print("\n".join(_listed()))
    elif args.what == "show":
        print(read_text(find_recipe(args.name)), end="")
    elif args.what == "copy":
        print("\n".join(copy_recipe(args.name, Path(args.to))))
    elif args.markdown:
        print(to_markdown(), end="")
    else:
        print("\n".join(_looked_up(args.words)))
    return 0


def copy_recipe(name: str, folder: Path) -> list[str]:
    """Copies a recipe and those that it names into a folder laid out as configs/ is.

    Args:
        folder: or a file, `.yaml`, for a recipe that names no other.
    Returns: a line for each file. What the folder has already stays as it is.
    Raises: ConfigError: no such recipe among those that ship, or the folder has it already.
    """
    shipped = {path.resolve(): short for short, path in list_recipes().items()}
    first = find_recipe(name).resolve()
    if first not in shipped:
        raise ConfigError(f"{name} is already a file of your own; copy it with cp.")
    if folder.suffix in (".yaml", ".yml"):
        return [_copy_alone(first, folder)]
    if (folder / f"{shipped[first]}.yaml").exists():
        raise ConfigError(
            f"{folder / shipped[first]}.yaml already exists. Remove it, or name another folder."
        )
    lines, todo, done = [], [first], set()
    while todo:
        path = todo.pop(0)
        if path in done or path not in shipped:
            continue
        done.add(path)
        copy = folder / f"{shipped[path]}.yaml"
        lines.append(f"{copy}" if not copy.exists() else f"{copy} already existed and is kept")
        if not copy.exists():
            write_text(copy, read_text(path))
        todo += [find_recipe(other, beside=path.parent).resolve() for other in _named_by(path)]
    return lines


def _copy_alone(recipe: Path, to: Path) -> str:
    if others := list(_named_by(recipe)):
        raise ConfigError(
            f"{to} is a file, and the recipe names others ({', '.join(others)}) by where they lie. "
            "Give a folder: all of them are copied there."
        )
    if to.exists():
        raise ConfigError(f"{to} already exists. Remove it, or name another file.")
    write_text(to, read_text(recipe))
    return f"{to}"


def _named_by(path: Path) -> Iterator[str]:
    plain: dict[str, Any] = read_yaml(path)
    arms = plain.get("arms") or {}
    for word in (plain.get("extends"), plain.get("base")):
        if word:
            yield str(word)
    yield from (str(arm["warmup"]) for arm in arms.values() if arm and arm.get("warmup"))


def _listed() -> Iterator[str]:
    recipes = list_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        says = [line for line in read_text(path).splitlines() if line.startswith("# What:")]
        yield f"{name:<{width}}  {says[0].removeprefix('# What:').strip() if says else ''}".rstrip()


def _looked_up(words: list[str]) -> Iterator[str]:
    known: set[str] = set()
    shown: set[str] = set()
    for command, schema in SCHEMAS.items():
        every = list(fields_of(schema))
        known |= {facts.name for facts in every}
        found = [facts for facts in every if not words or any(w in facts.name for w in words)]
        texts = [text for text in map(to_text, found) if text not in shown]
        shown |= set(texts)
        if texts:
            yield f"\n# vitwarm {command}" if len(shown) > len(texts) else f"# vitwarm {command}"
        yield from texts
    if not shown:
        raise ConfigError(
            f"No field has {' or '.join(words)} in its name.{nearest(words[0], known)} "
            "See them all with: vitwarm configs fields."
        )

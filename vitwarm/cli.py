"""vitwarm warmup | handoff | train | sweep | report | shards | rules | doctor

Each command lives in the module it belongs to, as `add_arguments(parser)` and `run(args) -> int`,
and is imported only when it is asked for, so that a report needs no torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from vitwarm import __version__
from vitwarm.errors import VitwarmError, nearest

#: Name -> (module, what it is for). The module has `add_arguments(parser)` and `run(args) -> int`.
COMMANDS = {
    "warmup": ("vitwarm.commands.warmup", "warm up a trunk on token sequences of a rule"),
    "handoff": ("vitwarm.commands.handoff", "give a warmed trunk a fresh patch embedding"),
    "train": ("vitwarm.commands.train", "train or fine-tune an image model on shards"),
    "sweep": ("vitwarm.sweep", "arms x fractions x paired seeds"),
    "report": ("vitwarm.report", "data-efficiency curves from records"),
    "shards": ("vitwarm.shards.tools", "make, check and look at image shards"),
    "rules": ("vitwarm.rules.look", "look at a rule before training on it"),
    "doctor": ("vitwarm.commands.doctor", "check this machine, and which timm models work"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake is one sentence and code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"vitwarm {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        print(
            f"vitwarm: {name!r} is no command.{nearest(name, COMMANDS)} "
            f"Use one of {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        return 2
    return run_command(name, words[1:])


def run_command(name: str, words: Sequence[str]) -> int:
    """Parses one command's words and runs it."""
    module = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"vitwarm {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    # Overrides may stand before, between and behind options; argparse offers that only to parsers
    # without subcommands.
    parse = parser.parse_args if parser._subparsers else parser.parse_intermixed_args
    args = parse(list(words))
    try:
        return int(module.run(args))
    except VitwarmError as error:
        if args.debug:
            raise
        print(f"vitwarm {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nvitwarm {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vitwarm rules list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vitwarm COMMAND [--help] ...",
            "",
            "Start a vision transformer from procedural data instead of from noise.",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `vitwarm COMMAND ...`, and what every command has in common.

A command is imported only when it is asked for, so that a report needs no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vitwarm import __version__
from vitwarm.commands import COMMANDS, load_command
from vitwarm.errors import VitwarmError, nearest
from vitwarm.informing import forgive_streams

#: Commands that only show something: when the reader goes away, they have done their work.
LOOK_UPS = frozenset({"rules", "trunks", "doctor", "completion"})


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
            f"vitwarm: {name!r} is not a command.{nearest(name, COMMANDS)} "
            f"Use one of {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        return 2
    return run_command(name, words[1:])


def run_command(name: str, words: Sequence[str]) -> int:
    """Parses one command's words and runs it."""
    module, parser = load_command(name)
    # Overrides may stand before, between and behind options; argparse offers that only to parsers
    # without subcommands.
    parse = parser.parse_args if parser._subparsers else parser.parse_intermixed_args
    args = parse(list(words))
    if name not in LOOK_UPS:
        forgive_streams()
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
    except BrokenPipeError:  # `vitwarm rules list | head`: a look-up that has been looked at
        if name not in LOOK_UPS:
            raise
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

"""Print what completes the words of `vitwarm` in a shell: commands, options, fields, names.

    vitwarm completion bash > ~/.local/share/bash-completion/completions/vitwarm
    vitwarm completion zsh > ~/.vitwarm-completion

zsh reads it by a line in ~/.zshrc: source ~/.vitwarm-completion. It is made from the parsers of
this version; print it again after an upgrade.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

from vitwarm.commands import COMMANDS, load_command
from vitwarm.commands.handoff import WAYS
from vitwarm.config import list_recipes
from vitwarm.config.fields import LABEL, SCHEMAS, fields_of
from vitwarm.rules import PRESETS, RULES

_SCRIPT = """\
_vitwarm() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words=
    if [[ $COMP_CWORD == 1 ]]; then
        words={commands}
    else
        case "${{COMP_WORDS[COMP_CWORD-1]}} ${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
        "--config "*|"show configs show"|"copy configs copy") words={recipes} ;;
        "--rule "*|"show rules show"|"stats rules stats") words={rules} ;;
        *) case ${{COMP_WORDS[1]}} in
{cases}
        esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ ${{COMPREPLY[0]}} == *= ]] && type compopt >/dev/null 2>&1; then
        compopt -o nospace
    fi
}}
complete -o default -F _vitwarm vitwarm
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the shell's name."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    if args.shell == "zsh":
        print("autoload -U +X compinit bashcompinit && compinit && bashcompinit")
    print(make_script(), end="")
    return 0


def make_script() -> str:
    """Returns the function for bash; zsh runs it through its bashcompinit."""
    return _SCRIPT.format(
        commands=shlex.quote(" ".join(COMMANDS)),
        rules=shlex.quote(" ".join([*RULES, *PRESETS])),
        recipes=shlex.quote(" ".join(list_recipes())),
        cases="\n".join(
            f"            {name}) words={shlex.quote(' '.join(_words_of(name)))} ;;"
            for name in COMMANDS
        ),
    )


def _words_of(command: str) -> Iterator[str]:
    """A command's subcommands, options and the fields of its config."""
    yield from WAYS if command == "handoff" else ()
    parsers = [load_command(command)[1]]
    for action in parsers[0]._actions:
        if not action.option_strings:
            yield from action.choices or []
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    options = [word for one in parsers for action in one._actions for word in action.option_strings]
    yield from dict.fromkeys(word for word in options if word.startswith("--"))
    if command in SCHEMAS:
        names = [facts.name for facts in fields_of(SCHEMAS[command])]
        yield from (f"{name}=" for name in names if LABEL not in name)

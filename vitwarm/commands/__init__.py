"""Every command by its name, and the command lines of the stages that load torch.

A command lives in the module it belongs to, as `add_arguments(parser)` and `run(args) -> int`; what
is heavy is imported when it runs, not before.
"""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

#: Name -> (module, what it is for). The module has `add_arguments(parser)` and `run(args) -> int`.
COMMANDS = {
    "quickstart": ("vitwarm.commands.quickstart", "every stage in minutes, on digits"),
    "warmup": ("vitwarm.commands.warmup", "warm up a trunk on token sequences of a rule"),
    "handoff": ("vitwarm.commands.handoff", "give a warmed trunk a fresh patch embedding"),
    "trunks": ("vitwarm.commands.trunks", "the trunks that ship with the package"),
    "train": ("vitwarm.commands.train", "train or fine-tune an image model on shards"),
    "sweep": ("vitwarm.sweep", "arms x fractions x paired seeds"),
    "transfer": ("vitwarm.commands.transfer", "does this trunk help on my images?"),
    "report": ("vitwarm.commands.report", "data-efficiency curves from records"),
    "probe": ("vitwarm.commands.probe", "what a warm-up or a training did to the network"),
    "shards": ("vitwarm.shards.tools", "make, check and look at image shards"),
    "rules": ("vitwarm.rules.look", "look at a rule before training on it"),
    "configs": ("vitwarm.commands.configs", "recipes that ship, and every field of a config"),
    "completion": ("vitwarm.commands.completion", "tab completion for bash and zsh"),
    "doctor": ("vitwarm.commands.doctor", "check this machine, and which timm models work"),
}


def load_command(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """Imports a command's module and returns it with the parser of its words."""
    module = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"vitwarm {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    return module, parser

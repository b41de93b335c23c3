"""List the trunks that ship with the package: the names that --trunk takes.

vitwarm trunks
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the list is short."""


def run(args: argparse.Namespace) -> int:
    """Prints a line for each trunk: name, model, blocks, width, and what made it."""
    from vitwarm.commands.shared import columns
    from vitwarm.trunk import load_trunk, shipped_trunks

    rows = [("name", "model", "blocks", "width", "made by")]
    for name, path in shipped_trunks().items():
        facts = load_trunk(path).facts
        model, depth, width, source = (
            str(facts.get(fact, "?")) for fact in ("model", "depth", "width", "source")
        )
        rule = (facts.get("rule") or {}).get("name")
        rows.append((name, model, depth, width, f"rule {rule}" if rule else source))
    if len(rows) == 1:
        print("No trunk ships with this version; --trunk takes files, runs and hf-hub:OWNER/NAME.")
    else:
        print(columns(rows))
    return 0

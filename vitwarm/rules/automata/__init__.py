"""Elementary cellular automata: the rule, its recogniser, and their compiled parts."""

from vitwarm.rules.automata.rule import CellularAutomaton

__all__ = ["CellularAutomaton"]

"""Cellular automata, `elementary` and `neural`; what both share is in `cells`."""

from vitwarm.rules.automata.cells import CellRule
from vitwarm.rules.automata.elementary import CellularAutomaton
from vitwarm.rules.automata.neural import NeuralAutomaton

__all__ = ["CellRule", "CellularAutomaton", "NeuralAutomaton"]

"""Cellular automata, elementary (`rule`) and neural (`neural`), with their compiled parts."""

from vitwarm.rules.automata.neural import NeuralAutomaton
from vitwarm.rules.automata.rule import CellularAutomaton

__all__ = ["CellularAutomaton", "NeuralAutomaton"]

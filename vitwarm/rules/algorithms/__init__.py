"""Seven algorithms: what they share, what each computes, and their compiled generators."""

from vitwarm.rules.algorithms.answers import Algorithm
from vitwarm.rules.algorithms.seven import Delete, Identity, Reverse, Set, Sort, Stack, Union

__all__ = ["Algorithm", "Delete", "Identity", "Reverse", "Set", "Sort", "Stack", "Union"]

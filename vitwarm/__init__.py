"""vitwarm: start a vision transformer from procedural data instead of from noise.

Shape letters in tensor code: B batch, T tokens, P patches, D width, N heads, V ids, C classes,
H W pixels.

From a script or a notebook: `vitwarm.warm_up`, `vitwarm.attach`, `vitwarm.train`, `vitwarm.report`.
"""

import importlib
from importlib import metadata
from typing import Any

try:
    __version__ = metadata.version("vitwarm")
except metadata.PackageNotFoundError:  # a tree on the path that was never installed
    __version__ = "0+unknown"

#: What is imported only when it is asked for: torch takes seconds.
_LAZY = {
    "warm_up": "vitwarm.commands.python",
    "train": "vitwarm.commands.python",
    "attach": "vitwarm.handoff",
}

__all__ = ["__version__", "attach", "report", "train", "warm_up"]


def __getattr__(name: str) -> Any:
    if name == "report":  # a package that can be called
        return importlib.import_module("vitwarm.report")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vitwarm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

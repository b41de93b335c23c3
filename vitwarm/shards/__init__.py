"""Images in webdataset tars, exactly once.

`read`: from a source to an index. `choose`: fractions and the order. `load`: batches of pixels.
`stream`: the same where nothing can be read at random places; `loaders` decides between the two.
`write`: making, copying and checking shards. `tools`: the command.

Names load their module when they are first used: looking at an index needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitwarm.shards.choose.fraction import Subset, choose_fraction, choose_list
    from vitwarm.shards.choose.order import Order
    from vitwarm.shards.load.pixels import EvalCrop, TrainCrop
    from vitwarm.shards.load.reader import Decoded, decode_all, first_size
    from vitwarm.shards.loaders import (
        EvalLoader,
        ImageBatch,
        TrainLoader,
        make_train_loader,
        make_val_loader,
    )
    from vitwarm.shards.read.index import ShardIndex, check_classes
    from vitwarm.shards.stream.index import open_shards

#: Where names are looked for: what needs torch comes last.
_HOMES = (
    "read.index", "choose.fraction", "choose.order", "stream.index", "load.pixels", "loaders",
    "load.reader",
)  # fmt: skip

__all__ = [
    "Decoded",
    "EvalCrop",
    "EvalLoader",
    "ImageBatch",
    "Order",
    "ShardIndex",
    "Subset",
    "TrainCrop",
    "TrainLoader",
    "check_classes",
    "choose_fraction",
    "choose_list",
    "decode_all",
    "first_size",
    "make_train_loader",
    "make_val_loader",
    "open_shards",
]


def __getattr__(name: str) -> Any:
    for home in _HOMES if name in __all__ else ():
        if hasattr(module := import_module(f"{__name__}.{home}"), name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

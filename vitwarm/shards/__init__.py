"""Images in webdataset tars, exactly once: index, fractions, order, reading, writing.

Names load their module when they are first used: looking at an index needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitwarm.shards.crops import EvalCrop, TrainCrop
    from vitwarm.shards.fraction import Subset, choose_fraction, choose_list
    from vitwarm.shards.index import ShardIndex
    from vitwarm.shards.loader import (
        EvalLoader,
        ImageBatch,
        ImageLoader,
        TrainLoader,
        make_train_loader,
        make_val_loader,
    )
    from vitwarm.shards.order import Order
    from vitwarm.shards.reader import Decoded, decode_all, first_size

_HOMES = {
    "crops": ("EvalCrop", "TrainCrop"),
    "fraction": ("Subset", "choose_fraction", "choose_list"),
    "index": ("ShardIndex",),
    "loader": (
        "EvalLoader", "ImageBatch", "ImageLoader", "TrainLoader",
        "make_train_loader", "make_val_loader",
    ),
    "order": ("Order",),
    "reader": ("Decoded", "decode_all", "first_size"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Decoded",
    "EvalCrop",
    "EvalLoader",
    "ImageBatch",
    "ImageLoader",
    "Order",
    "ShardIndex",
    "Subset",
    "TrainCrop",
    "TrainLoader",
    "choose_fraction",
    "choose_list",
    "decode_all",
    "first_size",
    "make_train_loader",
    "make_val_loader",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)

"""Images in webdataset tars, exactly once: index, fractions, order, reading, writing."""

from vitwarm.shards.crops import EvalCrop, TrainCrop
from vitwarm.shards.fraction import Subset, choose_fraction, choose_list
from vitwarm.shards.index import ShardIndex
from vitwarm.shards.loader import ImageBatch, TrainLoader, make_train_loader, make_val_loader
from vitwarm.shards.order import Order
from vitwarm.shards.reader import Decoded, decode_all

__all__ = [
    "Decoded",
    "EvalCrop",
    "ImageBatch",
    "Order",
    "ShardIndex",
    "Subset",
    "TrainCrop",
    "TrainLoader",
    "choose_fraction",
    "choose_list",
    "decode_all",
    "make_train_loader",
    "make_val_loader",
]

"""The only place that knows timm's insides: build, feed tokens, what the trunk is, its files."""

from vitwarm.trunk.build import build_model, build_shapes, check_name
from vitwarm.trunk.family import (
    block_of,
    blocks_of,
    component_of,
    family_of,
    is_of_the_grid,
    name_of,
    trunk_names,
)
from vitwarm.trunk.file import Trunk, find_trunk, load_trunk, save_trunk
from vitwarm.trunk.tokens import TokenModel, patch_grid, published_scale

__all__ = [
    "TokenModel",
    "Trunk",
    "block_of",
    "blocks_of",
    "build_model",
    "build_shapes",
    "check_name",
    "component_of",
    "family_of",
    "find_trunk",
    "is_of_the_grid",
    "load_trunk",
    "name_of",
    "patch_grid",
    "published_scale",
    "save_trunk",
    "trunk_names",
]

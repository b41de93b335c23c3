"""The only place that knows timm's insides: build, feed tokens, what the trunk is, its files."""

from vitwarm.trunk.audit import Audit, AuditEntry, audit_tensors
from vitwarm.trunk.build import build_model, build_shapes, check_name
from vitwarm.trunk.export import export_model
from vitwarm.trunk.family import (
    blocks_of,
    family_of,
    heads_of,
    is_of_the_grid,
    model_facts,
    name_of,
    trunk_names,
)
from vitwarm.trunk.file import Trunk, find_trunk, load_trunk, save_trunk
from vitwarm.trunk.select import Place, choose_names, parse_blocks, place_of
from vitwarm.trunk.swap import patch_grid
from vitwarm.trunk.tokens import TokenModel
from vitwarm.trunk.vectors import published_scale

__all__ = [
    "Audit",
    "AuditEntry",
    "Place",
    "TokenModel",
    "Trunk",
    "audit_tensors",
    "blocks_of",
    "build_model",
    "build_shapes",
    "check_name",
    "choose_names",
    "export_model",
    "family_of",
    "find_trunk",
    "heads_of",
    "is_of_the_grid",
    "load_trunk",
    "model_facts",
    "name_of",
    "parse_blocks",
    "patch_grid",
    "place_of",
    "published_scale",
    "save_trunk",
    "trunk_names",
]

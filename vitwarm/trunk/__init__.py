"""The only place that knows timm's insides: build, feed tokens, what the trunk is, its files."""

from vitwarm.trunk.audit import Audit, AuditEntry, audit_tensors
from vitwarm.trunk.build import build_model, build_shapes, check_name, checkpoint_gradients
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
from vitwarm.trunk.file import Trunk, find_trunk, load_trunk, save_trunk, shipped_trunks
from vitwarm.trunk.foreign import Imported, import_weights
from vitwarm.trunk.select import Place, choose_names, parse_blocks, place_of
from vitwarm.trunk.share import push
from vitwarm.trunk.swap import patch_grid
from vitwarm.trunk.tie import read_groups, tie_blocks
from vitwarm.trunk.tokens import TokenModel
from vitwarm.trunk.vectors import published_scale

__all__ = [
    "Audit",
    "AuditEntry",
    "Imported",
    "Place",
    "TokenModel",
    "Trunk",
    "audit_tensors",
    "blocks_of",
    "build_model",
    "build_shapes",
    "check_name",
    "checkpoint_gradients",
    "choose_names",
    "export_model",
    "family_of",
    "find_trunk",
    "heads_of",
    "import_weights",
    "is_of_the_grid",
    "load_trunk",
    "model_facts",
    "name_of",
    "parse_blocks",
    "patch_grid",
    "place_of",
    "published_scale",
    "push",
    "read_groups",
    "save_trunk",
    "shipped_trunks",
    "tie_blocks",
    "trunk_names",
]

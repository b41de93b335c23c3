"""What a run is asked to do: the schema, and how recipes and overrides become it."""

from vitwarm.config.load import (
    config_hash,
    find_recipe,
    list_recipes,
    load_config,
    save_config,
    to_plain,
    with_overrides,
)  # fmt: skip
from vitwarm.config.ranges import NO_FRESH_MODEL
from vitwarm.config.reading import read_yaml, value_of
from vitwarm.config.schema import (
    DataConfig,
    HandoffConfig,
    Precision,
    RuleConfig,
    RunConfig,
    Switch,
    TrainConfig,
    TrainRun,
    WarmupConfig,
    WarmupRun,
)  # fmt: skip
from vitwarm.config.sweep import ArmConfig, SweepConfig

__all__ = [
    "NO_FRESH_MODEL", "ArmConfig", "DataConfig", "HandoffConfig", "Precision", "RuleConfig",
    "RunConfig", "SweepConfig", "Switch", "TrainConfig", "TrainRun", "WarmupConfig", "WarmupRun",
    "config_hash", "find_recipe", "list_recipes", "load_config", "read_yaml", "save_config",
    "to_plain", "value_of", "with_overrides",
]  # fmt: skip

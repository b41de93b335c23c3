"""Run folders: `record` reads what a run says of itself, `folder` writes it, `lock` guards it."""

from vitwarm.records.folder import RunFolder, code_version, count_cpus, environment, open_run
from vitwarm.records.lock import lock_folder, lock_holder
from vitwarm.records.record import (
    FORMAT,
    FoundRun,
    Record,
    read_json,
    read_metrics,
    read_records,
    read_runs,
    to_record,
)  # fmt: skip

__all__ = [
    "FORMAT", "FoundRun", "Record", "RunFolder", "code_version", "count_cpus", "environment",
    "lock_folder", "lock_holder", "open_run", "read_json", "read_metrics", "read_records",
    "read_runs", "to_record",
]  # fmt: skip

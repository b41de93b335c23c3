"""Train an image model on shards: python scripts/train.py --config FILE (same as vitwarm train)."""

import sys

from vitwarm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))

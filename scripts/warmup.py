"""Warm up a trunk: python scripts/warmup.py --rule dyck --budget 0.01 (same as vitwarm warmup)."""

import sys

from vitwarm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("warmup", sys.argv[1:]))

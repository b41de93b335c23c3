"""Arms x fractions x seeds: python scripts/sweep.py --config FILE (same as vitwarm sweep)."""

import sys

from vitwarm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("sweep", sys.argv[1:]))

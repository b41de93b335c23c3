"""Every stage in minutes: python scripts/quickstart.py (same as vitwarm quickstart)."""

import sys

from vitwarm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("quickstart", sys.argv[1:]))

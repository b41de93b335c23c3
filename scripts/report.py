"""Records to a report: python scripts/report.py RUNS --out DIR (same as vitwarm report)."""

import sys

from vitwarm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("report", sys.argv[1:]))

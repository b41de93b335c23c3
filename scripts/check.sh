#!/usr/bin/env bash
# The one definition of green: format, lint, types, tests. `scripts/check.sh --fast` leaves the tests out.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m ruff format --check .
python -m ruff check .
python -m mypy
if [ "${1:-}" != "--fast" ]; then
  python -m pytest
fi
echo "all green"

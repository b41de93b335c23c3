"""Image folder (or scikit-learn's digits) to webdataset shards.

  python scripts/make_shards.py FOLDER OUT --val FOLDER
  python scripts/make_shards.py --digits OUT

The same as `vitwarm shards make`; data/README.md tells how to get ImageNet-1k this way.
"""

import sys

from vitwarm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("shards", ["make", *sys.argv[1:]]))

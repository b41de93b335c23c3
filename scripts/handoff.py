"""Give a warmed trunk a fresh patch embedding: the same as `vitwarm handoff`.

python scripts/handoff.py RUN --model vit_tiny_patch16_224 --out DIR
"""

import sys

from vitwarm.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("handoff", sys.argv[1:]))

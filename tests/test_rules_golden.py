"""Golden digests: the sequences and hidden positions of every rule never change by accident.

python tests/test_rules_golden.py     rewrites tests/golden/rules.json; say why in the commit
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitwarm.rules import PRESETS, RULES, make_rule
from vitwarm.rules.masking import make_batch

GOLDEN = Path(__file__).parent / "golden" / "rules.json"

#: name, parameters, tokens: every rule, preset and branch of a generator.
CASES: list[tuple[str, dict[str, Any], int]] = [
    *((name, {}, 64) for name in RULES if name not in ("shuffled", "mixture", "curriculum")),
    *((name, {}, 196) for name in PRESETS),
    ("shuffled:dyck", {"n_kinds": 8}, 17),
    ("shuffled:union", {}, 64),
    ("dyck", {"n_kinds": 3, "max_depth": 2, "ending": "truncated"}, 17),
    ("shuffle-dyck", {"max_depth": 5, "ending": "truncated"}, 33),
    ("shuffle-dyck", {"closing": "types"}, 64),
    ("copy", {"pairs": "packed", "hidden": "second"}, 64),
    ("eca", {"rule": 30, "boundary": "zero", "burn_in": 3, "width": 40}, 49),
    ("eca", {"density": 0.3, "grid": [3, 7], "hidden": "last_rows"}, 25),
    ("nca", {"n_states": 3, "frame": [3, 5], "hidden": "last_frame"}, 64),
    ("nca", {"n_states": 8, "complexity": [0.7, 0.9], "burn_in": 2}, 196),
    ("mixture", {"of": ["dyck", "set", "eca"], "weights": [0.5, 0.3, 0.2]}, 37),
    ("mixture", {"of": ["dyck", "shuffled:copy"], "ids": "disjoint"}, 37),
    ("curriculum", {"of": ["sort", "reverse"], "n_sequences": 120, "ids": "disjoint"}, 37),
]


def _key(name: str, params: dict[str, Any], n_tokens: int) -> str:
    return f"{name} {json.dumps(params, sort_keys=True)} {n_tokens}"


def _digest(name: str, params: dict[str, Any], n_tokens: int, *, cut: int, n_threads: int) -> str:
    """Digests 100 rows, made in two batches that meet at `cut`."""
    rule = make_rule(name, **params)
    n_words = rule.fit_length(n_tokens)
    digest = hashlib.blake2b(digest_size=16)
    spans = [(0, cut), (cut, 100)]
    ids = [rule.sample(11, a, b - a, n_words, n_threads=n_threads) for a, b in spans]
    batches = [
        make_batch(rule, seed=11, start=a, n_sequences=b - a, n_tokens=n_tokens) for a, b in spans
    ]
    for parts in (ids, [b.input_ids for b in batches], [b.target_ids for b in batches]):
        digest.update(np.concatenate(parts).astype("<i2").tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("name", "params", "n_tokens"), CASES, ids=lambda v: str(v))
def test_sequences_are_the_golden_ones(name: str, params: dict[str, Any], n_tokens: int) -> None:
    golden = json.loads(GOLDEN.read_text())[_key(name, params, n_tokens)]
    assert _digest(name, params, n_tokens, cut=100, n_threads=1) == golden
    assert _digest(name, params, n_tokens, cut=37, n_threads=3) == golden


if __name__ == "__main__":
    found = {_key(*case): _digest(*case, cut=100, n_threads=1) for case in CASES}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")

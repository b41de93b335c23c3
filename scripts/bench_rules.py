"""How fast the rules generate, beside the Python loop that one would write first.

    python scripts/bench_rules.py                    # every rule at 196 tokens
    python scripts/bench_rules.py --rule dyck --rule shuffle-dyck

One JSON line per rule. Timed in interleaved rounds in one process, medians over rounds. What runs
on one thread is counted per second of its CPU time, so that a busy machine does not blur it:

    tokens_per_second             the rule on one thread, into a reused buffer
    batch_tokens_per_second       whole masked batches of 256 (`make_batch`), one thread
    loop_tokens_per_second        the plain loop, over `random.random` and lists
    over_loop                     the first over the last, median of the rounds' ratios
    all_cores_tokens_per_second   the rule on all cores of this process, per second of wall time
    all_over_one                  the same over one thread's, both per second of wall time
    cores_got                     CPU time over wall time while it ran: below `cores`, others ran

`memory_growth_mb` is how much the process's resident memory grew, at most, while a million
sequences went through one buffer of 4,096; `peak_memory_mb` is the whole process, numba included.
A round of fewer sequences ends before the kernel has moved a new thread to a free core.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitwarm.errors import VitwarmError
from vitwarm.rules import RULES, Rule, make_rule, rule_config
from vitwarm.rules.masking import make_batch

#: Parameters where a rule has no defaults.
NEEDED: dict[str, dict[str, Any]] = {
    "shuffled": {"of": "dyck"},
    "mixture": {"of": ["dyck", "set"]},
    "curriculum": {"of": ["dyck", "shuffle-dyck"], "n_sequences": 1_000_000},
}

#: Variants that run other code than a rule's defaults.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dyck", {"max_depth": 4, "ending": "truncated"}),
    ("shuffle-dyck", {"closing": "types", "max_depth": 16, "ending": "truncated"}),
    ("copy", {"pairs": "packed", "n_symbols": 64}),
    ("eca", {"tokens": "block"}),
]

draw = random.random


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line per rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rule", action="append", help="default: every rule, and some variants")
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument("--sequences", type=int, default=200_000, help="per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=int, default=1_000_000, help="sequences; 0: not measured")
    args = parser.parse_args(argv)
    named = [(name, NEEDED.get(name, {})) for name in args.rule or RULES]
    try:
        for name, params in named + ([] if args.rule else VARIANTS):
            print(json.dumps(bench(make_rule(name, **params), args)), flush=True)
    except VitwarmError as error:
        print(f"bench_rules: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def bench(rule: Rule, args: argparse.Namespace) -> dict[str, Any]:
    """Times one rule."""
    n_tokens = rule.fit_length(args.tokens)
    out = np.empty((args.sequences, n_tokens), dtype=np.int16)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    loop = LOOPS[rule.name]
    n_loop, n_batches = max(1, args.sequences // 500), max(1, args.sequences // 256)

    def batches() -> None:
        for i in range(n_batches):
            make_batch(rule, seed=1, start=256 * i, n_sequences=256, n_tokens=args.tokens)

    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "one": (lambda: rule.sample(1, 0, args.sequences, n_tokens, out), args.sequences),
        "all": (
            lambda: rule.sample(1, 0, args.sequences, n_tokens, out, n_threads=cores),
            args.sequences,
        ),
        "batch": (batches, 256 * n_batches),
        "loop": (lambda: [loop(rule, n_tokens, i) for i in range(n_loop)], n_loop),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    over_one, got = [], []
    for name, (work, _) in contenders.items():  # compiled, and the caches warm
        if name != "loop":
            work()
    for _ in range(args.rounds):
        walls, busy = {}, {}
        for name, (work, n_sequences) in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            walls[name], busy[name] = time.perf_counter() - wall, time.process_time() - cpu
            seconds = walls[name] if name == "all" else busy[name]
            speeds[name].append(n_sequences * n_tokens / seconds)
        over_one.append(walls["one"] / walls["all"])
        got.append(busy["all"] / walls["all"])
    over_loop = [a / b for a, b in zip(speeds["one"], speeds["loop"], strict=True)]
    return {
        "rule": rule.name,
        "params": rule_config(rule)["params"],
        "n_tokens": n_tokens,
        "tokens_per_second": round(statistics.median(speeds["one"])),
        "tokens_per_second_range": [round(min(speeds["one"])), round(max(speeds["one"]))],
        "cores": cores,
        "all_cores_tokens_per_second": round(statistics.median(speeds["all"])),
        "all_over_one": round(statistics.median(over_one), 2),
        "all_over_one_range": [round(min(over_one), 2), round(max(over_one), 2)],
        "cores_got": round(statistics.median(got), 2),
        "batch_tokens_per_second": round(statistics.median(speeds["batch"])),
        "loop_tokens_per_second": round(statistics.median(speeds["loop"])),
        "over_loop": round(statistics.median(over_loop), 1),
        "over_loop_range": [round(min(over_loop), 1), round(max(over_loop), 1)],
        **measure_memory(rule, n_tokens, args.memory),
    }


def measure_memory(rule: Rule, n_tokens: int, n_sequences: int) -> dict[str, Any]:
    """Generates many sequences through one buffer and says how much the peak grew."""
    buffer = np.empty((4096, n_tokens), dtype=np.int16)
    rule.sample(2, 0, len(buffer), n_tokens, buffer)
    before = most = _resident_mb()
    for start in range(0, n_sequences, len(buffer)):
        rule.sample(2, start, len(buffer), n_tokens, buffer)
        most = max(most, _resident_mb())
    return {
        "peak_memory_mb": round(_peak_mb()),
        "memory_growth_mb": round(most - before, 1) if n_sequences else None,
    }


def _resident_mb() -> float:
    """Memory that the process holds now; where the kernel does not tell, the most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak_mb()
    return pages * resource.getpagesize() / 2**20


def _peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


# The loops: what one writes first, one token after the other.


def loop_dyck(rule: Any, n_tokens: int, index: int) -> list[int]:
    """A stack, and a draw wherever both are possible."""
    k, p, cap, balanced = rule.n_kinds, rule.p_open, rule.cap, rule.ending == "balanced"
    ids: list[int] = []
    stack: list[int] = []
    for t in range(n_tokens):
        if stack and (
            len(stack) >= cap or (balanced and n_tokens - t <= len(stack)) or draw() >= p
        ):
            ids.append(stack.pop() + k)
        else:
            kind = int(draw() * k)
            stack.append(kind)
            ids.append(kind)
    return ids


def loop_shuffle_dyck(rule: Any, n_tokens: int, index: int) -> list[int]:
    """Counts of open brackets per kind, and a draw over the open ones."""
    k, p, cap, balanced = rule.n_kinds, rule.p_open, rule.cap, rule.ending == "balanced"
    ids: list[int] = []
    opened = [0] * k
    depth = 0
    for t in range(n_tokens):
        if depth and (depth >= cap or (balanced and n_tokens - t <= depth) or draw() >= p):
            kinds = [kind for kind in range(k) if opened[kind]]
            weights = [opened[kind] for kind in kinds] if rule.closing == "brackets" else None
            kind = random.choices(kinds, weights)[0]
            opened[kind] -= 1
            depth -= 1
            ids.append(kind + k)
        else:
            kind = int(draw() * k)
            opened[kind] += 1
            depth += 1
            ids.append(kind)
    return ids


def loop_copy(rule: Any, n_tokens: int, index: int) -> list[int]:
    """A word, twice, until the sequence is full."""
    ids: list[int] = []
    while len(ids) < n_tokens:
        left = (n_tokens - len(ids)) // 2
        shortest, longest = min(left, rule.min_length), min(left, rule.max_length)
        length = left if rule.pairs == "one" else random.randint(shortest, longest)
        ids += 2 * [int(draw() * rule.n_symbols) for _ in range(length)]
    return ids


def _x(rule: Any, length: int) -> list[int]:
    return [1 + int(draw() * rule.n_symbols) for _ in range(length)]


def _row(rule: Any, n_tokens: int, parts: list[list[int]]) -> list[int]:
    ids = parts[0]
    for part in parts[1:]:
        ids = [*ids, rule.separator_id, *part]
    return ids + [rule.pad_id] * (n_tokens - len(ids))


def loop_algorithm(rule: Any, n_tokens: int, index: int) -> list[int]:
    """x, and its answer by Python's own functions."""
    x = _x(rule, rule.question_length(n_tokens))
    if rule.name == "union":
        half = len(x) // 2
        return _row(rule, n_tokens, [x[:half], x[half:], list(dict.fromkeys(x))])
    if rule.name == "delete":
        d, y = _x(rule, 1), list(x)
        if d[0] in y:
            y.remove(d[0])
        return _row(rule, n_tokens, [x, d, y])
    answers: dict[str, Callable[[], list[int]]] = {
        "identity": lambda: x,
        "reverse": lambda: x[::-1],
        "sort": lambda: sorted(x),
        "set": lambda: list(dict.fromkeys(x)),
    }
    return _row(rule, n_tokens, [x, answers[rule.name]()])


def loop_stack(rule: Any, n_tokens: int, index: int) -> list[int]:
    """Operations on a list; a symbol that is on the stack is drawn again."""
    length = rule.question_length(n_tokens)
    operations: list[int] = []
    stack: list[int] = []
    for t in range(length):
        p_push = 0.75 if 3 * t < 2 * length else 0.25
        if len(stack) <= 1 or (t < length - 1 and draw() < p_push):
            symbol = 1 + int(draw() * rule.n_symbols)
            while symbol in stack:
                symbol = 1 + int(draw() * rule.n_symbols)
            stack.append(symbol)
            operations.append(symbol)
        else:
            stack.pop()
            operations.append(0)
    return _row(rule, n_tokens, [operations, stack[::-1]])


def loop_eca(rule: Any, n_tokens: int, index: int) -> list[int]:
    """One cell after the other, looked up in the rule's table."""
    _, columns, width = rule.plane(n_tokens)
    table = [(rule.rule >> i) & 1 for i in range(8)]
    density = draw()
    cells = [int(draw() < density) for _ in range(width)]
    ids: list[int] = []
    size = rule.patch[1]
    while True:
        for begin in range(0, columns * size, size):
            token = 0
            for cell in cells[begin : begin + size]:
                token = 2 * token + cell
            ids.append(token)
        if len(ids) >= n_tokens:
            return ids
        cells = [
            table[4 * cells[i - 1] + 2 * cells[i] + cells[(i + 1) % width]] for i in range(width)
        ]


def loop_nca(rule: Any, n_tokens: int, index: int) -> list[int]:
    """One cell after the other: nine rows of the first layer's table, then the second layer."""
    n, (rows, columns) = rule.n_states, rule.frame_of(n_tokens)
    height, width = 2 * rows, 2 * columns
    weight = functools.partial(random.randrange, -128, 128)
    while True:
        first = [[[weight() for _ in range(4)] for _ in range(n)] for _ in range(9)]
        second = [[weight() for _ in range(4)] for _ in range(n)]
        cells = [random.randrange(n) for _ in range(height * width)]
        ids: list[int] = []
        while True:
            for y, x in itertools.product(range(0, height, 2), range(0, width, 2)):
                token = 0
                for place in (0, 1, width, width + 1):
                    token = n * token + cells[y * width + x + place]
                ids.append(token)
            if len(ids) >= n_tokens:
                break
            new = []
            for y, x in itertools.product(range(height), range(width)):
                units = [0] * 4
                for k in range(9):
                    there = (y + k // 3 - 1) % height * width + (x + k % 3 - 1) % width
                    units = [u + w for u, w in zip(units, first[k][cells[there]], strict=True)]
                units = [max(u, 0) for u in units]
                outs = [sum(u * w for u, w in zip(units, row, strict=True)) for row in second]
                new.append(outs.index(max(outs)))
            cells = new
        runs = {tuple(ids[t : t + 3]) for t in range(n_tokens - 2)}
        low, high = rule.complexity
        if low * n_tokens <= len(runs) <= high * n_tokens:
            return ids


def loop_random(rule: Any, n_tokens: int, index: int) -> list[int]:
    """Draws."""
    return [int(draw() * rule.n_symbols) for _ in range(n_tokens)]


def loop_shuffled(rule: Any, n_tokens: int, index: int) -> list[int]:
    """Python's own shuffle."""
    ids = LOOPS[rule.of.name](rule.of, n_tokens, index)
    random.shuffle(ids)
    return ids


def loop_blend(rule: Any, n_tokens: int, index: int) -> list[int]:
    """A draw, then that member's loop."""
    member = random.choices(rule.of, rule.member_shares)[0]
    return LOOPS[member.name](member, n_tokens, index)


LOOPS: dict[str, Callable[[Any, int, int], list[int]]] = {
    "dyck": loop_dyck,
    "shuffle-dyck": loop_shuffle_dyck,
    "copy": loop_copy,
    **dict.fromkeys(("identity", "reverse", "sort", "set", "union", "delete"), loop_algorithm),
    "stack": loop_stack,
    "eca": loop_eca,
    "nca": loop_nca,
    "random": loop_random,
    "shuffled": loop_shuffled,
    "mixture": loop_blend,
    "curriculum": loop_blend,
}


if __name__ == "__main__":
    sys.exit(main())

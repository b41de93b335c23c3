"""Look at a rule before training on it.

    vitwarm rules list
    vitwarm rules show dyck n_kinds=8 --n 3
    vitwarm rules stats dyck max_depth=4 --json --picture dyck.png

Parameters follow the rule's name. Hidden tokens are shown in reverse on a terminal, and with a ^
below them elsewhere (NO_COLOR is honoured).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vitwarm.config.ranges import whole_number
from vitwarm.errors import RuleError
from vitwarm.rules.base import Rule
from vitwarm.rules.look.draw import draw_sequence
from vitwarm.rules.make import RULES, find_preset, make_rule, plain, rule_config
from vitwarm.rules.masking import make_batch
from vitwarm.rules.presets import PRESETS
from vitwarm.rules.stats import rule_stats


class _Intermixed(argparse.ArgumentParser):
    """A subparser whose options may stand between its words, as in `show dyck --n 3 n_kinds=8`."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses words and options in any order; argparse offers that to outer parsers only."""
        if self._inside:  # parse_known_intermixed_args comes back here for its two passes
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the words of `vitwarm rules`."""
    commands = parser.add_subparsers(
        dest="look", required=True, metavar="list | show | stats", parser_class=_Intermixed
    )
    listing = commands.add_parser("list", help="every rule, its parameters, and the presets")
    listing.add_argument("--json", action="store_true", help="as JSON")
    for name, tokens, n, help_text in (
        ("show", 64, 3, "draw some sequences, hidden tokens marked"),
        ("stats", 196, 512, "depths, distances, entropy, trivial predictors, the ceiling"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("rule", help="a rule, an alias or a preset; shuffled:RULE its control")
        command.add_argument("params", nargs="*", metavar="KEY=VALUE", help="its parameters")
        command.add_argument("--n", type=int, default=n, help=f"sequences (default {n})")
        command.add_argument("--tokens", type=int, default=tokens, help=f"default {tokens}")
        command.add_argument("--seed", type=whole_number(), default=0)
        command.add_argument("--hide-share", type=float, help="default: the rule's own")
        if name == "show":
            command.add_argument("--start", type=int, help="number of the first sequence")
        else:
            command.add_argument("--json", action="store_true", help="as JSON")
            command.add_argument("--picture", type=Path, metavar="FILE", help="png, svg or pdf")


def run(args: argparse.Namespace) -> int:
    """Runs `vitwarm rules`."""
    if args.look == "list":
        print(json.dumps(_catalogue(), indent=1) if args.json else _list())
        return 0
    rule = make_rule(args.rule, **_read_params(args.params))
    if args.n < 1:
        raise RuleError(f"--n is {args.n}; at least 1 sequence is needed.")
    if args.look == "show":
        print("\n".join(_show(rule, args)))
        return 0
    stats = rule_stats(
        rule, seed=args.seed, n_sequences=args.n, n_tokens=args.tokens, hide_share=args.hide_share
    )
    if args.picture:
        from vitwarm.rules.look.picture import save_picture  # matplotlib takes a second to load

        save_picture(rule, stats, args.picture, hide_share=args.hide_share)
    print(json.dumps(stats, indent=1) if args.json else "\n".join(format_stats(stats)))
    return 0


def _read_params(words: list[str]) -> dict[str, Any]:
    for word in words:
        if "=" not in word:
            raise RuleError(f"{word!r} is not a parameter; write KEY=VALUE, such as n_kinds=8.")
    try:
        read = OmegaConf.from_dotlist([word.removeprefix("rule.params.") for word in words])
        return {str(key): value for key, value in OmegaConf.to_object(read).items()}  # type: ignore[union-attr]
    except (OmegaConfBaseException, YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise RuleError(f"{' '.join(words)!r} cannot be read as parameters: {reason}.") from None


def _catalogue() -> dict[str, Any]:
    rules = {}
    for name, kind in RULES.items():
        fields = dataclasses.fields(kind)  # type: ignore[arg-type]
        rules[name] = {
            "what": (kind.__doc__ or "").strip().splitlines()[0],
            "aliases": list(kind.aliases),
            "params": {
                f.name: "needed" if f.default is dataclasses.MISSING else plain(f.default)
                for f in fields
            },
        }
    return {"rules": rules, "presets": {name: vars(preset) for name, preset in PRESETS.items()}}


def _list() -> str:
    found = _catalogue()
    lines = []
    for name, facts in found["rules"].items():
        also = f"  (also {', '.join(facts['aliases'])})" if facts["aliases"] else ""
        params = " ".join(f"{k}={'none' if v is None else v}" for k, v in facts["params"].items())
        lines += [f"{name}{also}", f"    {facts['what']}", f"    {params}"]
    lines += ["", "Presets: what published code runs"]
    width = max(map(len, found["presets"]))
    for name, preset in found["presets"].items():
        params = " ".join(f"{k}={v}" for k, v in preset["params"].items())
        lines += [f"  {name:<{width}}  {preset['source']}"]
        lines += [f"  {'':<{width}}  {preset['rule']} {params}".rstrip()]
    lines += ["", "Controls: shuffled:RULE, the same tokens in a random order"]
    return "\n".join(lines)


def _show(rule: Rule, args: argparse.Namespace) -> list[str]:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    columns = shutil.get_terminal_size((100, 24)).columns
    n_tokens = rule.fit_length(args.tokens)
    start = rule.evaluation_start if args.start is None else args.start
    batch = make_batch(
        rule, seed=args.seed, start=start, n_sequences=args.n, n_tokens=n_tokens,
        hide_share=args.hide_share,
    )  # fmt: skip
    preset = find_preset(rule)
    lines = [
        json.dumps(rule_config(rule)) + (f"  = preset {preset}" if preset else ""),
        f"{n_tokens} tokens, {rule.n_ids} ids",
    ]
    rows = np.arange(start, start + args.n, dtype=np.uint64)
    members = {
        place: (part, offset)
        for part, places, offset in rule.parts(args.seed, rows)
        for place in places.tolist()
    }
    for row, (ids, hidden) in enumerate(zip(batch.ids, batch.hidden, strict=True)):
        member, offset = members[row]
        own = "" if member is rule else f"  {member.name}"
        lines += ["", f"sequence {start + row}: {int(hidden.sum())} hidden{own}"]
        lines += draw_sequence(
            member, ids - np.int16(offset), hidden, columns=columns, colour=colour
        )
    return lines


def format_stats(stats: dict[str, Any]) -> list[str]:
    """Returns the numbers of `rule_stats` as the lines of a table."""
    ids, hidden, ceiling = stats["ids"], stats["hidden"], stats["ceiling"]
    rows: list[tuple[str, str]] = [
        ("rule", json.dumps(stats["rule"])),
        ("preset", stats["preset"] or "none"),
        (
            "measured on",
            f"{stats['n_sequences']:,} sequences of {stats['n_tokens']} tokens"
            + (f", from row {stats['start']:,}: the last stage" if stats["start"] else ""),
        ),
        ("ids", f"{ids['used']} of {ids['n_ids']} used, {ids['entropy_bits']:.2f} bits"),
        ("pads", f"{ids['pad_share']:.1%} of the tokens"),
        (
            "hidden",
            f"{hidden['share']:.1%} of the tokens, {hidden['mean_per_sequence']:.1f} a sequence, "
            f"{hidden['ids_used']} ids, {hidden['entropy_bits']:.2f} bits",
        ),
    ]
    if stats["outside_band"] is not None:
        rows.append(("complexity outside the band", f"{100 * stats['outside_band']:.1f} %"))
    if stats["brackets"]:
        rows += _bracket_rows(stats["brackets"])
    near = stats["equal_id_distance"]
    if near["mean"] is not None:
        text = f"{_distances(near)}; none {near['none_share']:.0%}"
        rows.append(("to an equal visible id", text))
    gzip = stats["gzip"]
    text = f"{gzip['ratio']:.1%} of the bytes, {gzip['over_shuffled']:.1%} of that of shuffled ids"
    rows.append(("gzip", text))
    rows += [(f"  {name}", f"{share:.1%} right") for name, share in stats["predictors"].items()]
    rows.append(("  order-blind baseline", f"at most {stats['order_blind']:.1%} right"))
    low, high = ceiling["low"], ceiling["high"]
    reach = f"{high:.1%} right" if low == high else f"{low:.1%} to {high:.1%} right"
    rows.append(("  ceiling", f"{reach} ({ceiling['method']})"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _bracket_rows(brackets: dict[str, Any]) -> list[tuple[str, str]]:
    profile = brackets["depth_profile"]
    at = [round(i * (len(profile) - 1) / 7) for i in range(8)]
    sd = brackets["sd_max_depth"]
    adjacent = brackets["adjacent_share"]
    return [
        ("largest depth", f"{brackets['mean_max_depth']:.1f}" + (f" (sd {sd:.1f})" if sd else "")),
        ("depth along the way", "  ".join(f"{profile[i]:.1f}" for i in at)),
        ("closing run at the end", f"{brackets['mean_closing_run']:.1f} tokens"),
        ("match distance", _distances(brackets["match_distance"])),
        ("closed by the next token", "none" if adjacent is None else f"{adjacent:.0%}"),
    ]


def _distances(found: dict[str, float | None]) -> str:
    if found["mean"] is None:
        return "none"
    return (
        f"median {found['median']:.0f}, mean {found['mean']:.1f}, "
        f"90 % {found['p90']:.0f}, 99 % {found['p99']:.0f}"
    )

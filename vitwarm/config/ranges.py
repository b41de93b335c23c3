"""What a field may hold: its words in messages and in the reference, and the test of a value.

Declared on the field itself, checked (`check`) wherever a config is made. Beyond the highest number
a value is a slip of the keyboard or of units, not a wish.
"""

from __future__ import annotations

import argparse
import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitwarm.errors import ConfigError
from vitwarm.units import BUDGET_WORDS, read_budget

#: The highest number of a field that declares none.
HIGHEST = 10**9
#: Of a plain name.
MOST_LETTERS = 100
#: Seeds are whole numbers from 0; generators take 63 bits.
HIGHEST_SEED = 2**63 - 1

#: Arguments of timm.create_model that would make another thing than a fresh model, nowhere taken.
_FRESH = "the model starts fresh; to start from weights use handoff.init, or start_from in Python"
NO_FRESH_MODEL = {
    **dict.fromkeys(
        ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"), _FRESH
    ),
    "features_only": "a model without its head has nothing to learn from here",
}
#: Those that fields of every run say.
_OF_A_RUN = {
    **NO_FRESH_MODEL,
    "seed": "use seed",
    "device": "use run.device",
    "dtype": "parameters are float32; use warmup.precision or train.precision for the arithmetic",
}
#: Those that have no place in a warm-up.
OF_A_WARMUP = {
    **_OF_A_RUN,
    "num_classes": "the warm-up makes no classifier; use train.num_classes",
    "in_chans": "the warm-up sees no images",
}
#: Those that a field of the training says.
OF_A_TRAINING = {
    **_OF_A_RUN,
    "num_classes": "use train.num_classes, or leave it to the shards",
    "img_size": "use train.img_size",
    "drop_path_rate": "use train.drop_path",
}

_END, _INDEX = r"\s*(?:-?\d{1,9})?\s*", r"-?\d{1,9}"
_BLOCKS = re.compile(rf"{_END}:{_END}(:{_END})?|\s*{_INDEX}(\s*,\s*{_INDEX})*\s*")


@dataclass(frozen=True)
class Allowed:
    """What a field may hold beyond its type."""

    words: str
    """Behind the type's own: `a number` + `above 0 and at most 1`."""
    holds: Callable[[Any], bool]
    percent: bool = False
    """`10%` means 0.1."""
    explain: Callable[[str, Any], str] | None = None
    """The sentence about a field (dotted) and its value, where the usual one would not help."""


def ranged(default: Any, allowed: Allowed, *, free: bool = False) -> Any:
    """A dataclass field with its declaration.

    Args:
        free: it does not change the result and so stays out of the config's hash.
    """
    metadata = {"allowed": allowed, "hashed": not free}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def free(default: Any) -> Any:
    """A field whose type says all (a switch, a choice), and which stays out of the hash."""
    return field(default=default, metadata={"hashed": False})


def later(declared: Any) -> Any:
    """A field that came when runs existed already, with what was done before as its default.

    Only another value is hashed: a run that began without the field is found and goes on.
    """
    made = {"default": declared.default, "default_factory": declared.default_factory}
    return field(**made, metadata={**declared.metadata, "hashed": "changed"})


def number(default: Any, *, percent: bool = False, free: bool = False, **bounds: float) -> Any:
    """A finite number; it may have its bounds `least` and `most`, but not `above` and `below`."""
    words, holds = _bounds(**bounds)
    return ranged(default, Allowed(words, holds, percent=percent), free=free)


def positive(default: Any, *, most: float = HIGHEST, free: bool = False) -> Any:
    """A number above 0."""
    return number(default, above=0, most=most, free=free)


def share(default: Any) -> Any:
    """A share that is not nothing: above 0 and at most 1."""
    return number(default, above=0, most=1, percent=True)


def unit(default: Any) -> Any:
    """A probability: from 0 to 1."""
    return number(default, least=0, most=1, percent=True)


def unit_below_one(default: Any) -> Any:
    """From 0 to below 1: what at 1 would leave nothing, or change nothing ever."""
    return number(default, least=0, below=1, percent=True)


def alpha(default: Any) -> Any:
    """Alpha of a symmetric Beta distribution; 0: off. Far below 0.001 its draws are no numbers."""
    words = "that is 0 (off), or from 0.001 to 100"
    return ranged(default, Allowed(words, lambda value: value == 0 or 0.001 <= value <= 100))


def a_seed(default: Any) -> Any:
    """A seed."""
    return number(default, least=0, most=HIGHEST_SEED)


def whole_number(*, most: int = HIGHEST_SEED) -> Callable[[str], int]:
    """Reads a whole number from 0, a seed for one, of the command line: a type of argparse's."""

    def read(text: str) -> int:
        try:
            if 0 <= (value := int(text)) <= most:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {most:,}")

    return read


def numbers(default: Any, *, n: tuple[int, ...], ascending: bool = False, **bounds: float) -> Any:
    """A list of one of the lengths `n`, each number between the bounds, ascending if asked."""
    words, holds = _bounds(**bounds)
    lengths = " or ".join({2: "two", 3: "three"}[k] for k in n)
    order = ", the lower one first" if ascending else ""

    def all_hold(values: Any) -> bool:
        good = len(values) in n and all(map(holds, values))
        return good and (not ascending or list(values) == sorted(values))

    return ranged(default, Allowed(f"of {lengths} numbers, each {words}{order}", all_hold))


def sides(default: Any, *, most: int) -> Any:
    """Pixels of both sides of an image, or [height, width]; OmegaConf knows no type of both."""
    words = f"a whole number above 0 and at most {most:,}, or two such numbers: [height, width]"

    def holds(value: Any) -> bool:
        given = value if isinstance(value, list) else [value]
        return len(given) in (1, 2) and all(type(n) is int and 0 < n <= most for n in given)

    return ranged(default, Allowed(words, holds))


def some_seeds(default: list[int]) -> Any:
    """A list of at least one seed, each once."""
    words, holds = _bounds(least=0, most=HIGHEST_SEED)

    def all_hold(values: Any) -> bool:
        return 0 < len(values) == len(set(values)) and all(map(holds, values))

    return ranged(default, Allowed(f"of one or more seeds, each {words} and given once", all_hold))


def some_of(default: list[str], known: tuple[str, ...], *, free: bool = False) -> Any:
    """A list of known names, each once."""
    words = f"of {', '.join(known[:-1])} and {known[-1]}, each at most once"
    allowed = Allowed(words, lambda values: len(values) == len(set(values) & set(known)))
    return ranged(default, allowed, free=free)


def line(default: Any, *, free: bool = False) -> Any:
    """Text on one line that is not empty: a name of something, a path, an address."""
    return ranged(default, Allowed("on one line, not empty", _is_line), free=free)


def plain_name(default: str | None, *, free: bool = False) -> Any:
    """A name that one folder can have, on any system."""
    words = f"of 1 to {MOST_LETTERS} letters that can name a folder on any system: "
    words += "no / \\ : * ? or quotes"
    return ranged(default, Allowed(words, is_plain), free=free)


def some_blocks(default: str | None) -> Any:
    """A slice or a list of indices."""
    words = "that is a slice such as -4: or a list such as 0,1,2"
    return ranged(default, Allowed(words, lambda value: bool(_BLOCKS.fullmatch(value))))


def a_budget(default: str) -> Any:
    """The length of a warm-up, see `vitwarm.units.read_budget`."""

    def fault(value: str) -> str:
        try:
            read_budget(value)
        except ConfigError as error:
            return str(error)
        return ""

    allowed = Allowed(
        f"that is {BUDGET_WORDS}", lambda value: not fault(value), explain=lambda _, v: fault(v)
    )
    return ranged(default, allowed)


def arguments(reserved: Mapping[str, str] | None = None) -> Any:
    """Arguments of something by their names; `reserved`: name -> what to use instead of it."""
    kept = dict(reserved or {})

    def bad_names(value: Any) -> list[str]:
        return [str(key) for key in value if not str(key).isidentifier() or key in kept]

    def explain(name: str, value: Any) -> str:
        """`{depth:3}` is one key without a value to YAML: a blank is missing."""
        key = bad_names(value)[0]
        if key in kept:
            return f"{name} has the key {key!r}, which has no place there: {kept[key]}."
        return (
            f"{name} has the key {key!r}, which is not an argument's name. "
            f"Write {{depth: 3}} with a blank after the colon, or {name}.depth=3."
        )

    words = "of arguments by their names" + (f"; not {', '.join(kept)}" if kept else "")
    return ranged({}, Allowed(words, lambda value: not bad_names(value), explain=explain))


def settings() -> Any:
    """Dotted fields of another config -> values, which are checked when they are merged with it."""
    return _entries({}, "of dotted fields to values", lambda key, value: _is_line(str(key)))


def labelled(default: dict[str, Any]) -> Any:
    """Labels -> sections. A label is one plain name: it stands in tables and commands."""

    def explain(name: str, value: Any) -> str:
        label = next(key for key in value if not is_plain(key))
        return (
            f"{name} has the label {label!r}; give it a plain name, without / \\ : * ? or quotes."
        )

    words = "of plain names, each of one folder, to arms"
    return _entries(default, words, lambda key, value: is_plain(key), explain)


def seeds_per_fraction() -> Any:
    """Fraction -> how many seeds."""
    words = "of fractions, above 0 and at most 1, to numbers of seeds from 1"
    return _entries({}, words, lambda key, value: 0 < key <= 1 <= value <= HIGHEST)


def sbatch_options() -> Any:
    """Options of sbatch by their long names."""
    words = "of sbatch's long option names to one value each (true: an option without value)"

    def holds(key: Any, value: Any) -> bool:
        is_number = isinstance(value, int | float)
        is_scalar = math.isfinite(value) if is_number else value is None or _is_line(value)
        return bool(re.fullmatch(r"-{0,2}[A-Za-z][\w-]+", str(key))) and is_scalar

    return _entries({}, words, holds)


def is_plain(value: Any) -> bool:
    """Whether something is text that can name one folder, Windows' included."""
    if (
        not _is_line(value)
        or len(value) > MOST_LETTERS
        or re.search(r'[/\\:*?"<>|]|[. ]$|^ ', value)
    ):
        return False
    return not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", value, re.IGNORECASE)


def _entries(
    default: dict[Any, Any], words: str, holds: Callable[[Any, Any], bool],
    explain: Callable[[str, Any], str] | None = None,
) -> Any:  # fmt: skip
    def all_hold(value: Any) -> bool:
        return all(holds(key, one) for key, one in value.items())

    return ranged(default, Allowed(words, all_hold, explain=explain))


def _bounds(
    *, above: float | None = None, least: float = -math.inf, below: float | None = None,
    most: float = math.inf,
) -> tuple[str, Callable[[Any], bool]]:  # fmt: skip
    if above is None and below is None:
        words = f"from {least:,} to {most:,}"
    else:
        words = f"from {least:,}" if above is None else f"above {above:,}"
        words += f" and at most {most:,}" if below is None else f" and below {below:,}"

    def holds(value: Any) -> bool:
        low = value >= least if above is None else value > above
        high = value <= most if below is None else value < below
        return math.isfinite(value) and low and high

    return words, holds


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()

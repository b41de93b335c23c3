"""Sequences as text: brackets as brackets, cells as cells, hidden tokens marked."""

from __future__ import annotations

from vitwarm.rules.algorithms import Algorithm
from vitwarm.rules.automata import CellRule, CellularAutomaton
from vitwarm.rules.base import Bools, Ids, Rule
from vitwarm.rules.controls import Shuffled
from vitwarm.rules.dyck import BracketRule

#: Shapes of brackets; kinds beyond them carry their number.
OPENING, CLOSING = "([{<", ")]}>"

#: Of a terminal's 256, around the wheel; each is as easy to read on black as on white.
COLORS = (196, 130, 100, 64, 28, 30, 32, 63, 129, 164, 198, 131)

_HIDDEN = "\x1b[7m"
_PLAIN = "\x1b[0m"


def draw_sequence(
    rule: Rule, ids_T: Ids, hidden_T: Bools, *, columns: int, colour: bool
) -> list[str]:
    """Draws one sequence as lines of text.

    Args:
        rule: the plain rule that made it (of a mixture the member).
        columns: width of the lines in characters; automata keep their own rows.
        colour: ANSI colours, hidden tokens in reverse; without, a `^` stands below each.
    """
    inner = rule.of if isinstance(rule, Shuffled) else rule
    words = [_word(inner, int(token)) for token in ids_T]
    per_line, gap = _layout(inner, words, columns)
    lines = []
    for begin in range(0, len(words), per_line):
        part = range(begin, min(begin + per_line, len(words)))
        texts = [_paint(inner, int(ids_T[t]), words[t], bool(hidden_T[t]), colour) for t in part]
        lines.append(gap.join(texts).rstrip())
        if not colour and hidden_T[part.start : part.stop].any():
            marks = ["^" * len(words[t]) if hidden_T[t] else " " * len(words[t]) for t in part]
            lines.append(gap.join(marks).rstrip())
    return lines


def _word(rule: Rule, token: int) -> str:
    """Returns the text of one token; all of a rule's ids have the same width."""
    width = len(str(rule.n_ids - 1))
    if isinstance(rule, BracketRule):
        n_digits = len(str(rule.n_kinds - 1)) if rule.n_kinds > len(OPENING) else 0
        width = 1 + n_digits
        if token < 2 * rule.n_kinds:
            kind = token % rule.n_kinds
            shape = (OPENING if token < rule.n_kinds else CLOSING)[kind % len(OPENING)]
            return shape + (f"{kind:<{n_digits}}" if n_digits else "")
    if isinstance(rule, CellularAutomaton) and rule.tokens == "binary" and token < 2:
        return "#" if token else "."
    if token == rule.pad_id:
        return "_".rjust(width)
    if isinstance(rule, Algorithm) and token in (0, rule.separator_id):
        return ("|" if token else "-").rjust(width)
    return str(token).rjust(width)


def _layout(rule: Rule, words: list[str], columns: int) -> tuple[int, str]:
    """Returns how many tokens a line holds, and what stands between them."""
    width = max(map(len, words))
    gap = "" if width == 1 else " "
    if isinstance(rule, CellRule):
        return rule.frame_of(rule.fit_length(len(words)))[1], gap
    return max(1, columns // (width + len(gap))), gap


def _paint(rule: Rule, token: int, word: str, hidden: bool, colour: bool) -> str:
    if not colour:
        return word
    kind = token % rule.n_kinds if isinstance(rule, BracketRule) else token
    special = token in rule.separator_ids
    color = COLORS[5 * kind % len(COLORS)]  # neighbouring numbers get far hues
    start = "\x1b[2m" if special else f"\x1b[38;5;{color}m"
    return f"{start}{_HIDDEN if hidden else ''}{word}{_PLAIN}"

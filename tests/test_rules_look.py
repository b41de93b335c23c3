"""`vitwarm rules`: lists, draws and measures, in plain text where there is no terminal."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from vitwarm import cli
from vitwarm.rules import PRESETS, RULES, make_rule
from vitwarm.rules.look.draw import COLORS, draw_sequence


def _run(*words: str) -> int:
    return cli.main(["rules", *words])


def test_list_names_every_rule_parameter_and_preset(capsys: pytest.CaptureFixture) -> None:
    assert _run("list") == 0
    text = capsys.readouterr().out
    assert all(f"\n{name}" in f"\n{text}" for name in RULES)
    assert all(name in text for name in PRESETS)
    assert "p_open=0.6" in text
    assert _run("list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["rules"]) == set(RULES)
    assert found["rules"]["curriculum"]["params"]["n_sequences"] == "needed"


def test_show_draws_brackets_and_marks_what_is_hidden(capsys: pytest.CaptureFixture) -> None:
    assert _run("show", "--tokens", "20", "dyck", "--n", "2", "n_kinds=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert '"n_kinds": 1' in lines[0]
    first = next(i for i, line in enumerate(lines) if line.startswith("sequence 0: ")) + 1
    word, marks = lines[first], lines[first + 1]
    assert set(word) == {"(", ")"}
    assert len(word) == 20
    assert set(marks) == {" ", "^"}
    assert all(word[i] == ")" for i, mark in enumerate(marks) if mark == "^")
    assert lines[first - 1] == f"sequence 0: {marks.count('^')} hidden"
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    "words",
    [
        ("dyck", "--n", "1"),
        ("stack", "--n", "1"),
        ("eca", "grid=[4,8]", "tokens=block", "--n", "1"),
        ("shuffled:sort", "--n", "1"),
        ("mixture", "of=[dyck,eca]", "ids=disjoint", "--n", "4"),
        ("curriculum", "of=[dyck,set]", "n_sequences=10", "--start", "3"),
    ],
)
def test_every_kind_of_rule_can_be_shown(
    words: tuple[str, ...], capsys: pytest.CaptureFixture
) -> None:
    assert _run("show", *words) == 0
    assert "sequence " in capsys.readouterr().out


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_on_a_terminal_only_and_not_where_they_are_unwanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for no_color in ("", "1"):
        terminal = _Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setitem(os.environ, "NO_COLOR", no_color)
        assert _run("show", "dyck", "--n", "1") == 0
        assert ("\x1b[7m" in terminal.getvalue()) is (not no_color)


def test_every_colour_can_be_read_on_black_and_on_white() -> None:
    def linear(level: int) -> float:
        share = (0, 95, 135, 175, 215, 255)[level] / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    for color in COLORS:
        levels = (color - 16) // 36, (color - 16) // 6 % 6, (color - 16) % 6
        parts = zip((0.2126, 0.7152, 0.0722), levels, strict=True)
        light = 0.05 + sum(weight * linear(level) for weight, level in parts)
        assert min(light / 0.05, 1.05 / light) > 3, color  # WCAG's least for large signs
    text = draw_sequence(make_rule("dyck"), np.arange(64), np.zeros(64), columns=99, colour=True)
    assert {int(n) for n in re.findall(r"38;5;(\d+)m", "".join(text))} == set(COLORS)


def test_stats_as_table_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "dyck.png"
    words = ("dyck", "max_depth=4", "--n", "50", "--tokens", "30")
    assert _run("stats", *words, "--picture", str(picture)) == 0
    table = capsys.readouterr().out
    for row in ("preset", "dyck-cap4", "match distance", "nearest opening token", "ceiling"):
        assert row in table
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert _run("stats", *words, "--json") == 0
    stats = json.loads(capsys.readouterr().out)
    assert len(stats["brackets"]["depth_profile"]) == 30
    assert stats["brackets"]["depth_profile"][-1] == 0
    assert stats["ceiling"]["low"] == 1.0


@pytest.mark.parametrize("name", ["set", "eca", "shuffled:dyck", "random"])
def test_stats_of_rules_without_brackets(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = ("--picture", str(tmp_path / "picture.svg")) if name == "eca" else ()
    assert _run("stats", name, "--n", "20", "--tokens", "36", *picture) == 0
    assert "ceiling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "dick"), "Did you mean dyck"),
        (("show", "dyck", "n_kinds"), "KEY=VALUE"),
        (("show", "dyck", "n_kinds=[1"), "cannot be read"),
        (("show", "dyck", "--n", "0"), "--n is 0"),
        (("show", "dyck", "--tokens", "1"), "at least 2"),
        (("stats", "dyck", "--hide-share", "2"), "hide_share is 2.0"),
        (("stats", "dyck", "--n", "9", "--tokens", "8", "--picture", "x.tiff"), ".png"),
    ],
)
def test_mistakes_end_in_one_sentence_and_code_two(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture
) -> None:
    assert _run(*words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1

"""What a person meets in a terminal: help, version, aligned tables, completion."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
from pathlib import Path

import pytest

import vitwarm
from vitwarm import __version__
from vitwarm.cli import main
from vitwarm.commands import COMMANDS
from vitwarm.commands.shared import columns
from vitwarm.config import TrainRun, WarmupRun
from vitwarm.config.fields import fields_of
from vitwarm.errors import VitwarmError


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitwarm {__version__}\n"


@pytest.mark.parametrize(("command", "schema"), [("train", TrainRun), ("warmup", WarmupRun)])
def test_help_names_what_is_changed_most(
    command: str,
    schema: type,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    every = {facts.name: facts for facts in fields_of(schema)}
    assert f"{command}.lr" in said
    assert f"all {len(every)} fields: vitwarm configs fields" in said
    shown = [line.split() for line in said.splitlines() if line.partition(" ")[0] in every]
    assert len(shown) > 10
    for name, default, *_ in shown:
        assert every[name].default.startswith(default) or (not every[name].default)
    assert max(map(len, said.splitlines())) <= 100


def test_doctors_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    (hub,) = (line for line in lines if "huggingface-hub" in line)
    start = hub.index("huggingface-hub") + len("huggingface-hub  ")
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines)


def test_a_models_verdict_is_a_table_unless_json_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--model", "resnet18", "--model", "test_vit"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("BAD resnet18  ")
    assert "no transformer blocks" in first
    assert second == "ok  test_vit  can be warmed up and handed off"


def test_the_plan_is_aligned_and_says_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = "warmup.model_kwargs={depth: 1, embed_dim: 16, num_heads: 2, img_size: 32}"
    words = ["warmup", "--rule", "dyck", "--budget", "2steps", shape, "run.device=cpu"]
    assert main([*words, "warmup.batch_size=2", "--out", str(tmp_path), "--dry-run"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    keys = [line.split()[0] for line in lines]
    assert len(keys) == len(set(keys))
    assert "position_scale" in keys
    start = len("position_scale  ")
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines)


def test_columns() -> None:
    assert columns([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word, from its own variables and the function."""
    code = (
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vitwarm; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, str(script), "vitwarm", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vitwarm.commands.completion import make_script

    path = tmp_path_factory.mktemp("completion") / "vitwarm"
    path.write_text(make_script())
    return path


def test_bash_completes_commands_options_fields_and_recipes(script: Path) -> None:
    assert complete(script, "") == list(COMMANDS)
    assert complete(script, "tr") == ["trunks", "train", "transfer"]
    assert complete(script, "warmup", "--b") == ["--budget"]
    assert complete(script, "train", "train.warmup") == ["train.warmup_epochs=", "train.warmup_lr="]
    assert complete(script, "train", "--config", "train/deit_") == [
        "train/deit_base", "train/deit_small"
    ]  # fmt: skip
    assert complete(script, "configs", "co") == ["copy"]
    assert complete(script, "completion", "") == ["bash", "zsh", "--help", "--debug"]
    assert complete(script, "nothing", "--") == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("configs", "show", "train/deit_"), ["train/deit_base", "train/deit_small"]),
        (("configs", "copy", "train/deit_s"), ["train/deit_small"]),
        (("handoff", "ex"), ["expand"]),
        (("warmup", "--rule", "dyck-p"), ["dyck-p49", "dyck-p50"]),
        (("rules", "show", "shuffled"), ["shuffled"]),
        (("rules", "stats", "dyck-unc"), ["dyck-uncapped"]),
        (("rules", "show", "dyck", "--tok"), ["--tokens"]),
    ],
)
def test_bash_completes_names(script: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert sorted(complete(script, *words)) == offered


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a zsh on a terminal of its own: a word, the tab key, the end of the line."""
    assert main(["completion", "zsh"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    typed = (  # and what the shell has shown by the time it can take the next
        (f"source {script}; vitwarm() {{ print -l -- $@ > {tmp_path}/got }}\n", ""),
        ("echo rea''dy\n", "ready"),
        ("vitwarm trai\t", "vitwarm train "),
        ("train.warmup_e\t", "train.warmup_epochs="),
        ("\nexit\n", ""),
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb"}
    with subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as shell:
        for text, shown in typed:
            os.write(master, text.encode())
            said = ""
            while shown not in said:
                assert select.select([master], [], [], 60)[0], said
                said += os.read(master, 9999).decode()
        shell.wait(60)
    os.close(slave)
    os.close(master)
    assert (tmp_path / "got").read_text().split() == ["train", "train.warmup_epochs="]


@pytest.mark.parametrize("word", ["handoff.blocks=9:", "handoff.scope=mlp"])
def test_a_choice_of_what_is_carried_needs_something_to_carry(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "data.train=x", "data.val=y", word]) == 2
    field = word.partition("=")[0]
    assert f"{field} is " in (said := capsys.readouterr().err)
    assert "nothing is carried. Give --trunk" in said
    with pytest.raises(VitwarmError, match="nothing is carried"):
        vitwarm.train(data={"train": "x", "val": "y"}, **{field: word.partition("=")[2]})

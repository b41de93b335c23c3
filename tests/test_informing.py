"""Nothing that only informs ends a run; what goes wrong inside leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_stages import FAKE
from test_sweep_execute import config_of, states, sweep_of

from vitwarm import informing
from vitwarm.informing import forgive_streams, informs
from vitwarm.records import RunFolder
from vitwarm.sweep import execute, run_sweep
from vitwarm.sweep.execute import Board, run_plan
from vitwarm.sweep.plan import make_plan
from vitwarm.sweep.show import SweepProgress
from vitwarm.sweep.worker import Worker

ONE_SLOT = """
base: base.yaml
match: steps
warmup_seeds: shared
arms:
  mimetic: {init: mimetic}
  dyck: {warmup: warm.yaml}
seeds: [0, 1]
run: {device: cpu}
slots: 1
"""


def test_initialisers_first_and_one_slot(tmp_path: Path) -> None:
    """The estimate of the time left once divided by the samples of initialisers, which is none."""
    result, said = sweep_of(tmp_path, ONE_SLOT)
    assert result.exit_code == 0
    assert sum("init mimetic" in line for line in said) == 2


@pytest.mark.parametrize("part", ["begin", "say", "tell", "refresh", "end", "_left"])
def test_no_display_ends_a_sweep(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(informing, "_SAID", set())

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(SweepProgress, part, informs(broken) if part != "_left" else broken)
    result, _ = sweep_of(tmp_path, ONE_SLOT)
    assert result.exit_code == 0
    assert set(states(result).values()) == {"finished"}
    assert capfd.readouterr().err.count("failed (ZeroDivisionError: float division by zero)") == 1


def test_every_word_of_a_sweeps_display_is_guarded() -> None:
    for name in ("begin", "say", "tell", "refresh", "end"):
        assert hasattr(getattr(SweepProgress, name), "__wrapped__"), name


class Injected(RuntimeError):
    """What no part of the executor expects."""


@pytest.mark.parametrize(
    ("owner", "part"),
    [
        (Board, "settle"), (Board, "look"), (Board, "start"), (Board, "finish"), (Board, "add"),
        (Worker, "send"), (Worker, "poll"), (Worker, "__init__"), (Worker, "close"),
        (execute, "find_slots"), (execute, "_fit"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_an_internal_error_ends_a_sweep_and_its_workers(
    owner: Any,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_children: Callable[[], set[BaseProcess]],
) -> None:
    """In its second call, so that a worker is at work or has just ended where one can be."""
    original = getattr(owner, part)
    calls: list[int] = []

    def fails_late(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if part in ("find_slots", "__init__", "close") else 2):
            raise Injected(part)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, part, fails_late)
    config, path = config_of(tmp_path, ONE_SLOT)
    began = time.monotonic()
    with pytest.raises(Injected):
        run_sweep(config, recipe=path, stages=FAKE, say=lambda text: None)
    assert time.monotonic() - began < 30
    assert not new_children()
    monkeypatch.undo()
    assert run_sweep(config, recipe=path, stages=FAKE, say=lambda text: None).exit_code == 0


def test_an_error_in_stopping_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_children: Callable[[], set[BaseProcess]]
) -> None:
    slow = ONE_SLOT.replace("mimetic: {init: mimetic}", "slow: {train: {train.lr: 1e-4}}")
    config, path = config_of(tmp_path, slow)
    plan = make_plan(config, recipe=path, stages=FAKE)

    def broken(self: object) -> None:
        raise Injected("stop")

    monkeypatch.setattr(Worker, "stop", broken)
    refresh = SweepProgress.refresh

    def refresh_and_stop(self: SweepProgress, n: int) -> None:
        refresh(self, n)
        if list(tmp_path.glob("runs/*/waiting")):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SweepProgress, "refresh", refresh_and_stop)
    with pytest.raises(Injected):
        run_plan(plan, run=config.run, slots=1, stages=FAKE, say=lambda text: None)
    assert not new_children()


def test_a_full_disk_loses_lines_of_metrics_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(informing, "_SAID", set())
    run = RunFolder(tmp_path / "gone")  # as a full disk, a folder that is not there takes nothing
    run.append_metrics(kind="train", step=1, loss=0.5)
    run.append_metrics(kind="train", step=2, loss=0.5)
    assert capsys.readouterr().err.count("append_metrics failed (FileNotFoundError") == 1


def test_streams_forgive_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        forgive_streams()
        print("x" * 100_000)
        print("more", flush=True)
        assert not sys.stdout.isatty()


def run_code(code: str, *words: str, **how: Any) -> subprocess.Popen[bytes]:
    """Starts Python on some code, in an environment where `vitwarm` and the tests are found."""
    here = Path(__file__).parent
    paths = [str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *words], env=env, **how)


SWEEP_IN_A_PROCESS = """
    import sys
    from fake_stages import FAKE
    import vitwarm.sweep as sweep
    from vitwarm.cli import main
    real = sweep.run_sweep
    sweep.run_sweep = lambda config, **how: real(config, stages=FAKE, **how)
    if __name__ == "__main__":
        sys.exit(main(["sweep", "--config", sys.argv[1], f"run.root={sys.argv[2]}"]))
"""


def test_a_sweep_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    """`vitwarm sweep ... | head -1` once ended with 0 and rows undone."""
    _, path = config_of(tmp_path, ONE_SLOT)
    sweep = run_code(
        SWEEP_IN_A_PROCESS, str(path), str(tmp_path / "runs"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with sweep:
        assert sweep.stdout is not None
        sweep.stdout.readline()
        sweep.stdout.close()
        assert sweep.stderr is not None
        said = sweep.stderr.read().decode()
        assert (sweep.wait(60), said) == (0, "")
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 7


SLOW_STEP = """
    import ctypes, signal, sys, time
    from vitwarm.interrupts import Interrupts
    how = dict(answer="{signal}: saving after this step; send it again to leave now.")
    with Interrupts([signal.SIGINT, signal.SIGTERM], **how) as interrupts:
        print("ready", flush=True)
        # One call into C that lasts, and lets no handler of Python's run: as a large kernel does.
        libc = ctypes.CDLL(None)
        for _ in range(int(sys.argv[1])):
            end = time.monotonic() + 1
            while time.monotonic() < end:
                libc.usleep(200_000)
        print("step over", interrupts.first, flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_long_step_is_answered_and_obeyed_after_it(signum: int) -> None:
    step = run_code(SLOW_STEP, "6", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with step:
        assert step.stdout is not None
        assert step.stderr is not None
        assert step.stdout.readline() == b"ready\n"
        began = time.monotonic()
        step.send_signal(signum)
        step.send_signal(signum)  # an echo: a terminal and a launcher both pass Ctrl-C on
        said = step.stderr.readline().decode()
        assert time.monotonic() - began < 3  # the step lasts 6 s
        name = signal.Signals(signum).name
        assert said == f"{name}: saving after this step; send it again to leave now.\n"
        assert step.stdout.readline().decode() == f"step over {int(signum)}\n"
        assert step.wait(60) == 0


def test_a_second_signal_leaves_at_once() -> None:
    step = run_code(SLOW_STEP, "60", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with step:
        assert step.stdout is not None
        assert step.stderr is not None
        step.stdout.readline()
        step.send_signal(signal.SIGTERM)
        step.stderr.readline()  # the answer to the first
        time.sleep(0.7)
        step.send_signal(signal.SIGTERM)
        assert step.wait(30) == 128 + signal.SIGTERM  # the step lasts 60 s


LAST_WORDS = """
    import os, signal, sys, time
    from vitwarm import interrupts
    interrupts.LAST_WORDS_SECONDS = float(sys.argv[1])
    before = signal.getsignal(signal.SIGINT)
    with interrupts.Interrupts([signal.SIGINT, signal.SIGTERM], answer="answered") as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    print("saved", flush=True)
    assert signal.getsignal(signal.SIGINT) is before
    sys.exit(128 + noted.first)
"""


@pytest.mark.parametrize(("seconds", "words"), [("10", b"saved\n"), ("0.1", b"")])
def test_a_second_signal_leaves_the_last_words_their_time(seconds: str, words: bytes) -> None:
    """Slurm asked twice, and a run ended between its checkpoint and the sentence about it."""
    step = run_code(LAST_WORDS, seconds, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = step.communicate(timeout=60)
    assert (out, err, step.returncode) == (words, b"answered\n", 143)


def tiny_warmup(root: Path, budget: str) -> list[str]:
    shape = "{embed_dim: 32, depth: 1, num_heads: 2, img_size: 8, patch_size: 2}"
    return [
        f"warmup.model_kwargs={shape}", f"warmup.budget={budget}", "warmup.batch_size=4",
        "warmup.precision=fp32", "run.device=cpu", "run.threads=1", f"run.root={root}",
    ]  # fmt: skip


ASKED_AGAIN = """
    import os, signal, sys, time
    from lightning.pytorch import Trainer
    from vitwarm.cli import main
    from vitwarm.loop.saving import StopRequest
    step_end, fit = StopRequest.on_step_end, Trainer.fit

    def in_a_step(self, trainer, module):
        if module.steps_done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, trainer, module)

    def again_after_it(self, *what, **how):
        try:
            fit(self, *what, **how)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    StopRequest.on_step_end, Trainer.fit = in_a_step, again_after_it
    code = main(["warmup", *sys.argv[1:]])
    print("code", code, flush=True)
"""


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_again_says_what_it_saved(tmp_path: Path) -> None:
    """Lightning puts the default handlers back in between: they would end the process there."""
    words = tiny_warmup(tmp_path, "1000steps")
    run = run_code(ASKED_AGAIN, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = run.communicate(timeout=120)
    assert (out.decode().splitlines()[-1], run.returncode) == ("code 143", 0), err.decode()
    assert "Stopped by SIGTERM after step 3 of 1,000; everything is saved in" in err.decode()


LEAVES_WHILE_SAVING = """
    import os, signal, sys, time
    import torch
    from vitwarm.cli import main
    from vitwarm.loop.saving import StopRequest
    step_end, save = StopRequest.on_step_end, torch.save

    def in_a_step(self, trainer, module):
        if module.steps_done == 3:
            self.checkpoint.save(module)
        if module.steps_done == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            torch.save = half
        step_end(self, trainer, module)

    def half(plain, path):
        save(plain, path)
        os.truncate(path, os.path.getsize(path) // 2)
        time.sleep(0.7)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    StopRequest.on_step_end = in_a_step
    main(["warmup", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_second_signal_in_the_middle_of_a_save_leaves_the_checkpoint_before(
    tmp_path: Path,
) -> None:
    """Half of step 6 is on the disk when the process leaves; the run goes on from step 3."""
    words = tiny_warmup(tmp_path, "8steps")
    run = run_code(LEAVES_WHILE_SAVING, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM, err.decode()
    assert "SIGTERM again: leaving now." in err.decode()
    (checkpoints,) = tmp_path.glob("*/checkpoints")
    (whole,) = checkpoints.glob("step*.pt")
    assert torch.load(whole, weights_only=True)["step"] == 3
    plain = "import sys; from vitwarm.cli import main; sys.exit(main(['warmup', *sys.argv[1:]]))"
    again = run_code(plain, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = again.communicate(timeout=120)
    said = (out + err).decode()
    assert again.returncode == 0, said
    assert "step 3" in said, said
    assert not list(tmp_path.rglob("*.part"))


FORKS = """
    import os, signal, sys, time, warnings
    from vitwarm.interrupts import Interrupts
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: of a fork beside threads
    with Interrupts([signal.SIGTERM], answer="answered") as interrupts:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        time.sleep(0.2)
    print("left", interrupts.first)
    os.kill(child, signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_process_keeps_its_signals_to_itself() -> None:
    """Loader processes are forked: they hold the pipe open, and are ended by SIGTERM."""
    parent = run_code(FORKS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = parent.communicate(timeout=60)
    assert (out, err, parent.returncode) == (b"left None\n", b"", 0)

"""Whoever starts the processes: rank and size are the launcher's, or one sentence says why not."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule

from vitwarm.config import RunConfig
from vitwarm.errors import ConfigError, RunError, TrainingFailed
from vitwarm.hardware import Numbers
from vitwarm.loop.start import find_loss, make_trainer, refuse_standstill
from vitwarm.records import RunFolder
from vitwarm.world import World, check_world, choose_strategy, find_world, meet

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
#: A batch script in an allocation of four tasks; salloc's shell has no SLURM_PROCID.
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
SRUN = {**STEP, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NTASKS": "4"}  # fmt: skip
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
          "OMPI_COMM_WORLD_LOCAL_RANK": "1"}  # fmt: skip
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}
KUBERNETES = {"KUBERNETES_PORT": "tcp://10.0.0.1:443", "RANK": "1", "WORLD_SIZE": "2",
              "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}  # fmt: skip
PAIR = {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
HAND = {"NODE_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
PTY = {**STEP, "SLURM_PTY_PORT": "4000", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "expected"),
    [
        ({}, 1, 1, World(0, 1)),
        ({}, 4, 1, World(0, 4)),  # Lightning starts the others ...
        ({"NODE_RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}, 4, 1, World(3, 4)),  # ... so
        (SRUN, 2, 2, World(3, 4)),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "2"}, 2, 2, World(3, 4)),
        (HAND, 1, 2, World(1, 2)),
        ({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}, 2, 2, World(3, 4)),
        (BATCH, 1, 1, World(0, 1)),
        (BATCH, 4, 1, World(0, 4)),
        (SALLOC, 1, 1, World(0, 1)),
        (SALLOC, 4, 1, World(0, 4)),
        (PTY, 1, 1, World(0, 1)),
        (PTY, 2, 1, World(0, 2)),
        (TORCHRUN, 2, 2, World(3, 4)),
        ({**SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", **TORCHRUN}, 2, 2, World(3, 4)),
        (MPIRUN, 2, 2, World(3, 4)),
        # Open MPI on a SLURM node that is not the first: its daemon is a step of one task.
        ({**MPIRUN, **STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 2, 2, World(3, 4)),
        (HYDRA, 2, 2, World(3, 4)),
        (KUBERNETES, 1, 2, World(1, 2)),
    ],
)
def test_every_launcher_is_understood(
    environment: dict[str, str], devices: int, nodes: int, expected: World
) -> None:
    assert find_world(RunConfig(devices=devices, nodes=nodes), environment) == expected


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "message"),
    [
        # The run whose one process trained on half of every batch.
        (
            {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            2,
            1,
            r"srun started 1 process \(",
        ),
        (SRUN, 1, 1, r"is 1 x 1, but srun started 4 processes \(this is number 3\)"),
        (TORCHRUN, 1, 1, "torchrun started 4 processes"),
        (TORCHRUN, 2, 1, "torchrun started 4 processes"),
        (MPIRUN, 2, 1, "mpirun started 4 processes"),
        (KUBERNETES, 4, 2, "started 2 processes"),
        ({**SRUN, "SLURM_LOCALID": "3"}, 2, 2, "srun put more processes on this node"),
        ({**TORCHRUN, "LOCAL_RANK": "3"}, 1, 4, r"torchrun put more .* \(this is its number 4\)"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, 2, 2, "'3', 'many', '1'; they must be numbers"),
        ({}, 1, 2, "run.nodes is 2, but nothing says which node this is"),
        (BATCH, 2, 2, "run.nodes is 2, but nothing says which node this is"),
        (
            {**PAIR, "SLURM_STEP_NUM_NODES": "2"},
            2,
            1,
            "run.nodes is 1, but srun .* on 2. .*nodes=2",
        ),
        ({**PAIR, "SLURM_STEP_NUM_NODES": "x"}, 2, 1, "NUM_NODES is 'x' in .* whole number from 0"),
        ({**HAND, "NODE_RANK": "abc"}, 1, 2, "NODE_RANK is 'abc' in .* whole number from 0 to 1"),
        ({**HAND, "NODE_RANK": "2"}, 1, 2, "NODE_RANK is '2' in .* from 0 to 1"),
        ({**HAND, "MASTER_PORT": "xx"}, 1, 2, "MASTER_PORT is 'xx' in .* from 1 to 65,535"),
        ({**SRUN, "MASTER_PORT": "70000"}, 2, 2, "MASTER_PORT is '70000' in"),
        ({"LOCAL_RANK": "4"}, 4, 1, "LOCAL_RANK is '4' in .* from 0 to 3"),
    ],
)
def test_a_world_that_is_not_the_configs_is_refused(
    environment: dict[str, str], devices: int, nodes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_world(RunConfig(devices=devices, nodes=nodes), environment)


class _Still(LightningModule):
    """Trains one weight for one step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def train_dataloader(self) -> list[int]:
        return [0]

    def training_step(self, batch: int, batch_idx: int) -> torch.Tensor:
        return self.weight * batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


def test_one_process_in_an_allocation_of_four_trains_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lightning's own search warns where srun is on the PATH and refuses SLURM_NTASKS=4."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make_trainer(
            RunConfig(device="cpu"), numbers=Numbers("fp32", ""), accumulate=1, callbacks=[]
        )
        trainer.fit(_Still())  # Lightning looks for SLURM once more
    assert (trainer.global_rank, trainer.world_size) == (0, 1)


@pytest.mark.parametrize("environment", [SRUN, TORCHRUN, MPIRUN, {**KUBERNETES, "RANK": "1"}])
def test_lightning_is_told_what_the_launcher_said(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    devices = 1 if environment.get("RANK") == "1" else 2
    run = RunConfig(device="cpu", devices=devices, nodes=2)
    strategy, plugin = choose_strategy(run, torch.device("cpu"))
    assert not isinstance(strategy, str)
    world = find_world(run)
    assert (plugin.global_rank(), plugin.world_size()) == (world.rank, world.size)
    assert plugin.local_rank() == int(environment.get("SLURM_LOCALID", world.rank % devices))
    assert plugin.node_rank() == 1
    assert plugin.creates_processes_externally


def test_rank_zero_is_where_slurm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SRUN, "SLURM_STEP_NODELIST": "gpu[07-08],gpu12"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    _, plugin = choose_strategy(RunConfig(devices=2, nodes=2), torch.device("cpu"))
    assert (plugin.main_address, plugin.main_port) == ("gpu07", 15_007)


def test_what_runs_is_compared_with_what_the_batches_were_cut_for() -> None:
    check_world(World(1, 2), rank=1, size=2)
    with pytest.raises(RunError, match=r"process 0 of 2, but Lightning says .* process 0 of 1"):
        check_world(World(0, 2), rank=0, size=1)


_DIES = """
import os, sys, torch, torch.distributed as group
from vitwarm.loop.start import find_loss
rank = int(sys.argv[1])
group.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
group.all_reduce(torch.ones(3))
if rank == 1:
    os.kill(os.getpid(), 9)
try:
    group.all_reduce(torch.ones(3))
except RuntimeError as error:
    print(find_loss(error))
"""


def test_a_process_that_is_gone_is_named_in_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DIES]
    where = f"file://{tmp_path}/meeting"
    with (
        subprocess.Popen([*command, "1", where]) as other,
        subprocess.Popen([*command, "0", where], stdout=subprocess.PIPE, text=True) as zero,
    ):
        said, _ = zero.communicate(timeout=60)
        assert other.wait(60) == -9
    said = said.splitlines()[-1]  # torch 2.9 greets on the same stream
    assert re.fullmatch(r"(Connection|Read error) .{,70}", said), said
    assert find_loss(RuntimeError("Connection closed by peer")) is None  # not of the group
    assert find_loss(RuntimeError("[gloo/pair.cc:1] a shape that does not fit")) is None


def test_why_rank_zero_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(RunError, match=f"nothing listens at port {port}: rank zero has not"):
            meet("127.0.0.1", port, rank=1, seconds=0.3)
        assert time.monotonic() - began < 30  # not the minutes that a run waits
        listener.listen()
        meet("127.0.0.1", port, rank=1, seconds=0.3)
    with pytest.raises(RunError, match=r"Rank 3 .* 'no-such-node.invalid' cannot be resolved"):
        meet("no-such-node.invalid", 1, rank=3, seconds=0.1)

    def silent(*args: object, **kwargs: object) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(RunError, match=r"does not answer .timed out.. Set MASTER_ADDR"):
        meet("10.0.0.1", 1, rank=1, seconds=0.1)


def test_a_job_that_comes_back_twice_without_a_step_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def start(restarts: int | None, step: int) -> None:
        for old in run.checkpoints.iterdir():
            old.unlink()
        if step:
            (run.checkpoints / f"step{step:010d}.pt").touch()
        if restarts is None:
            monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
        else:
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        refuse_standstill(run)

    for restarts, step in ((None, 0), (1, 0), (2, 40), (3, 40), (4, 80), (5, 80)):
        start(restarts, step)
    with pytest.raises(TrainingFailed, match=r"back into the queue 2 times .* past step 80"):
        start(6, 80)
    start(None, 80)  # another job
    start(1, 80)
    with pytest.raises(TrainingFailed):
        start(2, 80)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "x")
    with pytest.raises(
        ConfigError, match="SLURM_RESTART_COUNT is 'x' in the environment; set a whole"
    ):
        refuse_standstill(run)
    monkeypatch.delenv("SLURM_JOB_ID")
    for _ in range(4):
        start(None, 80)
    assert not (tmp_path / "starts.json").exists()


@pytest.mark.slow
def test_a_job_that_is_killed_before_its_first_step_is_not_put_back_for_ever(
    tmp_path: Path,
) -> None:
    """Real processes, as SLURM starts them again after a limit that leaves no time for a step."""
    words = (
        "warmup", "warmup.budget=100000steps", "warmup.batch_size=8", "run.device=cpu",
        "warmup.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 2}",
        "rule.params.n_kinds=8", "run.threads=1", f"run.root={tmp_path}/runs",
    )  # fmt: skip

    def start(restarts: int) -> subprocess.Popen[str]:
        job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        return subprocess.Popen(
            [sys.executable, "-m", "vitwarm.cli", *words], env={**os.environ, **job}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def n_starts() -> int:
        found = list((tmp_path / "runs").glob("*/starts.json"))
        return len(json.loads(found[0].read_text())["steps"]) if found else 0

    for restarts in (0, 1):
        with start(restarts) as job:
            end = time.monotonic() + 120
            while n_starts() <= restarts and job.poll() is None and time.monotonic() < end:
                time.sleep(0.005)
            job.kill()
        assert n_starts() == restarts + 1
    with start(2) as job:
        said, _ = job.communicate(timeout=120)
    assert job.returncode == 1, said  # neither 75 nor 143, with which the script queues it again
    assert "put back into the queue 2 times and made no progress past step 0" in said
    (failure,) = (tmp_path / "runs").glob("*/failure.json")
    assert json.loads(failure.read_text())["error"] == "TrainingFailed"

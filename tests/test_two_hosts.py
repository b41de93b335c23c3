"""The road without an engine: two hosts, each with a network of its own, and torchrun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tiny_images import write_tiny_shards

from vitwarm.records import Record, read_records

ROOT = Path(__file__).parent.parent
#: A network namespace is a host; a pair of virtual cards is the wire between the two.
HOSTS = ((f"vitwarm-a{os.getpid()}", "10.213.0.1"), (f"vitwarm-b{os.getpid()}", "10.213.0.2"))
TRAIN = [
    "train.model_kwargs={embed_dim: 32, depth: 2, num_heads: 2, patch_size: 2}",
    "train.img_size=8", "train.precision=fp32", "train.batch_size=16", "train.steps=20",
    "train.warmup_epochs=30", "train.evaluations=2", "run.threads=1", "run.device=cpu",
]  # fmt: skip


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("hosts of their own (network namespaces) need root and ip (iproute2)")
    with ExitStack() as stack:
        for name, _ in HOSTS:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)  # its card and the wire go with it
        (a, _), (b, _) = HOSTS
        _ip("link", "add", "wire", "netns", a, "type", "veth", "peer", "name", "wire", "netns", b)
        for name, address in HOSTS:
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield


def start(host: str, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", host, sys.executable, *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip


def end(process: subprocess.Popen[str], code: int) -> str:
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == code, said
    return said


def data(folder: Path) -> list[str]:
    shards = write_tiny_shards(folder / "shards")
    return [f"data.train={shards}/tiny-train-*.tar", f"data.val={shards}/tiny-validation-*.tar"]


def record_of(root: Path) -> Record:
    (record,) = read_records(root)
    return record


@pytest.mark.slow
def test_torchrun_over_two_hosts_is_one_process(hosts: None, tmp_path: Path) -> None:
    words = ["scripts/train.py", *TRAIN, *data(tmp_path)]
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                f"--master-addr={HOSTS[0][1]}", "--master-port=29500"]  # fmt: skip
    both = [
        start(host, *torchrun, f"--node-rank={rank}", *words, "run.nodes=2",
              f"run.root={tmp_path}/two")
        for rank, (host, _) in enumerate(HOSTS)
    ]  # fmt: skip
    one = start(HOSTS[0][0], *words, f"run.root={tmp_path}/one")
    for process in (*both, one):
        said = end(process, 0)
        assert "Warning" not in said, said
    a, b = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert (a.top1_percent, a.images_seen) == (b.top1_percent, b.images_seen)
    assert b.val_loss == pytest.approx(a.val_loss, rel=1e-4)


#: What the command does, with less patience.
HURRIED = """
import sys
import vitwarm.world
from vitwarm.cli import main
vitwarm.world.MEET_SECONDS = 4.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_host_that_cannot_be_reached_is_said_in_words(hosts: None, tmp_path: Path) -> None:
    """A wrong number, a wrong name, a silent port, one that is taken, and nobody else."""
    (first, number), (second, _) = HOSTS
    words = ["-c", HURRIED, "train", *TRAIN, *data(tmp_path), "run.nodes=2"]
    taken = "import socket, time; "
    taken += "it = socket.create_server(('', 29511), family=socket.AF_INET6, dualstack_ipv6=True); "
    taken += "time.sleep(300)"
    listener = start(first, "-c", taken)

    def rank(n: int, address: str, port: int) -> subprocess.Popen[str]:
        return start(
            (first, second)[n], *words, f"run.root={tmp_path}/runs{port}", RANK=str(n),
            WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR=address, MASTER_PORT=str(port),
        )  # fmt: skip

    tried = "Rank 1 tried for 4 s to reach rank zero: "
    cases = {
        f"{tried}10.213.0.9:29510 does not answer": rank(1, "10.213.0.9", 29510),
        f"{tried}the name 'no-such-host' cannot be resolved": rank(1, "no-such-host", 29510),
        f"{tried}{number} is there, but nothing listens at port 29510": rank(1, number, 29510),
        f"Rank 0 cannot meet the others at {number}:29511": rank(0, number, 29511),
    }
    alone = rank(0, number, 29512)
    try:
        for sentence, process in cases.items():
            said = end(process, 2)
            assert sentence in said
            assert "Traceback" not in said
            assert "Warning" not in said, said
        assert alone.stdout is not None
        waits = f"Rank 0 still waits at {number}:29512 for all of 2 processes"
        assert any(waits in line for line in alone.stdout)
    finally:
        for process in (alone, listener, *cases.values()):
            process.kill()
            process.communicate()

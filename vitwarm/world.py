"""Which of the run's processes this one is: as its launcher says, checked, and told to Lightning.

torchrun, srun, mpirun and Kubernetes each leave rank and size in variables of their own; Lightning
reads some of them, guesses about others, and takes one process of a larger world for all of it. So
they are read here, compared with `run.devices` x `run.nodes`, and handed to Lightning as they are.
Without a launcher Lightning starts `run.devices` processes on this machine by itself.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)  # fmt: skip
from lightning.pytorch.strategies import DDPStrategy, Strategy

from vitwarm.config import RunConfig
from vitwarm.errors import ConfigError, RunError
from vitwarm.units import count_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
log = logging.getLogger("vitwarm")

#: Launcher -> its variables for rank, size, and rank on this node; the first that is there counts:
#: torchrun and srun can stand inside of each other, Open MPI starts its daemons by srun, and srun
#: sets PMI's variables too.
LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)

#: How long a process tries to reach rank zero before it says why it cannot.
MEET_SECONDS = 60.0

_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class World:
    """This process among the processes of the run, known before Lightning starts them."""

    rank: int
    size: int

    @property
    def is_zero(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Launch:
    """What a launcher said of this process."""

    launcher: str
    rank: int
    size: int
    local_rank: int


def find_launch(environment: Mapping[str, str]) -> Launch | None:
    """Returns what the launcher says, or None: nobody started this process as one of several.

    A batch script, and a shell that salloc or `srun --pty` opened, stand in an allocation with many
    tasks and are still alone: only a step's own tasks are ranks.
    """
    for launcher, rank, size, local in LAUNCHERS:
        in_step = "SLURM_STEP_ID" in environment and "SLURM_PTY_PORT" not in environment
        if launcher == "srun" and not in_step:
            continue
        if rank in environment and size in environment:
            numbers = [environment[name] for name in (rank, size)]
            numbers.append(environment.get(local, "0"))
            if not all(number.isdecimal() for number in numbers):
                raise ConfigError(
                    f"{rank}, {size} and {local} are {', '.join(map(repr, numbers))}; they must be "
                    f"numbers. Unset them, or let {launcher} set them."
                )
            return Launch(launcher, *map(int, numbers))
    return None


def read_number(
    environment: Mapping[str, str], name: str, *, least: int = 0, most: int | None = None
) -> int:
    """Returns a variable's number; 0: it is not set. Raises: ConfigError: it has another value."""
    text = environment.get(name, "")
    if not text:
        return 0
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        allowed = f"from {least}" + ("" if most is None else f" to {most:,}")
        raise ConfigError(
            f"{name} is {text!r} in the environment; set a whole number {allowed}, or unset it."
        )
    return int(text)


def find_world(run: RunConfig, environment: Mapping[str, str] | None = None) -> World:
    """Returns rank and size of this process.

    Args:
        environment: os.environ unless given.
    Raises: ConfigError: the launcher started another number of processes than the config has, or
        the config has several nodes and no launcher started them.
    """
    environment = os.environ if environment is None else environment
    size = run.devices * run.nodes
    launch = find_launch(environment)
    if size > 1:
        read_number(environment, "MASTER_PORT", least=1, most=65_535)
    if launch is not None:
        if launch.size != size or launch.rank >= size:
            raise ConfigError(
                f"run.devices x run.nodes is {run.devices} x {run.nodes}, but {launch.launcher} "
                f"started {count_of(launch.size, 'process', 'es')} (this is number {launch.rank}). "
                f"Give run.devices and run.nodes whose product is {launch.size}, or start "
                f"{count_of(size, 'process', 'es')}."
            )
        nodes = read_number(environment, "SLURM_STEP_NUM_NODES") or run.nodes
        if launch.launcher == "srun" and nodes != run.nodes:
            raise ConfigError(
                f"run.nodes is {run.nodes}, but srun started the processes on {nodes}. Give "
                f"run.nodes={nodes} and run.devices per node, or srun --nodes={run.nodes}."
            )
        if launch.local_rank >= run.devices:
            raise ConfigError(
                f"run.devices is {run.devices}, but {launch.launcher} put more processes on this "
                f"node (this is its number {launch.local_rank + 1}). Start run.devices processes "
                "on each of run.nodes nodes (srun --ntasks-per-node, torchrun --nproc-per-node)."
            )
        return World(launch.rank, size)
    if size == 1:
        return World(0, 1)
    node = read_number(environment, "NODE_RANK", most=run.nodes - 1)
    local = read_number(environment, "LOCAL_RANK", most=run.devices - 1)
    if run.nodes > 1 and not {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        raise ConfigError(
            f"run.nodes is {run.nodes}, but nothing says which node this is. Start the command on "
            "every node with torchrun or srun, or set NODE_RANK, MASTER_ADDR and MASTER_PORT."
        )
    return World(node * run.devices + local, size)


class Launched(TorchElasticEnvironment):
    """A world that a launcher made, for Lightning: as `find_world` read it, nothing guessed.

    Lightning's own environment for torchrun, but for what the launchers' variables are called;
    what Lightning sets is not taken, but compared in `check_world`.
    """

    def __init__(self, launch: Launch, devices: int) -> None:
        super().__init__()
        self._launch = launch
        self._devices = devices

    @property
    def main_address(self) -> str:
        """Where rank zero is: MASTER_ADDR, else the first node of the SLURM job."""
        if "MASTER_ADDR" not in os.environ:
            os.environ["MASTER_ADDR"] = self._first_node()
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """MASTER_PORT, else one that follows from the SLURM job's number."""
        job = read_number(os.environ, "SLURM_JOB_ID")
        return int(os.environ.setdefault("MASTER_PORT", str(15_000 + job % 10_000)))

    def world_size(self) -> int:
        return self._launch.size

    def global_rank(self) -> int:
        return self._launch.rank

    def local_rank(self) -> int:
        return self._launch.local_rank

    def node_rank(self) -> int:
        return self._launch.rank // self._devices

    def _first_node(self) -> str:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
        if nodes is not None:
            return str(SLURMEnvironment.resolve_root_node_address(nodes))
        if self._launch.size == self._devices:
            return "127.0.0.1"
        raise ConfigError(
            f"{self._launch.launcher} does not say where rank zero is. Set MASTER_ADDR and "
            "MASTER_PORT to a name or number of its node and a free port there."
        )


class _Meeting(DDPStrategy):
    """DDP that says in words why rank zero cannot be reached, before c10d warns for ever."""

    def setup_distributed(self) -> None:
        environment = self.cluster_environment
        assert environment is not None
        address, port = environment.main_address, environment.main_port
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if self.global_rank > 0 or agent:
            meet(address, port, rank=self.global_rank, seconds=MEET_SECONDS)
        elif (name := _interface_of(_number_of(address))) is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        waiting = f"Rank {self.global_rank} still waits at {address}:{port} for all of "
        waiting += f"{self.world_size} processes. Look at the output of the others; none: start "
        waiting += "them, with the same MASTER_ADDR and MASTER_PORT."
        clock = threading.Timer(MEET_SECONDS, log.warning, (waiting,))
        clock.daemon = True
        clock.start()
        try:
            super().setup_distributed()
        except torch.distributed.DistNetworkError as error:
            what = str(error).partition("\n")[0]
            raise RunError(
                f"Rank {self.global_rank} cannot meet the others at {address}:{port} ({what}). Set "
                "MASTER_PORT to a port that is free there, the same on every node."
            ) from error
        finally:
            clock.cancel()


def meet(address: str, port: int, *, rank: int, seconds: float) -> None:
    """Waits until rank zero answers, and sends gloo over the interface that leads there.

    A machine whose own name means 127.0.0.1 makes gloo wait for the others on its loopback.

    Raises: RunError: no answer within `seconds`; the sentence has the reason.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((address, port), timeout=min(10.0, seconds)) as found:
                here = found.getsockname()[0]
                break
        except OSError as error:
            reason = error
        if time.monotonic() > end:
            raise RunError(_why(address, port, rank, reason, seconds)) from reason
        time.sleep(min(1.0, seconds / 10))
    if (name := _interface_of(here)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _why(address: str, port: int, rank: int, reason: OSError, seconds: float) -> str:
    if isinstance(reason, socket.gaierror):
        what = f"the name {address!r} cannot be resolved. Set MASTER_ADDR to a name or number that"
        what += " every node knows"
    elif isinstance(reason, ConnectionRefusedError):
        what = f"{address} is there, but nothing listens at port {port}: rank zero has not started,"
        what += " has ended (look at its output), or MASTER_PORT is not the same on every node"
    else:
        what = f"{address}:{port} does not answer ({reason}). Set MASTER_ADDR to the number of an"
        what += " interface that every node reaches, and open MASTER_PORT in the firewall"
    return f"Rank {rank} tried for {seconds:.0f} s to reach rank zero: {what}."


def _number_of(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return "127.0.0.1"


def _interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None: the loopback, or not found out."""
    if address.startswith("127.") or fcntl is None:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                asked = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
            except OSError:
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def choose_strategy(
    run: RunConfig, device: torch.device
) -> tuple[Strategy | str, ClusterEnvironment]:
    """Returns Lightning's strategy and its plugin that says who this process is.

    One process gets LightningEnvironment by name: Lightning's own search warns wherever there is an
    srun on the PATH, and refuses a shell with SLURM_NTASKS=4.
    """
    size = run.devices * run.nodes
    if size == 1:
        return "auto", LightningEnvironment()
    launch = find_launch(os.environ)
    strategy = _Meeting(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        process_group_backend="nccl" if device.type == "cuda" else "gloo",
    )
    return strategy, Launched(launch, run.devices) if launch else LightningEnvironment()


def check_world(world: World, *, rank: int, size: int) -> None:
    """Compares what the data was cut for with what really runs, before the first step.

    Args:
        rank, size: what Lightning's trainer says.
    Raises: RunError: they differ, or torch's process group does.
    """
    said = {"Lightning": (rank, size)}
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        group = torch.distributed.get_rank(), torch.distributed.get_world_size()
        said["torch's process group"] = group
    for who, (its_rank, its_size) in said.items():
        if (its_rank, its_size) != (world.rank, world.size):
            raise RunError(
                f"The batches are cut for process {world.rank} of {world.size}, but {who} says "
                f"that this is process {its_rank} of {its_size}. Start it with one launcher only "
                "(srun or torchrun), and unset the variables of the other."
            )

"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, gone afterwards.

Its files lie in a temporary folder (SLURM_CONF points there; /etc/slurm is left alone). Only
/etc/hosts is touched: the nodes' names must resolve, and the two lines are taken out again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOSTS = Path("/etc/hosts")
NODES = ("vitwarm-n1", "vitwarm-n2")
MARK = "# vitwarm's test cluster"

_CONF = """\
ClusterName=vitwarm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for as long as a credential lives: two minutes unless one says otherwise.
AuthInfo=socket={home}/munge/socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
SlurmdTimeout=20
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 GraceTime=30 State=UP
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=9 PreemptMode=OFF State=UP
"""


def missing() -> str:
    """Says why no cluster can be had here; empty where one can."""
    if os.geteuid() != 0:
        return "a SLURM of its own needs root"
    tools = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
    absent = [tool for tool in tools if shutil.which(tool, path=_path()) is None]
    return f"not installed: {', '.join(absent)} (slurm-wlm, munge)" if absent else ""


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def wait_for(done: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Waits until something is so; fails with its name where it takes too long."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what} not within {seconds:.0f} s"
        time.sleep(0.5)


class Cluster:
    """The running cluster: its daemons, and what a user does to it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        outer = set(os.environ) - set(self.outer_slurm_variables())
        self.env = {
            **{name: os.environ[name] for name in outer},
            "SLURM_CONF": str(home / "slurm.conf"),
            "PATH": _path(),
        }

    @staticmethod
    def outer_slurm_variables() -> list[str]:
        """Variables of a SLURM job that this process itself may stand in."""
        return [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]

    def run(self, *words: str, code: int | None = 0) -> str:
        """Runs a command in the cluster's environment and returns what it printed."""
        done = subprocess.run(
            words, env=self.env, text=True, capture_output=True, timeout=120, check=False
        )
        assert code is None or done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, key: str) -> dict[str, str]:
        """Returns what the controller knows of a job, `ARRAY_TASK` or an id; {}: nothing."""
        text = self.run("scontrol", "-o", "show", "job", key, code=None)
        return dict(word.split("=", 1) for word in text.splitlines()[0].split() if "=" in word) \
            if text else {}  # fmt: skip

    def state(self, key: str) -> str:
        """The state of a job: PENDING, RUNNING, COMPLETED ..."""
        return self.job(key).get("JobState", "")

    def wait(self, key: str, *states: str, seconds: float = 120) -> None:
        """Waits until a job is in one of the states."""
        try:
            wait_for(lambda: self.state(key) in states, seconds=seconds, what=f"{key} {states}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.job(key)}") from error

    def queue(self) -> str:
        """What stands in the queue."""
        return self.run("squeue", "--noheader", "--array")

    def start(self, name: str, *words: str) -> None:
        """Starts a daemon in the foreground of a session of its own."""
        with open(self.home / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                words, env=self.env, stdout=out, stderr=out, start_new_session=True
            )

    def start_all(self) -> None:
        """Starts every daemon and waits until both nodes take jobs."""
        munge = self.home / "munge"
        self.start(
            "munged", "setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged",
            "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_for((munge / "socket").exists, seconds=15, what="munged")
        self.start_controller()
        for name in NODES:
            self.start_node(name)
        wait_for(self.is_idle, seconds=40, what="nodes")

    def is_idle(self) -> bool:
        """Whether both nodes are there and without a job."""
        words = "sinfo", "--noheader", "--Node", "--partition=main", "--format=%t"
        return self.run(*words, code=None).split() == ["idle", "idle"]

    def start_controller(self) -> None:
        """Starts slurmctld; it reads the state that an earlier one left."""
        self.start("slurmctld", "slurmctld", "-D")
        wait_for(lambda: "UP" in self.run("scontrol", "ping", code=None), seconds=30, what="ctld")

    def kill_node(self, name: str, *, told: bool = True) -> None:
        """A node dies: its slurmd and all that it had started.

        Args:
            told: the controller is told so; else it finds out after SlurmdTimeout.
        """
        steps = self.steps(name)
        self.end(name, signal.SIGKILL)
        # The daemons of the steps first: they would tell the controller how the rest ended.
        for pid in [*{_parent_of(pid) for pid in steps} - {1, *steps}, *steps]:
            _kill(pid)
        if told:
            self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=died")

    def start_node(self, name: str) -> None:
        """Starts the slurmd of a node."""
        self.start(name, "slurmd", "-D", "-N", name)

    def revive_node(self, name: str) -> None:
        """The node is there again."""
        self.start_node(name)
        self.run("scontrol", "update", f"nodename={name}", "state=resume", code=None)

    def end(self, name: str, signum: int = signal.SIGTERM) -> None:
        """Ends a daemon."""
        daemon = self.daemons.pop(name)
        daemon.send_signal(signum)
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def steps(self, *names: str) -> list[int]:
        """The ids of the processes that belong to this cluster's jobs (on these nodes only)."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environ = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                ours = f"SLURM_CONF={self.env['SLURM_CONF']}".encode() in environ
                names_here = [n for n in names if f"SLURMD_NODENAME={n}".encode() in environ]
                in_job = any(word.startswith(b"SLURM_JOB_ID=") for word in environ)
                if ours and in_job and (names_here or not names):
                    found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """Cancels what is left and ends every process that was started here."""
        if "slurmctld" in self.daemons:
            self.run("scancel", "--state=PENDING", "--user=root", code=None)
            self.run("scancel", "--user=root", code=None)
            end = time.monotonic() + 20
            while self.queue() and time.monotonic() < end:
                time.sleep(0.5)
        for name in (*NODES, "slurmctld", "munged"):
            if name in self.daemons:
                self.end(name)
        for pid in self._left():
            _kill(pid)

    def _left(self) -> list[int]:
        """Processes that name this cluster's folder: slurmstepd and what it started."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    text = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"SLURM_CONF={self.env['SLURM_CONF']}".encode() in text.split(b"\0"):
                    found.append(int(entry.name))
        return found


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _without_nodes(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if MARK not in line)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Starts the cluster in a folder of its own, and ends it however the block ends.

    One at a time on a machine: the nodes' names are taken.
    """
    lock = Path(tempfile.gettempdir()) / "vitwarm-slurm.lock"
    with open(lock, "w") as alone, tempfile.TemporaryDirectory(prefix="vitwarm-slurm-") as folder:
        fcntl.flock(alone, fcntl.LOCK_EX)
        home = Path(folder)
        home.chmod(0o755)  # munged runs as its own user
        one = Cluster(home)
        _write_files(home)
        # In place: where /etc/hosts is mounted into a container it cannot be replaced.
        before = _without_nodes(HOSTS.read_text())
        lines = "".join(f"127.0.0.1 {name} {MARK}\n" for name in NODES)
        HOSTS.write_text(before.rstrip("\n") + "\n" + lines)
        try:
            one.start_all()
            yield one
        finally:
            one.stop()
            HOSTS.write_text(_without_nodes(HOSTS.read_text()))


def _write_files(home: Path) -> None:
    """The configuration, and munge's key."""
    (home / "state").mkdir()
    (home / "munge").mkdir()
    key = home / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for path in (home / "munge", key):
        shutil.chown(path, "munge", "munge")
    host = socket.gethostname().split(".")[0]
    conf = _CONF.format(host=host, home=home, ports=_free_ports(3), nodes=NODES)
    (home / "slurm.conf").write_text(conf)

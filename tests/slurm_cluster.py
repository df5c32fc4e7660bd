"""A real SLURM of several nodes on this machine: Debian's daemons, each node in namespaces of its own.

A node has its own host name, address, ports, process numbers and shared memory. Killing its first process ends all of
it at once, as a power cut does; taking its link down cuts it off. The file system is shared, as on a cluster.
"""

from __future__ import annotations

import functools
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "ip", "unshare", "nsenter", "setpriv")
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_READY_S = 60.0
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")

_CONFIGURATION = """\
ClusterName=synfundus
SlurmctldHost={host}({gateway})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits for as long as a credential lives
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,requeue_delay=0
# nodes may claim more cores than the machine has
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=20
# a busy node that answers late is sent the same again, maybe after the job has come back under its old number
MessageTimeout=15
TCPTimeout=2
BatchStartTimeout=10
KillWait={kill_wait_s}
UnkillableStepTimeout=20
MinJobAge=3600
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}
"""

_FIRST_PROCESS = """\
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ip link set lo up
slurmd -D -N "$1" &
while :; do wait; sleep 0.1; done
"""


@functools.cache
def what_is_missing() -> str:
    """Say what a cluster needs and this machine lacks; empty where one can be started."""
    lacks = [name for name in PROGRAMS if _find(name) is None]
    if lacks:
        return f"no {', '.join(lacks)}: install slurmd slurmctld slurm-client munge iproute2"
    probe = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
    probe += ["ip", "link", "add", "probe", "type", "bridge"]
    path = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
    done = subprocess.run(probe, env={"PATH": path}, capture_output=True, text=True, check=False)
    return f"no network namespaces: {done.stderr.strip()}" if done.returncode else ""


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")


@dataclass
class SlurmCluster:
    """Daemons of a cluster.

    Attributes:
        folder: State and logs.
        nodes: Names of the nodes.
        gateway: Address of this machine on the cluster's network; nodes have the addresses from .1 on.
        port: Where the controller listens.
        cpus: Cores a node claims to have.
        grace_s: Seconds a preempted job of partition ``low`` has; at the end of a job ``KillWait`` is as long.
    """

    folder: Path
    nodes: tuple[str, ...]
    gateway: str
    port: int
    cpus: int = 4
    grace_s: int = 20
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path, *, num_nodes: int = 3) -> Self:
        """Choose addresses and start."""
        tag = os.getpid()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        network = f"10.{64 + tag % 64}.{tag // 64 % 250}"
        cluster = cls(folder, tuple(f"node{index + 1}" for index in range(num_nodes)), f"{network}.254", port)
        try:
            cluster.start()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead SLURM's programs to this cluster and no other."""
        path = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return {**kept, "PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        self._write_files()
        self._start_network()
        munge = {name: f"{self.folder}/munge.{name}" for name in ("socket", "key", "pid", "log", "seed")}
        places = [f"--socket={munge['socket']}"]
        places += [f"--{name}-file={munge[name]}" for name in ("key", "pid", "log", "seed")]
        # forced: a test's folder is closed to other users, which munged would rather see open
        self._spawn("munge", ["munged", "-F", "--force", *places])
        self._await(lambda: Path(munge["socket"]).exists(), "munged made no socket")
        self._spawn("controller", ["slurmctld", "-D", "-c", "-i"])
        for node in self.nodes:
            self.boot(node)
        self._await(lambda: self.idle_nodes() == len(self.nodes), "not all nodes came up")

    def stop(self) -> None:
        """End jobs and daemons; logs stay."""
        for node in self.nodes:
            self.crash(node)
        for name in ("controller", "munge"):
            self._end(name, signal.SIGTERM)
        self._stop_network()

    def crash(self, node: str) -> None:
        """Kill every process of a node at once."""
        self._end(node, signal.SIGKILL)

    def boot(self, node: str) -> None:
        """Start a node."""
        (self.folder / node / "spool").mkdir(parents=True, exist_ok=True)
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        first = ["bash", "-c", _FIRST_PROCESS, "node", node, str(self.folder)]
        self._spawn(node, ["nsenter", f"--net=/run/netns/{self._space(node)}", "unshare", *namespaces, *first])

    def cut(self, node: str) -> None:
        """Take a node's link down."""
        self._do("ip", "link", "set", self._link(node), "down")

    def heal(self, node: str) -> None:
        """Take a node's link up again."""
        self._do("ip", "link", "set", self._link(node), "up")

    def idle_nodes(self) -> int:
        """Return how many nodes are up and free."""
        answer = self.client("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False)
        return answer.split().count("idle")

    def client(self, *command: str, check: bool = True, extra: Mapping[str, str] | None = None) -> str:
        """Run one of SLURM's programs, or anything that calls them, and return what it wrote."""
        variables = {**self.environment, **(extra or {})}
        # SLURM cuts long texts without regard for letters of several bytes
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, errors="replace", check=False, timeout=60
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return what the controller knows of a job: ``JobState``, ``Restarts``, ``ExitCode`` and others."""
        fields = self.client("scontrol", "-o", "show", "job", number).split()
        return dict(text.split("=", 1) for text in fields if "=" in text)

    def wait_for(self, number: str, *states: str, timeout_s: float) -> dict[str, str]:
        """Wait until a job is in one of some states, by default until it has ended.

        Raises:
            AssertionError: It takes too long, or the job ended in another state.
        """
        wanted = states or _ENDED
        ends = time.monotonic() + timeout_s
        while True:
            job = self.job(number)
            if job["JobState"] in wanted:
                return job
            if job["JobState"] in _ENDED or time.monotonic() > ends:
                raise AssertionError(f"job {number} is {job['JobState']}, not {' or '.join(wanted)}: {job}")
            time.sleep(0.2)

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "controller").mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName={node} NodeHostname={node} NodeAddr={self.address(node)} Port={self.port} "
            f"CPUs={self.cpus} RealMemory=64000 State=UNKNOWN"
            for node in self.nodes
        ]
        text = _CONFIGURATION.format(
            host=host, gateway=self.gateway, port=self.port, user=getpass.getuser(), folder=self.folder,
            grace_s=self.grace_s, kill_wait_s=self.grace_s, nodes="\n".join(nodes),
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        hosts = ["127.0.0.1 localhost", f"{self.gateway} {host}"]
        hosts += [f"{self.address(node)} {node}" for node in self.nodes]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        # no name server is in reach: without this each look-up of an address would wait for one
        (self.folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")

    def address(self, node: str) -> str:
        """Return a node's address."""
        return f"{self.gateway.rpartition('.')[0]}.{self.nodes.index(node) + 1}"

    def _space(self, node: str) -> str:
        return f"sf{self.port}-{node}"

    def _link(self, node: str) -> str:
        return f"sf{self.port}v{self.nodes.index(node) + 1}"

    def _start_network(self) -> None:
        bridge = f"sf{self.port}"
        self._do("ip", "link", "add", bridge, "type", "bridge")
        self._do("ip", "addr", "add", f"{self.gateway}/24", "dev", bridge)
        self._do("ip", "link", "set", bridge, "up")
        for node in self.nodes:
            space = self._space(node)
            self._do("ip", "netns", "add", space)
            self._do("ip", "link", "add", self._link(node), "type", "veth", "peer", "name", "eth0", "netns", space)
            self._do("ip", "link", "set", self._link(node), "master", bridge, "up")
            self._do("ip", "-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            self._do("ip", "-n", space, "link", "set", "eth0", "up")

    def _stop_network(self) -> None:
        for node in self.nodes:
            self._do("ip", "netns", "del", self._space(node))
        self._do("ip", "link", "del", f"sf{self.port}")

    def _do(self, *command: str) -> None:
        self.client(*command)

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        # the kernel ends them with this process, however that ends
        tied = ["setpriv", "--pdeathsig", "KILL", *command]
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                tied, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _end(self, name: str, number: signal.Signals) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(number)
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _await(self, ready: Callable[[], bool], problem: str) -> None:
        ends = time.monotonic() + _READY_S
        while not ready():
            gone = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if gone or time.monotonic() > ends:
                logs = [*self.folder.glob("*.out"), *self.folder.glob("*.log"), *self.folder.glob("*/slurmd.log")]
                tails = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)
                raise RuntimeError(f"the SLURM cluster did not start: {problem}; ended: {gone}\n{tails}")
            time.sleep(0.1)

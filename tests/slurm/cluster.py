"""A SLURM cluster on loopback addresses, from Debian's packages, as root: for tests and for trying.

    python tests/slurm/cluster.py install          # apt-get: slurm-wlm, munge; bindfs, for a slow folder
    python tests/slurm/cluster.py start FOLDER     # prints what the shell needs to know of it; --nodes 2 for two nodes
    python tests/slurm/cluster.py stop FOLDER

Configuration, state, logs, keys and sockets are all in FOLDER. Nothing of the machine's own SLURM is touched. A single
node is the machine itself. Each of several has a name and an address of its own, and knows the others by name: that is,
kernel namespaces of host names and of mounts, with another file of hosts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "bindfs")
PACKAGES = ("slurm-wlm", "munge", "bindfs")
CPUS, MEMORY_MB = 8, 16000
"""Of the node. More processors than the machine may have: tests train tiny models, and mostly wait."""
KILL_WAIT, NODE_TIMEOUT = 20, 10
"""Seconds between SIGTERM and SIGKILL, and after which a node that does not answer counts as failed."""

_CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
JobRequeue=1
KillWait={kill_wait}
SlurmdTimeout={node_timeout}
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
FirstJobId={first_job}
{nodes}
PartitionName=cpu Nodes=ALL Default=YES PriorityTier=1 GraceTime={kill_wait} State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=gpu Nodes=ALL PriorityTier=1 GraceTime={kill_wait} State=UP
"""


class ClusterError(RuntimeError):
    """The cluster could not be started, or does not answer."""


def missing_programs() -> list[str]:
    """Programs of SLURM and munge that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]


def install() -> None:
    """Install the packages on Debian or Ubuntu, as root; does nothing where they are."""
    if not missing_programs():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-qq", *words], check=True, env=environment, stdout=subprocess.DEVNULL)


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


@dataclass(frozen=True)
class Cluster:
    """A cluster in a folder.

    Attributes:
        folder: Where everything of it is; an absolute path without blanks, short enough for a socket's name.
        first_job: Number of its first job. Processes of a job meet at a port that follows from its number, so clusters
            on one machine need numbers of their own.
        size: Number of nodes.
        gpus: Number of GPUs of each node, which SLURM hands out, but which do not exist.
    """

    folder: Path
    first_job: int = 1
    size: int = 1
    gpus: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need in addition to the process's environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _search_path()}

    def start(self) -> None:
        """Start munged, slurmctld and slurmd, and wait until the node takes jobs.

        Raises:
            ClusterError: A program is missing, or one of them does not come up.
        """
        if missing_programs():
            raise ClusterError(f"not installed: {', '.join(missing_programs())}; run python {__file__} install")
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged refuses a folder that others may write to
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._write_configuration()
        own = {name: self.folder / f"munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")}
        self.run(["munged", "--force", f"--key-file={key}", *(f"--{name}={path}" for name, path in own.items())])
        self.run(["slurmctld", "-c"])
        for name in self.addresses:
            self.start_node(name)

    def _write_configuration(self) -> None:
        controller_port, *node_ports = _free_ports(1 + self.size)
        gres = f"Gres=gpu:{self.gpus} Feature=a100 State=UNKNOWN" if self.gpus else "State=UNKNOWN"
        nodes = [
            f"NodeName={name} NodeAddr={address} Port={port} CPUs={CPUS} RealMemory={MEMORY_MB} {gres}"
            for (name, address), port in zip(self.addresses.items(), node_ports, strict=True)
        ]
        text = _CONFIGURATION.format(
            folder=self.folder,
            host=_host(),
            controller_port=controller_port,
            first_job=self.first_job,
            nodes="\n".join(nodes),
            kill_wait=KILL_WAIT,
            node_timeout=NODE_TIMEOUT,
        )
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        hosts = [f"127.0.0.1 localhost {_host()}", *(f"{address} {name}" for name, address in self.addresses.items())]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n", encoding="utf-8")
        devices = [self.folder / f"gpu{number}" for number in range(self.gpus)]
        for device in devices:  # SLURM wants devices; these are others of /dev/null
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))

    @property
    def addresses(self) -> dict[str, str]:
        """Addresses of the nodes, by name."""
        if self.size == 1:
            return {_host(): "127.0.0.1"}
        return {f"node{number}": f"127.0.0.{10 + number}" for number in range(1, self.size + 1)}

    def start_node(self, name: str | None = None) -> None:
        """Start a node's slurmd, as when it boots, and wait until it takes jobs; by default the first node's."""
        name = name or next(iter(self.addresses))
        boot = ["slurmd", "-N", name]
        if self.size > 1:
            own = f"hostname {name} && mount --bind {self.folder}/hosts /etc/hosts && exec slurmd -N {name}"
            boot = ["unshare", "--uts", "--mount", "--propagation=slave", "sh", "-c", own]
        self.run(boot)
        self.wait_for(lambda: self.node_state(name) in ("idle", "mixed", "allocated"), f"{name} to take jobs")

    def node_state(self, name: str | None = None) -> str:
        """A node's state, by default the first one's; empty while it does not answer."""
        name = name or next(iter(self.addresses))
        words = ["sinfo", "--noheader", "--partition=cpu", f"--nodes={name}", "--format=%T"]
        found = self.run(words, check=False).stdout.strip()
        return "" if found.endswith("*") else found

    def kill_node(self, name: str | None = None) -> None:
        """A node's sudden end, by default the first one's: slurmd and all that it has started get SIGKILL."""
        name = name or next(iter(self.addresses))
        file = self.folder / f"{name}.pid"
        victims = [int(file.read_text()), *self.step_managers(name)]
        file.unlink()  # its number may be another process's soon
        for victim in victims:
            victims += [child for child in _children(victim) if child not in victims]
        for victim in victims:
            _kill(victim, signal.SIGKILL)

    def step_managers(self, name: str | None = None) -> list[int]:
        """Processes of slurmstepd that belong to this cluster, or to one of its nodes."""
        marker = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        return [
            process
            for process in _processes()
            if _read(process, "comm").startswith(b"slurmstepd")
            and marker in _read(process, "environ").split(b"\0")
            and (name is None or self.size == 1 or _host_name_space(process) == self._host_name_space(name))
        ]

    def _host_name_space(self, name: str) -> str:
        """Of a node's slurmd."""
        return _host_name_space(int((self.folder / f"{name}.pid").read_text()))

    def run(self, words: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of SLURM's commands.

        Raises:
            ClusterError: It fails, and ``check`` is set.
        """
        environment = {**os.environ, **self.environment}
        program = shutil.which(words[0], path=environment["PATH"]) or words[0]
        output = self.folder / ".output"
        with output.open("w+") as stream:  # no pipe: daemons would keep it open
            status = subprocess.run(
                [program, *words[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                timeout=60,
            ).returncode
        said = output.read_text(encoding="utf-8", errors="replace")
        if check and status != 0:
            raise ClusterError(f"{' '.join(words)}: status {status}: {said}")
        return subprocess.CompletedProcess(list(words), status, said, "")

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
        """Wait for a condition.

        Raises:
            ClusterError: It does not become true in time.
        """
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise ClusterError(f"waited {seconds:g} s for {what}; the logs are in {self.folder}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Cancel all jobs and end everything."""
        if (self.folder / "slurmctld.pid").exists():
            self.run(["scancel", "--user=root", "--signal=KILL", "--full"], check=False)
            self.run(["scancel", "--user=root"], check=False)
        nodes = set(self.folder.glob("*.pid")) - {self.folder / "slurmctld.pid"}
        for file in (*nodes, self.folder / "slurmctld.pid", self.folder / "munge.pid-file"):
            if file.exists():
                _end(int(file.read_text()))
        for manager in self.step_managers():
            for process in (*_children(manager), manager):
                _kill(process, signal.SIGKILL)


@contextmanager
def slow_folder(folder: Path, place: Path, kilobytes_per_second: int) -> Iterator[None]:
    """Another view of a folder, as of a file server's: only to be read, and at some rate where it is not in the cache.

    Args:
        folder: The folder.
        place: An empty folder to see it at.
        kilobytes_per_second: The rate.
    """
    subprocess.run(["bindfs", "-o", "ro", f"--read-rate={kilobytes_per_second}k", folder, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(process: int, name: str) -> bytes:
    """A file of a process's folder below /proc; empty once it has ended."""
    try:
        return (Path("/proc") / str(process) / name).read_bytes()
    except OSError:
        return b""


def _host_name_space(process: int) -> str:
    """The kernel's name space of host names that a process is in; empty once it has ended."""
    try:
        return str((Path("/proc") / str(process) / "ns/uts").readlink())
    except OSError:
        return ""


def _children(parent: int) -> list[int]:
    marker = f"PPid:\t{parent}\n".encode()
    return [process for process in _processes() if marker in _read(process, "status")]


def _kill(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _end(process: int, seconds: float = 10.0) -> None:
    """Ask a daemon to end, and make sure that it does."""
    _kill(process, signal.SIGTERM)
    until = time.monotonic() + seconds
    while _read(process, "stat") and time.monotonic() < until:
        time.sleep(0.05)
    _kill(process, signal.SIGKILL)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("install", "start", "stop"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--nodes", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.action == "install":
        install()
        return 0
    if arguments.folder is None:
        parser.error(f"{arguments.action} needs a FOLDER")
    cluster = Cluster(arguments.folder.resolve(), size=arguments.nodes)
    if arguments.action == "stop":
        cluster.stop()
        return 0
    cluster.start()
    print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']} PATH=$PATH:/usr/sbin")
    return 0


if __name__ == "__main__":
    sys.exit(main())

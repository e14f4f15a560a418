"""A real Slurm of several nodes on one machine, as tests use it.

    with started(Settings(root=new_root(), nodes=3)) as cluster:
        cluster.run("srun", "-N3", "hostname")
        cluster.power_off("node2")

Whatever happens, all its processes end with ``down``, or with the process that started it.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.slurm.files import write_files
from tests.slurm.linux import (
    UNSHARE,
    FaultyClusterError,
    children,
    find_tool,
    how_to_install,
    is_alive,
    kill,
    missing_packages,
    wait_for,
    words_of,
)
from tests.slurm.settings import LOGIN, Settings, load
from tests.slurm.supervisor import freezer_folder

REPOSITORY = Path(__file__).parents[2]
_UP_SECONDS = 60
_DOWN_SECONDS = 20
_ASK_SECONDS = 60
_RUN_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Process:
    """A process that a job started on a node."""

    pid: int
    """As the supervisor counts."""
    host: str
    words: list[str]
    variables: dict[str, str]

    @property
    def rank(self) -> int | None:
        """The rank that Slurm gave it."""
        value = self.variables.get("SLURM_PROCID")
        return int(value) if value else None


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that runs."""

    settings: Settings

    @property
    def root(self) -> Path:
        return self.settings.root

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.settings.node_names

    def words(self, *words: str, on: str = LOGIN, folder: Path | None = None) -> list[str]:
        """Give the command line that runs another one on a host, in a folder (by default this one)."""
        words = ("env", f"SLURM_CONF={self.settings.slurm_conf}", *words)
        if not self.settings.namespaces:
            return list(words)
        first = supervisor_pid(self.root)
        if first is None:
            raise FaultyClusterError(f"the cluster of {self.root} is not up")
        if on != LOGIN:
            words = (*_enter(self._first(on), folder), *words)
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [*_enter(first, folder), *user, *words]

    def run(
        self,
        *words: str,
        on: str = LOGIN,
        check: bool = True,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        seconds: float = _RUN_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, by default where users log in.

        Raises:
            FaultyClusterError: It fails and ``check`` is on, or it takes longer than ``seconds``.
        """
        limit = ("timeout", "--kill-after=1", str(seconds))
        done = subprocess.run(
            self.words(*limit, *words, on=on, folder=cwd),
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env=_clean(os.environ if env is None else env),
        )
        if check and done.returncode:
            raise FaultyClusterError(
                f"{' '.join(words)} on {on}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, *words: str, on: str = LOGIN, **options: Any) -> subprocess.Popen[str]:
        """Start a command on a host and do not wait for it; options as for ``subprocess.Popen``."""
        environment = _clean(options.pop("env", os.environ))
        line = self.words(*words, on=on, folder=options.get("cwd"))
        return subprocess.Popen(line, env=environment, text=True, **options)

    def ask(self, deed: str, **values: Any) -> Any:
        """Have the supervisor do something.

        Raises:
            FaultyClusterError: It could not.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ASK_SECONDS)
            connection.connect(str(self.settings.socket))
            with connection.makefile("rw") as lines:
                lines.write(json.dumps({"do": deed, **values}) + "\n")
                lines.flush()
                reply = json.loads(lines.readline())
        if "fault" in reply:
            raise FaultyClusterError(f"{deed} {values}: {reply['fault']}")
        return reply["answer"]

    def power_off(self, node: str) -> None:
        """Take a node's power: it dies and no connection of it is ended."""
        self.ask("power-off", name=node)

    def crash(self, node: str) -> None:
        """Kill all of a node; its kernel still ends the connections."""
        self.ask("crash", name=node)

    def boot(self, node: str) -> None:
        """Start a node that was killed."""
        self.ask("boot", name=node)

    def cut(self, node: str) -> None:
        """Part a node from the network; its processes live on."""
        self.ask("cut", name=node)

    def heal(self, node: str) -> None:
        """Undo ``cut``."""
        self.ask("heal", name=node)

    def limit(self, node: str, rate: str) -> None:
        """Let no more than this reach a node over the network, as ``10mbit``; empty: no limit."""
        self.ask("limit", name=node, rate=rate)

    def slow(self, node: str, stopped: float) -> None:
        """Stop a node's tasks for this share of each 0.1 s; 0: no more."""
        self.ask("slow", name=node, stopped=stopped)

    def pause(self, host: str) -> None:
        """Stop every process of a node, or the controller (``login``)."""
        self.ask("pause", name=host)

    def resume(self, host: str) -> None:
        """Undo ``pause``."""
        self.ask("resume", name=host)

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon; the tasks of jobs live on."""
        self.ask("kill-slurmd", name=node)

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon after ``kill_slurmd``."""
        self.ask("start-slurmd", name=node)

    def stop_controller(self, number: int = signal.SIGTERM) -> None:
        """Stop slurmctld. SIGKILL within 10 s of a job's start has it forget that the job runs."""
        self.ask("stop-controller", number=number)

    def start_controller(self) -> None:
        """Start slurmctld after ``stop_controller``."""
        self.ask("start-controller")

    def processes(self, *nodes: str) -> list[Process]:
        """Find what jobs started and what lives, on some nodes or on all."""
        return [
            Process(**found) for node in nodes or self.nodes for found in self.ask("processes", name=node)
        ]

    def signal(self, number: int, *processes: Process) -> None:
        """Send a signal to processes, whatever host they are on."""
        self.ask("signal", number=number, pids=[process.pid for process in processes])

    def disk(self, host: str) -> Path:
        """Give the place where this process sees a host's own disk, ``ROOT/local`` there."""
        if self.settings.local_disk and host != LOGIN:
            raise FaultyClusterError(
                f"a small disk of {host} is seen on {host} only: use run(..., on={host!r})"
            )
        return self.root / "nodes" / host

    @property
    def shared(self) -> Path:
        """Where this process sees the small shared disk, ``ROOT/shared`` on the hosts."""
        return Path(f"/proc/{supervisor_pid(self.root)}/root{self.root}/shared")

    def _first(self, node: str) -> int:
        first = self.ask("first", name=node)
        if first is None:
            raise FaultyClusterError(f"{node} is not up")
        return int(first)


def new_root() -> Path:
    """Make a folder for a cluster."""
    return Path(tempfile.mkdtemp(prefix="slurm-"))


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[Cluster]:
    """Have a cluster for a while; its folder is removed with it."""
    try:
        yield up(settings, is_owned=True)
    finally:
        down(settings.root)
        shutil.rmtree(settings.root, ignore_errors=True)


def up(settings: Settings, *, is_owned: bool = False) -> Cluster:
    """Start a cluster; all nodes are idle when this returns.

    Args:
        settings: Of the cluster. Without namespaces, ports that are free are chosen.
        is_owned: It ends with this process, whatever happens to it.

    Raises:
        FaultyClusterError: Slurm is not installed, or something does not start.
    """
    if missing := missing_packages(accounting=settings.accounting):
        raise FaultyClusterError(
            f"Slurm is not installed: apt-get install {' '.join(missing)} (or: make debian-packages)"
        )
    if supervisor_pid(settings.root) is not None:
        raise FaultyClusterError(f"a cluster of {settings.root} is up already")
    if not settings.namespaces:
        settings = dataclasses.replace(settings, port=free_ports(settings.nodes + 3))
    write_files(settings)
    words = [sys.executable, "-S", "-m", "tests.slurm.supervisor", str(settings.root)]
    if settings.namespaces:
        # Not --map-root-user: as root the daemons would change their groups, which a user namespace forbids.
        user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
        words = [find_tool("unshare"), *user, *UNSHARE, *words]
    with (settings.root / "log/supervisor.out").open("ab") as log:
        outer = subprocess.Popen(
            [*words, *(["--owned"] if is_owned else [])],
            stdin=subprocess.PIPE if is_owned else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**_clean(os.environ), "PYTHONPATH": str(REPOSITORY)},
        )
    _OUTER[settings.root] = outer
    (settings.root / "run/outer.pid").write_text(str(outer.pid))
    cluster = Cluster(settings)
    wait_for(lambda: settings.socket.exists() or outer.poll() is not None, _UP_SECONDS, "the supervisor")
    wait_until_idle(cluster, settings.nodes)
    return cluster


_OUTER: dict[Path, subprocess.Popen[bytes]] = {}
"""What this process started, so that it takes leave of it."""


def find(root: Path) -> Cluster:
    """Find a cluster that another process started.

    Raises:
        FaultyClusterError: There is none.
    """
    if supervisor_pid(root) is None:
        raise FaultyClusterError(f"no cluster is up in {root}")
    return Cluster(load(root))


def down(root: Path) -> None:
    """End a cluster and everything in it; one that is not up is no fault."""
    try:
        settings = load(root)
    except FileNotFoundError:
        return
    pid = supervisor_pid(root)
    outer = _OUTER.pop(root, None)
    if pid is not None:
        kill([pid], signal.SIGKILL if settings.namespaces else signal.SIGTERM)
        wait_for(lambda: not is_alive(pid), _DOWN_SECONDS, f"the end of the cluster of {root}")
    if outer is not None:
        if outer.stdin is not None:
            outer.stdin.close()
        outer.wait(_DOWN_SECONDS)
    if settings.tracking == "cgroup":
        _remove_freezer(root)


def _remove_freezer(root: Path) -> None:
    """Remove the cluster's cgroups: they outlive every process and every namespace."""
    folders = sorted(freezer_folder(root).rglob("*/"), key=lambda folder: -len(folder.parts))
    for folder in (*folders, freezer_folder(root)):
        deadline = time.monotonic() + 2
        while folder.is_dir() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                folder.rmdir()


def supervisor_pid(root: Path) -> int | None:
    """Find a cluster's supervisor, the process that everything else lives under."""
    try:
        outer = int((root / "run/outer.pid").read_text())
    except (OSError, ValueError):
        return None
    for pid in (*children(outer), outer):
        words = words_of(pid)
        if str(root) in words and not words[0].endswith("unshare") and is_alive(pid):
            return pid
    return None


def wait_until_idle(cluster: Cluster, nodes: int, seconds: float = 60) -> None:
    """Wait until so many nodes are idle.

    Raises:
        FaultyClusterError: They are not in this time; the end of the logs is told.
    """

    def count() -> bool:
        if supervisor_pid(cluster.root) is None:
            return True
        done = cluster.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D %T", check=False, seconds=10)
        return f"{nodes} idle" in done.stdout.splitlines()

    with contextlib.suppress(FaultyClusterError):
        wait_for(count, seconds, f"{nodes} idle nodes", pause=0.02)
        if supervisor_pid(cluster.root) is not None:
            return
    logs = [f"{path.name}: {path.read_text()[-600:]}" for path in sorted((cluster.root / "log").iterdir())]
    states = cluster.run("sinfo", "-N", check=False).stdout if supervisor_pid(cluster.root) else ""
    raise FaultyClusterError("\n".join([f"not {nodes} nodes are idle after {seconds:g} s", states, *logs]))


def free_ports(count: int) -> int:
    """Find so many free ports in a row; give the first."""
    for first in range(20000 + os.getpid() % 100 * 100, 60000, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise FaultyClusterError(f"no {count} free ports in a row")


def _enter(pid: int, folder: Path | None) -> tuple[str, ...]:
    return ("nsenter", "-t", str(pid), "-m", "-u", "-n", "-i", "-p", f"--wd={folder or Path.cwd()}")


def _clean(environment: Any) -> dict[str, str]:
    """Leave out what a job around us said to its own commands."""
    return {name: value for name, value in environment.items() if not name.startswith(("SLURM", "PMI"))}

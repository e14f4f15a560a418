"""A real Slurm of several nodes on one machine, as tests use it."""

import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.slurm.linux import FaultyClusterError, children, is_alive, words_of
from tests.slurm.settings import LOGIN, Settings

REPOSITORY = Path(__file__).parents[2]
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
        # The folder is entered on the host itself: else the way there would lead through this one's mounts.
        place = f"--chdir={folder or Path.cwd()}"
        words = ("env", place, f"SLURM_CONF={self.settings.slurm_conf}", *words)
        if not self.settings.namespaces:
            return list(words)
        first = supervisor_pid(self.root)
        if first is None:
            raise FaultyClusterError(f"the cluster of {self.root} is not up")
        if on != LOGIN:
            words = (*_enter(self._first(on)), *words)
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [*_enter(first), *user, *words]

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
            env=clean_environment(os.environ if env is None else env),
        )
        if check and done.returncode:
            raise FaultyClusterError(
                f"{' '.join(words)} on {on}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, *words: str, on: str = LOGIN, **options: Any) -> subprocess.Popen[str]:
        """Start a command on a host and do not wait for it; options as for ``subprocess.Popen``."""
        environment = clean_environment(options.pop("env", os.environ))
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

    def restore(self) -> None:
        """Bring back every host and daemon that was killed, cut off, stopped or slowed."""
        self.ask("restore")

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


def _enter(pid: int) -> tuple[str, ...]:
    return ("nsenter", "-t", str(pid), "-m", "-u", "-n", "-i", "-p")


def clean_environment(environment: Any) -> dict[str, str]:
    """Leave out what a job around us said to its own commands."""
    return {name: value for name, value in environment.items() if not name.startswith(("SLURM", "PMI"))}

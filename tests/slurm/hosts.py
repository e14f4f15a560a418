"""The nodes of a cluster, as the supervisor starts, kills and parts them."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from tests.slurm.host import start_slurmd
from tests.slurm.linux import (
    UNSHARE,
    FaultyClusterError,
    all_pids,
    children,
    descendants,
    find_tool,
    ip,
    kill,
    variables_of,
    wait_for,
    words_of,
)
from tests.slurm.settings import Settings

_START_SECONDS = 20


class Hosts(Protocol):
    """What can be done to nodes, with or without namespaces."""

    def start(self, name: str, *, booted: bool) -> None:
        """Start a node."""

    def kill(self, name: str, *, crash: bool) -> None:
        """Kill all processes of a node at once; only with ``crash`` are its connections ended."""

    def pids(self, name: str) -> list[int]:
        """Find the processes of a node, its first one first."""

    def start_slurmd(self, name: str) -> None:
        """Start a node's slurmd anew."""

    def set_link(self, name: str, state: str) -> None:
        """Set a node's cable ``up`` or ``down``."""

    def limit(self, name: str, rate: str) -> None:
        """Let no more than this reach a node, as ``10mbit``; empty: what is possible."""


class NamespacedHosts:
    """Nodes that are hosts of their own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *, booted: bool) -> None:
        if self._first(name):
            raise FaultyClusterError(f"{name} is up already")
        words = [sys.executable, "-S", "-m", "tests.slurm.host", str(self._settings.root), name]
        with (self._settings.root / f"log/{name}.out").open("ab") as log:
            process = subprocess.Popen(
                [find_tool("unshare"), *UNSHARE, *words, *(["-b"] if booted else [])],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._hosts[name] = process
        first = wait_for(lambda: self._first(name), _START_SECONDS, f"the first process of {name}")
        cable = _cable(name)
        ip("link", "del", cable, check=False)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(first))
        ip("link", "set", cable, "master", "switch", "up")
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()

    def kill(self, name: str, *, crash: bool) -> None:
        if not crash:
            # Power off: not a word of farewell leaves the host.
            ip("link", "set", _cable(name), "down")
        process = self._hosts.pop(name)
        kill(children(process.pid))
        kill([process.pid])
        process.wait()

    def pids(self, name: str) -> list[int]:
        first = self._first(name)
        space = _pid_space(first) if first else None
        found = [pid for pid in all_pids() if space and _pid_space(pid) == space]
        return sorted(found, key=lambda pid: (pid != first, pid))

    def start_slurmd(self, name: str) -> None:
        kill(self.pids(name)[:1], signal.SIGUSR1)

    def set_link(self, name: str, state: str) -> None:
        ip("link", "set", _cable(name), state)

    def limit(self, name: str, rate: str) -> None:
        place = ["dev", _cable(name), "root"]
        bucket = ["tbf", "rate", rate, "burst", "32kb", "latency", "300ms"]
        words = ["replace", *place, *bucket] if rate else ["del", *place]
        subprocess.run([find_tool("tc"), "qdisc", *words], check=True)

    def _first(self, name: str) -> int | None:
        process = self._hosts.get(name)
        return next(iter(children(process.pid)), None) if process else None


class PlainHosts:
    """Several slurmd of one host: what is true of its network is true of all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *, booted: bool) -> None:
        self._daemons[name] = start_slurmd(self._settings, name, *(["-b"] if booted else []))

    def kill(self, name: str, *, crash: bool) -> None:
        if not crash:
            raise FaultyClusterError("without namespaces a node can crash but not lose its power: use crash")
        while pids := self.pids(name):
            kill(pids)
            self._daemons[name].poll()
        self._daemons.pop(name).wait()

    def pids(self, name: str) -> list[int]:
        daemon = self._daemons.get(name)
        roots = [daemon.pid] if daemon and daemon.poll() is None else []
        roots += [pid for pid in all_pids() if self._belongs(pid, name)]
        found = {pid for root in roots for pid in (root, *descendants(root))}
        return sorted(found, key=lambda pid: (pid not in roots, pid))

    def start_slurmd(self, name: str) -> None:
        self.start(name, booted=False)

    def set_link(self, name: str, state: str) -> None:
        raise FaultyClusterError(f"without namespaces {name} has no cable of its own to set {state}")

    def limit(self, name: str, rate: str) -> None:
        raise FaultyClusterError(f"without namespaces {name} has no cable of its own to limit to {rate}")

    def _belongs(self, pid: int, name: str) -> bool:
        """Tell a node's step by the log that slurmstepd holds open, its tasks by their environment."""
        words = words_of(pid)  # once: it may have ended before a second look
        if words and words[0].startswith("slurmstepd"):
            log = str(self._settings.root / f"log/slurmd-{name}.log")
            with contextlib.suppress(OSError):
                return any(str(file.readlink()) == log for file in Path(f"/proc/{pid}/fd").iterdir())
            return False
        variables = variables_of(pid)
        is_ours = variables.get("SLURM_CONF") == str(self._settings.slurm_conf)
        return is_ours and variables.get("SLURMD_NODENAME") == name


def _cable(name: str) -> str:
    return f"to-{name}"


def _pid_space(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - of a kernel's link, not of a file's
    return None

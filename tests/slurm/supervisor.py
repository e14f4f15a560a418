"""The process that all others of a cluster live under: ``python -m tests.slurm.supervisor ROOT [--owned]``.

With namespaces it is the first process of its own: killed, it takes all with it. It listens to one line of
JSON per connection. With ``--owned`` it ends with its standard input, that is with whoever started it.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.slurm.accounting import start_accounting
from tests.slurm.hosts import Hosts, NamespacedHosts, PlainHosts
from tests.slurm.linux import (
    adopt_orphans,
    become_host,
    bind,
    descendants,
    find_tool,
    ip,
    kill,
    mount,
    reap,
    variables_of,
    wait_for,
    words_of,
)
from tests.slurm.settings import LOGIN, Settings, load

_TICK_SECONDS = 0.2
_MUNGE_SECONDS = 20
_FREEZER = Path("/sys/fs/cgroup/freezer")
_DAEMONS = ("slurmd", "slurmstepd")


class Supervisor:
    """All daemons of one cluster."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts: Hosts = NamespacedHosts(settings) if settings.namespaces else PlainHosts(settings)
        self._slowed: dict[str, threading.Event] = {}

    def start(self) -> None:
        """Start everything."""
        settings = self._settings
        if settings.namespaces:
            become_host(LOGIN, settings.root)
            bind(settings.root / "nodes" / LOGIN, settings.root / "local")
            if settings.shared_disk:
                mount("tmpfs", settings.root / "shared", "tmpfs", data=f"size={settings.shared_disk}")
            if settings.tracking == "cgroup":
                bind(_own_freezer(settings.root), _FREEZER)
            ip("link", "set", "lo", "up")
            ip("link", "add", "switch", "type", "bridge")
            ip("addr", "add", f"{settings.address(LOGIN)}/24", "dev", "switch")
            ip("link", "set", "switch", "up")
        self._start_munge()
        if settings.accounting:
            start_accounting(settings, self._spawn)
        self.start_controller()
        for name in settings.node_names:
            self._hosts.start(name, booted=False)

    def _start_munge(self) -> None:
        run, log = self._settings.root / "run", self._settings.root / "log"
        files = [f"--key-file={run}/munge.key", f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"]
        files += [f"--log-file={log}/munged.log", f"--seed-file={run}/munged.seed"]
        # --force: it would not have its folder below one that others may write.
        self._spawn("munged", [find_tool("munged"), "-F", "--force", *files])
        wait_for((run / "munge.sock").exists, _MUNGE_SECONDS, "munged")

    def _spawn(self, name: str, words: list[str]) -> None:
        with (self._settings.root / f"log/{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_controller(self) -> None:
        self._spawn("slurmctld", [find_tool("slurmctld"), "-D", "-f", str(self._settings.slurm_conf)])

    def stop_controller(self, number: int) -> None:
        daemon = self._daemons["slurmctld"]
        kill([daemon.pid], number)
        daemon.wait()

    def _pids(self, name: str) -> list[int]:
        return [self._daemons["slurmctld"].pid] if name == LOGIN else self._hosts.pids(name)

    def _processes(self, name: str) -> list[dict[str, Any]]:
        """Tell of a node's processes except its first and Slurm's own."""
        found = []
        for pid in self._hosts.pids(name):
            words = words_of(pid)
            if words and "tests.slurm.host" not in words and not Path(words[0]).name.startswith(_DAEMONS):
                found.append({"pid": pid, "host": name, "words": words, "variables": variables_of(pid)})
        return found

    def _kill_slurmd(self, name: str) -> None:
        kill([pid for pid in self._hosts.pids(name) if _is_slurmd(pid)])

    def _slow(self, name: str, stopped: float) -> None:
        """Stop a node's tasks for this share of the time, until asked with 0."""
        if name in self._slowed:
            self._slowed.pop(name).set()
        if stopped:
            self._slowed[name] = enough = threading.Event()
            threading.Thread(target=self._stutter, args=(name, stopped, enough), daemon=True).start()

    def _stutter(self, name: str, stopped: float, enough: threading.Event) -> None:
        period = 0.1
        while not enough.is_set():
            pids = [process["pid"] for process in self._processes(name)]
            kill(pids, signal.SIGSTOP)
            enough.wait(period * stopped)
            kill(pids, signal.SIGCONT)
            enough.wait(period * (1 - stopped))

    def _restore(self) -> None:
        """Undo whatever was done to the hosts and has not been undone."""
        for name in self._settings.node_names:
            self._slow(name, 0)
            pids = self._hosts.pids(name)
            if not pids:
                self._hosts.start(name, booted=True)
                continue
            kill(pids, signal.SIGCONT)
            if self._settings.namespaces:
                self._hosts.set_link(name, "up")
            if not any(_is_slurmd(pid) for pid in pids):
                self._hosts.start_slurmd(name)
        kill(self._pids(LOGIN), signal.SIGCONT)
        if self._daemons["slurmctld"].poll() is not None:
            self.start_controller()

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what a request asks."""
        name = request.get("name", "")
        deeds: dict[str, Callable[[], Any]] = {
            "power-off": lambda: self._hosts.kill(name, crash=False),
            "crash": lambda: self._hosts.kill(name, crash=True),
            "boot": lambda: self._hosts.start(name, booted=True),
            "cut": lambda: self._hosts.set_link(name, "down"),
            "heal": lambda: self._hosts.set_link(name, "up"),
            "limit": lambda: self._hosts.limit(name, request["rate"]),
            "slow": lambda: self._slow(name, request["stopped"]),
            "pause": lambda: kill(self._pids(name), signal.SIGSTOP),
            "resume": lambda: kill(self._pids(name), signal.SIGCONT),
            "kill-slurmd": lambda: self._kill_slurmd(name),
            "start-slurmd": lambda: self._hosts.start_slurmd(name),
            "restore": self._restore,
            "stop-controller": lambda: self.stop_controller(request["number"]),
            "start-controller": self.start_controller,
            "first": lambda: next(iter(self._hosts.pids(name)), None),
            "processes": lambda: self._processes(name),
            "signal": lambda: kill(request["pids"], request["number"]),
        }
        return deeds[request["do"]]()

    def serve(self, is_owned: bool) -> None:
        """Answer until the owner ends."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._settings.socket))
            listener.listen(16)
            sources: list[Any] = [listener, *([sys.stdin] if is_owned else [])]
            while True:
                ready, _, _ = select.select(sources, [], [], _TICK_SECONDS)
                if sys.stdin in ready:
                    return
                if ready:
                    self._answer_one(listener)
                reap()

    def _answer_one(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as lines:
            try:
                reply = {"answer": self.answer(json.loads(lines.readline()))}
            except Exception as error:
                reply = {"fault": f"{type(error).__name__}: {error}"}
            lines.write(json.dumps(reply) + "\n")


def _is_slurmd(pid: int) -> bool:
    words = words_of(pid)
    return bool(words) and Path(words[0]).name == "slurmd" and "-D" in words


def _own_freezer(root: Path) -> Path:
    """Make a folder among the machine's cgroups for this cluster alone: ``down`` removes it."""
    folder = freezer_folder(root)
    folder.mkdir(exist_ok=True)
    return folder


def freezer_folder(root: Path) -> Path:
    return _FREEZER / f"metier-{root.name}"


def end_everything(*_: object) -> None:
    """Kill all that lives below, then end."""
    while pids := descendants(os.getpid()):
        kill(pids)
        reap()
    os._exit(0)


def main() -> None:
    """Be the supervisor of one cluster."""
    settings = load(Path(sys.argv[1]))
    adopt_orphans()
    signal.signal(signal.SIGTERM, end_everything)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SLURMD_"))]:
        del os.environ[name]
    os.environ["SLURM_CONF"] = str(settings.slurm_conf)
    supervisor = Supervisor(settings)
    try:
        supervisor.start()
        supervisor.serve("--owned" in sys.argv)
    finally:
        end_everything()


if __name__ == "__main__":
    main()

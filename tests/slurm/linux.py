"""The few calls to Linux that make a process a host of its own, and what /proc says about processes."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
}
"""Tool -> the Debian package that brings it."""

UNSHARE = (
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount",
    "--net",
    "--uts",
    "--ipc",
    "--propagation=private",
)
"""Words of unshare(1) that make a host."""

_MS_BIND = 4096
_PR_SET_CHILD_SUBREAPER = 36
_PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"))
_libc = ctypes.CDLL(None, use_errno=True)


class FaultyClusterError(Exception):
    """A cluster cannot be started, or does not do what was asked for."""


def find_tool(name: str) -> str:
    """Find a program, also where only root's path leads.

    Raises:
        FaultyClusterError: It is not installed.
    """
    found = shutil.which(name, path=_PLACES)
    if found is None:
        raise FaultyClusterError(f"{name} is missing: apt-get install {PACKAGES.get(name, name)}")
    return found


def missing_packages(*, accounting: bool = False) -> list[str]:
    """Name the Debian packages that a cluster would need and that are not installed."""
    tools = [tool for tool in PACKAGES if accounting or tool not in {"slurmdbd", "mariadbd"}]
    return [PACKAGES[tool] for tool in tools if shutil.which(tool, path=_PLACES) is None]


def how_to_install(packages: list[str]) -> str:
    return f"Slurm is not installed: apt-get install {' '.join(packages)} (or: make debian-packages)"


def mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Attach a file system with the system call: the command refuses everybody but root.

    Raises:
        OSError: The kernel refuses.
    """
    failed = _libc.mount(
        source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {source} on {target}: {os.strerror(code)}")


def bind(source: Path, target: Path) -> None:
    """Show a file or folder at another place as well."""
    mount(str(source), target, flags=_MS_BIND)


def set_host_name(name: str) -> None:
    _libc.sethostname(name.encode(), len(name))


def adopt_orphans() -> None:
    """Become the parent of every process below whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> None:
    """Take leave of every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def become_host(name: str, root: Path) -> None:
    """Give this process, the first of its namespaces, the name, the processes and the names of a host."""
    mount("proc", Path("/proc"), "proc")
    set_host_name(name)
    for file in ("hosts", "nsswitch.conf", "resolv.conf"):
        if Path("/etc", file).exists():
            bind(root / "etc" / file, Path("/etc", file))
    for which in ("all", "default"):
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")


def ip(*words: str, check: bool = True) -> None:
    """Change the network.

    Raises:
        FaultyClusterError: It fails, and ``check`` is on.
    """
    done = subprocess.run([find_tool("ip"), *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise FaultyClusterError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def descendants(pid: int) -> list[int]:
    """Find the children of a process, their children, and so on."""
    found: list[int] = []
    waiting = children(pid)
    while waiting:
        found += waiting
        waiting = [grandchild for child in waiting for grandchild in children(child)]
    return found


def is_alive(pid: int) -> bool:
    """Say whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def words_of(pid: int) -> list[str]:
    """Give a process's command line; empty for one that has ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0")
        return text.split("\0") if text else []
    return []


def variables_of(pid: int) -> dict[str, str]:
    """Give the environment that a process began with."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        return dict(word.split("=", 1) for word in text.split("\0") if "=" in word)
    return {}


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_for(ask: Callable[[], T], seconds: float, what: str, pause: float = 0.01) -> T:
    """Ask until the answer is true.

    Raises:
        FaultyClusterError: It is not in this time.
    """
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise FaultyClusterError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(pause)
    return answer

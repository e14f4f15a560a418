"""The beginning and the end of a cluster.

    with started(Settings(root=new_root(), nodes=3)) as cluster:
        cluster.run("srun", "-N3", "hostname")

Whatever happens, all its processes end with ``down``, or with the process that started it.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.slurm.cluster import REPOSITORY, Cluster, clean_environment, supervisor_pid
from tests.slurm.files import write_files
from tests.slurm.linux import (
    UNSHARE,
    FaultyClusterError,
    find_tool,
    how_to_install,
    is_alive,
    kill,
    missing_packages,
    wait_for,
)
from tests.slurm.settings import Settings, load
from tests.slurm.supervisor import freezer_folder

_UP_SECONDS = 60
_DOWN_SECONDS = 20


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
        raise FaultyClusterError(how_to_install(missing))
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
            env={**clean_environment(os.environ), "PYTHONPATH": str(REPOSITORY)},
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

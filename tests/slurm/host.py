"""The first process of a node's namespaces: ``python -m tests.slurm.host ROOT NAME [-b]``.

It makes itself a host, starts slurmd and adopts what is orphaned. Killed, it takes the rest with it.
SIGUSR1 starts slurmd once more.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.linux import become_host, bind, find_tool, ip, mount, reap
from tests.slurm.settings import LOGIN, Settings, load

_PAUSE_SECONDS = 0.2
_NETWORK_BITS = 24


def main() -> None:
    """Be a node for ever."""
    settings, name, options = load(Path(sys.argv[1])), sys.argv[2], sys.argv[3:]
    sys.stdin.readline()  # the supervisor has laid the cable
    become_host(name, settings.root)
    mount("tmpfs", Path("/dev/shm"), "tmpfs")  # noqa: S108 - of this host alone
    _local_disk(settings, name)
    ip("link", "set", "lo", "up")
    ip("addr", "add", f"{settings.address(name)}/{_NETWORK_BITS}", "dev", "eth0")
    ip("link", "set", "eth0", "up")
    ip("route", "add", "default", "via", settings.address(LOGIN))
    wishes: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: wishes.append(number))
    start_slurmd(settings, name, *options)
    while True:
        reap()
        if wishes:
            wishes.clear()
            start_slurmd(settings, name)
        time.sleep(_PAUSE_SECONDS)


def start_slurmd(settings: Settings, name: str, *options: str) -> subprocess.Popen[bytes]:
    """Start a node's slurmd; ``-b`` says that the node has just booted."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [find_tool("slurmd"), "-D", "-N", name, "-f", str(settings.slurm_conf), *options],
        env={**environment, "HOSTNAME": name},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _local_disk(settings: Settings, name: str) -> None:
    """Show at ``ROOT/local`` a disk that only this host has."""
    disk = settings.root / "nodes" / name
    if settings.local_disk:
        mount("tmpfs", disk, "tmpfs", data=f"size={settings.local_disk}")
    bind(disk, settings.root / "local")


if __name__ == "__main__":
    main()

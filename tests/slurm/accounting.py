"""What sacct needs: MariaDB and slurmdbd, with all that they keep in the cluster's own folder."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.slurm.linux import find_tool, wait_for
from tests.slurm.settings import LOGIN, Settings

Spawn = Callable[[str, list[str]], object]
"""Starts a daemon under a name."""

_START_SECONDS = 60
_RIGHTS = (
    "CREATE DATABASE IF NOT EXISTS slurm_acct_db;"
    "CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';"
    "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm';"
    "GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1'; GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"
)
_SMALL = (
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=4M",
    "--innodb-lock-wait-timeout=900",
    "--innodb-flush-log-at-trx-commit=0",
    "--skip-log-bin",
    "--performance-schema=OFF",
)


def start_accounting(settings: Settings, spawn: Spawn) -> None:
    """Start the database and what speaks with it; they answer when this returns."""
    root, (port, database_port) = settings.root, settings.database_ports
    folder = root / "mysql"
    if not folder.exists():
        shutil.copytree(_empty_database(), folder)
    server = [
        find_tool("mariadbd"),
        "--no-defaults",
        f"--datadir={folder}",
        f"--socket={root}/run/mysql.sock",
    ]
    server += [f"--pid-file={root}/run/mysql.pid", "--bind-address=127.0.0.1", f"--port={database_port}"]
    spawn("mariadbd", [*server, *_SMALL, *_as_root()])
    client = [
        find_tool("mariadb"),
        "--no-defaults",
        f"--socket={root}/run/mysql.sock",
        "-uroot",
        "-e",
        _RIGHTS,
    ]
    wait_for(lambda: _succeeds(client), _START_SECONDS, "MariaDB", pause=0.05)
    spawn("slurmdbd", [find_tool("slurmdbd"), "-D"])
    address = (settings.address(LOGIN), port)
    wait_for(lambda: _answers(address), _START_SECONDS, "slurmdbd", pause=0.05)
    # Or the first jobs may go unrecorded: the controller would add the cluster at its leisure.
    wait_for(
        lambda: _succeeds([find_tool("sacctmgr"), "-i", "add", "cluster", "test"]),
        _START_SECONDS,
        "sacctmgr",
        pause=0.2,
    )


def _as_root() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []


def _empty_database() -> Path:
    """Make the tables that every database begins with, once on this machine: it takes a second."""
    cache = Path(tempfile.gettempdir(), f"metier-slurm-database-{os.geteuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "whole").exists():
            shutil.rmtree(cache / "new", ignore_errors=True)
            words = [find_tool("mariadb-install-db"), "--no-defaults", f"--datadir={cache}/new", *_SMALL]
            words += ["--skip-test-db", "--auth-root-authentication-method=normal", *_as_root()]
            subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            (cache / "new").rename(cache / "whole")
    return cache / "whole"


def _succeeds(words: list[str]) -> bool:
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def _answers(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, 1):
        return True
    return False

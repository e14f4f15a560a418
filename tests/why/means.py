"""What several faults are provoked with: a killed run, a small disk, a port that is taken, another user."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.why.work import LONG, Work

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
KEEPS_READING = (*NOBODY, "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
"""Another user who may reach our Python wherever it lies; limits hold for nobody as they do not for root."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def half_a_run(work: Work) -> None:
    """Make a run that was killed after its second checkpoint; what it said itself is forgotten."""
    with work.started("train", *LONG) as command:
        work.wait_for_step(45)
        os.killpg(command.pid, signal.SIGKILL)
        for pid in work.ranks().values():
            os.kill(pid, signal.SIGKILL)
    for path in work.run.glob("logs/*.log"):
        path.unlink()


def hit(work: Work, rank: int, number: int) -> None:
    with work.started("train", *LONG):
        work.wait_for_step(4)
        os.kill(work.rank(rank), number)


def stop_a_rank(work: Work, *words: str) -> None:
    with work.started("train", *LONG, *words) as command:
        work.wait_for_step(30)
        os.kill(work.rank(1), signal.SIGSTOP)
        command.wait(110)


def meet(endpoint: str) -> tuple[str, ...]:
    return (
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        "--rdzv-conf=is_host=0,timeout=5",
    )


@contextlib.contextmanager
def listening_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["/usr/bin/umount", "-l", str(folder)], check=True)


def save_run(work: Work) -> None:
    """Take the run from a disk that is about to go."""
    aside = work.folder / "aside"
    shutil.copytree(work.run, aside, ignore=shutil.ignore_patterns("checkpoints"))


def put_back(work: Work) -> None:
    shutil.copytree(work.folder / "aside", work.run, dirs_exist_ok=True)

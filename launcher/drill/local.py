"""The drill on this machine: trainings are children of ours, and their ranks are struck by number."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from launcher.commands import merge_environment, package_variables
from launcher.drill.leftovers import find_abandoned, find_processes, list_shared_memory
from launcher.drill.plan import Kind, Plan
from launcher.drill.stage import Left
from launcher.tree import ConfigTree
from training.errors import ClusterError
from training.files import write_text

_MARK = "METIER_DRILL"
_GRACE_SECONDS = 60.0
_ASK_EVERY_SECONDS = 0.05
_SIGNALS = {"notice": signal.SIGUSR1, "kill": signal.SIGKILL}


class LocalStage:
    """This machine."""

    def __init__(self, tree: ConfigTree) -> None:
        """Let starts look for configurations where the drill itself does."""
        self._tree = tree
        self._mark = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._shared = list_shared_memory()

    def start(self, plan: Plan, name: str) -> None:
        """Type `metier train`; what it prints goes to the drill's folder."""
        self._mark = secrets.token_hex(8)
        temporary = self._temporary(plan)
        temporary.mkdir(parents=True, exist_ok=True)
        variables = {_MARK: self._mark, "TMPDIR": str(temporary)}
        with self._screen(plan, name).open("ab") as screen:
            self._child = subprocess.Popen(
                train_command(plan, name, self._tree),
                env=merge_environment({**os.environ, **variables}, package_variables()),
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            )

    def is_over(self, plan: Plan, name: str) -> bool:
        """Whether `metier train` has returned."""
        return self._child is None or self._child.poll() is not None

    def strike(self, plan: Plan, name: str, kind: Kind) -> str:
        """Send the last rank a signal, or write the file that asks for a stop."""
        if kind == "stop":
            path = plan.layout(name).stop_request
            write_text(path, "metier drill\n")
            return f"wrote {path.name}"
        number = _SIGNALS[kind]
        pid, rank = self._find_last_rank()
        os.kill(pid, number)
        return f"{number.name} to rank {rank}"

    def find_left(self, plan: Plan, name: str) -> Left:
        """Wait a moment for processes to end; then say what is left."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while (pids := self._pids()) and time.monotonic() < deadline:
            time.sleep(_ASK_EVERY_SECONDS)
        temporary = sorted(self._temporary(plan).iterdir())
        shutil.rmtree(self._temporary(plan), ignore_errors=True)
        return Left(
            found=(
                *(f"process {pid}" for pid in pids),
                *(f"temporary {path.name}" for path in temporary),
                *(f"shared memory {path}" for path in find_abandoned(list_shared_memory() - self._shared)),
            )
        )

    def say_why(self, plan: Plan, name: str) -> str:
        """Name the file with what `metier train` printed."""
        return f"see {self._screen(plan, name)} and {plan.layout(name).logs}"

    def end(self, plan: Plan, name: str) -> None:
        """Kill what lives of the last start."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pids(self) -> list[int]:
        wanted = f"{_MARK}={self._mark}".encode()
        return find_processes(lambda word: word == wanted) if self._mark else []

    def _find_last_rank(self) -> tuple[int, int]:
        ranks = {}
        for pid in self._pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                rank = next((word for word in variables if word.startswith(b"RANK=")), None)
                if rank is not None and b"training.worker" in words:
                    ranks[int(rank.removeprefix(b"RANK="))] = pid
        if not ranks:
            raise ClusterError("no rank of the run was found on this machine; it has ended")
        return ranks[max(ranks)], max(ranks)

    @staticmethod
    def _temporary(plan: Plan) -> Path:
        return Path(plan.root) / "tmp"

    @staticmethod
    def _screen(plan: Plan, name: str) -> Path:
        return Path(plan.root) / f"{name}.txt"


def train_command(plan: Plan, name: str, tree: ConfigTree) -> list[str]:
    """Give the command that a user would type."""
    folder = [f"--config-dir={tree.user_folder}"] if tree.user_folder else []
    return [sys.executable, "-m", "launcher", "train", *folder, *plan.words(name)]

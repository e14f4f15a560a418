"""Starts of a training in quick succession: one process imports everything, and each start is a fork of it.

What a start does is what ``python -m training.worker`` does, without the seconds that imports take. A start
can be given a death: at which step, by what.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Death = Literal["one rank", "all ranks", "stop signal", "stop file", "time is over", "evaluation", "none"]


@dataclass(frozen=True)
class Start:
    """One start of a run on some ranks."""

    root: Path
    world_size: int
    port: int
    death: Death
    step: int
    """The step after which, or in the evaluation of which, it dies."""


def run_starts(starts: list[Start]) -> list[list[int]]:
    """Make one start after the other; give each rank's exit code, negative for a signal.

    To be called in a fresh process, which forks: no thread may be running.
    """
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    import training.worker.run  # noqa: F401 - what the forks shall have

    codes = []
    for start in starts:
        children = []
        for rank in range(start.world_size):
            pid = os.fork()
            if pid == 0:
                _be_rank(start, rank)
            children.append(pid)
        codes.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
    return codes


def _be_rank(start: Start, rank: int) -> None:
    log = os.open(start.root / f"zygote_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(start.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(start.port),
    }
    import training.worker.__main__ as worker

    _plan_death(start, rank)
    (start.root / "outcome.json").unlink(missing_ok=True)
    sys.argv = ["worker", str(start.root)]
    code = 1
    try:
        code = worker.main()
    finally:
        os._exit(code)


def _plan_death(start: Start, rank: int) -> None:
    """Have this rank meet its death at the right place of the loop."""
    from training import loop, stop

    stop._POLL_SECONDS = 0.0  # all steps together take less than the second between two looks
    if start.death == "time is over":
        os.environ["METIER_END_TIME"] = str(time.time() - 1)
    told: Any = loop._log
    evaluate: Any = loop._evaluate

    def log(parts: Any, record: Any, beside: Any) -> None:
        told(parts, record, beside)
        if record.step != start.step:
            return
        if start.death == "all ranks" or (start.death == "one rank" and rank == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if start.death == "stop signal" and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if start.death == "stop file" and rank == 0:
            (start.root / "stop.request").write_text("ann on login1\n")

    def measure(parts: Any, progress: Any, config: Any) -> Any:
        if start.death == "evaluation" and progress.step == start.step and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(parts, progress, config)

    loop._log = log
    loop._evaluate = measure

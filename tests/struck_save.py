"""Saves that are struck at one system call after the other: ``python -m tests.struck_save``.

Killed at every call: one process from its start to the end of its save, and of two ranks the lead, then the
other one. Failed at every call: by ENOSPC, EIO and EDQUOT once, and by a disk that is full and stays so. Last
comes a folder that may not be written. Prints what became of each save as a line of JSON.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from tests.checkpoint_case import Events, at
from tests.fake_run import ALONE, FakeEngine, open_fake_store
from tests.ranks.spawn import free_port
from tests.strace import CALLS, Held, end_of, hold, let_go, strike, why_not
from training.collectives import join
from training.errors import StorageError
from training.layout import RunLayout
from training.ranks import Ranks

SAVED, TOLD, UNTOLD = 0, 3, 4
NOBODY = 65534
Start = Callable[[Path], tuple[list[Held], int]]
MEMORY = Path("/dev/shm")  # noqa: S108
CODES = ("ENOSPC", "EIO", "EDQUOT")
FAILING = ("open", "write", "fsync", "rename", "mkdir")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What became of a run whose save of step 3 was struck; steps 1 and 2 were saved well before."""

    blow: str
    ends: list[int]
    loaded: tuple[int, float]
    then: tuple[int, float]
    """What is loaded after one more save."""

    left: list[str]
    """What lies in the folders of the checkpoints and the starts then, and is none."""


def open_run(run: Path, step: int, ranks: Ranks = ALONE) -> Callable[[], int]:
    """Do what a start of a run does; give the save of a state that can be told from any other step's."""
    events = Events()
    store = open_fake_store(run, FakeEngine(float(step), ranks), events=events, ranks=ranks)

    def save() -> int:
        try:
            store.save(at(step), final=True)
        except StorageError as error:
            is_told = events.kinds == ["save_failed"] and f"checkpoint of step {step}" in str(error)
            return TOLD if is_told else UNTOLD
        return SAVED if events.kinds == ["saved"] else UNTOLD

    return save


def load(root: Path) -> tuple[int, float]:
    """Load as the next start does: the step, and the state's only value."""
    engine = FakeEngine()
    progress = open_fake_store(root, engine).resume()
    values = {*engine.value.tolist(), *(-engine.moment).tolist()}
    return progress.step, values.pop() if len(values) == 1 else float("nan")


def tell(root: Path, blow: str, ends: list[int]) -> Told:
    """Go on with a run that was struck, and look at what is found."""
    loaded = load(root)
    open_run(root, 4)()
    names = sorted(path.name for path in RunLayout(root).checkpoints.iterdir())
    left = [name for name in names if not name.startswith("step_")]
    left += [path.name for path in RunLayout(root).incarnations.iterdir() if path.suffix != ".json"]
    return Told(blow=blow, ends=ends, loaded=loaded, then=load(root), left=left)


@contextlib.contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """Give a run with two checkpoints, of which the next save drops the older."""
    run = root / "run"
    shutil.copytree(root / "good", run)
    yield run
    shutil.rmtree(run)


def walk(
    root: Path, call: str, fault: str, start: Callable[[Path], tuple[list[Held], int]]
) -> Iterator[Told]:
    """Strike at the first call of this kind, then at the second, and so on, until one save has no such call.

    Args:
        root: Has the run ``good``.
        call: Which system call.
        fault: What happens, in strace's words, with a place for the call's number.
        start: Makes the processes, all held, and says which of them is struck.
    """
    log = root / "strace.txt"
    for number in range(1, 1000):
        with copy_of(root) as run:
            processes, victim = start(run)
            tracer = strike(processes[victim], f"{CALLS[call]}:{fault.format(number)}", log)
            for process in processes:
                let_go(process)
            ends = [end_of(process) for process in processes]
            tracer.communicate(timeout=60)
            if "(INJECTED)" not in log.read_text() and -signal.SIGKILL not in ends:
                return
            yield tell(run, f"{call} {fault.format(number)} process={victim}", ends)


def alone(run: Path) -> tuple[list[Held], int]:
    """Hold one process before its start."""
    return [hold(lambda: lambda: open_run(run, 3)())], 0  # noqa: PLW0108 - it is opened when it is let go


def alone_and_started(run: Path) -> tuple[list[Held], int]:
    """Hold one process that has started, before its save."""
    return [hold(lambda: open_run(run, 3))], 0


def in_company(run: Path, victim: int) -> tuple[list[Held], int]:
    """Hold two ranks that have met and started."""
    port = str(free_port())

    def prepare(rank: int) -> Callable[[], int]:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = Ranks(rank=rank, local_rank=rank, world_size=2)
        join(ranks, device=torch.device("cpu"), timeout_seconds=30)
        return open_run(run, 3, ranks)

    return [hold(partial(prepare, rank)) for rank in (0, 1)], victim


def refused(root: Path) -> Told:
    """Save where nothing may be written: root, whom no mode stops, becomes somebody else for it."""
    with copy_of(root) as run:
        checkpoints = RunLayout(run).checkpoints

        def prepare() -> Callable[[], int]:
            save = open_run(run, 3)
            checkpoints.chmod(0o555)
            if os.geteuid() == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            return save

        process = hold(prepare)
        let_go(process)
        ends = [end_of(process)]
        checkpoints.chmod(0o755)
        return tell(run, "a folder that may not be written", ends)


def strikes(root: Path) -> Iterator[Told]:
    """Do all strikes."""
    for call in CALLS:
        yield from walk(root, call, "signal=SIGKILL:when={}", alone)
        for victim in (0, 1):
            yield from walk(root, call, "signal=SIGKILL:when={}", partial(in_company, victim=victim))
    for call in FAILING:
        for code in CODES:
            yield from walk(root, call, f"error={code}:when={{}}", alone_and_started)
        yield from walk(root, call, "error=ENOSPC:when={}+", alone_and_started)
    yield refused(root)


def main() -> None:
    """Strike, and print a line for each blow; or the reason why strace cannot be used."""
    torch.set_num_threads(1)  # threads do not survive a fork
    reason = why_not()
    if reason is not None:
        sys.stdout.write(json.dumps({"reason": reason}) + "\n")
        return
    # Hundreds of saves need no power-cut safety, so they go to memory where there is a folder for it.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        root = Path(folder)
        root.chmod(0o755)  # so that somebody else finds the way
        for step in (1, 2):
            open_run(root / "good", step)()
        for told in strikes(root):
            sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    main()

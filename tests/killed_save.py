"""Saves in child processes, each killed at another file-system event: ``python -m tests.killed_save ROOT``.

Prints what is loaded after each kill, as JSON. The children are forked before any thread runs, so that not
each of them imports everything again.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from tests.checkpoint_case import at
from tests.fake_run import FakeEngine, open_fake_store
from tests.faults import count_events, disk_events, kill_at


def save(root: Path, step: int) -> None:
    """Save a state that can be told from any other step's."""
    open_fake_store(root, FakeEngine(float(step))).save(at(step), final=True)


def save_and_die(root: Path, step: int, moment: int) -> bool:
    """Save in a child that is killed; say whether it was."""
    child = os.fork()
    if child == 0:
        with disk_events(root, kill_at(moment)):
            save(root, step)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def load(root: Path) -> tuple[int, float]:
    """Load as the next start does: the step, and the state's only value."""
    engine = FakeEngine()
    progress = open_fake_store(root, engine).resume()
    values = {*engine.value.tolist(), *(-engine.moment).tolist()}
    return progress.step, values.pop() if len(values) == 1 else float("nan")


def main() -> None:
    """Kill at every event of a save that also prunes and replaces; load, and save again, after each."""
    root = Path(sys.argv[1])
    torch.set_num_threads(1)  # threads do not survive a fork
    for step in (1, 2):
        save(root / "good", step)
    shutil.copytree(root / "good", root / "counted")
    events = count_events(root / "counted", lambda: save(root / "counted", 3))
    told = []
    for moment in range(1, events + 1):
        run = root / f"killed_{moment}"
        shutil.copytree(root / "good", run)
        killed = save_and_die(run, 3, moment)
        loaded = load(run)
        save(run, 4)
        told.append({"killed": killed, "loaded": loaded, "then": load(run)})
        left = sorted(path.name for path in (run / "checkpoints").iterdir())
        told[-1]["left"] = [name for name in left if not name.startswith("step_")]
        shutil.rmtree(run)
    sys.stdout.write(json.dumps({"events": events, "told": told}))


if __name__ == "__main__":
    main()

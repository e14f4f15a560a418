"""Prepares a corpus in child processes that are killed at chosen moments: ``python -m tests.killed_prepare``.

Reads JSON from stdin (the data configuration, and how many kills are wanted with which seed), prints JSON.
A moment is the n-th time that the process opens, renames or removes a file: all that a kill could tear apart.
The children are forked before any thread runs, so that not each of them imports everything again.
"""

import json
import os
import random
import signal
import sys
from typing import Any

from tests.corpus_case import prepare
from training.config.sources import DataConfig

WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "fcntl.flock"}


def run_child(data: DataConfig, kill_at: int | None) -> tuple[bool, int]:
    """Prepare in a child; say whether it came to its end, and how many moments there were."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        moments = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal moments
            if event in WATCHED and (event != "open" or str(arguments[0]).startswith(data.path)):
                moments += 1
                if moments == kill_at:
                    os.killpg(0, signal.SIGKILL)

        sys.addaudithook(watch)
        prepare(data)
        os.write(writing, str(moments).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return status == 0, int(told or 0)


def main() -> None:
    """Count the moments of an uninterrupted call, then kill as often as wanted and finish."""
    wanted = json.load(sys.stdin)
    data = DataConfig.model_validate(wanted["data"])
    undisturbed = data.model_copy(update={"path": data.path + ".undisturbed"})
    is_done, moments = run_child(undisturbed, None)
    moments_of_kills = random.Random(wanted["seed"])
    # Each call gets less far than an uninterrupted one; short ways leave work for all the kills.
    kills = [moments_of_kills.randrange(1, moments // 3) for _ in range(wanted["kills"])]
    killed = [not run_child(data, moment)[0] for moment in kills]
    finished, _ = run_child(data, None)
    sys.stdout.write(json.dumps({"undisturbed": is_done, "killed": sum(killed), "finished": finished}))


if __name__ == "__main__":
    main()

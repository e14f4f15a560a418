"""Run one function on several processes, as a launcher would, and never wait for ever."""

import multiprocessing
import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

_VARIABLES = {"OMP_NUM_THREADS": "1"}
_PRELOAD = ["training.worker.run", "peft", "bitsandbytes"]
"""Eight seconds of imports: done once for all tests of a worker, whose ranks are then forked."""


def on_ranks(
    world_size: int,
    body: Callable[..., Any],
    *args: object,
    timeout_seconds: float = 300,
    fresh: bool = False,
    accelerator: str = "cpu",
) -> list[Any]:
    """Return what ``body(*args)`` returned on each rank, in rank order.

    Args:
        world_size: So many processes.
        body: Called on each.
        args: Its arguments.
        timeout_seconds: How long the slowest may take.
        fresh: Whether each rank is a new process with imports of its own, as whoever measures memory needs.
        accelerator: What DeepSpeed is to use, cpu or cuda; ranks on cuda are always fresh.

    Raises:
        AssertionError: A rank raised, or did not answer in time; every process is gone by then.
    """
    forked = accelerator == "cpu" and not fresh
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        os.environ |= _VARIABLES | {"DS_ACCELERATOR": accelerator}
        context.set_forkserver_preload(_PRELOAD)
    answers: Queue[tuple[int, bool, Any]] = context.Queue()
    shared = {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "DS_ACCELERATOR": accelerator,
        **_VARIABLES,
    }
    processes = [
        context.Process(target=_rank, args=(rank, shared, answers, body, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline, results = time.monotonic() + timeout_seconds, {}
    try:
        while len(results) < world_size:
            try:
                rank, ok, value = answers.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                silent = sorted(set(range(world_size)) - set(results))
                raise AssertionError(f"ranks {silent} silent after {timeout_seconds} s") from None
            assert ok, f"rank {rank} raised:\n{value}"
            results[rank] = value
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [results[rank] for rank in range(world_size)]


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank(
    rank: int,
    shared: dict[str, str],
    answers: "Queue[tuple[int, bool, Any]]",
    body: Callable[..., Any],
    args: tuple[object, ...],
) -> None:
    os.environ |= shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        answers.put((rank, True, body(*args)))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))

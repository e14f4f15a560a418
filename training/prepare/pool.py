"""Processes that encode parts side by side; none dies unnoticed, none outlives its parent."""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from transformers import PreTrainedTokenizerBase

from training.config.sources import DataConfig
from training.data.corpus.segments import Job, Listener
from training.errors import ClusterError
from training.prepare.worker import serve

SECONDS_TO_END = 5.0


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None
    is_ended: bool = False


def encode_in_processes(
    jobs: Sequence[Job],
    processes: int,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    listener: Listener,
) -> None:
    """Encode all jobs, in any order, in ``processes`` processes that each get a copy of the tokenizer.

    Raises:
        ClusterError: A process died; what it had committed is kept.
        MetierError: What a process met: a damaged source, a full disk.
        RuntimeError: What a process met and nobody foresaw, with its traceback.
    """
    waiting = list(reversed(jobs))
    # As bytes: one that was read from a folder takes a process 2 s more, most of them imports.
    copy = pickle.dumps(tokenizer)
    workers = [_start(data) for _ in range(min(processes, len(jobs)))]
    try:
        for worker in workers:
            _send(worker, copy)
        for worker in workers:
            _hand_out(worker, waiting)
        while any(worker.job is not None for worker in workers):
            ready = wait([worker.connection for worker in workers if not worker.is_ended])
            for worker in workers:
                if worker.connection in ready:
                    _hear(worker, waiting, listener)
    finally:
        _end(workers)


def _start(data: DataConfig) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # A daemon: it is ended even where this process leaves by an exception that nobody catches.
    process = context.Process(target=serve, args=(theirs, os.getpid(), data), daemon=True)
    process.start()
    # Its end must be open in the worker alone: then reading ends the moment the worker does.
    theirs.close()
    return _Worker(process, ours)


def _hand_out(worker: _Worker, waiting: list[Job]) -> None:
    worker.job = waiting.pop() if waiting else None
    if worker.job is None:
        worker.is_ended = True
        worker.connection.close()
        return
    _send(worker, pickle.dumps(worker.job))


def _send(worker: _Worker, pickled: bytes) -> None:
    try:
        worker.connection.send_bytes(pickled)
    except (BrokenPipeError, ConnectionResetError):
        raise _find_cause(worker) from None


def _hear(worker: _Worker, waiting: list[Job], listener: Listener) -> None:
    try:
        kind, value = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        raise _find_cause(worker) from None
    match kind:
        case "advance":
            listener.advance(*value)
        case "done":
            _hand_out(worker, waiting)
        case "refused":
            raise value
        case _:
            raise RuntimeError(f"a process that encodes failed:\n{value}")


def _find_cause(worker: _Worker) -> ClusterError:
    worker.process.join(SECONDS_TO_END)
    code = worker.process.exitcode
    how = (
        f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
    )
    memory = " (the kernel does so when memory runs out)" if code == -signal.SIGKILL else ""
    name = worker.job.part.pieces[0].name if worker.job else "nothing"
    return ClusterError(
        f"the process {worker.process.pid} that encoded {name} {how}{memory}; what was done is kept: run "
        "the same command again, with fewer prepare.processes if memory is short"
    )


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(SECONDS_TO_END)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()

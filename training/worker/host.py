"""What a rank's machine must let it have: open files and shared memory; told where it is little."""

import os
import resource

LEAST_FILES = 4096
LEAST_SHARED_BYTES = 64 << 20
_SHARED = "/dev/shm"  # noqa: S108 - NCCL's own place


def look_at_host(*, shares_memory: bool) -> list[str]:
    """Raise what may be raised, and give a line for each thing that may end the run later.

    Args:
        shares_memory: Whether ranks of this machine talk through shared memory, as NCCL's do; gloo uses
            sockets, and the loader has threads.
    """
    notes = [_raise_files()]
    if shares_memory:
        notes.append(_look_at_shared_memory(_SHARED))
    return [note for note in notes if note]


def _raise_files() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or hard >= LEAST_FILES:
        return ""
    return (
        f"{os.uname().nodename}: a process may open {hard} files at most, {LEAST_FILES} are wanted for "
        "shards and connections; have the site raise the hard limit (ulimit -Hn)"
    )


def _look_at_shared_memory(folder: str) -> str:
    try:
        found = os.statvfs(folder)
    except OSError:
        return f"{os.uname().nodename}: there is no {folder}, which NCCL needs between GPUs of one node"
    free = found.f_bavail * found.f_frsize
    if free >= LEAST_SHARED_BYTES:
        return ""
    return (
        f"{os.uname().nodename}: {folder} has {free >> 20} MiB free, NCCL wants {LEAST_SHARED_BYTES >> 20} "
        f"between GPUs of one node; remove what other processes left there, or enlarge it"
    )

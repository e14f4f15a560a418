"""Which runs have processes on this machine: the kernel's own list is asked, no file."""

import contextlib
import os
from pathlib import Path


def find_ranks(proc: Path = Path("/proc")) -> dict[Path, list[int]]:
    """Find the training processes of this machine: run directory -> process ids.

    A rank is ``python -m training.worker RUN_DIR``; torchrun has the same words in its own command.
    """
    found: dict[Path, list[int]] = {}
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
            if b"training.worker" in words[-2:-1]:
                found.setdefault(Path(os.fsdecode(words[-1])), []).append(int(folder.name))
    return found


def is_rank(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process is a rank itself, and not torchrun above it."""
    with contextlib.suppress(OSError):
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        return b"torch.distributed.run" not in words
    return False

"""What is the same for all ranks of a node: memory, limits, versions, adapters."""

import importlib.metadata
import platform
import resource
import socket
from pathlib import Path

import torch

from training.preflight.disk import free_bytes
from training.preflight.rate import best_rate

_PACKAGES = ("metier", "torch", "deepspeed", "transformers")
_LIMITS = {"open files": resource.RLIMIT_NOFILE, "locked memory": resource.RLIMIT_MEMLOCK}
_COPIED_BYTES = 64 << 20
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a mount of the node's, whose size is looked at
_ADAPTERS = Path("/sys/class/infiniband")


def measure_memory_copy() -> float:
    """Gigabytes a second that one process copies from memory to memory; each byte counts once."""
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return best_rate(copy, _COPIED_BYTES / 1e9, rounds=2)


def find_versions() -> dict[str, str]:
    """Name what must be the same on all nodes."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if torch.version.cuda:
        versions["CUDA"] = torch.version.cuda
    return versions


def find_limits() -> dict[str, int]:
    """Give the soft limits of this process; -1: none."""
    return {name: resource.getrlimit(number)[0] for name, number in _LIMITS.items()}


def find_shared_memory() -> int:
    """Free bytes of /dev/shm, through which NCCL speaks within a node."""
    return free_bytes(_SHARED_MEMORY)


def find_interfaces() -> tuple[str, ...]:
    """Name the network interfaces."""
    return tuple(name for _, name in socket.if_nameindex())


def find_adapters() -> tuple[str, ...]:
    """Name the InfiniBand and RoCE adapters."""
    return tuple(sorted(path.name for path in _ADAPTERS.iterdir())) if _ADAPTERS.is_dir() else ()

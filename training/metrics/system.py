"""What each node is at: processors, memory, disk, network, devices; read now and then into a file per node.

The node's first rank reads, in a thread of its own. Nothing here ever ends or slows a training: what cannot
be read is left out, and what cannot be written is not.
"""

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import psutil

from training.layout import RunLayout
from training.metrics.lines import NEWLINE, encode_line
from training.ranks import Ranks

Readings = dict[str, float]

_CLOSE_SECONDS = 2.0


class Closer(Protocol):
    """Ends the readings."""

    def close(self) -> None:
        """Take no more."""


class SystemWatch:
    """A thread that reads this node every ``seconds`` and appends to its file."""

    def __init__(self, layout: RunLayout, node: str, seconds: float) -> None:
        """Begin to read."""
        self._path = layout.system(node)
        self._node = node
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        self._ended.set()
        self._thread.join(_CLOSE_SECONDS)

    def _watch(self) -> None:
        counted = Counters(time.monotonic(), count_bytes())
        with contextlib.suppress(Exception):
            psutil.cpu_percent()  # the first one has nothing to compare with
        devices = open_devices()
        while not self._ended.wait(self._seconds):
            now = Counters(time.monotonic(), count_bytes())
            readings = read_host() | find_rates(counted, now) | read_devices(devices)
            counted = now
            line = {"time": round(time.time(), 3), "node": self._node, **readings}
            with contextlib.suppress(OSError), self._path.open("ab") as stream:
                stream.write(encode_line(line) + NEWLINE)


class Counters:
    """Bytes counted up to a moment."""

    def __init__(self, moment: float, counts: Mapping[str, int]) -> None:
        """Keep them."""
        self.moment = moment
        self.counts = counts


class NoWatch:
    """Where another rank of the node reads, or nobody wants it."""

    def close(self) -> None:
        """Nothing is open."""


def start_system_watch(layout: RunLayout, ranks: Ranks, seconds: float | None) -> Closer:
    """Begin to read this node, where this rank is the one to do it and somebody wants it."""
    if seconds is None or ranks.local_rank != 0:
        return NoWatch()
    return SystemWatch(layout, os.uname().nodename, seconds)


def read_host() -> Readings:
    """Read processors, memory and the load of this node."""
    found: Readings = {}
    with contextlib.suppress(Exception):
        found["cpu_percent"] = psutil.cpu_percent()
        memory = psutil.virtual_memory()
        found["memory_bytes"] = float(memory.total - memory.available)
        found["memory_percent"] = float(memory.percent)
    with contextlib.suppress(OSError):
        found["load"] = os.getloadavg()[0]
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")  # noqa: S108 - looked at, not written to
        found["shm_free_bytes"] = float(shared.f_bavail * shared.f_frsize)
    return found


def count_bytes() -> dict[str, int]:
    """Count the bytes that disks and network have moved since the node's start."""
    counts: dict[str, int] = {}
    with contextlib.suppress(Exception):
        disk = psutil.disk_io_counters()
        if disk is not None:
            counts |= {"disk_read": disk.read_bytes, "disk_written": disk.write_bytes}
    with contextlib.suppress(Exception):
        network = psutil.net_io_counters()
        counts |= {"network_received": network.bytes_recv, "network_sent": network.bytes_sent}
    return counts


def find_rates(before: Counters, after: Counters) -> Readings:
    """Divide what was moved between two moments by the time between them, bytes a second."""
    seconds = after.moment - before.moment
    if seconds <= 0:
        return {}
    return {
        f"{name}_bytes_per_second": max(0, count - before.counts[name]) / seconds
        for name, count in after.counts.items()
        if name in before.counts
    }


def open_devices() -> tuple[Any, Sequence[Any]]:
    """Open NVIDIA's management library and its devices; nothing where there is none."""
    try:
        import pynvml  # noqa: PLC0415 - installed with GPUs alone

        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no library, no driver, no device: NVML has an error for each
        return None, ()


def read_devices(opened: tuple[Any, Sequence[Any]]) -> Readings:
    """Read each device's use, memory, power and heat."""
    library, devices = opened
    found: Readings = {}
    for number, device in enumerate(devices):
        with contextlib.suppress(Exception):
            found[f"gpu_{number}_percent"] = float(library.nvmlDeviceGetUtilizationRates(device).gpu)
        with contextlib.suppress(Exception):
            found[f"gpu_{number}_memory_bytes"] = float(library.nvmlDeviceGetMemoryInfo(device).used)
        with contextlib.suppress(Exception):
            found[f"gpu_{number}_watts"] = library.nvmlDeviceGetPowerUsage(device) / 1000
        with contextlib.suppress(Exception):
            found[f"gpu_{number}_celsius"] = float(library.nvmlDeviceGetTemperature(device, 0))
    return found

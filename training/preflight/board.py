"""Where ranks leave messages for each other: the process group's TCP store, with a deadline on every wait.

A collective would not end where one node is dead, and that is the very thing to be found out.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    PrefixStore,
    TCPStore,
)

from training.errors import ClusterError, first_line
from training.preflight.nodes import expand_nodes
from training.ranks import Ranks

_POLL_SECONDS = 0.02
_KNOCK_SECONDS = 5.0
_FIRST_PORT = 25_000
_PORTS = 5_000


class Board:
    """Messages by name; each is written once."""

    def __init__(self, store: TCPStore, prefix: str) -> None:
        """Write into ``store``, under names that begin with ``prefix``."""
        self._store, self._prefix = PrefixStore(prefix, store), prefix

    def post(self, name: str, value: Any) -> None:
        """Leave a message.

        Raises:
            ClusterError: The lead has gone.
        """
        with _lead_needed():
            self._store.set(name, json.dumps(value))

    def find(self, name: str, seconds: float) -> Any | None:
        """Wait for a message; None when it does not come in time.

        Raises:
            ClusterError: The lead has gone.
        """
        return self.collect([name], seconds).get(name)

    def collect(self, names: Sequence[str], seconds: float) -> dict[str, Any]:
        """Wait for several messages; give those that came in time.

        Raises:
            ClusterError: The lead has gone.
        """
        deadline, found = time.monotonic() + seconds, dict[str, Any]()
        while True:
            with _lead_needed():
                new = [name for name in names if name not in found and self._store.check([name])]
                found |= {name: json.loads(self._store.get(name)) for name in new}
            if len(found) == len(names) or time.monotonic() >= deadline:
                return found
            time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _lead_needed() -> Iterator[None]:
    try:
        yield
    except DistError as error:
        raise ClusterError(f"the preflight's lead has gone ({first_line(error)}); see its log") from None


def find_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Find where the ranks meet: as the launcher said, else the first node of Slurm's step.

    Raises:
        ClusterError: The environment says neither.
    """
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        return environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if nodes and "SLURM_JOB_ID" in environ:
        return expand_nodes(nodes)[0], _FIRST_PORT + int(environ["SLURM_JOB_ID"]) % _PORTS
    if int(environ.get("WORLD_SIZE", "1")) == 1:
        return "localhost", 0
    raise ClusterError(
        "MASTER_ADDR and MASTER_PORT are not set: start the preflight through `metier preflight`, srun or "
        "torchrun"
    )


def open_store(environ: Mapping[str, str], ranks: Ranks, seconds: float) -> TCPStore:
    """Open the lead's store, or reach it.

    Raises:
        ClusterError: The lead cannot be reached, or its port is taken.
    """
    host, port = find_address(environ)
    by_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = ranks.is_lead and not by_agent
    if not serves and not by_agent:
        _await_port(host, port, seconds)
    try:
        return TCPStore(
            host, port, is_master=serves, wait_for_workers=False, timeout=timedelta(seconds=max(seconds, 1))
        )
    except RuntimeError as error:
        raise ClusterError(
            f"rank {ranks.rank} did not reach the lead at {host}:{port} ({first_line(error)}); look at that "
            "node, and at cluster.network.interface"
        ) from None


def _await_port(host: str, port: int, seconds: float) -> None:
    """Knock until somebody listens: the store itself would wait longer and longer between two tries."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=_KNOCK_SECONDS).close()
            return
        except OSError:
            time.sleep(_POLL_SECONDS * 10)


def find_prefix(environ: Mapping[str, str]) -> str:
    """Name this preflight among all that use the same store: torchrun may start its processes again."""
    return f"preflight/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

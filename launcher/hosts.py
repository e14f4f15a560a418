"""Hosts without a scheduler: which share of a run this machine starts, and how the hosts agree on one run."""

import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.run_directory import find_differences, find_layout
from training.config.cluster import ClusterConfig
from training.config.freeze import read_frozen
from training.config.schema import RunConfig
from training.errors import ClusterError, ConfigError
from training.layout import RunLayout

NODE_RANK = "NODE_RANK"
"""Environment variable with this host's number, where it is not typed."""

_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What of a start this machine does."""

    is_head: bool
    """Freezes the configuration and removes the last start's outcome; the other hosts wait for that."""

    node_rank: int | None = None
    """This host's number, where hosts are told their numbers."""


ALONE = Share(is_head=True)


def check_cluster(cluster: ClusterConfig, node_rank: int | None) -> None:
    """Refuse a training whose hosts nobody would start, or that asks for what only a job's script does.

    Raises:
        ClusterError: In one line, with what to use instead.
    """
    if cluster.kind == "slurm":
        if node_rank is not None:
            raise ClusterError("--node-rank: Slurm numbers the nodes; it is for cluster=torchrun")
        return
    _check_no_job(cluster)
    if cluster.kind == "local":
        if cluster.nodes > 1:
            raise ClusterError(
                f"cluster.kind=local is this machine alone, and cluster.nodes={cluster.nodes}; use "
                "cluster=torchrun for hosts without a scheduler, or cluster=slurm"
            )
        if node_rank is not None:
            raise ClusterError("--node-rank is for cluster=torchrun; here is one machine")
    elif cluster.nodes > 1 and cluster.elastic_restarts and cluster.rendezvous == "static":
        raise ClusterError(
            f"cluster.elastic_restarts={cluster.elastic_restarts} needs cluster.rendezvous=c10d: hosts with "
            "fixed numbers do not hear of each other's failures"
        )


def _check_no_job(cluster: ClusterConfig) -> None:
    asked = {
        "environment.modules": cluster.environment.modules,
        "environment.setup": cluster.environment.setup,
        "container.kind": cluster.container.kind != "none",
    }
    for key, value in asked.items():
        if value:
            raise ClusterError(
                f"cluster.{key} is for jobs, and cluster.kind={cluster.kind} starts none; load it in the "
                "shell in which you call this, and leave the setting out"
            )


def find_share(
    cluster: ClusterConfig,
    node_rank: int | None,
    environ: Mapping[str, str],
    is_here: Callable[[str], bool] | None = None,
) -> Share | None:
    """Find out which of the hosts this one is; None where nothing tells.

    Args:
        cluster: A checked one.
        node_rank: What was typed.
        environ: Its ``NODE_RANK`` counts where nothing was typed.
        is_here: Whether an address is this machine's.

    Raises:
        ClusterError: There is no host of this number, or no head is named.
    """
    if cluster.kind != "torchrun" or cluster.nodes == 1:
        return ALONE
    number = find_number(cluster, node_rank, environ, is_here)
    if cluster.rendezvous == "c10d":
        return Share(is_head=number == 0)
    return None if number is None else Share(is_head=number == 0, node_rank=number)


def find_number(
    cluster: ClusterConfig,
    node_rank: int | None,
    environ: Mapping[str, str],
    is_here: Callable[[str], bool] | None = None,
) -> int | None:
    """Find this host's number, 0 for the head, which knows itself by its address; None where nothing tells.

    Args:
        cluster: One of several hosts.
        node_rank: What was typed.
        environ: Its ``NODE_RANK`` counts where nothing was typed.
        is_here: Whether an address is this machine's.

    Raises:
        ClusterError: There is no host of this number, or no head is named.
    """
    if cluster.head_address == "localhost":
        raise ClusterError(
            "cluster.head_address=localhost: name the host of node 0, as the other hosts see it; for "
            "instance cluster.head_address=node1"
        )
    number = node_rank if node_rank is not None else _read_number(environ)
    if number is not None and not 0 <= number < cluster.nodes:
        raise ClusterError(
            f"--node-rank={number}: wanted 0 to {cluster.nodes - 1}, since cluster.nodes={cluster.nodes}"
        )
    if number is None and (is_here or is_this_host)(cluster.head_address):
        return 0
    return number


def _read_number(environ: Mapping[str, str]) -> int | None:
    text = environ.get(NODE_RANK)
    if text is not None and not text.isdecimal():
        raise ClusterError(
            f"{NODE_RANK}={text} in the environment: wanted this host's number, 0 for the first"
        )
    return None if text is None else int(text)


def is_this_host(address: str) -> bool:
    """Whether an address or a host's name is this machine's: only then can a socket be bound to it."""
    if address == socket.gethostname():
        return True
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
        except OSError:
            continue
        return True
    return False


def explain_numbers(cluster: ClusterConfig) -> str:
    """Say what to type on a host of which nothing tells which one it is."""
    return (
        f"this machine is not cluster.head_address={cluster.head_address}; on each other host add "
        f"--node-rank=N to the same command, N from 1 to {cluster.nodes - 1}, or set {NODE_RANK}"
    )


def join_run(config: RunConfig, *, patience_seconds: float = _PATIENCE_SECONDS) -> RunLayout:
    """Wait until the head has frozen this run, and make sure that it means the same run as this host.

    Args:
        config: This host's.
        patience_seconds: How long other settings in run.json may be those of an earlier start, which the
            head has still to replace.

    Raises:
        ConfigError: The head's settings are others.
        ClusterError: The head did not come in ``cluster.timeout_seconds``.
    """
    layout, head = find_layout(config), config.cluster.head_address
    began = time.monotonic()
    told = False
    while True:
        is_frozen = layout.config.exists()
        differences = find_differences(read_frozen(layout.config), config) if is_frozen else []
        if is_frozen and not differences:
            return layout
        waited = time.monotonic() - began
        if differences and waited >= patience_seconds:
            shown = ", ".join(f"{path}: {its} -> {own}" for path, its, own in differences[:3])
            raise ConfigError(
                f"{head} and this host were given other settings ({head} -> this host: {shown}); type the "
                f"same command on each host, on {head} first"
            )
        if waited >= config.cluster.timeout_seconds:
            raise ClusterError(
                f"{layout.config} did not appear within {config.cluster.timeout_seconds} s; start the same "
                f"command on {head}, and see that all hosts share {layout.root.parent}"
            )
        if not told:
            sys.stdout.write(f"waiting for {head} to write {layout.config}\n")
            sys.stdout.flush()
            told = True
        time.sleep(_LOOK_SECONDS)

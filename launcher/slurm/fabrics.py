"""The environment variables of a network fabric; values, reasons and sources are in fabrics.yaml."""

import functools
from pathlib import Path
from typing import Any

import yaml

from training.config.cluster import NetworkConfig

_FILE = Path(__file__).with_name("fabrics.yaml")


def plan_network(network: NetworkConfig, *, nodes: int, on_gpus: bool) -> dict[str, str]:
    """Name the variables that NCCL and gloo read.

    Args:
        network: Fabric and interface. Without an interface NCCL looks for its own, and each rank tells gloo
            the one that bears the address by which it reaches the head node (training/interface.py).
        nodes: On a single one nothing goes over a network.
        on_gpus: Whether NCCL is used at all.
    """
    variables: dict[str, str] = {}
    if on_gpus:
        variables = {
            name: str(entry["value"])
            for name, entry in read_fabrics()[network.fabric].items()
            if nodes > 1 or not entry.get("multi_node")
        }
    if network.interface is not None:
        # An equals sign: this one alone, not all whose names begin so. Gloo takes the name as it is.
        variables["NCCL_SOCKET_IFNAME"] = f"={network.interface}"
        variables["GLOO_SOCKET_IFNAME"] = network.interface
    return variables


@functools.cache
def read_fabrics() -> dict[str, dict[str, dict[str, Any]]]:
    """Read fabrics.yaml: fabric, variable, and its value, why and source."""
    fabrics: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {name: entries or {} for name, entries in fabrics.items()}

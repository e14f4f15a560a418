"""Asks Slurm about its cluster, from a login node; call.py waits for a controller that does not answer."""

import getpass
import shutil
from collections.abc import Sequence

from launcher.slurm.call import SlurmError, call_slurm
from launcher.slurm.site import Site, parse_nodes, parse_partitions, parse_settings
from training.errors import ClusterError

_ATTEMPTS = 3
_NO_CLUSTER = ("resolve_ctls_from_dns_srv", "establish a configuration source", "Could not open slurm.conf")


def ask_site(attempts: int = _ATTEMPTS) -> Site:
    """Ask for partitions, nodes and settings.

    Raises:
        ClusterError: This machine has no Slurm, or it does not answer.
    """
    if shutil.which("scontrol") is None:
        raise ClusterError(
            "scontrol is not on this machine: call this on a login node of the cluster (some need the site's "
            "module of Slurm first), or use cluster=local or cluster=torchrun"
        )
    try:
        partitions = parse_partitions(_show("partition", attempts))
    except SlurmError as error:
        if any(words in str(error) for words in _NO_CLUSTER):
            raise ClusterError(
                "this machine has Slurm's commands and no cluster behind them (no slurm.conf); call this on "
                "a login node of the cluster"
            ) from None
        raise
    return Site(
        partitions=partitions,
        nodes=parse_nodes(_show("node", attempts)),
        settings=parse_settings(call_slurm(["scontrol", "show", "config"], attempts=attempts)),
    )


def ask_reservations() -> dict[str, str]:
    """Ask for the reservations: name and state, which is INACTIVE before its time."""
    found = {}
    for line in _show("reservation", _ATTEMPTS).splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        if "ReservationName" in fields:
            found[fields["ReservationName"]] = fields.get("State", "")
    return found


def ask_associations() -> list[tuple[str, str, frozenset[str]]] | None:
    """Ask which accounts this user has: account, partition (empty: any) and the qualities of service.

    None where the site keeps no accounts or does not tell them.
    """
    if shutil.which("sacctmgr") is None:
        return None
    words = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}"]
    try:
        text = call_slurm([*words, "format=account,partition,qos"])
    except SlurmError:
        return None
    rows = [line.split("|") for line in text.splitlines()]
    found = [(row[0], row[1], frozenset(row[2].split(",")) - {""}) for row in rows if row[2:]]
    return found or None


def expand_hosts(names: Sequence[str]) -> list[str]:
    """Write out ``node[1-3]`` as Slurm understands it."""
    if not any("[" in name for name in names):
        return [part for name in names for part in name.split(",")]
    return call_slurm(["scontrol", "show", "hostnames", ",".join(names)], attempts=_ATTEMPTS).split()


def _show(what: str, attempts: int) -> str:
    return call_slurm(["scontrol", "show", what, "--oneliner"], attempts=attempts)

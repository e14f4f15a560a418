"""What Slurm says of a cluster: `scontrol show partition`, `node` and `config` as values. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.slurm.times import parse_time

_FIELD = re.compile(r"(?:^|\s)(?P<name>[A-Z][A-Za-z:/_]*)=")
_NONE = {"", "(null)", "N/A", "NONE"}
_NO_LIMIT = {"UNLIMITED", "INFINITE", "infinite"}
_GRES = re.compile(r"(?P<name>\w+)(?::(?P<kind>[^:()]*[A-Za-z_][^:()]*))?(?::(?P<count>\d+))?(?:\(.*\))?")
_BAD_STATES = frozenset(
    {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "FUTURE", "MAINT", "UNKNOWN"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition: a group of nodes and the limits of a job on them."""

    name: str
    is_default: bool
    state: str
    max_seconds: int | None
    max_nodes: int | None
    min_nodes: int
    max_cpus_per_node: int | None
    max_megabytes_per_node: int | None
    total_nodes: int
    accounts: frozenset[str] | None
    """None: all may use it."""
    denied_accounts: frozenset[str]
    qos: frozenset[str] | None
    preempt_mode: str
    grace_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node as it is configured; what of it is free at the moment is not asked."""

    name: str
    cpus: int
    megabytes: int
    gpus: tuple[tuple[str | None, int], ...]
    """Type and number; the type is None where the site gives none."""
    features: frozenset[str]
    partitions: tuple[str, ...]
    state: str

    @property
    def is_up(self) -> bool:
        """Whether it takes jobs, now or when it is switched on for one."""
        words = set(re.split(r"[+*~#!%$@^-]+", self.state))
        return not words & _BAD_STATES

    def count_gpus(self, kind: str | None) -> int:
        """Count its GPUs of one type; without a type all of them."""
        return sum(number for each, number in self.gpus if kind is None or each == kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A whole cluster."""

    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    settings: Mapping[str, str]
    """Of slurm.conf, in its words: ClusterName, SLURM_VERSION, JobRequeue, ..."""

    def find_partition(self, name: str) -> Partition | None:
        """Find a partition by its name."""
        return next((each for each in self.partitions if each.name == name), None)

    @property
    def default(self) -> Partition | None:
        """The partition of a job that names none."""
        return next((each for each in self.partitions if each.is_default), None)

    def nodes_of(self, partition: str) -> list[Node]:
        """Give the nodes of a partition."""
        return [node for node in self.nodes if partition in node.partitions]


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Read `scontrol show partition --oneliner`."""
    return tuple(_parse_partition(fields) for fields in _parse_lines(text, "PartitionName"))


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Read `scontrol show node --oneliner`."""
    return tuple(_parse_node(fields) for fields in _parse_lines(text, "NodeName"))


def parse_settings(text: str) -> dict[str, str]:
    """Read `scontrol show config`: lines of ``Name = value``."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def parse_fields(line: str) -> dict[str, str]:
    """Read one line of ``Name=value Name=value``; a value may hold blanks."""
    found = list(_FIELD.finditer(line))
    ends = [each.start() for each in found[1:]] + [len(line)]
    return {each["name"]: line[each.end() : end].strip() for each, end in zip(found, ends, strict=True)}


def parse_gpus(gres: str) -> tuple[tuple[str | None, int], ...]:
    """Read the GPUs of a node's generic resources: ``gpu:a100:4(S:0-1),nvme:1`` has four a100."""
    found = []
    for entry in re.split(r",(?![^(]*\))", gres):
        form = _GRES.fullmatch(entry.strip())
        if form and form["name"] == "gpu":
            found.append((form["kind"], int(form["count"] or 1)))
    return tuple(found)


def _parse_lines(text: str, first: str) -> Iterator[dict[str, str]]:
    return (parse_fields(line) for line in text.splitlines() if line.startswith(f"{first}="))


def _parse_partition(fields: Mapping[str, str]) -> Partition:
    return Partition(
        name=fields["PartitionName"],
        is_default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        max_seconds=parse_time(fields.get("MaxTime", "UNLIMITED")),
        max_nodes=_limit(fields.get("MaxNodes")),
        min_nodes=_limit(fields.get("MinNodes")) or 0,
        max_cpus_per_node=_limit(fields.get("MaxCPUsPerNode")),
        max_megabytes_per_node=_limit(fields.get("MaxMemPerNode")),
        total_nodes=_limit(fields.get("TotalNodes")) or 0,
        accounts=_allowed(fields.get("AllowAccounts", "ALL")),
        denied_accounts=_names(fields.get("DenyAccounts", "")),
        qos=_allowed(fields.get("AllowQos", "ALL")),
        preempt_mode=fields.get("PreemptMode", "OFF"),
        grace_seconds=_limit(fields.get("GraceTime")) or 0,
    )


def _parse_node(fields: Mapping[str, str]) -> Node:
    return Node(
        name=fields["NodeName"],
        # What jobs may have: without the cores that the site keeps for itself. Slurm 21.08 and later tell it.
        cpus=int(fields.get("CPUEfctv") or fields.get("CPUTot") or 0),
        megabytes=int(fields.get("RealMemory") or 0),
        gpus=parse_gpus(fields.get("Gres", "")),
        features=_names(fields.get("AvailableFeatures", "")),
        partitions=tuple(_split(fields.get("Partitions", ""))),
        state=fields.get("State", "UNKNOWN"),
    )


def _limit(text: str | None) -> int | None:
    """Read a number; None where there is no limit. ``MaxMemPerNode=0`` is none as well."""
    if text is None or text in _NO_LIMIT or text in _NONE or not text.isdigit():
        return None
    return int(text) or None


def _split(text: str) -> list[str]:
    return [] if text in _NONE else [part for part in text.split(",") if part]


def _names(text: str) -> frozenset[str]:
    return frozenset(_split(text))


def _allowed(text: str) -> frozenset[str] | None:
    return None if text == "ALL" else _names(text)

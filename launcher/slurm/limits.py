"""Whether a cluster can ever give what a run asks for. Pure; the first reason against it, in one line."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from launcher.slurm.request import find_processes_per_node
from launcher.slurm.site import Node, Partition, Site
from launcher.slurm.times import format_time, parse_time, say_time
from training.config.cluster import ClusterConfig
from training.config.names import nearest
from training.errors import ClusterError

_MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one node must have."""

    gpus: int
    gpu_type: str | None
    cpus: int
    megabytes: float
    features: frozenset[str]
    """Empty where the constraint is more than a list of features that must all be there."""


def judge_request(cluster: ClusterConfig, site: Site, excluded: Collection[str] = ()) -> list[str]:
    """Compare a request with the partitions that it names.

    Args:
        cluster: The request.
        site: What there is.
        excluded: The nodes of ``cluster.slurm.exclude``, written out.

    Returns:
        What does not hold it up for ever, in words.

    Raises:
        ClusterError: No partition that is named can give it; the reason is the first one's.
    """
    problems = []
    for partition in find_partitions(cluster, site):
        try:
            return _judge_partition(cluster, partition, site, excluded)
        except ClusterError as error:
            problems.append(error)
    raise problems[0]


def find_partitions(cluster: ClusterConfig, site: Site) -> list[Partition]:
    """Find the partitions that the request names, or the site's default.

    Raises:
        ClusterError: There is none of that name, or no default.
    """
    named = cluster.slurm.partition
    names = [each.name for each in site.partitions]
    if named is None:
        if site.default is None:
            raise ClusterError(
                f"cluster.slurm.partition is not set and this cluster has no default; there are "
                f"{', '.join(names)}"
            )
        return [site.default]
    found = []
    for name in named.split(","):
        partition = site.find_partition(name)
        if partition is None:
            raise ClusterError(f"cluster.slurm.partition={name} does not exist{nearest(name, names)}")
        found.append(partition)
    return found


def check_associations(
    cluster: ClusterConfig, associations: Sequence[tuple[str, str, frozenset[str]]]
) -> None:
    """Refuse an account or a quality of service that is not this user's.

    Raises:
        ClusterError: It is not among what Slurm's accounting says.
    """
    slurm = cluster.slurm
    accounts = {account for account, _, _ in associations}
    if slurm.account is not None and slurm.account.lower() not in accounts:
        raise ClusterError(
            f"cluster.slurm.account={slurm.account} is not yours{nearest(slurm.account, accounts)}"
        )
    mine = [row for row in associations if slurm.account is None or row[0] == slurm.account.lower()]
    qualities = frozenset[str]().union(*(row[2] for row in mine))
    if slurm.qos is not None and qualities and slurm.qos not in qualities:
        raise ClusterError(f"cluster.slurm.qos={slurm.qos} is not yours{nearest(slurm.qos, qualities)}")


def _judge_partition(
    cluster: ClusterConfig, partition: Partition, site: Site, excluded: Collection[str]
) -> list[str]:
    notes = [
        *_check_use(cluster, partition),
        *_unless_qos_lifts(_check_time, cluster, partition),
        *_unless_qos_lifts(_check_node_limits, cluster, partition),
    ]
    _check_size(cluster, partition)
    everywhere = site.nodes_of(partition.name)
    nodes = [node for node in everywhere if node.name not in excluded]
    wanted = cluster.nodes + cluster.slurm.spare_nodes
    if excluded and len(nodes) < wanted:
        raise ClusterError(
            f"cluster.slurm.exclude leaves {len(nodes)} nodes of partition {partition.name}, and {wanted} "
            f"{'is' if wanted == 1 else 'are'} wanted"
        )
    _check_features(cluster, partition, nodes)
    wish = find_wish(cluster)
    left = _narrow(nodes, wish, partition, wanted)
    down = sum(not node.is_up for node in left)
    if len(left) - down < wanted:
        notes.append(
            f"{down} of the {len(left)} nodes of partition {partition.name} that fit are down or drained: "
            f"the job waits until {wanted} are up"
        )
    return notes


def _unless_qos_lifts(
    check: Callable[[ClusterConfig, Partition], None], cluster: ClusterConfig, partition: Partition
) -> list[str]:
    """Make a note of what a partition refuses where a quality of service may allow it (its flags)."""
    try:
        check(cluster, partition)
    except ClusterError as error:
        if cluster.slurm.qos is None:
            raise
        return [f"{error}; unless cluster.slurm.qos={cluster.slurm.qos} allows more"]
    return []


def _check_use(cluster: ClusterConfig, partition: Partition) -> list[str]:
    slurm = cluster.slurm
    if partition.state != "UP":
        raise ClusterError(
            f"partition {partition.name} is {partition.state.lower()} and starts no jobs; use another "
            "cluster.slurm.partition, or ask the site"
        )
    account = (slurm.account or "").lower()  # as Slurm keeps it
    if account in {each.lower() for each in partition.denied_accounts}:
        raise ClusterError(f"cluster.slurm.account={slurm.account} may not use partition {partition.name}")
    if slurm.qos is not None and partition.qos is not None and slurm.qos not in partition.qos:
        raise ClusterError(
            f"cluster.slurm.qos={slurm.qos} may not be used in partition {partition.name}"
            f"{nearest(slurm.qos, partition.qos)}"
        )
    if account and partition.accounts is not None and account not in map(str.lower, partition.accounts):
        those = ", ".join(sorted(partition.accounts))
        return [
            f"partition {partition.name} is for the accounts {those}: cluster.slurm.account={slurm.account} "
            "may use it only if it is below one of them"
        ]
    return []


def _check_time(cluster: ClusterConfig, partition: Partition) -> None:
    seconds = parse_time(cluster.slurm.time)
    if partition.max_seconds is not None and (seconds is None or seconds > partition.max_seconds):
        most = format_time(partition.max_seconds)
        raise ClusterError(
            f"cluster.slurm.time={say_time(cluster.slurm.time)} is more than partition {partition.name} "
            f"gives, {most}; use cluster.slurm.time={most}: the run goes on in as many jobs as it needs"
        )


def _check_node_limits(cluster: ClusterConfig, partition: Partition) -> None:
    wanted = cluster.nodes + cluster.slurm.spare_nodes
    spare = f" (with {cluster.slurm.spare_nodes} spare)" if cluster.slurm.spare_nodes else ""
    if partition.max_nodes is not None and wanted > partition.max_nodes:
        raise ClusterError(
            f"cluster.nodes={cluster.nodes}{spare} is more than partition {partition.name} gives a job, "
            f"{partition.max_nodes}"
        )
    if wanted < partition.min_nodes:
        raise ClusterError(
            f"cluster.nodes={cluster.nodes}{spare} is less than partition {partition.name} wants of a job, "
            f"{partition.min_nodes}"
        )


def _check_size(cluster: ClusterConfig, partition: Partition) -> None:
    wanted = cluster.nodes + cluster.slurm.spare_nodes
    spare = f" (with {cluster.slurm.spare_nodes} spare)" if cluster.slurm.spare_nodes else ""
    if partition.total_nodes and wanted > partition.total_nodes:
        raise ClusterError(
            f"cluster.nodes={cluster.nodes}{spare}, but partition {partition.name} has "
            f"{partition.total_nodes} nodes"
        )
    processes = find_processes_per_node(cluster) * (cluster.slurm.cpus_per_process or 1)
    if partition.max_cpus_per_node is not None and processes > partition.max_cpus_per_node:
        raise ClusterError(
            f"{processes} cores a node are more than partition {partition.name} gives, "
            f"{partition.max_cpus_per_node}; use a smaller cluster.slurm.cpus_per_process"
        )


def _check_features(cluster: ClusterConfig, partition: Partition, nodes: Sequence[Node]) -> None:
    constraint = cluster.slurm.constraint
    if constraint is None:
        return
    known = frozenset[str]().union(*(node.features for node in nodes))
    for feature in _feature_names(constraint):
        if feature not in known:
            raise ClusterError(
                f"cluster.slurm.constraint={constraint}: no node of partition {partition.name} has the "
                f"feature {feature}{nearest(feature, known)}"
            )


def find_wish(cluster: ClusterConfig) -> Wish:
    """Say what the request asks of each node."""
    slurm = cluster.slurm
    constraint = slurm.constraint or ""
    return Wish(
        gpus=cluster.gpus_per_node,
        gpu_type=slurm.gpu_type,
        cpus=find_processes_per_node(cluster) * (slurm.cpus_per_process or 1),
        megabytes=_parse_megabytes(slurm.memory),
        features=frozenset() if re.search(r"[|\[\]()*]", constraint) else _feature_names(constraint),
    )


def _narrow(nodes: Sequence[Node], wish: Wish, partition: Partition, wanted: int) -> list[Node]:
    """Keep the nodes that have all that is wished, and name the first wish that leaves too few."""
    kind = f" of type {wish.gpu_type}" if wish.gpu_type else ""
    most = partition.max_megabytes_per_node
    steps: tuple[tuple[str, Callable[[Node], bool], Callable[[Node], str]], ...] = (
        (
            f"cluster.slurm.constraint={'&'.join(sorted(wish.features))}",
            lambda node: wish.features <= node.features,
            lambda node: "&".join(sorted(node.features)),
        ),
        (
            f"cluster.gpus_per_node={wish.gpus}{kind}",
            lambda node: node.count_gpus(wish.gpu_type) >= wish.gpus,
            _name_gpus,
        ),
        (
            f"{wish.cpus} cores a node, by cluster.slurm.cpus_per_process",
            lambda node: node.cpus >= wish.cpus,
            lambda node: f"{node.cpus} cores",
        ),
        (
            f"cluster.slurm.memory: {wish.megabytes:.0f}M a node",
            lambda node: min(node.megabytes, most or node.megabytes) >= wish.megabytes,
            lambda node: f"{min(node.megabytes, most or node.megabytes)}M",
        ),
    )
    left = list(nodes)
    for words, fits, describe in steps:
        before, left = left, [node for node in left if fits(node)]
        if len(left) < wanted:
            raise ClusterError(
                f"{words}: {_count_fitting(len(left))} in partition {partition.name}, and {wanted} "
                f"{'is' if wanted == 1 else 'are'} wanted{_list_kinds(describe(node) for node in before)}"
            )
    return left


def _count_fitting(number: int) -> str:
    return f"{number} nodes fit" if number > 1 else f"{'one' if number else 'no'} node fits"


def _list_kinds(descriptions: Iterable[str]) -> str:
    kinds = sorted(set(descriptions) - {""})
    return f"; its nodes have {', '.join(kinds)}" if kinds else ""


def _name_gpus(node: Node) -> str:
    named = [f"{number} x {kind}" if kind else f"{number} GPUs" for kind, number in node.gpus]
    return " + ".join(named) or "no GPU"


def _feature_names(constraint: str) -> frozenset[str]:
    # What stands behind a star is a count: [rack1*2&rack2*4].
    return frozenset(re.findall(r"(?<![*\w])[A-Za-z_0-9][\w.:+=-]*", constraint))


def _parse_megabytes(memory: str | None) -> float:
    if memory is None:
        return 0.0
    unit = memory[-1] if memory[-1].isalpha() else "M"
    return int(memory.rstrip("KMGT")) * _MEGABYTES[unit]

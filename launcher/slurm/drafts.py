"""A cluster's configuration, drafted from what Slurm says of it. Pure."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.slurm.site import Node, Partition, Site
from launcher.slurm.times import format_time
from launcher.tables import lay_out
from training.config.names import nearest
from training.errors import ConfigError

DRAFTED = "# Written by `metier cluster init`"
"""How the second line of a draft begins; a cluster that comes with this program has none such."""

_DAY = 24 * 3600
_NOT_REQUEUED = frozenset({"CANCEL", "SUSPEND", "GANG"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A file for configs/cluster/, and what is to be said of it."""

    text: str
    found: tuple[str, ...]
    unknown: tuple[str, ...]


def draft_cluster(
    name: str, site: Site, partition: Partition, accounts: Sequence[str], hints: Sequence[str] = ()
) -> Draft:
    """Write the configuration of one partition.

    Args:
        name: What the cluster is to be called.
        site: What Slurm says.
        partition: Of these nodes.
        accounts: The user's; empty where Slurm does not tell.
        hints: What this machine shows of the network, in words.
    """
    kinds = count_kinds(site.nodes_of(partition.name))
    node = kinds[0][0]
    requeue, why = judge_requeue(site, partition)
    slingshot = "slingshot" in site.settings.get("SwitchType", "")
    tracked = "MEMORY" in site.settings.get("SelectTypeParameters", "").upper()
    gpu_type, gpus = node.gpus[0] if node.gpus else (None, 0)
    cores = max(1, node.cpus // max(gpus, 1))
    account = json.dumps(accounts[0]) if len(accounts) == 1 else "null"
    memory = '"0"' if tracked else "null"
    text = f"""\
# {site.settings.get("ClusterName", name)}, partition {partition.name}: {_describe(node)} per node.
{DRAFTED} from what Slurm {site.settings.get("SLURM_VERSION", "")} said; edit it.
defaults: [slurm, _self_]
gpus_per_node: {gpus}
processes_per_node: 1  # on nodes without GPUs
local_path: null  # the node's own disk, where it is not the system's temporary folder
slurm:
  account: {account}{_comment("yours: " + ", ".join(accounts) if len(accounts) > 1 else "")}
  partition: {json.dumps(partition.name)}
  qos: null
  gpu_type: {json.dumps(gpu_type)}
  time: "{format_time(min(partition.max_seconds or _DAY, _DAY))}"  # the partition gives {_limit(partition)}
  cpus_per_process: {cores}  # {node.cpus} cores a node
  memory: {memory}  # {"all of a node's, " if tracked else "not asked for here: nodes have "}{node.megabytes}M
  exclusive: false
  requeue: {str(requeue).lower()}  # {why}
environment:
  modules: []  # for instance [cuda/12.4]
network:
  fabric: {"slingshot" if slingshot else "default"}  # default: NCCL looks for itself; or see fabrics.yaml
  interface: {"hsn0" if slingshot else "null"}  # null: found on the nodes
"""
    return Draft(
        text=text,
        found=(
            f"partition {partition.name}{' (the default)' if partition.is_default else ''}: "
            f"{', '.join(f'{count} x {_describe(each)}' for each, count in kinds)}",
            f"up to {_limit(partition)} and {partition.max_nodes or partition.total_nodes} nodes a job",
            f"requeue {'allowed' if requeue else 'not relied upon'}: {why}",
            *([f"your accounts: {', '.join(accounts)}"] if accounts else []),
            *(["network: Slingshot"] if slingshot else []),
        ),
        unknown=(
            *([] if slingshot else ["which network NCCL is to use (network.fabric, network.interface)"]),
            *hints,
            *([] if accounts else ["which accounts and qualities of service are yours"]),
            "modules, a container's image, and where each node's own disk is (local_path)",
        ),
    )


def choose_partition(site: Site, name: str | None) -> Partition:
    """Choose the partition that is named, or the default; where that has no GPUs, the one that has most.

    Raises:
        ConfigError: There is none of that name, or it has no nodes.
    """
    if name is not None:
        found = site.find_partition(name)
        if found is None:
            raise ConfigError(
                f"partition {name} does not exist{nearest(name, [each.name for each in site.partitions])}"
            )
        candidates = [found]
    else:
        usable = [each for each in site.partitions if each.state == "UP"]
        default = [each for each in usable if each.is_default]
        candidates = sorted(
            usable, key=lambda each: (_total_gpus(site, each) > 0, each in default, _total_gpus(site, each))
        )
    if not candidates or not site.nodes_of(candidates[-1].name):
        which = f"partition {name} has no nodes" if name else "no partition with nodes is up"
        raise ConfigError(f"{which}; `metier cluster show` lists what there is")
    return candidates[-1]


def judge_requeue(site: Site, partition: Partition) -> tuple[bool, str]:
    """Say whether a job may count on being put back into the queue, and why."""
    if site.settings.get("JobRequeue", "1") == "0":
        return False, "JobRequeue=0: the site does not requeue by itself; a chain of jobs is sure"
    if partition.preempt_mode.split(",")[-1] in _NOT_REQUEUED:
        return (
            False,
            f"PreemptMode={partition.preempt_mode}: a preempted job does not come back; a chain does",
        )
    return True, f"JobRequeue=1, PreemptMode={partition.preempt_mode}"


def count_kinds(nodes: Sequence[Node]) -> list[tuple[Node, int]]:
    """Group nodes that are alike: one of each kind and their number, those with most GPUs in all first."""
    counts = Counter((node.gpus, node.cpus, node.megabytes) for node in nodes)
    first = {(node.gpus, node.cpus, node.megabytes): node for node in reversed(nodes)}
    kinds = [(first[kind], count) for kind, count in counts.items()]
    return sorted(kinds, key=lambda kind: (kind[0].count_gpus(None) * kind[1], kind[1]), reverse=True)


def describe_site(site: Site) -> str:
    """Give what `metier cluster show` prints: one line per kind of node of each partition."""
    head = ("partition", "state", "max time", "max nodes", "nodes up", "each node", "preemption")
    rows: list[tuple[str, ...]] = [head]
    for partition in site.partitions:
        rows += _describe_partition(partition, site.nodes_of(partition.name))
    settings = site.settings
    title = f"{settings.get('ClusterName', 'cluster')}, Slurm {settings.get('SLURM_VERSION', '?')}"
    last = f"* default; JobRequeue={settings.get('JobRequeue', '?')}"
    return "\n".join((title, "", *lay_out(rows), "", last)) + "\n"


def _describe_partition(partition: Partition, nodes: Sequence[Node]) -> Iterator[tuple[str, ...]]:
    kinds = count_kinds(nodes)
    each = [_describe(node) + (f" ({count})" if len(kinds) > 1 else "") for node, count in kinds] or ["none"]
    grace = f", {partition.grace_seconds} s grace" if partition.grace_seconds else ""
    yield (
        partition.name + ("*" if partition.is_default else ""),
        partition.state.lower(),
        format_time(partition.max_seconds).lower(),
        str(partition.max_nodes or "-"),
        f"{sum(node.is_up for node in nodes)} of {len(nodes)}",
        each[0],
        partition.preempt_mode.lower() + grace,
    )
    for further in each[1:]:
        yield (*[""] * 5, further, "")


def _describe(node: Node) -> str:
    gpus = [f"{number} x {kind}" if kind else f"{number} GPUs" for kind, number in node.gpus]
    return ", ".join((*gpus, f"{node.cpus} cores", f"{node.megabytes / 1024:.0f} GiB"))


def _total_gpus(site: Site, partition: Partition) -> int:
    return sum(node.count_gpus(None) for node in site.nodes_of(partition.name))


def _limit(partition: Partition) -> str:
    return "any time" if partition.max_seconds is None else format_time(partition.max_seconds)


def _comment(text: str) -> str:
    return f"  # {text}" if text else ""

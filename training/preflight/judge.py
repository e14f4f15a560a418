"""From facts to findings: pure functions, so that a threshold can be tried on recorded facts."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from training.config.cluster import PreflightConfig
from training.files import say_bytes
from training.preflight.facts import Facts, GpuHealth, HostFacts, NetworkFacts, PathFacts
from training.preflight.speeds import find_reason, find_slow, judge_speeds
from training.preflight.words import bad, say_gbps, say_rate, warn
from training.verdict import ALL_NODES, Finding

_TWO = 2
_INTERFACE = "network interface"
_SHARED = ("run directory", "corpus", "model", _INTERFACE)
"""Folders of all nodes, and what one setting says of all."""

_LEAST_OPEN_FILES = 1024
_LEAST_SHARED_MEMORY = 64 << 20
_HOT_CELSIUS = 90
_USED_BYTES = 1 << 30


def judge(facts: Facts, config: PreflightConfig) -> list[Finding]:
    """Name what is not as it should be, the nodes in their order."""
    hosts = {rank.node: rank.host for rank in facts.ranks if rank.host is not None}
    found = [
        *(_silent(facts)),
        *_unequal_versions(hosts),
        *_count_gpus(facts, hosts),
        *_devices(facts, config),
        *judge_speeds(facts, hosts, config),
        *_paths(hosts, config),
        *_clocks(facts, config),
        *_contact(facts, hosts),
        *_network(facts, config),
        *_limits(hosts),
    ]
    order = {node: place for place, node in enumerate(facts.nodes)}
    return sorted(_doubt(found, facts.nodes), key=lambda finding: order.get(finding.node, -1))


def needs_all_pairs(network: Sequence[NetworkFacts], config: PreflightConfig) -> bool:
    """Whether the whole is slow: below what was asked for, or some links far slower than others."""
    buses = [facts.bus_gbps for facts in network if facts.bus_gbps is not None]
    wanted = config.min_allreduce_gbps
    if wanted is not None and buses and min(buses) < wanted:
        return True
    links = [pair.gbps for facts in network for pair in facts.pairs]
    return len(links) > 1 and max(links) > config.slow_factor * min(links)


def link_rates(network: Sequence[NetworkFacts]) -> dict[str, float]:
    """Give each node's best link: one bad node spoils one link of every other, but all of its own."""
    best: dict[str, float] = {}
    for pair in (pair for facts in network for pair in facts.pairs):
        for node in pair.nodes:
            best[node] = max(best.get(node, 0.0), pair.gbps)
    return best


def _doubt(findings: Sequence[Finding], nodes: Sequence[str]) -> Iterator[Finding]:
    """What is wrong on all nodes is no node's fault; nor what a lone node shares with others."""
    for finding in findings:
        same = {other.node for other in findings if other.what == finding.what and other.severity == "bad"}
        everywhere = len(same) == len(nodes) and (len(nodes) > 1 or finding.what in _SHARED)
        yield finding.model_copy(update={"excluding_helps": False}) if everywhere else finding


def _silent(facts: Facts) -> Iterator[Finding]:
    # Where most are missing it is the one who is left that cannot be reached.
    most = 2 * len(facts.silent) > len(facts.nodes)
    for node, when in facts.silent.items():
        finding = bad(node, "answer", "none", when)
        yield finding.model_copy(update={"excluding_helps": False}) if most else finding


def _unequal_versions(hosts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    for package in dict.fromkeys(name for host in hosts.values() for name in host.versions):
        versions = {node: host.versions.get(package, "none") for node, host in hosts.items()}
        usual = Counter(versions.values()).most_common(1)[0][0]
        for node, version in versions.items():
            if version != usual:
                finding = bad(node, f"version of {package}", version, f"the others {usual}")
                yield finding.model_copy(update={"excluding_helps": False})


def _count_gpus(facts: Facts, hosts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    if facts.gpus_wanted == 0:
        return
    for node, host in hosts.items():
        own = {rank.device.uuid for rank in facts.ranks if rank.node == node and rank.device is not None}
        # Where each rank is shown its own GPU alone, nobody sees all of them.
        found = max(host.gpus or 0, len(own - {None}))
        if found < facts.gpus_wanted:
            yield bad(node, "GPUs", str(found), f"{facts.gpus_wanted} wanted (cluster.gpus_per_node)")


def _devices(facts: Facts, config: PreflightConfig) -> Iterator[Finding]:
    for rank in facts.ranks:
        device = rank.device
        if device is None:
            continue
        if device.error is not None:
            yield bad(rank.node, device.name, f"cannot be used: {device.error}", "a device wanted")
        if device.health is not None:
            yield from _judge_health(rank.node, device.name, device.health)
        least, rate = config.min_matmul_tflops, device.matmul_tflops
        if least is not None and rate is not None and rate < least:
            what, wanted = f"matrix product of {device.name}", f"at least {say_rate(least)} wanted"
            yield bad(rank.node, what, say_rate(rate), wanted, find_reason(device))


def _judge_health(node: str, name: str, health: GpuHealth) -> Iterator[Finding]:
    if health.uncorrected_errors:
        yield bad(node, f"{name} uncorrected ECC errors", str(health.uncorrected_errors), "none wanted")
    if health.rows_failed:
        yield bad(node, f"{name} row remapping", "failed", "the GPU is to be replaced")
    if health.rows_pending:
        yield bad(node, f"{name} retired pages or rows", "pending", "the GPU is to be reset")
    for xid in health.xids:
        yield bad(node, f"{name} XID", str(xid), "none wanted")
    if health.throttled:
        yield warn(
            node, f"{name} clocks", f"held back by {', '.join(health.throttled)}", "full clocks wanted"
        )
    if (health.celsius or 0) >= _HOT_CELSIUS:
        yield warn(node, f"{name} temperature", f"{health.celsius} C", f"less than {_HOT_CELSIUS} C wanted")
    if (health.used_bytes or 0) > _USED_BYTES:
        used = say_bytes(health.used_bytes or 0)
        yield warn(node, f"{name} memory", f"{used} in use by others", "none wanted")


def _paths(hosts: Mapping[str, HostFacts], config: PreflightConfig) -> Iterator[Finding]:
    seen = [(node, path) for node, host in hosts.items() for path in host.paths]
    for node, path in seen:
        if path.missing:
            others = [other for _, other in seen if other.what == path.what]
            if all(other.missing for other in others):
                yield warn(node, path.what, f"{path.path} is missing", "a folder wanted; `metier prepare`?")
            else:
                yield bad(node, path.what, f"{path.path} is missing", "the others see it")
        yield from _judge_path(node, path, config)


def _judge_path(node: str, path: PathFacts, config: PreflightConfig) -> Iterator[Finding]:
    if path.free_bytes is not None and path.free_bytes < config.min_free_bytes:
        wanted = f"at least {say_bytes(config.min_free_bytes)} wanted"
        yield bad(node, path.what, f"{say_bytes(path.free_bytes)} free in {path.path}", wanted, path.error)
    elif path.error is not None:
        yield bad(node, path.what, f"{path.path}: {path.error}", "a folder that works wanted")
    if path.what not in {"run directory", "local disk"}:
        return
    for way, rate in (("written", path.write_mbps), ("read", path.read_mbps)):
        if rate is not None and rate < config.min_disk_mbps:
            value = f"{path.path} {way} at {rate:.1f} MB/s"
            yield bad(node, path.what, value, f"at least {config.min_disk_mbps:g} MB/s wanted")


def _clocks(facts: Facts, config: PreflightConfig) -> Iterator[Finding]:
    offsets = {
        each.node: each.clock_offset_seconds
        for each in facts.network
        if each.clock_offset_seconds is not None
    }
    if len(offsets) < _TWO:
        return
    # The lead's clock may be the wrong one; of two, nobody knows.
    middle = 0.0 if len(offsets) == _TWO else statistics.median(offsets.values())
    for node, offset in offsets.items():
        if abs(offset - middle) > config.max_clock_skew_seconds:
            wanted = f"at most {config.max_clock_skew_seconds:g} s wanted"
            yield bad(node, "clock", f"{offset - middle:+.1f} s from the others'", wanted)


def _contact(facts: Facts, hosts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    wanted = facts.interface_wanted
    lacking = {node: host for node, host in hosts.items() if wanted and wanted not in host.interfaces}
    for node, host in lacking.items():
        there = f"there are {', '.join(host.interfaces)}"
        yield bad(node, _INTERFACE, f"{wanted} is missing (cluster.network.interface)", there)
    # Where a peer has died, the others lose contact with it, and are not to blame.
    errors = {each.node: each.contact_error for each in facts.network if each.contact_error is not None}
    for node, error in errors.items():
        if not facts.silent and node not in lacking:
            yield bad(node, "first contact", f"failed: {error}", "contact with all ranks wanted")


def _network(facts: Facts, config: PreflightConfig) -> Iterator[Finding]:
    best = link_rates(facts.network)
    slow = dict(find_slow(best, config.slow_factor)) if len(best) > _TWO else {}
    for node, yardstick in slow.items():
        yield bad(node, "best link", say_gbps(best[node]), f"the others {say_gbps(yardstick)}")
    buses = [each.bus_gbps for each in facts.network if each.bus_gbps is not None]
    wanted = config.min_allreduce_gbps
    if wanted is not None and buses and min(buses) < wanted and not slow:
        finding = bad(ALL_NODES, "all-reduce", say_gbps(min(buses)), f"at least {wanted:g} GB/s wanted")
        yield finding.model_copy(update={"excluding_helps": False})


def _limits(hosts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    usual = Counter(host.infiniband for host in hosts.values()).most_common(1)
    for node, host in hosts.items():
        files = host.limits.get("open files", -1)
        if 0 <= files < _LEAST_OPEN_FILES:
            yield warn(node, "limit of open files", str(files), f"at least {_LEAST_OPEN_FILES} wanted")
        locked = host.limits.get("locked memory", -1)
        if host.infiniband and locked >= 0:
            yield warn(node, "limit of locked memory", say_bytes(locked), "none wanted, for InfiniBand")
        if host.shm_free_bytes is not None and host.shm_free_bytes < _LEAST_SHARED_MEMORY:
            wanted = f"at least {say_bytes(_LEAST_SHARED_MEMORY)} wanted"
            yield warn(node, "shared memory (/dev/shm)", f"{say_bytes(host.shm_free_bytes)} free", wanted)
        if host.infiniband != usual[0][0]:
            others = ", ".join(usual[0][0]) or "none"
            yield warn(node, "network adapters", ", ".join(host.infiniband) or "none", f"the others {others}")

"""Which node, or which device of a lone node, is slower than the others."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from training.config.cluster import PreflightConfig
from training.preflight.facts import DeviceFacts, Facts, HostFacts, RankFacts
from training.preflight.words import bad, say_gbps, say_rate
from training.verdict import Finding

_TWO = 2
_UNDISTURBED = 0.85

Rate = Callable[[DeviceFacts], float | None]

_RATES: Mapping[str, Rate] = {
    "matrix product": lambda device: device.matmul_tflops,
    "copy to the GPU": lambda device: device.to_device_gbps,
    "copy from the GPU": lambda device: device.from_device_gbps,
}


def judge_speeds(facts: Facts, hosts: Mapping[str, HostFacts], config: PreflightConfig) -> Iterator[Finding]:
    """Compare products and copies of the nodes' slowest devices, and copies in memory."""
    for what, rate_of in _RATES.items():
        show = say_rate if what == "matrix product" else say_gbps
        slowest = find_slowest(facts.ranks, rate_of)
        rates = {node: rate for node, (rate, _) in slowest.items()}
        for node, yardstick in find_slow(rates, config.slow_factor):
            device = slowest[node][1]
            where = f"{what} of {device.name}" if facts.gpus_wanted else what
            yield bad(node, where, show(rates[node]), f"the others {show(yardstick)}", find_reason(device))
        if len(rates) == 1:
            yield from _compare_devices(facts.ranks, what, rate_of, config.slow_factor)
    copies = {node: host.memory_copy_gbps for node, host in hosts.items()}
    known = {node: rate for node, rate in copies.items() if rate is not None}
    for node, yardstick in find_slow(known, config.slow_factor):
        yield bad(node, "memory copy", say_gbps(known[node]), f"the others {say_gbps(yardstick)}")


def find_yardstick(values: Sequence[float]) -> float | None:
    """The median of the nodes; of two, the faster."""
    if len(values) < _TWO:
        return None
    return max(values) if len(values) == _TWO else statistics.median(values)


def find_slow(rates: Mapping[str, float], factor: float) -> Iterator[tuple[str, float]]:
    """Give those that are slower than the yardstick by more than ``factor``, and the yardstick."""
    yardstick = find_yardstick(list(rates.values()))
    for node, rate in rates.items():
        if yardstick is not None and rate * factor < yardstick:
            yield node, yardstick


def find_slowest(ranks: Sequence[RankFacts], rate_of: Rate) -> dict[str, tuple[float, DeviceFacts]]:
    """Give each node's slowest device: a step waits for it."""
    slowest: dict[str, tuple[float, DeviceFacts]] = {}
    for rank in ranks:
        rate = rate_of(rank.device) if rank.device is not None else None
        if rate is not None and rank.device is not None:
            known = slowest.get(rank.node)
            if known is None or rate < known[0]:
                slowest[rank.node] = (rate, rank.device)
    return slowest


def find_reason(device: DeviceFacts) -> str | None:
    """Give a likely reason why a device is slow, where one was seen."""
    if device.health is not None and device.health.throttled:
        return f"throttled: {', '.join(device.health.throttled)}"
    if device.cpu_share is not None and device.cpu_share < _UNDISTURBED:
        return f"it had {device.cpu_share:.0%} of its cores' time: others run there, or it is held back"
    return None


def _compare_devices(
    ranks: Sequence[RankFacts], what: str, rate_of: Rate, factor: float
) -> Iterator[Finding]:
    """Compare the devices of a lone node with each other."""
    devices = {
        rank.rank: rank for rank in ranks if rank.device is not None and rate_of(rank.device) is not None
    }
    rates = {str(number): rate_of(rank.device) or 0.0 for number, rank in devices.items() if rank.device}
    show = say_rate if what == "matrix product" else say_gbps
    for number, yardstick in find_slow(rates, factor):
        rank = devices[int(number)]
        if rank.device is not None:
            name, reason = f"{what} of rank {number} ({rank.device.name})", find_reason(rank.device)
            yield bad(rank.node, name, show(rates[number]), f"the others {show(yardstick)}", reason)

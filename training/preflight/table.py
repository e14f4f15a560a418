"""What a preflight found as a table, one node per line."""

from collections.abc import Sequence

from training.files import say_bytes
from training.preflight.facts import Facts, HostFacts, NetworkFacts
from training.preflight.judge import link_rates
from training.preflight.speeds import find_slowest
from training.preflight.words import say_rate
from training.verdict import ALL_NODES, Report

_HEAD = (
    "node",
    "ranks",
    "product",
    "memory",
    "run directory",  # written and read
    "local disk",
    "free",
    "clock",
    "link",
    "verdict",
)


def draw_table(facts: Facts, report: Report) -> str:
    """Draw the table and, below it, what belongs to no node alone."""
    links = link_rates(facts.network)
    rows = [
        (*_row(node, facts), _give(links.get(node), "{:.2f} GB/s"), _state(node, report))
        for node in facts.nodes
    ]
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (_HEAD, *rows)
    ]
    return "\n".join([*lines, *_below(facts, report)]) + "\n"


def _row(node: str, facts: Facts) -> tuple[str, ...]:
    ranks = [rank for rank in facts.ranks if rank.node == node]
    host = next((rank.host for rank in ranks if rank.host is not None), None) or HostFacts()
    product = find_slowest(ranks, lambda device: device.matmul_tflops).get(node)
    return (
        node,
        str(len(ranks)),
        say_rate(product[0]) if product else "-",
        _give(host.memory_copy_gbps, "{:.1f} GB/s"),
        _disk(host, "run directory"),
        _disk(host, "local disk"),
        _free(host, "local disk"),
        _clock(node, facts.network),
    )


def _disk(host: HostFacts, what: str) -> str:
    path = next((path for path in host.paths if path.what == what), None)
    if path is None:
        return "-"
    if path.write_mbps is None:
        return path.error or "works"
    return f"{path.write_mbps:,.0f} / {path.read_mbps or 0:,.0f} MB/s"


def _free(host: HostFacts, what: str) -> str:
    free = next((path.free_bytes for path in host.paths if path.what == what), None)
    return "-" if free is None else say_bytes(free)


def _clock(node: str, network: Sequence[NetworkFacts]) -> str:
    offset = next((each.clock_offset_seconds for each in network if each.node == node), None)
    return _give(None if offset is None else offset * 1000, "{:+.1f} ms")


def _state(node: str, report: Report) -> str:
    if node in report.verdict.nodes:
        return "excluded"
    found = {finding.severity for finding in report.findings if finding.node in {node, ALL_NODES}}
    return "bad" if "bad" in found else "warning" if found else "ok"


def _below(facts: Facts, report: Report) -> list[str]:
    lines = []
    latencies = [each.latency_seconds for each in facts.network if each.latency_seconds is not None]
    buses = [each.bus_gbps for each in facts.network if each.bus_gbps is not None]
    if latencies and buses:
        ranks = len(facts.network)
        lines.append(
            f"all-reduce over {ranks} ranks: {max(latencies) * 1e6:,.0f} us, {min(buses):.2f} GB/s of bus "
            "bandwidth"
        )
    lines += _say_undone(report.undone)
    verdict = report.verdict
    names = f" {', '.join(verdict.nodes)}" if verdict.nodes else ""
    lines.append(f"verdict: {verdict.kind}{names}, after {report.seconds:.1f} s")
    return lines


def _say_undone(undone: Sequence[str]) -> list[str]:
    """One line for what was left out for the same reason on several nodes."""
    nodes: dict[str, list[str]] = {}
    for line in undone:
        node, _, reason = line.partition(": ")
        nodes.setdefault(reason, []).append(node)
    return [f"not looked at on {', '.join(names)}: {reason}" for reason, names in nodes.items()]


def _give(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)

"""From facts to findings and a verdict: which node is named, for what, and whether excluding it helps."""

from collections.abc import Callable
from typing import Any

import pytest

from training.config.cluster import PreflightConfig
from training.preflight.decide import decide
from training.preflight.facts import (
    DeviceFacts,
    Facts,
    GpuHealth,
    HostFacts,
    NetworkFacts,
    Pair,
    PathFacts,
    RankFacts,
)
from training.preflight.judge import judge, needs_all_pairs
from training.verdict import say

CONFIG = PreflightConfig(
    mode="exclude",
    budget_seconds=60,
    slow_factor=1.5,
    min_matmul_tflops=None,
    min_allreduce_gbps=None,
    min_disk_mbps=20,
    min_free_bytes=1 << 30,
    max_clock_skew_seconds=5,
)
VERSIONS = {"python": "3.12.1", "torch": "2.13.0"}


def make_rank(number: int, **changes: Any) -> RankFacts:
    """One rank on a node of its own, with nothing wrong."""
    host = {
        "memory_copy_gbps": 10.0,
        "paths": (
            PathFacts(
                what="run directory", path="/shared/run", free_bytes=1 << 40, write_mbps=900, read_mbps=900
            ),
            PathFacts(what="local disk", path="/tmp", free_bytes=1 << 40, write_mbps=900, read_mbps=900),  # noqa: S108
        ),
        "versions": VERSIONS,
        "interfaces": ("lo", "ib0"),
        "gpus": changes.pop("gpus", None),
        **changes.pop("host", {}),
    }
    device = {"name": "CPU", "matmul_tflops": 0.12, "cpu_share": 1.0, **changes.pop("device", {})}
    return RankFacts(
        rank=number, node=f"node{number + 1}", device=DeviceFacts(**device), host=HostFacts(**host), **changes
    )


def make_facts(*ranks: RankFacts, network: tuple[NetworkFacts, ...] = (), **changes: Any) -> Facts:
    nodes = tuple(rank.node for rank in ranks)
    return Facts(**{"gpus_wanted": 0, "nodes": nodes, "ranks": ranks, "network": network, **changes})


def three(change: dict[str, Any], **more: Any) -> Facts:
    """Three nodes, the second of which is changed."""
    return make_facts(make_rank(0), make_rank(1, **change), make_rank(2), **more)


def test_nodes_without_fault_give_no_finding_and_ok() -> None:
    findings = judge(three({}), CONFIG)
    assert findings == []
    assert decide(findings, CONFIG).kind == "ok"


def full(what: str) -> dict[str, Any]:
    path = PathFacts.model_validate(
        {"what": what, "path": "/x", "free_bytes": 5, "error": "No space left on device"}
    )
    return {"host": {"paths": (path,)}}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a slow processor": (
        {"device": {"matmul_tflops": 0.041, "cpu_share": 0.45}},
        "node2: matrix product 41 GFLOP/s, the others 120 GFLOP/s (it had 45% of its cores' time: others run "
        "there, or it is held back); excluded",
    ),
    "slow memory": ({"host": {"memory_copy_gbps": 4.0}}, "memory copy 4 GB/s, the others 10 GB/s"),
    "a full local disk": (
        full("local disk"),
        "local disk 0.0 MB free in /x, at least 1.1 GB wanted (No space",
    ),
    "a run directory that only it cannot use": (full("run directory"), "run directory 0.0 MB free in /x"),
    "a slow disk": (
        {"host": {"paths": (PathFacts(what="local disk", path="/x", write_mbps=3.0),)}},
        "local disk /x written at 3.0 MB/s, at least 20 MB/s wanted",
    ),
    "a corpus that only it does not see": (
        {"host": {"paths": (PathFacts(what="corpus", path="/data", missing=True),)}},
        "corpus /data is missing",
    ),
    "an interface that only it lacks": (
        {"host": {"interfaces": ("lo", "eth0")}},
        "node2: network interface ib0 is missing (cluster.network.interface), there are lo, eth0; excluded",
    ),
    "a dead device": ({"device": {"error": "CUDA error: unknown"}}, "CPU cannot be used: CUDA error"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_node_is_named_and_excluded_for(name: str) -> None:
    change, line = BAD[name]
    facts = three(change, interface_wanted="ib0" if "interface" in name else None)
    if "corpus" in name:
        seen = HostFacts(paths=(PathFacts(what="corpus", path="/data"),), versions=VERSIONS)
        facts = make_facts(
            *(rank if rank.rank == 1 else rank.model_copy(update={"host": seen}) for rank in facts.ranks)
        )
    findings = judge(facts, CONFIG)
    verdict = decide(findings, CONFIG)
    assert (verdict.kind, verdict.nodes) == ("exclude", ("node2",))
    assert line in say(findings[0], verdict)
    assert {finding.node for finding in findings} == {"node2"}


def test_unequal_versions_stop_and_exclude_nobody() -> None:
    findings = judge(three({"host": {"versions": VERSIONS | {"torch": "2.12.0"}}}), CONFIG)
    verdict = decide(findings, CONFIG)
    assert (verdict.kind, verdict.nodes) == ("stop", ())
    assert verdict.reason == "node2: version of torch 2.12.0"


def test_a_node_that_never_answered_is_excluded() -> None:
    facts = make_facts(make_rank(0), make_rank(2), silent={"node2": "rank 1 did not come within 21 s"})
    findings = judge(facts, CONFIG)
    verdict = decide(findings, CONFIG)
    assert verdict.nodes == ("node2",)
    assert say(findings[0], verdict) == "node2: answer none, rank 1 did not come within 21 s; excluded"


def test_where_most_nodes_are_missing_nobody_is_excluded() -> None:
    silent = {f"node{number}": "did not come" for number in (2, 3)}
    facts = make_facts(make_rank(0), silent=silent, nodes=("node1", "node2", "node3"))
    assert decide(judge(facts, CONFIG), CONFIG).kind == "stop"


def test_what_is_wrong_on_every_node_stops_since_excluding_would_leave_none() -> None:
    facts = make_facts(*(make_rank(number, **full("run directory")) for number in range(3)))
    assert decide(judge(facts, CONFIG), CONFIG).kind == "stop"


@pytest.mark.parametrize("nodes", [1, 3])
def test_an_interface_that_no_node_has_stops(nodes: int) -> None:
    facts = make_facts(*(make_rank(number) for number in range(nodes)), interface_wanted="eth9")
    verdict = decide(judge(facts, CONFIG), CONFIG)
    assert (verdict.kind, verdict.nodes) == ("stop", ())
    assert verdict.reason.startswith("node1: network interface eth9 is missing (cluster.network.interface)")


def meet(**errors: str) -> tuple[NetworkFacts, ...]:
    nodes = ("node1", "node2", "node3")
    return tuple(
        NetworkFacts(rank=rank, node=node, contact_error=errors.get(node)) for rank, node in enumerate(nodes)
    )


def test_the_node_that_cannot_come_into_contact_is_excluded_and_where_none_can_the_run_stops() -> None:
    facts = three({}, network=meet(node2="no address for eth0"))
    verdict = decide(judge(facts, CONFIG), CONFIG)
    assert (verdict.kind, verdict.nodes) == ("exclude", ("node2",))
    assert verdict.reason == "node2: first contact failed: no address for eth0"
    all_of_them = three({}, network=meet(node1="x", node2="x", node3="x"))
    assert decide(judge(all_of_them, CONFIG), CONFIG).kind == "stop"


def test_who_loses_contact_with_a_node_that_has_died_is_not_to_blame() -> None:
    facts = three({}, network=meet(node1="reset", node3="reset"), silent={"node2": "hung"})
    assert {finding.node for finding in judge(facts, CONFIG)} == {"node2"}


def test_a_lone_node_is_no_judge_of_a_shared_disk_but_of_its_own() -> None:
    shared, own = (
        judge(make_facts(make_rank(0, **full(what))), CONFIG) for what in ("run directory", "local disk")
    )
    assert decide(shared, CONFIG).kind == "stop"
    assert decide(own, CONFIG).kind == "exclude"


def test_a_corpus_that_nobody_sees_is_a_warning() -> None:
    missing = {"host": {"paths": (PathFacts(what="corpus", path="/data", missing=True),)}}
    findings = judge(make_facts(make_rank(0, **missing), make_rank(1, **missing)), CONFIG)
    assert decide(findings, CONFIG).kind == "warn"


@pytest.mark.parametrize(
    ("rates", "slow"),
    [
        ((0.10, 0.16), ["node1"]),  # of two, the faster is the yardstick; their mean would not tell
        ((0.11, 0.16), []),
        ((0.10, 0.12, 0.20), []),  # held against the median, not against the fastest
        ((0.12, 0.12, 0.05, 0.20), ["node3"]),
        ((0.1,), []),
    ],
)
def test_a_node_is_slow_by_the_median_of_the_nodes(rates: tuple[float, ...], slow: list[str]) -> None:
    ranks = [make_rank(number, device={"matmul_tflops": rate}) for number, rate in enumerate(rates)]
    assert [finding.node for finding in judge(make_facts(*ranks), CONFIG)] == slow


def test_of_a_lone_node_the_slow_device_is_named() -> None:
    ranks = [
        make_rank(0, device={"name": f"GPU {number}", "matmul_tflops": 600.0}, gpus=4) for number in range(4)
    ]
    ranks = [rank.model_copy(update={"rank": number}) for number, rank in enumerate(ranks)]
    slow = ranks[3].device.model_copy(update={"matmul_tflops": 200.0}) if ranks[3].device else None
    ranks[3] = ranks[3].model_copy(update={"device": slow})
    facts = Facts(gpus_wanted=4, nodes=("node1",), ranks=tuple(ranks), network=())
    findings = judge(facts, CONFIG)
    assert [finding.what for finding in findings] == ["matrix product of rank 3 (GPU 3)"]


def test_least_rates_that_were_asked_for_hold_without_any_other_node() -> None:
    config = CONFIG.model_copy(update={"min_matmul_tflops": 0.5})
    (finding,) = judge(make_facts(make_rank(0)), config)
    assert finding.wanted == "at least 500 GFLOP/s wanted"


HEALTH: dict[str, tuple[GpuHealth, str, str]] = {
    "uncorrected errors": (GpuHealth(uncorrected_errors=2), "bad", "uncorrected ECC errors 2"),
    "failed remapping": (GpuHealth(rows_failed=True), "bad", "row remapping failed"),
    "pending rows": (GpuHealth(rows_pending=True), "bad", "retired pages or rows pending"),
    "an XID": (GpuHealth(xids=(79,)), "bad", "XID 79"),
    "throttling": (GpuHealth(throttled=("power brake",)), "warn", "held back by power brake"),
    "heat": (GpuHealth(celsius=95), "warn", "95 C"),
    "memory in use": (GpuHealth(used_bytes=30 << 30), "warn", "in use by others"),
}


@pytest.mark.parametrize("name", HEALTH)
def test_of_a_gpu_is_told(name: str) -> None:
    health, severity, words = HEALTH[name]
    change = {"device": {"name": "GPU 0", "health": health}, "gpus": 1}
    (finding,) = judge(make_facts(make_rank(0, gpus=1), make_rank(1, **change), gpus_wanted=1), CONFIG)
    assert (finding.node, finding.severity) == ("node2", severity)
    assert words in f"{finding.what} {finding.value}"


def test_a_node_with_fewer_gpus_than_wanted_is_excluded_unless_each_rank_is_shown_its_own() -> None:
    ranks = (make_rank(0, gpus=2), make_rank(1, gpus=1))
    assert [finding.value for finding in judge(make_facts(*ranks, gpus_wanted=2), CONFIG)] == ["1"]
    own = [make_rank(0, gpus=1, device={"uuid": uuid}) for uuid in ("GPU-a", "GPU-b")]
    assert judge(make_facts(*own, gpus_wanted=2, nodes=("node1",)), CONFIG) == []


def network(
    offsets: dict[int, float], links: dict[tuple[int, int], float], bus: float = 1.0
) -> tuple[NetworkFacts, ...]:
    return tuple(
        NetworkFacts(
            rank=number,
            node=f"node{number + 1}",
            clock_offset_seconds=offset,
            bus_gbps=bus,
            latency_seconds=1e-4,
            pairs=tuple(
                Pair(nodes=(f"node{a + 1}", f"node{b + 1}"), gbps=gbps)
                for (a, b), gbps in links.items()
                if a == number
            ),
        )
        for number, offset in offsets.items()
    )


def test_the_wrong_clock_is_named_even_if_it_is_the_leads() -> None:
    facts = three({}, network=network({0: 0.0, 1: 60.1, 2: 60.0}, {}))
    (finding,) = judge(facts, CONFIG)
    assert (finding.node, finding.value) == ("node1", "-60.0 s from the others'")


def test_the_node_all_of_whose_links_are_slow_is_named() -> None:
    links = {(0, 1): 1.0, (0, 2): 9.0, (1, 2): 1.1}
    facts = three({}, network=network({0: 0, 1: 0, 2: 0}, links))
    assert needs_all_pairs(facts.network, CONFIG)
    (finding,) = judge(facts, CONFIG)
    assert finding.node == "node2"


def test_a_network_that_is_slow_everywhere_is_nobodys_fault_and_stops() -> None:
    config = CONFIG.model_copy(update={"min_allreduce_gbps": 5.0})
    facts = three({}, network=network({0: 0, 1: 0, 2: 0}, {(0, 1): 1.0, (0, 2): 1.1, (1, 2): 1.0}))
    assert not needs_all_pairs(facts.network, CONFIG)
    assert needs_all_pairs(facts.network, config)
    (finding,) = judge(facts, config)
    assert finding.node == "all nodes"
    assert decide([finding], config).kind == "stop"


DECISIONS: dict[str, Callable[[], Facts]] = {
    "a slow node": lambda: three({"device": {"matmul_tflops": 0.01}}),
    "unequal versions": lambda: three({"host": {"versions": {}}}),
}


@pytest.mark.parametrize(("name", "expected"), [("a slow node", "exclude"), ("unequal versions", "stop")])
def test_the_mode_decides_what_a_bad_node_means(name: str, expected: str) -> None:
    facts = DECISIONS[name]()
    kinds = {}
    for mode in ("off", "warn", "exclude", "stop"):
        config = CONFIG.model_copy(update={"mode": mode})
        kinds[mode] = decide(judge(facts, config), config).kind
    assert kinds == {"off": expected, "warn": "warn", "exclude": expected, "stop": "stop"}

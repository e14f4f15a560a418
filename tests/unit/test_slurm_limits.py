"""A request that a cluster can never give is refused with the reason, before it waits for ever."""

import dataclasses
from typing import Any

import pytest

from launcher.slurm.limits import check_associations, judge_request
from launcher.slurm.site import Site, parse_nodes, parse_partitions, parse_settings
from tests.cluster_case import NODES, PARTITIONS_20_11, SETTINGS, slurm_run
from training.errors import ClusterError

SITE = Site(
    partitions=parse_partitions(PARTITIONS_20_11),
    nodes=parse_nodes(NODES),
    settings=parse_settings(SETTINGS),
)
BOOST = {"cluster__slurm__partition": "boost", "cluster__gpus_per_node": 4}


def judge(**changes: Any) -> list[str]:
    return judge_request(slurm_run(**changes).cluster, SITE)


def test_what_the_cluster_has_is_granted() -> None:
    assert judge(**BOOST, cluster__nodes=2, cluster__slurm__gpu_type="a100") == []
    assert judge(**BOOST, cluster__slurm__constraint="a100&nvlink") == []
    assert judge(**BOOST, cluster__slurm__memory="500G") == []
    assert judge(**BOOST, cluster__slurm__cpus_per_process=8, cluster__nodes=2) == []
    assert judge() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"cluster__slurm__partition": "bost"},
            "cluster.slurm.partition=bost does not exist; did you mean boost?",
        ),
        ({"cluster__slurm__partition": "old"}, "partition old is down and starts no jobs"),
        (
            {**BOOST, "cluster__slurm__time": "0"},
            "cluster.slurm.time=0 (no time limit) is more than partition boost gives, 1-00:00:00; use",
        ),
        (
            {**BOOST, "cluster__slurm__time": "2-00:00:00"},
            "cluster.slurm.time=2-00:00:00 is more than partition boost gives, 1-00:00:00; use "
            "cluster.slurm.time=1-00:00:00: the run goes on in as many jobs as it needs",
        ),
        ({**BOOST, "cluster__nodes": 65}, "cluster.nodes=65 is more than partition boost gives a job, 64"),
        ({**BOOST, "cluster__nodes": 4}, "cluster.nodes=4, but partition boost has 3 nodes"),
        (
            {**BOOST, "cluster__nodes": 3, "cluster__slurm__spare_nodes": 1},
            "cluster.nodes=3 (with 1 spare), but partition boost has 3 nodes",
        ),
        (
            {**BOOST, "cluster__gpus_per_node": 8},
            "cluster.gpus_per_node=8: no node fits in partition boost, and 1 is wanted; "
            "its nodes have 4 x a100",
        ),
        (
            {**BOOST, "cluster__slurm__gpu_type": "h100"},
            "cluster.gpus_per_node=4 of type h100: no node fits in partition boost",
        ),
        (
            {"cluster__gpus_per_node": 1},
            "cluster.gpus_per_node=1: no node fits in partition cpu, and 1 is wanted; its nodes have no GPU",
        ),
        (
            {**BOOST, "cluster__slurm__cpus_per_process": 9},
            "36 cores a node, by cluster.slurm.cpus_per_process: no node fits in partition boost",
        ),
        ({"cluster__slurm__cpus_per_process": 40}, "40 cores a node are more than partition cpu gives, 32"),
        ({**BOOST, "cluster__slurm__memory": "512001M"}, "its nodes have 512000M"),
        ({"cluster__slurm__memory": "160000"}, "its nodes have 150000M"),
        (
            {**BOOST, "cluster__slurm__constraint": "a100&nvlonk"},
            "no node of partition boost has the feature nvlonk; did you mean nvlink?",
        ),
        ({**BOOST, "cluster__slurm__constraint": "[a100*2&rack7*2]"}, "the feature rack7"),
        (
            {**BOOST, "cluster__slurm__qos": "short"},
            "cluster.slurm.qos=short may not be used in partition boost",
        ),
    ],
)
def test_what_it_does_not_have_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ClusterError) as raised:
        judge(**changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_of_several_partitions_is_enough_and_each_must_exist() -> None:
    assert judge(cluster__gpus_per_node=4, cluster__slurm__partition="cpu,boost") == []
    with pytest.raises(ClusterError, match="partition=nix does not exist"):
        judge(cluster__slurm__partition="cpu,nix")


def test_a_cluster_without_a_default_partition_wants_one_named() -> None:
    nameless = tuple(dataclasses.replace(each, is_default=False) for each in SITE.partitions)
    with pytest.raises(ClusterError, match="no default; there are boost, cpu, old"):
        judge_request(slurm_run().cluster, dataclasses.replace(SITE, partitions=nameless))


def test_nodes_that_are_down_today_are_told_and_do_not_refuse() -> None:
    (note,) = judge(**BOOST, cluster__nodes=3)
    assert note.startswith("1 of the 3 nodes of partition boost that fit are down or drained")


def test_nodes_that_are_excluded_do_not_count() -> None:
    cluster = slurm_run(**BOOST, cluster__nodes=2).cluster
    with pytest.raises(ClusterError, match=r"cluster\.slurm\.exclude leaves 1 nodes of partition boost"):
        judge_request(cluster, SITE, ["gpu001", "gpu003"])


def test_account_and_quality_of_service_must_be_the_users() -> None:
    mine = [("bio", "", frozenset({"normal"})), ("physics", "", frozenset({"normal", "long"}))]
    check_associations(slurm_run(cluster__slurm__account="bio", cluster__slurm__qos="normal").cluster, mine)
    check_associations(slurm_run(cluster__slurm__qos="long").cluster, mine)
    with pytest.raises(ClusterError, match=r"account=boi is not yours; did you mean bio\?"):
        check_associations(slurm_run(cluster__slurm__account="boi").cluster, mine)
    with pytest.raises(ClusterError, match="qos=long is not yours; known here: normal"):
        check_associations(slurm_run(cluster__slurm__account="bio", cluster__slurm__qos="long").cluster, mine)


def test_an_account_that_may_be_below_one_of_the_partitions_is_a_note() -> None:
    (note,) = judge(cluster__slurm__account="chem")
    assert note.endswith("cluster.slurm.account=chem may use it only if it is below one of them")
    assert judge(cluster__slurm__account="BIO") == judge(cluster__slurm__account="bio") == []


def test_what_a_quality_of_service_may_lift_is_a_note() -> None:
    qos = {**BOOST, "cluster__slurm__qos": "long"}
    (note,) = judge(**qos, cluster__slurm__time="2-00:00:00")
    assert note.startswith("cluster.slurm.time=2-00:00:00 is more than partition boost gives")
    assert note.endswith("unless cluster.slurm.qos=long allows more")
    with pytest.raises(ClusterError, match="but partition boost has 3 nodes"):
        judge(**qos, cluster__nodes=4)

"""What Slurm's commands print becomes partitions, nodes and a draft of a configuration."""

import dataclasses

import pytest
import yaml

from launcher.slurm.drafts import choose_partition, count_kinds, describe_site, draft_cluster, judge_requeue
from launcher.slurm.site import Site, parse_gpus, parse_nodes, parse_partitions, parse_settings
from tests.cluster_case import NODES, PARTITIONS_20_11, SETTINGS, slurm_run
from training.errors import ConfigError

SITE = Site(
    partitions=parse_partitions(PARTITIONS_20_11),
    nodes=parse_nodes(NODES),
    settings=parse_settings(SETTINGS),
)


def test_partitions_are_read_with_their_limits() -> None:
    boost, cpu, old = SITE.partitions
    assert (boost.name, boost.is_default, boost.max_nodes, boost.max_seconds) == ("boost", False, 64, 86400)
    assert (boost.accounts, boost.qos) == (None, {"normal", "long"})
    assert (cpu.is_default, cpu.max_seconds, cpu.accounts) == (True, None, {"physics", "bio"})
    assert (cpu.max_cpus_per_node, cpu.max_megabytes_per_node) == (32, 150_000)
    assert (old.state, old.min_nodes, old.denied_accounts) == ("DOWN", 2, {"bio"})
    assert (old.preempt_mode, old.grace_seconds) == ("CANCEL", 120)


def test_nodes_are_read_though_values_hold_blanks_and_equals_signs() -> None:
    first = SITE.nodes[0]
    assert (first.name, first.cpus, first.megabytes) == ("gpu001", 32, 512_000)
    assert first.gpus == (("a100", 4),)
    assert first.features == {"a100", "nvlink"}
    assert first.partitions == ("boost", "old")
    assert [node.is_up for node in SITE.nodes] == [True, True, False, True, True]
    assert [node.name for node in SITE.nodes_of("cpu")] == ["cn1", "cn2"]


def test_cores_that_the_site_keeps_for_itself_do_not_count() -> None:
    assert SITE.nodes[3].cpus == 46
    assert SITE.nodes[3].features == frozenset()


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", ()),
        ("gpu:2", ((None, 2),)),
        ("gpu", ((None, 1),)),
        ("gpu:a100:4(S:0-1)", (("a100", 4),)),
        ("gpu:a100_3g.20gb:8(S:0,2),gpu:h100:1,nvme:3", (("a100_3g.20gb", 8), ("h100", 1))),
        ("gpu:4(IDX:0-3)", ((None, 4),)),
        ("lustre:1,gpu:mi250:8", (("mi250", 8),)),
    ],
)
def test_gpus_are_counted_in_every_way_that_sites_write_them(
    gres: str, gpus: tuple[tuple[str | None, int], ...]
) -> None:
    assert parse_gpus(gres) == gpus


@pytest.mark.parametrize(
    ("state", "is_up"),
    [
        ("IDLE", True),
        ("ALLOCATED", True),
        ("IDLE+CLOUD+POWERED_DOWN", True),
        ("MIXED+PLANNED", True),
        ("IDLE~", True),
        ("DOWN*", False),
        ("IDLE+DRAIN", False),
        ("DRAINING@", False),
        ("FUTURE", False),
    ],
)
def test_a_node_that_is_switched_off_for_the_night_is_one_and_a_drained_one_is_not(
    state: str, is_up: bool
) -> None:
    assert dataclasses.replace(SITE.nodes[0], state=state).is_up is is_up


def test_a_partition_with_gpus_is_chosen_where_the_default_has_none() -> None:
    assert choose_partition(SITE, None).name == "boost"
    assert choose_partition(SITE, "cpu").name == "cpu"
    without = dataclasses.replace(SITE, nodes=tuple(node for node in SITE.nodes if not node.gpus))
    assert choose_partition(without, None).name == "cpu"
    with pytest.raises(ConfigError, match=r"partition bost does not exist; did you mean boost\?"):
        choose_partition(SITE, "bost")


def test_the_draft_says_what_slurm_said() -> None:
    draft = draft_cluster("leo", SITE, SITE.partitions[0], ["bio", "physics"])
    values = yaml.safe_load(draft.text)
    assert values.pop("defaults") == ["slurm", "_self_"]
    slurm = values["slurm"]
    assert values["gpus_per_node"] == 4
    assert slurm["time"] == "1-00:00:00"
    assert (slurm["partition"], slurm["gpu_type"], slurm["cpus_per_process"]) == ("boost", "a100", 8)
    assert (slurm["memory"], slurm["account"], slurm["requeue"]) == ("0", None, True)
    assert "yours: bio, physics" in draft.text
    assert any("3 x 4 x a100, 32 cores, 500 GiB" in line for line in draft.found)
    slurm_run(**{f"cluster__slurm__{key}": value for key, value in slurm.items()})


def test_the_draft_of_nodes_without_gpus_gives_the_process_all_cores() -> None:
    values = yaml.safe_load(draft_cluster("leo", SITE, SITE.partitions[1], ["bio"]).text)
    assert values["gpus_per_node"] == 0
    assert values["slurm"]["cpus_per_process"] == 46
    assert values["slurm"]["account"] == "bio"
    assert values["slurm"]["time"] == "1-00:00:00"


def test_a_slingshot_site_is_told_by_its_switch_plugin() -> None:
    crayish = dataclasses.replace(SITE, settings={**SITE.settings, "SwitchType": "switch/hpe_slingshot"})
    values = yaml.safe_load(draft_cluster("leo", crayish, SITE.partitions[0], []).text)
    assert values["network"] == {"fabric": "slingshot", "interface": "hsn0"}


def test_a_site_that_does_not_bring_jobs_back_gets_a_chain() -> None:
    assert judge_requeue(SITE, SITE.partitions[0])[0]
    assert not judge_requeue(SITE, SITE.partitions[2])[0]
    assert not judge_requeue(dataclasses.replace(SITE, settings={"JobRequeue": "0"}), SITE.partitions[0])[0]


def test_kinds_of_nodes_come_with_most_gpus_first() -> None:
    small = dataclasses.replace(SITE.nodes[0], name="g9", gpus=(("h100", 1),))
    kinds = count_kinds([small, *SITE.nodes])
    assert [(node.name, count) for node, count in kinds] == [("gpu001", 3), ("g9", 1), ("cn1", 2)]


def test_the_table_has_a_line_for_each_partition() -> None:
    text = describe_site(SITE)
    assert "leo, Slurm 20.11.9" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "2 of 3" in lines["boost"]
    assert "4 x a100, 32 cores, 500 GiB" in lines["boost"]
    assert "unlimited" in lines["cpu*"]
    assert "cancel, 120 s grace" in lines["old"]

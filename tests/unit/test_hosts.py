"""Hosts without a scheduler: who is who, and one run for all of them."""

import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from launcher import local
from launcher.arguments import parse_arguments
from launcher.compose import compose_run
from launcher.hosts import ALONE, Share, check_cluster, find_share, is_this_host, join_run
from launcher.local import Ending
from launcher.run_directory import find_layout, freeze_run
from launcher.tree import ConfigTree
from training.config.cluster import ClusterConfig
from training.config.freeze import check_config
from training.config.schema import RunConfig
from training.errors import ClusterError, ConfigError
from training.layout import RunLayout


@pytest.fixture(scope="module")
def three() -> RunConfig:
    words = ["experiment=tiny_smoke", "cluster=torchrun", "cluster.nodes=3", "cluster.head_address=node1"]
    return compose_run([*words, "batch.global_batch_size=6"], ConfigTree(None)).config


def of(cluster: ClusterConfig, **changes: Any) -> ClusterConfig:
    return cluster.model_copy(update=changes)


def test_the_first_host_knows_itself_and_the_others_say_their_number(three: RunConfig) -> None:
    def share(number: int | None, environ: dict[str, str], *, here: bool) -> Share | None:
        return find_share(three.cluster, number, environ, lambda _: here)

    assert share(None, {}, here=True) == Share(is_head=True, node_rank=0)
    assert share(None, {}, here=False) is None
    assert (
        share(2, {}, here=False)
        == share(2, {"NODE_RANK": "1"}, here=True)
        == Share(is_head=False, node_rank=2)
    )
    assert share(None, {"NODE_RANK": "1"}, here=False) == Share(is_head=False, node_rank=1)
    assert share(None, {"NODE_RANK": "0"}, here=False) == Share(is_head=True, node_rank=0)


def test_hosts_that_number_themselves_need_none_and_one_of_them_is_the_head(three: RunConfig) -> None:
    cluster = of(three.cluster, rendezvous="c10d")
    assert find_share(cluster, None, {}, lambda _: False) == Share(is_head=False)
    assert find_share(cluster, None, {}, lambda _: True) == Share(is_head=True)
    assert find_share(of(three.cluster, nodes=1), None, {}) == ALONE


@pytest.mark.parametrize(
    ("changes", "number", "environ", "words"),
    [
        ({}, 3, {}, r"--node-rank=3: wanted 0 to 2, since cluster.nodes=3"),
        ({}, None, {"NODE_RANK": "first"}, r"NODE_RANK=first in the environment: wanted this host's number"),
        ({"head_address": "localhost"}, 0, {}, r"name the host of node 0, as the other hosts see it"),
    ],
)
def test_a_number_that_no_host_has_is_refused(
    three: RunConfig, changes: dict[str, Any], number: int | None, environ: dict[str, str], words: str
) -> None:
    with pytest.raises(ClusterError, match=words):
        find_share(of(three.cluster, **changes), number, environ, lambda _: False)


@pytest.mark.parametrize(
    ("changes", "number", "words"),
    [
        ({"kind": "local"}, None, r"use cluster=torchrun for hosts without a scheduler, or cluster=slurm"),
        ({"kind": "local", "nodes": 1}, 0, r"--node-rank is for cluster=torchrun"),
        ({"kind": "slurm"}, 0, r"Slurm numbers the nodes"),
        ({"elastic_restarts": 1}, None, r"needs cluster.rendezvous=c10d"),
    ],
)
def test_what_no_host_would_start_is_refused_with_what_to_use_instead(
    three: RunConfig, changes: dict[str, Any], number: int | None, words: str
) -> None:
    with pytest.raises(ClusterError, match=words):
        check_cluster(of(three.cluster, **changes), number)


def test_modules_are_loaded_by_a_jobs_script_alone(three: RunConfig) -> None:
    environment = three.cluster.environment.model_copy(update={"modules": ["cuda"]})
    with pytest.raises(ClusterError, match=r"cluster\.environment\.modules is for jobs"):
        check_cluster(of(three.cluster, environment=environment), None)


def test_an_address_is_this_machines_when_a_socket_can_be_bound_to_it() -> None:
    assert is_this_host("127.0.0.1")
    assert is_this_host(socket.gethostname())
    assert not is_this_host("192.0.2.1"), "RFC 5737: nobody's"


def test_the_flag_stands_after_train_alone() -> None:
    assert parse_arguments(["train", "--node-rank=2"]).node_rank == 2
    assert parse_arguments(["train", "--node-rank", "0", "a=1"]).node_rank == 0
    for words, said in (
        (["train", "--node-rank"], r"--node-rank=\(nothing\): wanted this host's number"),
        (["train", "--node-rank=x"], r"--node-rank=x: wanted this host's number"),
        (["evaluate", "--node-rank=1"], r"--node-rank is for `metier train`, `metier scale` and"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_arguments(words)


def in_folder(config: RunConfig, folder: Path, **changes: Any) -> RunConfig:
    values = config.model_dump() | {"run_root": str(folder), **changes}
    return check_config(values)


def test_the_others_wait_for_the_heads_run_json_and_take_it_where_it_says_the_same(
    three: RunConfig, tmp_path: Path
) -> None:
    config = in_folder(three, tmp_path)
    found: list[RunLayout] = []
    waiting = threading.Thread(target=lambda: found.append(join_run(config)))
    waiting.start()
    layout = freeze_run(config)
    waiting.join(timeout=30)
    assert found == [layout]


def test_a_host_with_other_settings_than_the_head_says_which(three: RunConfig, tmp_path: Path) -> None:
    freeze_run(in_folder(three, tmp_path))
    with pytest.raises(ConfigError, match=r"node1 -> this host: seed: 1 -> 2\); type the same command"):
        join_run(in_folder(three, tmp_path, seed=2), patience_seconds=0)


def test_a_head_that_does_not_come_is_named(three: RunConfig, tmp_path: Path) -> None:
    hasty = three.model_copy(update={"cluster": of(three.cluster, timeout_seconds=1)})
    with pytest.raises(ClusterError, match=r"did not appear within 1 s; start the same command on node1"):
        join_run(in_folder(hasty, tmp_path))


def start_with(
    script: str, config: RunConfig, share: Share, patch: pytest.MonkeyPatch, tmp_path: Path
) -> Ending:
    """Start a host's share where Python is a shell script that plays torchrun."""
    program = tmp_path / "torchrun"
    program.write_text(f"#!/bin/sh\ncd {find_layout(config).root}\n{script}\n")
    program.chmod(0o755)
    patch.setattr(sys, "executable", str(program))
    patch.setattr(local, "_OUTCOME_SECONDS_AFTER_FAILURE", 0.2)
    return local.train_here(config, find_layout(config), share)


GONE = "it is gone; the same command goes on"
LOST = json.dumps(
    {"state": "FAILED", "step": None, "error_class": "PeerLostError", "rank": 1, "message": GONE}
)
OTHERS = Share(is_head=False, node_rank=1)


def test_every_host_says_what_the_one_outcome_says_and_that_the_command_is_for_every_host(
    three: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_folder(three, tmp_path)
    layout = freeze_run(config)
    layout.outcome.write_text('{"state": "COMPLETED", "step": 1}')
    tell = f"echo '{LOST}' > new; mv new outcome.json; exit 1"
    ending = start_with(tell, config, OTHERS, monkeypatch, tmp_path)
    assert (ending.exit_code, ending.state) == (1, "FAILED")
    assert "it is gone; the same command on every host goes on; the traceback is in" in ending.line


def test_the_head_alone_removes_the_outcome_of_the_last_start_and_nobody_takes_it_for_this_ones(
    three: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_folder(three, tmp_path)
    layout = freeze_run(config)
    for share, is_kept in ((OTHERS, True), (Share(is_head=True, node_rank=0), False)):
        layout.outcome.write_text('{"state": "COMPLETED", "step": 1}')
        ending = start_with("exit 1", config, share, monkeypatch, tmp_path)
        assert ending.line.startswith(
            "the 3 hosts did not begin (torchrun ended with 1); see that all of them"
        )
        assert layout.outcome.exists() is is_kept


def test_where_the_ranks_had_begun_a_process_was_killed(
    three: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_folder(three, tmp_path)
    freeze_run(config)
    claim = "mkdir incarnations; echo '{}' > incarnations/000001.json; exit 1"
    ending = start_with(claim, config, OTHERS, monkeypatch, tmp_path)
    assert ending.line.startswith("a process was killed (torchrun ended with 1)")
    assert ending.line.endswith("the same command on every host goes on from the last checkpoint")

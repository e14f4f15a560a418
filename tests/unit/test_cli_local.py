"""A local start: the command, the environment, and what the end of a run means."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.checks import check_devices, check_model, check_prepared
from launcher.commands import child_variables, merge_environment, torchrun_command
from launcher.compose import compose_run
from launcher.local import read_ending, was_overtaken
from launcher.tree import ConfigTree
from training.config.schema import RunConfig
from training.errors import ClusterError, DataError, ModelError
from training.fence import claim_incarnation
from training.layout import ASKED, RunLayout


@pytest.fixture(scope="module")
def tiny_smoke() -> RunConfig:
    return compose_run(["experiment=tiny_smoke"], ConfigTree(None)).config


def with_cluster(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=changes)})


def test_one_node_needs_no_meeting_point(tiny_smoke: RunConfig) -> None:
    command = torchrun_command(with_cluster(tiny_smoke, processes_per_node=2), Path("/runs/a"))
    assert command[1:] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--log-dir=/runs/a/logs/torchrun",
        "-m",
        "training.worker",
        "/runs/a",
    ]


def test_hosts_that_are_told_their_numbers_meet_at_the_head(tiny_smoke: RunConfig) -> None:
    config = with_cluster(
        tiny_smoke, kind="torchrun", nodes=2, gpus_per_node=8, head_address="head", head_port=7
    )
    command = torchrun_command(config, Path("/runs/a"), 1)
    assert command[3:-3] == [
        "--nnodes=2",
        "--node-rank=1",
        "--master-addr=head",
        "--master-port=7",
        "--rdzv-conf=timeout=1800",
        "--rdzv-id=tiny_smoke.1",
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "--nproc-per-node=8",
        "--log-dir=/runs/a/logs/torchrun",
    ]


def test_hosts_that_number_themselves_type_the_same_command(tiny_smoke: RunConfig) -> None:
    config = with_cluster(
        tiny_smoke, kind="torchrun", nodes=2, head_address="head", rendezvous="c10d", elastic_restarts=3
    )
    commands = [torchrun_command(config, Path("/runs/a"), rank) for rank in (None, 0, 1)]
    assert commands[0] == commands[1] == commands[2]
    assert {"--rdzv-backend=c10d", "--rdzv-endpoint=head:29500", "--max-restarts=3"} < set(commands[0])
    variables = child_variables(config.cluster, 4, processes=1)
    assert variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_each_start_meets_under_another_name(tiny_smoke: RunConfig, tmp_path: Path) -> None:
    config = with_cluster(tiny_smoke, kind="torchrun", nodes=2, head_address="head")
    names = []
    for _ in range(2):
        names += [word for word in torchrun_command(config, tmp_path, 0) if word.startswith("--rdzv-id=")]
        claim_incarnation(RunLayout(tmp_path).incarnations)
    assert names == ["--rdzv-id=tiny_smoke.1", "--rdzv-id=tiny_smoke.2"]


@pytest.mark.parametrize(("cores", "processes", "wanted"), [(8, 2, "4"), (7, 2, "3"), (1, 4, "1")])
def test_cores_are_shared_out_and_nobody_gets_none(
    tiny_smoke: RunConfig, cores: int, processes: int, wanted: str
) -> None:
    assert child_variables(tiny_smoke.cluster, cores, processes=processes)["OMP_NUM_THREADS"] == wanted


def test_threads_that_are_configured_count(tiny_smoke: RunConfig) -> None:
    cluster = tiny_smoke.cluster.model_copy(update={"threads_per_process": 5})
    assert child_variables(cluster, 8, processes=2)["OMP_NUM_THREADS"] == "5"


def test_the_users_python_path_stays_behind_ours() -> None:
    merged = merge_environment({"PYTHONPATH": "/theirs", "A": "1"}, {"PYTHONPATH": "/ours"})
    assert merged == {"PYTHONPATH": "/ours:/theirs", "A": "1"}


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ({"state": "COMPLETED", "step": 8}, 0, "finished after step 8; {root}"),
        (
            {"state": "STOPPED", "step": 3},
            0,
            "stopped after step 3 of 8; the same command goes on from there",
        ),
        (
            {"state": "FAILED", "error_class": "DataError", "message": "a.jsonl:3: broken"},
            2,
            "a.jsonl:3: broken",
        ),
        (
            {"state": "FAILED", "error_class": "RuntimeError", "message": "no", "rank": 1},
            1,
            "failed with RuntimeError: no; the traceback is in {root}/logs/rank_1.log",
        ),
        (
            {
                "state": "FAILED",
                "error_class": "HangError",
                "cause": "hang",
                "message": "rank 1 is at step 3",
            },
            1,
            "hung: rank 1 is at step 3; the same command goes on from the last checkpoint",
        ),
    ],
)
def test_the_outcome_gives_the_exit_code_and_the_line(
    tmp_path: Path, outcome: dict[str, Any], code: int, words: str
) -> None:
    layout = RunLayout(tmp_path)
    layout.outcome.write_text(json.dumps(outcome))
    ending = read_ending(layout, 8, 1)
    assert (ending.exit_code, ending.line) == (code, words.format(root=tmp_path))


def test_without_an_outcome_a_process_was_killed(tmp_path: Path) -> None:
    ending = read_ending(RunLayout(tmp_path), 8, -9)
    assert (ending.exit_code, ending.state) == (1, "KILLED")
    assert ending.line == (
        f"a process was killed (torchrun ended with -9); see {tmp_path}/logs; "
        "the same command goes on from the last checkpoint"
    )


def test_a_launcher_knows_by_the_claims_that_its_start_was_overtaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(tmp_path)
    assert not was_overtaken(layout, 1.5), "it ended before its claim"
    for asked in (1.5, 2.5):
        monkeypatch.setenv(ASKED, str(asked))
        claim_incarnation(layout.incarnations)
    assert was_overtaken(layout, 1.5)
    assert not was_overtaken(layout, 2.5)
    claim_incarnation(layout.incarnations)
    assert not was_overtaken(layout, 2.5), "torchrun has started the same ranks again"


def test_gpus_that_are_not_there_are_missed_before_anything_starts(
    tiny_smoke: RunConfig, tmp_path: Path
) -> None:
    cluster = with_cluster(tiny_smoke, gpus_per_node=2).cluster
    with pytest.raises(
        ClusterError, match=r"cluster\.gpus_per_node=2, but this machine has no GPU \(.*nvidia0"
    ):
        check_devices(cluster, tmp_path)
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(ClusterError, match=r"this machine has 1; use cluster\.gpus_per_node=1"):
        check_devices(cluster, tmp_path)
    (tmp_path / "nvidia1").touch()
    check_devices(cluster, tmp_path)


def test_a_corpus_or_a_model_that_was_not_prepared_says_how(tiny_smoke: RunConfig, tmp_path: Path) -> None:
    data = tiny_smoke.data.model_copy(update={"path": str(tmp_path / "corpus")})
    model = tiny_smoke.model.model_copy(update={"folder": str(tmp_path / "model")})
    config = tiny_smoke.model_copy(update={"data": data, "model": model})
    with pytest.raises(DataError, match=r"corpus holds no prepared corpus .* run `metier prepare`"):
        check_prepared(config)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").touch()
    with pytest.raises(ModelError, match=r"model holds no model .* run `metier prepare`"):
        check_prepared(config)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    check_prepared(config)


def test_heads_that_cannot_be_shared_out_are_refused_where_the_model_can_be_seen(
    tiny_smoke: RunConfig, tmp_path: Path
) -> None:
    model = tiny_smoke.model.model_copy(update={"source": "gguf", "path": "a.gguf", "folder": str(tmp_path)})
    (tmp_path / "metier.json").write_text('{"source": "gguf", "file": "a.gguf"}')
    strategy = tiny_smoke.strategy.model_copy(update={"sequence_parallel_size": 3})
    config = tiny_smoke.model_copy(update={"model": model, "strategy": strategy})
    check_model(config)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4, "num_key_value_heads": 2}')
    with pytest.raises(ModelError, match=r"cannot share out the model's 4 attention heads .* use 1, 2 or 4"):
        check_model(config)
    strategy = tiny_smoke.strategy.model_copy(update={"tensor_parallel_size": 4})
    with pytest.raises(ModelError, match=r"strategy.tensor_parallel_size=4 cannot share out .* use 1 or 2"):
        check_model(config.model_copy(update={"strategy": strategy}))


def test_a_corpus_behind_a_url_is_not_looked_for_on_this_disk(tiny_smoke: RunConfig, tmp_path: Path) -> None:
    data = tiny_smoke.data.model_copy(update={"path": "s3://bucket/corpus"})
    model = tiny_smoke.model.model_copy(update={"folder": str(tmp_path)})
    (tmp_path / "config.json").touch()
    check_prepared(tiny_smoke.model_copy(update={"data": data, "model": model}))

"""Which process this is, read from the environment."""

import re
import resource
from collections.abc import Iterator

import pytest

from training.errors import ClusterError
from training.ranks import Ranks, check_meeting_place, explain_count, is_in_step
from training.worker import host

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "2", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}


def test_torchruns_variables_win_over_slurms() -> None:
    assert Ranks.from_environ(SLURM | TORCHRUN) == Ranks(rank=3, local_rank=1, world_size=4)


def test_a_slurm_step_is_recognised() -> None:
    assert Ranks.from_environ(SLURM) == Ranks(rank=5, local_rank=2, world_size=8)


def test_a_batch_script_without_srun_is_alone() -> None:
    shell = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}

    assert Ranks.from_environ(shell) == Ranks(rank=0, local_rank=0, world_size=1)


def test_half_an_environment_is_refused_by_name() -> None:
    with pytest.raises(ClusterError, match="sets RANK but not LOCAL_RANK, WORLD_SIZE"):
        Ranks.from_environ({"RANK": "0"})


def test_only_rank_zero_leads() -> None:
    assert [Ranks(rank=r, local_rank=r, world_size=2).is_lead for r in (0, 1)] == [True, False]


SHELLS = ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290"})


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shells_of_a_job_are_no_step(shell: dict[str, str]) -> None:
    assert not is_in_step(shell)
    variables = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
    assert Ranks.from_environ(shell | variables) == Ranks(rank=0, local_rank=0, world_size=1)


@pytest.mark.parametrize(
    ("environ", "found", "words"),
    [
        (
            {**SLURM, "SLURM_JOB_ID": "7"},
            2,
            "srun started 2 tasks, the run was planned for 4 .* srun --ntasks=4",
        ),
        (SHELLS[0], 1, "a shell of Slurm job 7 and one process, .* put srun --ntasks=4"),
        (SHELLS[1], 1, "a shell of Slurm job 7 and one process, .* put srun --ntasks=4"),
        ({**SLURM, "TORCHELASTIC_RUN_ID": "x"}, 2, "torchrun started 2 processes, .* --nproc-per-node"),
        ({}, 1, "1 processes were started, .* `metier train`"),
    ],
)
def test_a_wrong_number_of_processes_is_explained_by_who_started_them(
    environ: dict[str, str], found: int, words: str
) -> None:
    said = explain_count(environ, found, 4)
    assert re.search(words, said), said
    assert "\n" not in said


def test_torchrun_under_srun_is_one_for_each_node() -> None:
    environ = {**SLURM, **TORCHRUN, "TORCHELASTIC_RUN_ID": "x", "SLURM_STEP_NUM_NODES": "2"}
    assert Ranks.from_environ({**environ, "SLURM_STEP_NUM_TASKS": "2"}).rank == 3
    with pytest.raises(ClusterError, match="srun started torchrun 8 times on 2 nodes"):
        Ranks.from_environ({**environ, "SLURM_STEP_NUM_TASKS": "8"})


def test_ranks_that_do_not_know_where_to_meet_are_told_what_is_missing() -> None:
    check_meeting_place({"MASTER_ADDR": "node1", "MASTER_PORT": "29500"})
    with pytest.raises(ClusterError, match="MASTER_PORT: not set"):
        check_meeting_place({"MASTER_ADDR": "node1"})
    with pytest.raises(ClusterError, match="MASTER_ADDR and MASTER_PORT: not set"):
        check_meeting_place({})


@pytest.fixture
def _same_limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_same_limits")
def test_open_files_are_raised_and_told_where_they_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    monkeypatch.setattr(host, "LEAST_FILES", hard)
    assert host.look_at_host(shares_memory=False) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    monkeypatch.setattr(host, "LEAST_FILES", hard + 1)
    (note,) = host.look_at_host(shares_memory=False)
    assert f"a process may open {hard} files at most" in note


def test_little_shared_memory_is_told_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LEAST_FILES", 0)
    monkeypatch.setattr(host, "LEAST_SHARED_BYTES", 1 << 60)
    assert host.look_at_host(shares_memory=False) == []
    (note,) = host.look_at_host(shares_memory=True)
    assert " MiB free, NCCL wants " in note
    monkeypatch.setattr(host, "_SHARED", "/nowhere")
    (note,) = host.look_at_host(shares_memory=True)
    assert "there is no /nowhere" in note

"""A sweep is every combination of its values, each a run with a name of its own."""

import pytest

from launcher.__main__ import main
from launcher.sweep import plan_jobs
from launcher.tree import ConfigTree
from training.errors import ConfigError

TREE = ConfigTree(None)


def suffixes(*overrides: str) -> list[str]:
    return [job.suffix for job in plan_jobs(overrides, TREE, multirun=True)]


def test_a_sweep_is_the_product_of_its_values_and_the_last_key_varies_fastest() -> None:
    jobs = plan_jobs(
        ["experiment=tiny_smoke", "strategy=zero1,zero2", "seed=range(1,4)"], TREE, multirun=True
    )
    assert [job.suffix for job in jobs] == [
        f",strategy={strategy},seed={seed}" for strategy in ("zero1", "zero2") for seed in (1, 2, 3)
    ]
    assert jobs[1].overrides == ("experiment=tiny_smoke", "strategy=zero1", "seed=2")


def test_choice_and_commas_mean_the_same() -> None:
    assert suffixes("seed=choice(1,2)") == suffixes("seed=1,2") == [",seed=1", ",seed=2"]


def test_a_key_is_named_by_its_last_part_unless_two_keys_share_it() -> None:
    assert suffixes("optimizer.learning_rate=1e-3,2e-3") == [",learning_rate=0.001", ",learning_rate=0.002"]
    both = suffixes("data.path=a,b", "model.path=c")
    assert both == [",path=a", ",path=b"]
    assert suffixes("data.path=a,b", "model.path=c,d")[0] == ",data.path=a,model.path=c"


def test_what_a_name_cannot_hold_is_left_out() -> None:
    assert suffixes("model.path=meta/a,meta/b") == [",path=meta-a", ",path=meta-b"]


def test_swept_names_and_experiments_name_their_jobs_themselves() -> None:
    assert suffixes("experiment=tiny_smoke,legal_full_smol") == ["", ""]
    assert suffixes("experiment=glob(tiny*)") == [""]


def test_a_quoted_value_with_commas_is_one_value() -> None:
    jobs = plan_jobs(["data.path='a,b'"], TREE, multirun=True)
    assert [job.overrides for job in jobs] == [("data.path='a,b'",)]


def test_an_interval_has_no_values_to_go_through() -> None:
    with pytest.raises(ConfigError) as raised:
        plan_jobs(["seed=interval(1,2)"], TREE, multirun=True)
    assert str(raised.value) == "seed=interval(1,2): use values with commas, choice() or range()"


def test_each_job_runs_under_its_own_name_and_a_table_ends_the_sweep(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "-m", "experiment=tiny_smoke", "seed=1,2", "dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["tiny_smoke,seed=1", "tiny_smoke,seed=2"]
    assert [line for line in lines if line.startswith("[")] == [f"[1/2] {names[0]}", f"[2/2] {names[1]}"]
    assert [line.split()[0] for line in lines[-3:]] == ["job", *names]


def test_two_jobs_with_one_name_are_refused_before_any_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "experiment=tiny_smoke", "data.path=a/b,a-b", "dry_run=true"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "two jobs of this sweep would be named tiny_smoke,path=a-b" in said.err


def test_a_job_that_fails_is_named_and_ends_the_sweep(
    capsys: pytest.CaptureFixture[str], tmp_path: pytest.TempPathFactory
) -> None:
    words = ["train", "-m", "experiment=tiny_smoke", "seed=1,2", f"data.path={tmp_path}/none"]
    assert main([*words, f"run_root={tmp_path}/runs"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("metier train: job tiny_smoke,seed=1: data.path=")
    assert "[2/2]" not in said.out

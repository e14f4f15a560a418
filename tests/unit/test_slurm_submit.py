"""Who submits a run, and when there is nothing to submit."""

from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.compose import compose_run
from launcher.run_directory import freeze_run
from launcher.slurm.stages import submit_stages
from launcher.slurm.submit import DONE, find_last_step, hold_submission, submit_run
from launcher.slurm.sweep import submit_sweep
from launcher.tree import ConfigTree
from tests.seen_run import put_on_path, write
from training.config.schema import RunConfig
from training.errors import StorageError
from training.layout import RunLayout

WORDS = ("experiment=tiny_smoke", "cluster=slurm", "name=mine")
DOCUMENTS = ("data=files", "data.path=data/mine", "data.sources.files.paths=[notes/*.jsonl]")


@pytest.fixture(autouse=True)
def _own_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lend a folder with a queue that is empty and an sbatch that counts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    for name in ("squeue", "sacct", "scancel"):
        put_on_path(tmp_path / "bin", name, "exit 0")
    put_on_path(
        tmp_path / "bin", "sbatch", f'echo "$@" >> {tmp_path / "asked"}; wc -l < {tmp_path / "asked"}'
    )


def count_jobs(tmp_path: Path) -> int:
    asked = tmp_path / "asked"
    return len(asked.read_text().splitlines()) if asked.exists() else 0


def compose(*words: str) -> RunConfig:
    return compose_run([*WORDS, *words], ConfigTree(None)).config


def finish(config: RunConfig, step: int = 10) -> RunLayout:
    layout = freeze_run(config)
    write(layout.outcome, {"state": "COMPLETED", "step": step})
    write(layout.checkpoint(step) / "manifest.json", {"step": step})
    return layout


def test_a_finished_run_gets_no_further_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(compose())
    assert main(["train", *WORDS]) == 0
    assert capsys.readouterr().out == (
        "metier train: mine is finished after step 10; to train longer, give another name=...\n"
    )
    assert count_jobs(tmp_path) == 0


def test_other_settings_are_told_before_that_the_run_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    finish(compose())
    assert main(["train", *WORDS, "loop.max_steps=99"]) == 2
    assert "is a run with other settings (loop.max_steps:" in capsys.readouterr().err


def test_a_run_that_has_lost_its_last_checkpoint_is_not_finished() -> None:
    layout = finish(compose())
    assert find_last_step(layout) == 10
    (layout.checkpoint(10) / "manifest.json").unlink()
    assert find_last_step(layout) is None


def test_the_whole_way_of_a_finished_run_is_only_what_follows_on_its_training(tmp_path: Path) -> None:
    finish(compose())
    rows = submit_stages(compose(), prepares=False, after=None)
    assert [(row.what, row.job, row.after) for row in rows] == [
        ("train", DONE, None),
        ("evaluate", "1", None),
        ("export", "2", None),
    ]
    assert count_jobs(tmp_path) == 2


@pytest.mark.parametrize("more", [[], ["dry_run=true"]])
def test_documents_that_are_not_there_are_told_before_any_job_is_submitted(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *WORDS, *DOCUMENTS, *more]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "metier run: data.sources.files.paths: no file notes/*.jsonl "
        f"(seen from {tmp_path}); correct the path\n"
    )
    assert count_jobs(tmp_path) == 0


def test_documents_that_a_job_may_still_write_are_not_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *WORDS, *DOCUMENTS, "after=7"]) == 2  # there is no cluster here
    assert "no file" not in capsys.readouterr().err


def test_while_one_command_submits_a_run_no_other_one_does(tmp_path: Path) -> None:
    config = compose()
    told = "mine is being submitted by another command; `metier status mine` shows its job"
    with hold_submission([RunLayout.of(config.run_root, "mine")]):
        with pytest.raises(StorageError, match=told):
            submit_run(config)
        with pytest.raises(StorageError, match=told):
            submit_stages(config, prepares=False, after=None)
        with pytest.raises(StorageError, match=told):
            submit_sweep([config, compose("name=other")], "mine")
    assert count_jobs(tmp_path) == 0
    assert submit_run(config) == "1"

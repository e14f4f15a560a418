"""Sweeps and whole runs under Slurm, as far as no Slurm is needed: scripts, and what is refused."""

import subprocess
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.compose import compose_run
from launcher.run_directory import find_layout
from launcher.slurm.script import for_array, quote_always, write_script
from launcher.slurm.stages import plan_fruits, plan_preparation, write_stage
from launcher.slurm.sweep import plan_sweep
from launcher.tree import ConfigTree
from launcher.whole import VERBS
from training.config.schema import RunConfig
from training.errors import ClusterError


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def composed(*words: str) -> RunConfig:
    return compose_run(["experiment=tiny_smoke", "cluster=slurm", *words], ConfigTree(None)).config


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_script_of_an_array_takes_its_run_by_the_tasks_number_and_never_means_the_whole_array() -> None:
    configs = [composed(f"seed={seed}", f"name='a,seed={seed}'") for seed in (1, 2)]
    folder, script = plan_sweep(configs, "a")
    runs = [str(find_layout(config).root) for config in configs]
    assert [line.strip().strip("'") for line in script.splitlines() if line.startswith("  '")] == runs
    assert "--array=0-1%4" in directives(script)
    assert f"--output={folder.logs}/job_%A.log" in directives(script)
    # An array's last task has the array's own number: to signal that would stop all tasks.
    assert '"$SLURM_JOB_ID"' not in script
    assert 'training.worker "$run"' in script


def test_tasks_of_one_array_ask_for_the_same() -> None:
    configs = [composed(f"cluster.nodes={nodes}", f"name=n{nodes}") for nodes in (1, 2)]
    with pytest.raises(ClusterError, match=r"^cluster\.nodes differs between n1 and n2, .* submit these one"):
        plan_sweep(configs, "n")


def test_where_no_job_may_requeue_a_sweep_is_no_array() -> None:
    configs = [composed(f"seed={seed}", f"name=s{seed}", "cluster.slurm.requeue=false") for seed in (1, 2)]
    folder, script = plan_sweep(configs, "s")
    assert folder == find_layout(configs[0])
    assert not [line for line in directives(script) if line.startswith("--array")]


def test_an_arrays_log_and_elements_are_written_as_bash_and_slurm_want_them() -> None:
    assert for_array(["--nodes=1", "--output=a/job_%j.log"], 3, limit=2) == [
        "--nodes=1",
        "--output=a/job_%A.log",
        "--array=0-2%2",
    ]
    assert quote_always("a,b") == "'a,b'"
    assert quote_always("it's") == "'it'\"'\"'s'"


def test_a_whole_run_prepares_in_shares_joins_them_and_asks_one_node_for_all_but_the_training() -> None:
    config = composed(
        "prepare.tasks=3",
        "cluster.nodes=4",
        "cluster.gpus_per_node=8",
        "cluster.slurm.cpus_per_process=4",
        "batch.global_batch_size=32",
    )
    layout = find_layout(config)
    shares, join = plan_preparation(config)
    assert (shares.name, len(shares.frozen), join.name, len(join.frozen)) == (
        "prepare_shares",
        3,
        "prepare",
        1,
    )
    scripts = {stage.name: write_stage(stage, layout) for stage in (shares, join, *plan_fruits(config))}
    for name, script in scripts.items():
        asked = directives(script)
        assert {"--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=32"} < set(asked), name
        assert ("--gpus-per-node=1" in asked) == (name == "evaluate"), name
        assert not any(each.startswith("--signal") for each in asked), (
            "a notice would end a script without a trap"
        )
        assert ("COMPLETED" in script) == (name in {"evaluate", "export"}), (
            "a run that was stopped is not judged"
        )
    assert f"--output={layout.logs}/job_%A_%a.log" in directives(scripts["prepare_shares"])
    assert [stage.name for stage in plan_preparation(composed())] == ["prepare"]


def test_the_scripts_please_shellcheck(tmp_path: Path) -> None:
    config = composed("prepare.tasks=2", "run_root='with space'")
    layout = find_layout(config)
    scripts = [write_stage(stage, layout) for stage in (*plan_preparation(config), *plan_fruits(config))]
    scripts += [write_script(config, layout), plan_sweep([config, config], "a")[1]]
    paths = [tmp_path / f"{number}.sh" for number in range(len(scripts))]
    for path, script in zip(paths, scripts, strict=True):
        path.write_text(script)
    done = subprocess.run(["shellcheck", *paths], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["run", "-m", "cluster=slurm", "seed=1,2"],
            "metier run -m goes one after another on one machine; under Slurm use `metier prepare`, then "
            "`metier train -m`",
        ),
        (
            ["run", "cluster=torchrun", "cluster.head_address=a"],
            "metier run is for one machine or Slurm; with cluster.kind=torchrun on 2 hosts prepare on one, "
            "`metier train` on each, then evaluate and export on one",
        ),
        (["run", "after=7"], "after=7 goes with a Slurm cluster, as cluster=slurm; this one is local"),
        (
            ["train", "-m", "cluster=slurm", "seed=1,2", "--follow"],
            "--follow shows one run; for a sweep's there is `metier watch RUN`",
        ),
        (
            ["train", "-m", "cluster=local,slurm", "dry_run=true"],
            "cluster.kind differs between tiny_smoke,cluster=local and tiny_smoke,cluster=slurm; a sweep "
            "goes to one cluster",
        ),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "experiment=tiny_smoke"]) == 2
    assert capsys.readouterr().err == f"metier {words[0]}: {line}\n"


def test_a_whole_run_here_is_each_verb_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "experiment=tiny_smoke", "prepare.tasks=4", "dry_run=true"]) == 0
    said = capsys.readouterr().out
    heads = [line.split()[2] for line in said.splitlines() if line.startswith("$ metier ")]
    assert tuple(heads) == VERBS

"""What a run asks of Slurm: words that a shell and sbatch read as they are meant."""

import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launcher.slurm.fabrics import read_fabrics
from launcher.slurm.request import (
    find_notice_seconds,
    plan_command,
    plan_directives,
    plan_setup,
    plan_srun,
    plan_variables,
)
from launcher.slurm.script import find_script_python
from tests.cluster_case import slurm_run
from training.errors import ConfigError
from training.layout import RunLayout


def directives(**changes: Any) -> dict[str, str | None]:
    config = slurm_run(**changes)
    lines = plan_directives(config, RunLayout.of(config.run_root, config.name))
    words = [shlex.split(line) for line in lines]
    assert all(len(each) == 1 for each in words)
    parted = [word[0].removeprefix("--").partition("=") for word in words]
    assert len({name for name, _, _ in parted}) == len(parted)
    return {name: value if equals else None for name, equals, value in parted}


def test_every_setting_becomes_one_option() -> None:
    asked = directives(
        name="a,b=1+2",
        cluster__nodes=3,
        cluster__gpus_per_node=4,
        cluster__slurm__gpu_type="a100",
        cluster__slurm__account="bio",
        cluster__slurm__partition="boost",
        cluster__slurm__qos="long",
        cluster__slurm__constraint="a100&nvlink",
        cluster__slurm__reservation="course",
        cluster__slurm__time="2-00:00:00",
        cluster__slurm__exclusive=True,
        cluster__slurm__cpus_per_process=8,
        cluster__slurm__memory="480G",
        cluster__slurm__exclude=["n[1-3]", "n7"],
        cluster__slurm__mail_user="a@b.org",
        cluster__slurm__mail_events=["END", "FAIL"],
        cluster__slurm__comment="group 7 # test",
        cluster__slurm__extra=["--licenses=a b", "--hold"],
    )
    assert asked == {
        "job-name": "a,b=1+2",
        "chdir": str(Path.cwd()),
        "output": str(Path.cwd() / "runs/a,b=1+2/logs/job_%j.log"),
        "open-mode": "append",
        "nodes": "3",
        "ntasks-per-node": "4",
        "gpus-per-node": "a100:4",
        "cpus-per-task": "8",
        "mem": "480G",
        "time": "2-00:00:00",
        "account": "bio",
        "partition": "boost",
        "qos": "long",
        "constraint": "a100&nvlink",
        "reservation": "course",
        "exclusive": None,
        "exclude": "n[1-3],n7",
        "mail-user": "a@b.org",
        "mail-type": "END,FAIL",
        "comment": "group 7 # test",
        "requeue": None,
        "wait-all-nodes": "1",
        "signal": "B:USR1@180",
        "licenses": "a b",
        "hold": None,
    }


def test_what_is_not_set_is_left_to_the_site() -> None:
    asked = directives(cluster__processes_per_node=2, cluster__slurm__requeue=False)
    assert asked["ntasks-per-node"] == "2"
    assert "no-requeue" in asked
    absent = {"requeue", "gpus-per-node", "mem", "account", "partition", "exclusive", "exclude", "no-kill"}
    assert not absent & set(asked)


def test_spare_nodes_are_asked_for_and_the_job_outlives_a_node() -> None:
    asked = directives(cluster__nodes=2, cluster__slurm__spare_nodes=1)
    assert asked["nodes"] == "3"
    assert "no-kill" in asked


def test_a_percent_sign_and_blanks_of_a_folder_are_not_read_as_slurms() -> None:
    asked = directives(run_root="/shared/it's 100%j #1")
    assert asked["output"] == "/shared/it's 100%%j #1/tiny_smoke/logs/job_%j.log"


@pytest.mark.parametrize(
    ("option", "owner"),
    [
        ("--partition=x", "cluster.slurm.partition"),
        ("--gres=lustre,gpu:2", "cluster.gpus_per_node"),
        ("--gpus=3", "cluster.gpus_per_node"),
        ("--output=/x", "run_root"),
        ("--array=1-3", "metier train -m"),
        ("--dependency=afterok:1", "after"),
        ("--no-requeue", "cluster.slurm.requeue"),
    ],
)
def test_a_further_option_that_a_setting_owns_is_refused_with_the_settings_name(
    option: str, owner: str
) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.extra") as raised:
        directives(cluster__slurm__extra=[option])
    assert owner in str(raised.value)


@pytest.mark.parametrize("option", ["-p x", "--licenses a", "hello"])
def test_a_further_option_of_another_form_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="--name=value"):
        directives(cluster__slurm__extra=[option])


@pytest.mark.parametrize(
    ("time", "lead", "seconds"),
    [
        ("24:00:00", None, 180),
        ("24:00:00", 600, 660),
        ("0", 600, 660),
        ("1", None, 30),
        ("10:00", 500, 300),
    ],
)
def test_the_notice_comes_a_minute_before_the_lead_and_never_at_the_start(
    time: str, lead: int | None, seconds: int
) -> None:
    config = slurm_run(cluster__slurm__time=time, cluster__slurm__stop_lead_seconds=lead)
    assert find_notice_seconds(config.cluster.slurm) == seconds


def test_a_lead_that_leaves_no_time_to_train_is_refused() -> None:
    config = slurm_run(cluster__slurm__time="10", cluster__slurm__stop_lead_seconds=600)
    with pytest.raises(ConfigError, match=r"stop_lead_seconds=600 is not less than .*time=10 \(600 s\)"):
        find_notice_seconds(config.cluster.slurm)


def run_setup(lines: list[str], folder: Path, before: str = "") -> dict[str, str]:
    """Run the lines in a bash of their own and give the environment that they leave."""
    script = "\n".join(["set -u", before, *lines, "env -0"])
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True, env=clean)
    return dict(pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair)


def test_the_set_up_leaves_the_variables_as_they_were_said(tmp_path: Path) -> None:
    config = slurm_run(
        cluster__environment__modules=["cuda/12.4", "nccl"],
        cluster__environment__setup=["export BASE=/data", "export DERIVED=$BASE/x"],
        cluster__environment__variables={"PLAIN": "it's $HOME", "OMP_NUM_THREADS": "3"},
    )
    told = run_setup(plan_setup(config), tmp_path, 'module() { MODULES+="$* "; export MODULES; }; MODULES=')
    assert told["MODULES"] == "load cuda/12.4 load nccl "
    assert told["DERIVED"] == "/data/x"
    assert told["PLAIN"] == "it's $HOME"
    assert told["OMP_NUM_THREADS"] == "3"
    assert told["PYTHONPATH"].endswith(str(Path.cwd().name))


def test_lines_of_the_site_may_use_what_is_not_set_and_ours_may_not(tmp_path: Path) -> None:
    config = slurm_run(cluster__environment__setup=["export LEFT=a$NOBODY_SET_THIS"])
    assert run_setup(plan_setup(config), tmp_path)["LEFT"] == "a"
    with pytest.raises(subprocess.CalledProcessError):
        run_setup([*plan_setup(config), "echo $NOBODY_SET_THIS"], tmp_path)


def test_the_set_up_pleases_shellcheck() -> None:
    config = slurm_run(
        cluster__environment__modules=["cuda/12.4"],
        cluster__environment__setup=["export BASE=/data"],
        cluster__environment__variables={"PLAIN": "it's $HOME and `x`"},
        cluster__local_path="$TMPDIR/x",
    )
    script = "\n".join(["#!/usr/bin/env bash", *plan_setup(config), ""])
    words = ["shellcheck", "-"]  # CI installs it
    done = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_a_module_that_is_missing_ends_the_job(tmp_path: Path) -> None:
    config = slurm_run(cluster__environment__modules=["nix"])
    with pytest.raises(subprocess.CalledProcessError) as raised:
        run_setup(plan_setup(config), tmp_path, "module() { return 1; }")
    assert raised.value.returncode == 1


def test_threads_are_the_nodes_cores_shared_out_where_nobody_says_otherwise(tmp_path: Path) -> None:
    config = slurm_run(cluster__processes_per_node=3)
    told = run_setup(plan_setup(config), tmp_path, "export SLURM_CPUS_ON_NODE=16")
    assert told["OMP_NUM_THREADS"] == "5"
    assert run_setup(plan_setup(config), tmp_path)["OMP_NUM_THREADS"] == "1"


def test_srun_is_told_the_cores_again_or_binds_to_none() -> None:
    assert "--cpus-per-task=8" in plan_srun(slurm_run(cluster__slurm__cpus_per_process=8))
    without = plan_srun(slurm_run())
    assert "--cpu-bind=none" in without
    assert not [word for word in without if word.startswith("--cpus-per-task")]


def test_a_fabric_sets_its_variables_on_gpus_alone_and_the_users_come_last() -> None:
    several = {"cluster__nodes": 2, "cluster__network__fabric": "slingshot"}
    assert "NCCL_NET" not in plan_variables(slurm_run(**several))
    on_gpus = {**several, "cluster__gpus_per_node": 4}
    assert plan_variables(slurm_run(**on_gpus))["NCCL_NET"] == "AWS Libfabric"
    assert "NCCL_NET" not in plan_variables(slurm_run(**{**on_gpus, "cluster__nodes": 1}))
    assert "--network=disable_rdzv_get" in plan_srun(slurm_run(**on_gpus))
    mine = slurm_run(**on_gpus, cluster__environment__variables={"NCCL_NET": "IB"})
    assert plan_variables(mine)["NCCL_NET"] == "IB"


def test_an_interface_is_told_to_nccl_as_this_one_alone_and_to_gloo_by_its_name() -> None:
    told = plan_variables(slurm_run(cluster__network__interface="ib0"))
    assert told["NCCL_SOCKET_IFNAME"] == "=ib0"
    assert told["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.parametrize("fabric", sorted(read_fabrics()))
def test_every_value_of_a_fabric_has_a_reason_and_a_source(fabric: str) -> None:
    for name, entry in read_fabrics()[fabric].items():
        assert name.startswith(("NCCL_", "FI_"))
        assert set(entry) <= {"value", "why", "source", "multi_node"}
        assert isinstance(entry["value"], str), name
        assert len(entry["why"]) > 5, name
        assert "," in entry["source"], name


def test_the_rank_replaces_the_shell_that_sets_the_nodes_own_folders(tmp_path: Path) -> None:
    python = tmp_path / "a python"
    python.write_text('#!/bin/sh\necho "$$|$TRITON_CACHE_DIR|$TMPDIR|$CUDA_CACHE_PATH|$*"\n')
    python.chmod(0o755)
    config = slurm_run(
        cluster__environment__python=str(python),
        cluster__local_path="$NODE/cache",
        cluster__environment__variables={"CUDA_CACHE_PATH": "/mine"},
    )
    words = plan_command(config, "training.worker", tmp_path / "the run")
    node = {**run_setup(plan_setup(config), tmp_path), "NODE": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=node) as process:
        said, _ = process.communicate(timeout=30)
    own = f"{tmp_path}/cache/metier-"
    pid, triton, temporary, cuda, arguments = said.strip().split("|")
    assert int(pid) == process.pid
    assert triton.startswith(own)
    assert temporary.startswith(own)
    assert Path(temporary).is_dir()
    assert cuda == "/mine"
    assert arguments == f"-m training.worker {tmp_path}/the run"


def test_a_variable_that_the_node_does_not_have_is_named(tmp_path: Path) -> None:
    config = slurm_run(cluster__local_path="$NOWHERE/x")
    words = plan_command(config, "training.worker", tmp_path)
    node = run_setup(plan_setup(config), tmp_path)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=node)
    assert done.returncode != 0
    assert "NOWHERE: unbound variable" in done.stderr


def test_a_rank_runs_where_the_nodes_own_disk_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = slurm_run(cluster__local_path=f"{tmp_path}/file", cluster__environment__python="/bin/echo")
    words, node = plan_command(config, "m", "p"), run_setup(plan_setup(config), tmp_path)
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=node)
    assert done.stdout == "-m m p\n"
    assert "file" in done.stderr


def test_apptainer_shows_what_the_ranks_read_and_write() -> None:
    config = slurm_run(
        run_root="/shared/runs",
        data__path="/shared/corpus",
        cluster__gpus_per_node=2,
        cluster__container__kind="apptainer",
        cluster__container__image="/images/a b.sif",
        cluster__container__mounts=["/opt/cray:ro", "/x:/y:rw"],
    )
    words = plan_command(config, "training.worker", "/shared/runs/tiny_smoke")
    first = words.index("apptainer")
    assert words[first : first + 3] == ["apptainer", "exec", "--nv"]
    assert words[-5:] == ["/images/a b.sif", "python", "-m", "training.worker", "/shared/runs/tiny_smoke"]
    shown = [after for word, after in pairwise(words) if word == "--bind"]
    assert {"/shared/runs:/shared/runs", "/shared/corpus:/shared/corpus"} <= set(shown)
    assert {"/opt/cray:/opt/cray:ro", "/x:/y:rw"} <= set(shown)
    assert len(set(shown)) == len(shown)


def test_pyxis_is_told_by_srun_and_leaves_the_ranks_command_plain() -> None:
    config = slurm_run(cluster__container__kind="pyxis", cluster__container__image="nvcr.io#a/b:1")
    words = plan_srun(config)
    assert "--container-image=nvcr.io#a/b:1" in words
    named = next(word for word in words if word.startswith("--container-env=")).partition("=")[2].split(",")
    assert {"PYTHONPATH", "PYTHONNOUSERSITE", "OMP_NUM_THREADS"} <= set(named)
    assert plan_command(config, "m", "p")[-4:] == ["python", "-m", "m", "p"]
    assert sys.executable not in plan_command(config, "m", "p")


def test_the_jobs_script_does_not_look_for_the_images_python_outside_of_it() -> None:
    mine = {"cluster__environment__python": "/opt/venv/bin/python"}
    assert find_script_python(slurm_run(**mine)) == "/opt/venv/bin/python"
    image = {"cluster__container__kind": "apptainer", "cluster__container__image": "/x.sif"}
    assert find_script_python(slurm_run(**mine, **image)) == sys.executable
    assert "/opt/venv/bin/python" in plan_command(slurm_run(**mine, **image), "m", "p")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster__container__image": None}, "cluster.container.image is missing"),
        ({"run_root": "/a,b"}, "/a,b cannot be shown in a container"),
        ({"cluster__local_path": "$TMP/x"}, "pyxis shows folders as the login node names them"),
    ],
)
def test_what_a_container_cannot_show_is_refused(changes: dict[str, Any], words: str) -> None:
    image = {"cluster__container__kind": "pyxis", "cluster__container__image": "/x.sqsh"}
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        plan_srun(slurm_run(**{**image, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster__slurm__time": 43200}, "in quotes"),
        ({"cluster__slurm__time": 60}, "90:00 for 90 minutes"),
        ({"cluster__slurm__time": True}, "cluster.slurm.time=true"),
        ({"cluster__slurm__time": "1:2"}, "as Slurm writes it"),
        ({"cluster__slurm__time": "25:61:99"}, "minutes and seconds behind a colon are at most 59"),
        ({"cluster__slurm__time": "90:60"}, "at most 59"),
        ({"cluster__slurm__time": "1-24"}, "hours behind a dash 23"),
        ({"cluster__slurm__partition": "a b"}, "one word"),
        ({"cluster__slurm__memory": "4 GB"}, "a size such as 480G"),
        ({"cluster__local_path": "$(rm -r x)"}, "a folder from / on"),
        ({"cluster__environment__variables": {"1A": "x"}}, "found 1A"),
        ({"cluster__container__mounts": ["relative"]}, "/outside:/inside"),
    ],
)
def test_a_value_that_no_script_can_hold_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        slurm_run(**changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_time_that_no_clock_reading_could_become_in_yaml_is_minutes() -> None:
    assert slurm_run(cluster__slurm__time=59).cluster.slurm.time == "59"

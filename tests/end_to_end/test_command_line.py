"""The command as a user types it: quick answers import nothing heavy, and a run's end is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.commands import child_variables, merge_environment, module_command
from launcher.compose import compose_run
from launcher.tree import ConfigTree

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deepspeed", "transformers", "datasets", "wandb", "peft", "bitsandbytes", "pyarrow")


def metier(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def modules_after(*words: str, folder: Path) -> set[str]:
    """Name the top-level modules that a command has imported when it ends."""
    program = (
        "import sys\n"
        "from launcher.__main__ import main\n"
        f"main({list(words)!r})\n"
        "sys.stderr.write('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    [
        ("train", "experiment=tiny_smoke", "dry_run=true"),
        ("audit", "experiment=tiny_smoke", "dry_run=true"),
        ("train", "experiment=tiny_smoke", "optimizer.learning_rat=1"),
        ("train", "experiment=tiny_smoke"),
        ("evaluate", "experiment=tiny_smoke"),
        ("prepare", "experiment=tiny_smoke", "--cfg", "job"),
    ],
)
def test_a_quick_answer_imports_nothing_heavy(words: tuple[str, ...], tmp_path: Path) -> None:
    assert not modules_after(*words, folder=tmp_path).intersection(HEAVY)


@pytest.mark.parametrize("words", [(), ("--help",), ("train", "--help"), ("trian",), ("--version",)])
def test_help_needs_neither_hydra_nor_pydantic(words: tuple[str, ...], tmp_path: Path) -> None:
    assert not modules_after(*words, folder=tmp_path).intersection((*HEAVY, "hydra", "omegaconf", "pydantic"))


def test_an_error_is_one_line_on_stderr_with_exit_code_2(tmp_path: Path) -> None:
    done = metier("train", "experiment=tiny_smoke", "optimizer.learning_rat=1", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "metier train: optimizer.learning_rat is not a setting; did you mean optimizer.learning_rate?\n"
    )


def test_a_folder_named_training_in_the_current_directory_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    cluster = compose_run(["experiment=tiny_smoke"], ConfigTree(None)).config.cluster
    done = subprocess.run(
        module_command("training.layout", tmp_path),
        cwd=tmp_path,
        env=merge_environment({}, child_variables(cluster, 1, processes=1)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_host_that_is_not_the_first_is_shown_all_commands_and_asked_for_its_number(tmp_path: Path) -> None:
    (tmp_path / "models/own").mkdir(parents=True)
    (tmp_path / "models/own/config.json").write_text("{}")
    # A corpus that cannot be seen from here, as on many a login node.
    seen = ("data.path=s3://bucket/topics", "model.source=huggingface", "model.path=./models/own")
    words = ("experiment=tiny_smoke", *seen, "cluster=torchrun", "cluster.head_address=192.0.2.1")
    done = metier("train", *words, folder=tmp_path)
    assert done.returncode == 2
    commands = [line.partition(": ") for line in done.stdout.splitlines()[1:]]
    assert [(node, "--node-rank=" + node[-1] in words) for node, _, words in commands] == [
        ("node 0", True),
        ("node 1", True),
    ]
    assert done.stderr == (
        "metier train: this machine is not cluster.head_address=192.0.2.1; on each other host add "
        "--node-rank=N to the same command, N from 1 to 1, or set NODE_RANK\n"
    )
    assert not (tmp_path / "runs").exists()

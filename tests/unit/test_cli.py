"""The command line: help, errors and dry runs, each said as a user needs it."""

from pathlib import Path

import pytest
import yaml

from launcher.__main__ import main
from launcher.arguments import COMPOSED_VERBS, VERBS
from launcher.checkpoints import ACTIONS
from launcher.reference import write_reference
from launcher.tree import GROUPS, ConfigTree

TREE = ConfigTree(None)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_bare_command_shows_every_verb_and_three_examples(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb}" in said for verb in VERBS)
    assert len([line for line in said.splitlines() if line.startswith("  metier ")]) == 3


@pytest.mark.parametrize("verb", COMPOSED_VERBS)
def test_a_verbs_help_lists_every_choice_and_three_examples(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert all(choice in said for group in GROUPS for choice in TREE.choices(group))
    assert len([line for line in said.splitlines() if line.startswith(f"  metier {verb} ")]) == 3


def test_the_help_of_checkpoints_names_every_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {action} " in said for action in ACTIONS)


def test_checkpoints_refuses_what_it_does_not_know_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("runs/mine")
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    for words, line in {
        ("mine", "lits"): "lits is no action; did you mean list?",
        ("mine", "nosuch"): "nosuch is no action; known here: convert, list, prune, verify",
        ("mine", ""): "'' is no action; known here: convert, list, prune, verify",
        ("",): "'' is no run's name; known here: mine",
        ("mine", "prune", "step=3"): "step is no setting of prune; it has damaged",
        ("mine", "list", "step=3"): "step is no setting of list; it has none",
        ("mine", "prune", "damaged=1"): "damaged=1: wanted damaged=all, or nothing",
        ("mine", "verify", "step=x"): "step=x: wanted a number of steps",
        ("mine", "verify", "prune"): "prune: one action at a time; a setting is step=N or to=FOLDER",
        ("mine", "verify", "step=15", "step=16"): "step=15 step=16: say step once",
        ("mein",): "mein is no run, neither mein/run.json nor runs/mein/run.json exists; did you mean mine?",
    }.items():
        assert main(["checkpoints", *words]) == 2
        assert capsys.readouterr().err == f"metier checkpoints: {line}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "metier: trian is not a verb; did you mean train?"),
        (
            ["experiment=tiny_smoke"],
            "metier: experiment=tiny_smoke: first say what to do: "
            "metier prepare|audit|train|evaluate|export|run experiment=tiny_smoke",
        ),
        (
            ["train", "--multrun"],
            "metier: --multrun is not a flag; did you mean --multirun?; "
            "a setting is written without dashes, KEY=VALUE",
        ),
        (["train", "--dry-run"], "metier: --dry-run is not a flag; write dry_run=true"),
        (["train", "--cfg", "all"], "metier: --cfg all: wanted --cfg job"),
        (["train", "--config-dir"], "metier: --config-dir needs a folder after it"),
        (
            ["train", "experiment=tiny_smok"],
            "metier train: experiment=tiny_smok: there is no such experiment; did you mean tiny_smoke?",
        ),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{line}\n")


def test_cfg_prints_what_is_composed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=tiny_smoke", "loop.max_steps=3", "--cfg", "job"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["name"], values["loop"]["max_steps"], values["model"]["tokenizer"]) == (
        "tiny_smoke",
        3,
        "bytes",
    )


@pytest.mark.parametrize("flag", [["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own"]])
def test_a_folder_of_ones_own_is_found(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("# @package _global_\ndefaults: [tiny_smoke]\nname: mine\n")
    assert main(["train", *flag, "experiment=mine", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "mine"


@pytest.mark.parametrize("verb", COMPOSED_VERBS)
def test_a_dry_run_writes_nothing(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "experiment=tiny_smoke", "dry_run=true"]) == 0
    assert "dry run: nothing is written, nothing is started" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_the_batch_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "experiment=tiny_smoke",
        "batch.global_batch_size=8",
        "cluster.processes_per_node=2",
        "dry_run=true",
    ]
    assert main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "8 samples per step = 1 per pass x 2 ranks x 4 passes" in said
    assert "gradient_accumulation_steps 4" in said
    assert "2,048 tokens per step (samples of 256), 16,384 in 8 steps" in said
    # Of the last of 6 steps of decay: 0.0003 + 0.0027 x (1 + cos(5/6 pi)) / 2.
    assert (
        "rises to 0.003 over 2 steps, then falls along half a cosine towards 0.0003 after step 8 "
        "(this run's last step has 0.000481)" in said
    )
    assert '"train_batch_size": 8' in said
    assert "--nproc-per-node=2 " in said
    assert f" -m training.worker {tmp_path}/runs/tiny_smoke" in said


def test_a_run_on_several_hosts_says_what_to_run_on_each(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=llama3_8b_full_zero3", "cluster.head_address=first", "dry_run=true"]
    assert main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "On the 2 hosts, the first of them first" in said
    assert all(f"--node-rank={rank} --master-addr=first" in said for rank in range(2))
    assert main(["train", *words, "cluster.rendezvous=c10d"]) == 0
    said = capsys.readouterr().out
    assert "On each of the 2 hosts, the first of them first" in said
    assert "--rdzv-endpoint=first:29500" in said


def test_a_missing_gpu_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    assert main(["train", "experiment=llama3_70b_qlora"]) == 2
    assert "cluster.gpus_per_node=8, but this machine has no GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["train", "audit"])
def test_a_missing_corpus_leaves_nothing_behind(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "experiment=tiny_smoke"]) == 2
    assert capsys.readouterr().err == (
        f"metier {verb}: data.path=data/python_topics holds no prepared corpus "
        "(data/python_topics/manifest.json is missing); run `metier prepare` with the same settings first\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_reference_is_current() -> None:
    path = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert path.read_text(encoding="utf-8") == write_reference(), (
        "run `python -m launcher.reference " + str(path) + "`"
    )

"""What is asked of `metier scale`, and the runs that follow from it."""

import shlex
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.scaling.compose import compose_experiment
from launcher.scaling.sizes import plan_pieces, read_words, say_command
from launcher.tree import ConfigTree
from training.errors import ConfigError

TREE = ConfigTree(None)
HOSTS = ("experiment=tiny_smoke", "cluster=torchrun", "nodes=1,2", "cluster.head_address=far.invalid")


def test_sizes_are_interleaved_over_repeats_and_one_run_serves_both_ways_where_the_batch_is_the_same() -> (
    None
):
    asked = read_words(["experiment=tiny_smoke", "processes=2,1", "mode=both", "repeats=2"])
    pieces = plan_pieces(asked, "mine")

    assert [(piece.size, piece.factor, piece.repeat) for piece in pieces] == [
        (1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 1, 2), (2, 1, 2), (2, 2, 2),
    ]  # fmt: skip
    assert [piece.modes for piece in pieces[:3]] == [("strong", "weak"), ("strong",), ("weak",)]
    assert len({piece.name for piece in pieces}) == len(pieces)


def test_the_command_that_is_kept_asks_for_the_same_again() -> None:
    setup = 'cluster.environment.setup=["module load cuda"]'
    asked = read_words(["experiment=tiny_smoke", setup, "nodes=4,1", "mode=both", "repeats=2", "knee=0.7"])

    metier, scale, *words = shlex.split(say_command(asked))
    assert (metier, scale) == ("metier", "scale")
    assert read_words(words) == asked


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["experiment=tiny_smoke"], "say what grows"),
        (["nodes=1,2", "cluster=slurm", "cluster.nodes=0"], "cluster.nodes=0 nodes=1,2: the nodes are what"),
        (["nodes=1,2", "processes=1"], "both were given"),
        (["nodes=1,x"], "nodes=1,x: wanted whole numbers, 1 or more, as in nodes=1,2,4"),
        (["processes=0"], "processes=0: wanted whole numbers"),
        (["nodes=1,,2"], "nodes=1,,2: wanted whole numbers"),
        (["processes=1", "repeats=0"], "repeats=0: wanted a whole number, 1 or more"),
        (["processes=2,2"], "a size is there twice"),
        (["processes=1", "mode=fast"], "mode=fast: wanted strong, weak, both"),
        (["processes=1", "steps=0"], "steps=0: wanted a whole number, 1 or more"),
        (["processes=1", "knee=2"], "knee=2: wanted a fraction"),
        (["nodes=1,2", "experiment=tiny_smoke"], "nodes=... needs machines"),
        (["processes=1", "experiment=tiny_smoke", "cluster.nodes=2"], "use cluster=torchrun for hosts"),
        (["processes=1", "experiment=tiny_smoke", "--node-rank=1"], "--node-rank is for cluster=torchrun"),
        ([*HOSTS, "--node-rank=2"], "--node-rank=2: wanted 0 to 1, since cluster.nodes=2"),
        ([*HOSTS, "--node-rank=x"], "--node-rank=x: wanted this host's number"),
        ([*HOSTS], "on each other host add --node-rank=N"),
        ([*HOSTS, "cluster.head_address=localhost"], "name the host of node 0"),
        (["processes=1", "-m"], "-m is no flag of this"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["scale", *words]) == 2
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_strong_keeps_the_batch_weak_keeps_it_per_device_and_threads_are_the_same_at_every_size(
    tmp_path: Path,
) -> None:
    words = ["experiment=tiny_smoke", "processes=1,2", "mode=both", "steps=3", "warmup=2"]
    found = compose_experiment(read_words([*words, f"run_root={tmp_path}"]), TREE)

    batches = {name: run.config.batch.global_batch_size for name, run in found.runs.items()}
    assert batches == {
        "tiny_smoke.scale-strong-p1-r1": 2,
        "tiny_smoke.scale-strong-p2-r1": 2,
        "tiny_smoke.scale-weak-p2-r1": 4,
    }
    configs = [run.config for run in found.runs.values()]
    assert {config.loop.max_steps for config in configs} == {5}
    assert len({config.cluster.threads_per_process for config in configs}) == 1
    assert {config.tracker.group for config in configs} == {"tiny_smoke.scale"}
    assert all(config.loop.checkpoint_every_steps > 5 for config in configs)


def test_a_size_that_cannot_be_leaves_the_others_standing(tmp_path: Path) -> None:
    words = ["experiment=tiny_smoke", "processes=1,3", f"run_root={tmp_path}"]
    found = compose_experiment(read_words(words), TREE).experiment

    assert [each.refused is None for each in found.attempts] == [True, False]
    assert "not a multiple" in (found.attempts[1].refused or "")
    with pytest.raises(ConfigError, match="none of the sizes can be trained"):
        compose_experiment(read_words([*words[:1], "processes=3", words[2]]), TREE)

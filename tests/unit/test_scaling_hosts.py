"""`metier scale` on a host that follows another one."""

from pathlib import Path

import pytest

from launcher.scaling.compose import Composition, compose_experiment
from launcher.scaling.hosts import find_place, follow
from launcher.scaling.record import ScaleLayout
from launcher.scaling.sizes import read_words
from launcher.tree import ConfigTree
from training.errors import ClusterError, ConfigError
from training.files import write_json

HOSTS = ("experiment=tiny_smoke", "cluster=torchrun", "cluster.head_address=far.invalid", "nodes=1,2")


def compose(folder: Path, *words: str) -> tuple[Composition, ScaleLayout]:
    composition = compose_experiment(read_words([*HOSTS, *words, f"run_root={folder}"]), ConfigTree(None))
    return composition, ScaleLayout.of(composition.run_root, composition.experiment.name)


def test_a_host_whose_head_never_comes_says_so(tmp_path: Path) -> None:
    composition, layout = compose(tmp_path, "cluster.timeout_seconds=1")
    with pytest.raises(ClusterError, match=r"within 1 s; start the same command on far\.invalid"):
        follow(composition.experiment, composition.runs, layout, 1)


def test_a_host_that_was_asked_for_other_sizes_than_its_head_is_refused(tmp_path: Path) -> None:
    composition, layout = compose(tmp_path)
    write_json(layout.turn, {"run": "tiny_smoke.scale-strong-n4-r1", "mark": "a"})
    with pytest.raises(ConfigError, match="n4-r1 begins, which was not asked for here"):
        follow(composition.experiment, composition.runs, layout, 1)


def test_a_host_that_finds_its_runs_done_does_not_wait_for_a_head(tmp_path: Path) -> None:
    composition, layout = compose(tmp_path)
    write_json(tmp_path / "tiny_smoke.scale-strong-n2-r1/outcome.json", {"state": "COMPLETED"})
    assert not follow(composition.experiment, composition.runs, layout, 1)


def test_where_all_sizes_are_of_one_host_it_leads_itself(tmp_path: Path) -> None:
    composition, _ = compose(tmp_path)
    with pytest.raises(ClusterError, match="add --node-rank=N"):
        find_place(composition.largest, None)
    words = ["experiment=tiny_smoke", "cluster=torchrun", "nodes=1", f"run_root={tmp_path}"]
    assert find_place(compose_experiment(read_words(words), ConfigTree(None)).largest, None) == 0

"""What `metier checkpoints` does to a run's folder."""

import json
import shutil
from pathlib import Path

import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.checkpoint_case import at
from tests.fake_run import ELEMENTS, FakeEngine, open_fake_store
from training.checkpoint.load import set_aside
from training.config.freeze import read_run_id, write_frozen
from training.layout import RunLayout
from training.upkeep.__main__ import main


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """Make a run with checkpoints of steps 1 and 2."""
    layout = RunLayout(tmp_path / "run")
    write_frozen(layout.config, compose_run(["experiment=tiny_smoke"], ConfigTree(None)).config, {})
    save(layout, 1, 2)
    return layout


def save(layout: RunLayout, *steps: int) -> None:
    store = open_fake_store(layout.root, FakeEngine(), run=read_run_id(layout.config))
    for step in steps:
        store.save(at(step), final=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_set_aside_is_named_and_goes_once_a_later_checkpoint_verifies(
    layout: RunLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        set_aside(layout.checkpoint(step))
    for action in ("verify", "prune"):
        assert main([str(layout.root), action]) == 2
        said = capsys.readouterr().err
        assert (
            "no checkpoint that can be read; set aside as damaged: damaged_step_00000001, damaged_st" in said
        )

    save(layout, 1)
    assert main([str(layout.root), "verify"]) == 0
    assert "damaged_step_00000002  set aside as damaged\n" in capsys.readouterr().out
    assert main([str(layout.root), "prune"]) == 0
    assert "kept: damaged_step_00000002, with nothing later" in capsys.readouterr().out
    assert names(layout.checkpoints) == ["damaged_step_00000002", "step_00000001"]
    shutil.copytree(layout.checkpoint(1), layout.checkpoints / "damaged_step_00000002_2")
    assert main([str(layout.root), "prune", "", "all"]) == 0
    assert names(layout.checkpoints) == ["step_00000001"]
    set_aside(layout.checkpoint(1))

    save(layout, 2)
    assert main([str(layout.root), "prune"]) == 0
    assert names(layout.checkpoints) == ["step_00000002"]
    set_aside(layout.checkpoint(2))
    assert main([str(layout.root), "prune", "", "all"]) == 0, "to begin anew"
    assert names(layout.checkpoints) == []


def test_a_checkpoint_of_another_run_is_seen(layout: RunLayout, capsys: pytest.CaptureFixture[str]) -> None:
    open_fake_store(layout.root.with_name("other"), FakeEngine(), run="0fe4").save(at(3), final=True)
    shutil.copytree(RunLayout(layout.root.with_name("other")).checkpoint(3), layout.checkpoint(3))
    for action, words in {"list": "damaged: ", "verify": "is of another run"}.items():
        assert main([str(layout.root), action]) == 1
        said = capsys.readouterr().out
        assert words in next(line for line in said.splitlines() if "3 " in line)


def test_a_conversion_writes_into_no_folder_that_holds_something_else(
    layout: RunLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "state"
    words = [str(layout.root), "convert", "", str(target)]
    assert main(words) == 0, "the newest, into a new folder"
    written = names(target)
    (target / ".weight.safetensors.7.partial").touch()
    assert main([str(layout.root), "convert", "1", str(target)]) == 0, "over an earlier conversion"
    (target / "weight.safetensors.notes").write_text("mine")
    capsys.readouterr()

    assert main(words) == 2
    assert "holds something else already (weight.safetensors.notes); give to=" in capsys.readouterr().err
    (target / "weight.safetensors.notes").unlink()
    other = RunLayout(tmp_path / "other")
    write_frozen(other.config, compose_run(["experiment=tiny_smoke"], ConfigTree(None)).config, {})
    save(other, 1)
    assert main([str(other.root), "convert", "", str(target)]) == 2
    assert f"({written[0]})" in capsys.readouterr().err, "another run's conversion is not written over"


def test_a_digest_is_of_the_state_and_of_nothing_else(
    layout: RunLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def digest(run: RunLayout, step: int) -> dict[str, str]:
        assert main([str(run.root), "digest", str(step)]) == 0
        return dict(json.loads(capsys.readouterr().out))

    other = RunLayout(tmp_path / "other")
    write_frozen(other.config, compose_run(["experiment=tiny_smoke"], ConfigTree(None)).config, {})
    changed = FakeEngine()
    changed.moment[ELEMENTS - 1] = 1e-30
    store = open_fake_store(other.root, changed, run=read_run_id(other.config))
    store.save(at(1), final=True)
    save(other, 2)

    assert digest(layout, 2) == digest(other, 2), "another run, and another start of it"
    one, another = digest(layout, 1), digest(other, 1)
    assert {name for name in one if one[name] != another[name]} == {"value/exp_avg"}
    two = digest(layout, 2)
    assert {name for name in one if one[name] != two[name]} == {"position"}

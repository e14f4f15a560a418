"""A run directory belongs to one configuration; what does not change the weights may change."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.compose import compose_run
from launcher.run_directory import find_layout, freeze_run, recall_run
from launcher.tree import ConfigTree
from training.config.freeze import check_config, note_version, read_frozen, read_run_id
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.fence import claim_incarnation
from training.layout import RunLayout

TREE = ConfigTree(None)


@pytest.fixture(scope="module")
def tiny_smoke() -> RunConfig:
    return compose_run(["experiment=tiny_smoke"], TREE).config


@pytest.fixture
def config(tiny_smoke: RunConfig, tmp_path: Path) -> RunConfig:
    return changed(tiny_smoke, run_root=str(tmp_path / "runs"))


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    """Change settings given as section__key=value."""
    values = config.model_dump()
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
    return check_config(values)


def test_the_first_start_freezes_the_configuration_and_the_versions(
    config: RunConfig, tmp_path: Path
) -> None:
    layout = freeze_run(config)
    assert layout.root == tmp_path / "runs" / "tiny_smoke"
    assert read_frozen(layout.config) == config
    versions = json.loads(layout.config.read_text())["versions"]
    assert {"python", "torch", "deepspeed", "transformers"} <= set(versions)


def test_what_is_known_once_it_has_begun_is_added_to_the_versions(config: RunConfig) -> None:
    path = freeze_run(config).config
    before = json.loads(path.read_text())["versions"]

    note_version(path, "model_revision", "abc")

    assert json.loads(path.read_text())["versions"] == before | {"model_revision": "abc"}
    assert read_frozen(path) == config
    written = path.stat().st_ino
    note_version(path, "model_revision", "abc")
    freeze_run(config)
    assert path.stat().st_ino == written, "what is known already is not written again"


def test_a_run_keeps_its_id_through_changed_settings_and_no_other_run_has_it(config: RunConfig) -> None:
    layout = freeze_run(config)
    run_id = read_run_id(layout.config)
    assert read_run_id(freeze_run(changed(config, loop__keep_checkpoints=7)).config) == run_id
    assert read_run_id(freeze_run(changed(config, name="other")).config) != run_id


def test_checkpoints_without_the_run_json_that_says_whose_they_are_stop_the_start(config: RunConfig) -> None:
    layout = freeze_run(config)
    layout.checkpoint(3).mkdir(parents=True)
    layout.config.unlink()
    with pytest.raises(ConfigError, match=r"has checkpoints and no run.json, which says whose they are"):
        freeze_run(config)
    assert not layout.config.exists()


def test_the_same_configuration_again_leaves_the_file_as_it_is(config: RunConfig) -> None:
    before = freeze_run(config).config.stat()
    after = freeze_run(config).config.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def begin(config: RunConfig) -> RunLayout:
    """Freeze a run, and have a rank claim it."""
    layout = freeze_run(config)
    claim_incarnation(layout.incarnations)
    return layout


def test_settings_may_change_as_long_as_no_rank_has_begun(config: RunConfig) -> None:
    freeze_run(config)
    wanted = changed(config, optimizer__learning_rate=0.5)
    assert read_frozen(freeze_run(wanted).config) == wanted


def test_a_changed_configuration_is_refused_and_shows_the_difference(config: RunConfig) -> None:
    layout = begin(config)
    frozen = layout.config.read_bytes()
    with pytest.raises(ConfigError) as raised:
        freeze_run(changed(config, optimizer__learning_rate=0.5, model__chat_template="x.jinja"))
    assert str(raised.value) == (
        f"{layout.root} is a run with other settings (model.chat_template: null -> x.jinja, "
        "optimizer.learning_rate: 0.003 -> 0.5); give another name=..., or remove that folder"
    )
    assert layout.config.read_bytes() == frozen


def test_many_differences_are_counted(config: RunConfig) -> None:
    begin(config)
    other = changed(
        config,
        seed=9,
        precision="bf16",
        loop__max_steps=9,
        batch__sequence_length=9,
        schedule__kind="linear",
        optimizer__beta1=0.5,
        optimizer__beta2=0.5,
    )
    with pytest.raises(ConfigError, match=r"and 2 more\); give another name"):
        freeze_run(other)


@pytest.mark.parametrize(
    "change",
    [
        {"tracker__mode": "offline"},
        {"evaluation__held_out_documents": 3},
        {"export__step": 4},
        {"prepare__processes": 3},
        {"loader__ahead_steps": 2},
        {"audit__min_density": 0.1},
        {"cluster__threads_per_process": 1},
        {"cluster__timeout_seconds": 7},
        {"loop__log_every_steps": 2},
        {"loop__keep_checkpoints": 9},
        {"loop__checkpoint_every_steps": 2},
        {"loop__keep_every_steps": 2},
        {"cluster__processes_per_node": 2},
        {"strategy__zero_stage": 3},
        {"strategy__offload_optimizer": "cpu"},
        {"batch__micro_batch_size": 2},
    ],
)
def test_what_does_not_change_the_weights_is_frozen_anew(config: RunConfig, change: dict[str, Any]) -> None:
    begin(config)
    wanted = changed(config, **change)
    assert read_frozen(freeze_run(wanted).config) == wanted


def test_what_deepspeed_is_told_beside_our_settings_may_not_change(config: RunConfig) -> None:
    begin(config)
    with pytest.raises(ConfigError, match=r"strategy\.deepspeed_extra\.prescale_gradients: "):
        freeze_run(changed(config, strategy__deepspeed_extra={"prescale_gradients": True}))


def test_a_run_that_was_never_started_cannot_be_evaluated(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        recall_run(config, ["experiment"])
    assert str(raised.value) == (
        f"{tmp_path}/runs/tiny_smoke is no run, it has no run.json; start it with `metier train` first"
    )
    assert not (tmp_path / "runs").exists()


def test_evaluating_by_name_alone_takes_the_run_as_it_was_frozen(config: RunConfig) -> None:
    freeze_run(config)
    by_name = changed(config, optimizer__learning_rate=0.5, evaluation__max_new_tokens=9)
    assert recall_run(by_name, ["name", "run_root"]) == config


def test_evaluating_takes_over_only_what_was_typed(config: RunConfig) -> None:
    freeze_run(config)
    typed = changed(config, evaluation__max_new_tokens=9, export__step=3, tracker__project="other")
    wanted = changed(config, evaluation__max_new_tokens=9, export__step=3)
    assert recall_run(typed, ["name", "evaluation.max_new_tokens", "export.step"]) == wanted
    assert read_frozen(find_layout(config).config) == config, "it was for this time alone"


def test_evaluating_another_configuration_under_this_name_is_refused(config: RunConfig) -> None:
    freeze_run(config)
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.003 -> 0\.5"):
        recall_run(changed(config, optimizer__learning_rate=0.5), ["experiment", "optimizer.learning_rate"])

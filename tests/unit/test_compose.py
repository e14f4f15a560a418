"""The YAML tree composes, and an override that leads nowhere says where it should have led."""

from pathlib import Path

import pytest

from launcher.compose import compose_run
from launcher.tree import GROUPS, OWN_FOLDER, ConfigTree
from training.errors import ConfigError

TREE = ConfigTree(None)
CHOICES = [(group, choice) for group in GROUPS for choice in TREE.choices(group)]


def refusal(*overrides: str, tree: ConfigTree = TREE) -> str:
    with pytest.raises(ConfigError) as raised:
        compose_run(overrides, tree)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("row", range(max(len(TREE.choices(group)) for group in GROUPS)))
def test_every_choice_of_every_group_composes(row: int) -> None:
    # Side by side, a choice of each group at a time: composing takes a while.
    apart = {"experiment", "optimizer", "strategy"}
    groups = [group for group in GROUPS if group not in apart and row < len(TREE.choices(group))]
    chosen = {group: TREE.choices(group)[row] for group in groups}
    own = chosen.get("data") in {"files", "files_chat"}
    needed = ["data.path=mine", "data.sources.files.paths=[chats.jsonl]"] if own else []
    overrides = ["name=mine", *(f"{group}={choice}" for group, choice in chosen.items()), *needed]
    config = compose_run(overrides, TREE).config
    for group in ("schedule", "tracker"):
        section = getattr(config, group)
        assert chosen.get(group) in {None, getattr(section, "kind", None), getattr(section, "mode", None)}


PARTNERS = {
    "optimizer=adafactor": ["strategy=zero0", "precision=fp32"],
    "optimizer=adamw_8bit": ["cluster=gpu_node"],
    "optimizer=adamw_cpu": ["strategy=zero2_offload"],
    "optimizer=adamw_paged": ["cluster=gpu_node"],
    "strategy=zero3_nvme": ["strategy.nvme_path=/scratch"],
    "strategy=zeropp": ["cluster=gpu_node"],
}
"""What a choice needs beside it."""


@pytest.mark.parametrize(
    "choice", [f"{group}={name}" for group, name in CHOICES if group in {"optimizer", "strategy"}]
)
def test_every_optimizer_and_strategy_composes_with_what_it_needs(choice: str) -> None:
    config = compose_run(["name=mine", choice, *PARTNERS.get(choice, [])], TREE).config
    group, _, name = choice.partition("=")
    assert group == "strategy" or config.optimizer.kind == name


def test_every_group_has_a_folder_and_every_folder_is_a_group() -> None:
    # source/ is no group: its files apply by a source's kind.
    assert {path.name for path in OWN_FOLDER.iterdir() if path.is_dir()} == {*GROUPS, "source"}


def test_a_source_that_is_added_has_what_its_kind_says_and_a_user_folder_may_say_otherwise(
    tmp_path: Path,
) -> None:
    added = "+data.sources.more={kind: files, paths: [a.jsonl], licence: mine}"
    (tmp_path / "source").mkdir()
    own = (OWN_FOLDER / "source" / "files.yaml").read_text(encoding="utf-8")
    text = own.replace("bad_records: refuse", "bad_records: skip")
    (tmp_path / "source" / "files.yaml").write_text(text, encoding="utf-8")

    found = [
        compose_run(["experiment=tiny_smoke", added], tree).config.data.sources["more"].model_dump()
        for tree in (TREE, ConfigTree(tmp_path))
    ]

    assert [source["bad_records"] for source in found] == ["refuse", "skip"]
    assert {source["licence"] for source in found} == {"mine"}


def test_the_command_line_has_the_last_word_over_the_experiment_and_that_over_the_group() -> None:
    group = compose_run(["name=a"], TREE).config.optimizer.learning_rate
    experiment = compose_run(["experiment=tiny_smoke"], TREE).config.optimizer.learning_rate
    typed = compose_run(["optimizer.learning_rate=0.5", "experiment=tiny_smoke"], TREE).config
    assert (group, experiment, typed.optimizer.learning_rate) == (2e-4, 3e-3, 0.5)


def test_every_file_begins_by_saying_what_it_is() -> None:
    assert [each for each in CHOICES if not TREE.summary(*each)] == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["optimizer.learning_rat=1"],
            "optimizer.learning_rat is not a setting; did you mean optimizer.learning_rate?",
        ),
        (
            ["optimzer.learning_rate=1"],
            "optimzer.learning_rate is not a setting; did you mean optimizer.learning_rate?",
        ),
        (["learning_rate=1"], "learning_rate is not a setting; did you mean optimizer.learning_rate?"),
        (["modl=tiny_llama"], "modl is not a setting; did you mean model?"),
        (["optimizer=adamm"], "optimizer=adamm: there is no such optimizer; did you mean adamw?"),
        (
            ["experiment=tiny_smok"],
            "experiment=tiny_smok: there is no such experiment; did you mean tiny_smoke?",
        ),
        (
            ["optimizer=null"],
            "optimizer=null: there is no such optimizer; known here: adafactor, adamw, adamw_8bit, "
            "adamw_cpu, adamw_paged, lion, muon",
        ),
        (["+optimizer=adamw"], "+optimizer=adamw: optimizer is chosen without a plus: optimizer=adamw"),
        (["optimizer@x=adamw"], "optimizer@x=adamw: a group has one place here; write optimizer=..."),
        (["tiny_smoke"], "tiny_smoke: wanted KEY=VALUE; did you mean experiment=tiny_smoke?"),
        (["=3"], "=3: there is no key in front of the =; wanted KEY=VALUE"),
        (
            ['optimizer.rate_factors={"*x*":2}'],
            """optimizer.rate_factors={"*x*":2}: cannot be read; names stand in braces, without quotes: """
            "'+optimizer.rate_factors={*x*: 2}'",
        ),
        (
            ["+optimizer.rate_factors.*x*=2"],
            "+optimizer.rate_factors.*x*=2: cannot be read; names stand in braces, without quotes: "
            "'+optimizer.rate_factors={*x*: 2}'",
        ),
        (
            ["data.path=a=b"],
            "data.path=a=b: the value cannot be read; close its brackets and quotes, or quote it whole: "
            "'data.path=\"a=b\"'",
        ),
        (
            ["hydra.run.dir=x"],
            "hydra.run.dir=x: Hydra only composes here; use run_root=... and --config-dir instead",
        ),
        (["~optimizer.nope"], "~optimizer.nope: there is no such setting to remove"),
        (["name=${nope}"], "name: Interpolation key 'nope' not found"),
        (
            ["seed=1,2"],
            "seed=1,2 gives several values; add -m to run one after another, "
            "or quote them if this is one value: 'seed=\"...\"'",
        ),
        (
            ["data.sources.topics.form=texts"],
            "data.sources.topics.form is not a setting; known here: kind, max_documents; "
            "a new key of data.sources is added with a plus: +data.sources.topics.form=...",
        ),
        (["dry_run=maybe"], "dry_run=maybe: wanted true or false"),
    ],
)
def test_an_override_that_leads_nowhere_is_one_line_with_the_nearest_name(
    overrides: list[str], words: str
) -> None:
    assert refusal("experiment=tiny_smoke", *overrides) == words


def test_a_run_without_a_name_lists_the_experiments() -> None:
    message = refusal("model=tiny_llama")
    assert message.startswith("name is missing; choose an experiment, experiment=NAME, of ")
    assert all(name in message for name in TREE.choices("experiment"))


def test_what_a_choice_leaves_open_must_be_given() -> None:
    assert refusal("name=a", "data=files_chat") == (
        "data.sources.files.paths is missing; give it a value, for instance data.sources.files.paths=..."
    )


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# Mine.\ndefaults:\n  - tiny_smoke\nname: mine\nloop:\n  max_steps: 3\n"
    )
    return tmp_path


def test_a_users_folder_adds_experiments_that_build_on_ours(own_folder: Path) -> None:
    config = compose_run(["experiment=mine"], ConfigTree.open(own_folder)).config
    assert (config.name, config.loop.max_steps, config.model.tokenizer) == ("mine", 3, "bytes")
    assert ConfigTree.open(own_folder).summary("experiment", "mine") == "Mine."


def test_a_users_file_stands_in_front_of_ours(own_folder: Path) -> None:
    (own_folder / "tracker").mkdir()
    ours = (OWN_FOLDER / "tracker" / "disabled.yaml").read_text()
    (own_folder / "tracker" / "disabled.yaml").write_text(ours.replace("project: metier", "project: mine"))
    config = compose_run(["experiment=tiny_smoke"], ConfigTree.open(own_folder)).config
    assert config.tracker.project == "mine"
    assert compose_run(["experiment=tiny_smoke"], TREE).config.tracker.project == "metier"


def test_a_users_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: there is no such folder"):
        ConfigTree.open(tmp_path / "nowhere")


def test_a_broken_file_is_named_in_one_line(own_folder: Path) -> None:
    (own_folder / "experiment" / "broken.yaml").write_text("name: [a\n")
    message = refusal("experiment=broken", tree=ConfigTree.open(own_folder))
    assert "broken.yaml" in message

"""Bad input as a user meets it: one clear line, exit code 2, nothing half-written."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.runs import link_prepared, metier

CHAT = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
FILES = ("experiment=tiny_smoke", "data=files_chat", "name=mine", "data.sources.files.paths=[chats.jsonl]")
CONFIGURATIONS = {
    "a misspelt key": (
        ["train", "experiment=tiny_smoke", "optimizer.learning_rat=1"],
        "optimizer.learning_rat is not a setting; did you mean optimizer.learning_rate?",
    ),
    "a misspelt choice": (["train", "experiment=tiny_smoke", "strategy=zero4"], "strategy=zero4"),
    "a wrong type": (["train", "experiment=tiny_smoke", "loop.max_steps=ten"], "loop.max_steps=ten"),
    "a batch that cannot be cut": (
        ["train", "experiment=tiny_smoke", "batch.global_batch_size=3", "cluster.processes_per_node=2"],
        "is not a multiple of batch.micro_batch_size x world_size = 1 x 2 = 2; use 2 or 4",
    ),
    "a number out of its range": (
        ["train", "experiment=tiny_smoke", "optimizer.beta1=1"],
        "optimizer.beta1=1",
    ),
    "a combination that cannot be": (
        ["train", "experiment=tiny_smoke", "adapter.base_bits=4"],
        "adapter.base_bits=4 needs adapter.kind=lora",
    ),
    "a run that does not exist": (["evaluate", "name=nowhere"], "nowhere"),
    "nothing prepared": (["train", "experiment=tiny_smoke"], "metier prepare"),
}


def check_refused(folder: Path, words: list[str], wanted: str) -> None:
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))

    done = metier(folder, *words)

    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert wanted in done.stderr
    assert "Traceback" not in done.stdout
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


@pytest.mark.parametrize(("words", "wanted"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_a_configuration_that_cannot_be_is_refused_in_one_line(
    words: list[str], wanted: str, tmp_path: Path
) -> None:
    check_refused(tmp_path, words, wanted)


def work_in(tmp_path: Path, prepared: Path, text: str | None) -> Path:
    """Make a folder with the prepared model and a file of chats, but no corpus of it."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "models").symlink_to(prepared / "models")
    if text is not None:
        (folder / "chats.jsonl").write_text(text)
    return folder


DATA = {
    "a missing file": (None, "chats.jsonl"),
    "a broken line": (json.dumps(CHAT) + "\n{broken\n", "chats.jsonl:2"),
    "an empty file": ("", "chats.jsonl"),
    "half a surrogate pair": (
        '{"messages": [{"role": "user", "content": "a\\ud800"}, {"role": "assistant", "content": "b"}]}\n',
        "chats.jsonl:1",
    ),
    "a record without messages": (json.dumps({"text": "a"}) + "\n", "chats.jsonl:1"),
    "a document longer than the row": (
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"{n}?"},
                        {"role": "assistant", "content": "b" * n},
                    ]
                }
            )
            + "\n"
            for n in range(200, 300)
        ),
        "data.long_documents",
    ),
}


@pytest.mark.parametrize(("text", "wanted"), DATA.values(), ids=DATA.keys())
def test_data_that_cannot_be_read_is_refused_with_file_and_line(
    text: str | None, wanted: str, prepared: Path, tmp_path: Path
) -> None:
    folder = work_in(tmp_path, prepared, text)

    done = metier(folder, "prepare", *FILES)

    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert wanted in done.stderr
    assert not list(folder.glob("data/.*")), "nothing half-written"


def test_a_tokenizer_without_a_chat_template_cannot_read_chats(prepared: Path, tmp_path: Path) -> None:
    folder = work_in(tmp_path, prepared, json.dumps(CHAT) + "\n")
    plain = folder / "plain"
    plain.mkdir()
    for path in (prepared / "models" / "tiny-llama").iterdir():
        if path.name != "chat_template.jinja":
            (plain / path.name).write_bytes(path.read_bytes())
    words = [*FILES, "model.source=huggingface", "model.path=plain", "model.tokenizer=null"]

    done = metier(folder, "prepare", *words)

    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "model.chat_template" in done.stderr
    assert not list((folder / "data").rglob("*"))


def test_a_missing_tokenizer_is_named(prepared: Path, tmp_path: Path) -> None:
    folder = work_in(tmp_path, prepared, json.dumps(CHAT) + "\n")

    done = metier(
        folder,
        "prepare",
        *FILES,
        "model.source=huggingface",
        "model.path=models/of/nobody",
        "model.tokenizer=null",
    )

    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "models/of/nobody" in done.stderr


def test_a_folder_of_the_users_is_never_replaced_by_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")

    check_refused(tmp_path, ["prepare", "experiment=tiny_smoke", "model.folder=mine"], "name another folder")


def test_a_tokenizer_that_changed_since_prepare_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    (folder / "other.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )

    done = metier(folder, "train", "experiment=tiny_smoke", "model.chat_template=other.jinja")

    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "was prepared with another tokenizer or chat template than the model's" in done.stderr
    assert "metier prepare" in done.stderr
    assert not list((folder / "runs" / "tiny_smoke" / "checkpoints").glob("*"))


def test_a_run_whose_corpus_was_replaced_goes_on_no_further(prepared: Path, tmp_path: Path) -> None:
    folder = work_in(tmp_path, prepared, None)
    for name in ("chats", "others"):
        lines = (
            {"messages": [{"role": "user", "content": f"{name} {n}?"}, {"role": "assistant", "content": "b"}]}
            for n in range(60)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = [*FILES, "loop.checkpoint_every_steps=1"]
    assert metier(folder, "prepare", *first).returncode == 0
    assert metier(folder, "train", *first).returncode == 0
    (folder / "others.jsonl").replace(folder / "chats.jsonl")
    assert metier(folder, "prepare", *first).returncode == 0

    for verb in ("train", "evaluate"):
        done = metier(folder, verb, *first)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "was trained on another corpus" in done.stderr


def test_a_changed_setting_under_the_same_name_is_refused_with_the_difference(
    prepared: Path, tmp_path: Path
) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    first = metier(folder, "train", "experiment=tiny_smoke", "loop.max_steps=2", "schedule.decay_steps=0")
    assert first.returncode == 0, first.stderr

    done = metier(folder, "train", "experiment=tiny_smoke", "loop.max_steps=3", "schedule.decay_steps=0")

    assert done.returncode == 2
    assert "loop.max_steps: 2 -> 3" in done.stderr

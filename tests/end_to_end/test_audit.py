"""`metier audit` as a user types it, and the same thresholds as the gate of `metier train`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import link_prepared, metier, succeed

QUESTION = "Which of these is meant? " * 20


def write_chats(folder: Path, count: int, question: str, answer: str) -> None:
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(count):
            turns = [
                {"role": "user", "content": f"{question.format(number)} {number}"},
                {"role": "assistant", "content": answer.format(number)},
            ]
            lines.write(json.dumps({"messages": turns}) + "\n")


def over_chats(*more: str) -> list[str]:
    return [
        "experiment=tiny_smoke",
        "data=files_chat",
        "data.path=chats",
        "data.sources.files.paths=[chats.jsonl]",
        "data.duplicates.near_threshold=null",
        "batch.sequence_length=1200",  # two chats
        *more,
    ]


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A working folder with the tiny model and without a corpus of its own."""
    return link_prepared(prepared, tmp_path / "work")


def read_report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "audit" / "audit.json").read_text())
    return values


def test_the_audit_prints_and_writes_a_page_and_json(folder: Path) -> None:
    said = succeed(folder, "audit", "experiment=tiny_smoke", "audit.printed_documents=2")
    assert "topics\n" in said
    assert said.count("── topics · ") == 2
    assert "⟦" in said
    assert "thresholds   all kept" in said
    report = read_report(folder / "data/python_topics")
    assert report["passed"] is True
    assert report["sources"]["topics"]["target_share"]["value"] > 0.99
    assert "All thresholds are kept" in (folder / "data/python_topics/audit/audit.html").read_text()


def test_what_is_beyond_a_threshold_is_reported_and_not_trained_on(folder: Path) -> None:
    write_chats(folder, 60, QUESTION + "person{}@example.org", "y")
    succeed(folder, "prepare", *over_chats())

    audited = metier(folder, "audit", *over_chats("audit.max_personal_data=0.5"))
    assert audited.returncode == 2
    line, _, more = audited.stderr.partition(" (1 more: ")
    assert line.startswith("metier audit: data.sources.files: ")
    assert "are targets, less than audit.min_target_share=0.01; " in line
    assert more == "`metier audit` shows all)\n"
    assert QUESTION in audited.stdout
    assert "60 of 60 searched documents (100%) hold personal data" in audited.stdout
    report = read_report(folder / "chats")
    assert [breach["key"] for breach in report["breaches"]] == ["min_target_share", "max_personal_data"]
    assert report["sources"]["files"]["personal_data_found"]["findings"] == {"email": 60}

    trained = metier(folder, "train", *over_chats())
    assert trained.returncode == 2
    assert trained.stderr.strip() == line.replace("metier audit: ", "metier train: ")


def test_of_redacted_personal_data_nothing_is_found(folder: Path) -> None:
    write_chats(folder, 60, QUESTION, "Write to person{}@example.org or call +44 20 7946 0958.")
    redacting = over_chats("audit.max_personal_data=0", "data.personal_data.action=redact")
    succeed(folder, "prepare", *redacting)
    said = succeed(folder, "audit", *redacting)
    assert "redacted: email 60, phone 60" in said
    assert "nothing found" in said
    assert "Write to [EMAIL] or call [PHONE]." in said


def test_without_a_corpus_it_says_what_to_run(tmp_path: Path) -> None:
    done = metier(tmp_path, "audit", "experiment=tiny_smoke")
    assert done.returncode == 2
    assert "holds no prepared corpus" in done.stderr
    assert "run `metier prepare` with the same settings first" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_than_the_corpus_was_made_with_is_refused(folder: Path) -> None:
    (folder / "other.jinja").write_text(
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    done = metier(folder, "audit", "experiment=tiny_smoke", "model.chat_template=other.jinja")
    assert done.returncode == 2
    assert "was prepared with another tokenizer or chat template" in done.stderr

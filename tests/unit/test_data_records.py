"""Records: schemas told or declared, fields mapped, one line or one count for what does not fit."""

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.make_sources import (
    CHAT,
    A,
    Q,
    files,
    read_items,
    read_one,
    write_lines,
)
from training.data.documents import Document, Message, Messages, PromptCompletion, Text
from training.data.read import Skipped, list_pieces, read_documents, read_piece
from training.data.sources.pieces import Reason
from training.errors import DataError


@pytest.mark.parametrize(
    ("record", "content", "task"),
    [
        ({"text": "t", "id": 3}, Text("t"), "text"),
        ({"prompt": "p", "completion": "c"}, PromptCompletion("p", "c"), "prompt_completion"),
        (CHAT, Messages((Message("user", "Hi"), Message("assistant", "Hello"))), "messages"),
        (
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system": "s",
            },
            Messages((Message("system", "s"), Message("user", "q"), Message("assistant", "a"))),
            "conversations",
        ),
        (
            {"instruction": "i", "input": "x", "output": "o"},
            Messages((Message("user", "i\n\nx"), Message("assistant", "o"))),
            "instruction",
        ),
        (
            {"instruction": "i", "input": "", "output": "o", "history": [["q", "a"]]},
            Messages(
                (
                    Message("user", "q"),
                    Message("assistant", "a"),
                    Message("user", "i"),
                    Message("assistant", "o"),
                )
            ),
            "instruction",
        ),
        (
            {"prompt": [Q, A, Q], "completion": [A]},
            Messages(
                (
                    Message("user", "q", 0),
                    Message("assistant", "a", 0),
                    Message("user", "q", 0),
                    Message("assistant", "a"),
                )
            ),
            "prompt_completion",
        ),
        (
            {"messages": [Q, A], "text": "rendered"},
            Messages((Message("user", "q"), Message("assistant", "a"))),
            "messages",
        ),
    ],
    ids=[
        "text",
        "pair",
        "messages",
        "sharegpt",
        "alpaca",
        "alpaca history",
        "chat in halves",
        "chat and text",
    ],
)
def test_the_schema_is_told_by_the_first_record(
    tmp_path: Path, record: dict[str, Any], content: object, task: str
) -> None:
    document = read_one(tmp_path, record)

    assert (document.content, document.task) == (content, task)
    assert read_one(tmp_path, record, documents=task).content == content


def test_every_process_tells_the_schema_by_the_same_record(tmp_path: Path) -> None:
    both = {"text": "t", "prompt": "p", "completion": "c"}
    source = files(write_lines(tmp_path / "a.jsonl", {"text": "first"}, both, both))
    (piece,) = list_pieces("notes", source)

    (last,) = read_piece("notes", source, piece, skip=2)

    assert isinstance(last, Document)
    assert (last.content, last.id) == (Text("t"), f"{tmp_path / 'a.jsonl'}:3")


def test_an_unknown_schema_says_what_was_seen_and_what_is_known(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"question": "q", "answer": "a"})

    with pytest.raises(DataError) as caught:
        read_items(files(path, bad_records="skip"))

    assert str(caught.value).startswith(
        f"{path}:1: the record has question, answer, which is no known schema"
    )
    for words in ("prompt + completion", "instruction + output", "data.sources.notes.fields"):
        assert words in str(caught.value)


def test_fields_are_mapped_also_from_within(tmp_path: Path) -> None:
    record = {"question": "q", "given": {"answer": "a"}, "text": "not this"}

    document = read_one(tmp_path, record, fields={"prompt": "question", "completion": "given.answer"})

    assert document.content == PromptCompletion("q", "a")


def test_templates_make_fields_and_whole_chats(tmp_path: Path) -> None:
    record = {"q": 'Say "hi"', "options": ["a", "b"], "answer": "b"}
    pair = {"prompt": "{{ q }}\n{% for o in options %}- {{ o }}\n{% endfor %}", "completion": "{{ answer }}"}
    chat = '[{"role": "user", "content": {{ q | tojson }}}, {"role": "assistant", "content": "{{ answer }}"}]'

    assert read_one(tmp_path, record, templates=pair).content == PromptCompletion('Say "hi"\n- a\n- b\n', "b")
    assert read_one(tmp_path, record, templates={"messages": chat}).content == Messages(
        (Message("user", 'Say "hi"'), Message("assistant", "b"))
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ body }}", "'body' is undefined; the record has text, empty"),
        ("{{ empty }}", "a value is null"),
        ("{{ text / 2 }}", "unsupported operand"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_named_with_the_record(tmp_path: Path, template: str, words: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "t", "empty": None})
    source = files(path, documents="text", templates={"text": template})

    with pytest.raises(DataError) as caught:
        read_items(source)

    assert str(caught.value).startswith(f"{path}:1: data.sources.notes.templates.text failed: ")
    assert words in str(caught.value)
    skipping = source.model_copy(update={"bad_records": "skip"})
    assert read_items(skipping) == [Skipped(f"{path}:1", "template failed")]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"templates": {"text": "{{ x"}}, "data.sources.notes.templates.text: no Jinja template, line 1"),
        ({"templates": {"txt": "x"}}, "data.sources.notes.templates.txt: no schema has such a field"),
        ({"fields": {"promt": "x"}}, "data.sources.notes.fields.promt: no schema has such a field"),
    ],
    ids=["no jinja", "unknown template", "unknown field"],
)
def test_a_wrong_mapping_is_named_by_its_setting(tmp_path: Path, setting: dict[str, Any], words: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "t"})

    with pytest.raises(DataError, match=words):
        read_items(files(path, bad_records="skip", **setting))


@pytest.mark.parametrize(
    ("line", "documents", "reason", "words"),
    [
        ('{"text": ', "text", "broken JSON", "broken JSON at column"),
        ("[1]", "text", "wrong type", "found a list, wanted one JSON object"),
        ("[" * 100_000, "text", "broken JSON", "JSON that cannot be read"),
        ('{"body": "x"}', "text", "missing field", 'field "text" is missing; the record has body'),
        ('{"text": 3}', "text", "wrong type", 'field "text" is a number, wanted a string'),
        ('{"text": " "}', "text", "empty text", 'field "text" is empty'),
        ('{"text": "a\\ud800"}', "text", "invalid UTF-8", "half of a surrogate pair"),
        ('{"prompt": "x"}', "prompt_completion", "missing field", 'field "completion" is missing'),
        ('{"prompt": "x", "completion": ""}', "prompt_completion", "empty answer", '"completion" is empty'),
        ('{"instruction": "x"}', "instruction", "missing field", 'field "output" is missing'),
        ('{"instruction": "x", "output": ""}', "instruction", "empty answer", "the assistant says nothing"),
        ('{"messages": null}', "messages", "wrong type", 'field "messages" is null, wanted a list of turns'),
        ('{"text": "x"}', "messages", "missing field", 'field "messages" is missing'),
        (
            '{"conversations": [{"from": "cat", "value": "x"}]}',
            "conversations",
            "wrong roles",
            "conversations[0].from is 'cat', wanted one of system, human",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_and_line_or_counted_by_reason(
    tmp_path: Path, line: str, documents: str, reason: str, words: str
) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(f"\n\n{line}\n", encoding="utf-8")

    with pytest.raises(DataError) as caught:
        read_items(files(path, documents=documents))

    assert str(caught.value).startswith(f"{path}:3: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_items(files(path, documents=documents, bad_records="skip")) == [Skipped(f"{path}:3", reason)]
    assert reason in get_args(Reason)


def test_families_follow_the_content_and_nothing_else(tmp_path: Path) -> None:
    before = write_lines(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y"})
    after = write_lines(tmp_path / "b.jsonl", {"text": "new"}, {"text": "x", "id": 7}, {"text": "y"})
    pq.write_table(pa.Table.from_pylist([{"text": "x"}, {"text": "y"}]), tmp_path / "c.parquet")

    old, new, other = (
        [document.family for document in read_documents("notes", files(path))]
        for path in (before, after, tmp_path / "c.parquet")
    )

    assert new[1:] == old == other
    assert len(set(new)) == 3


def test_a_family_field_names_the_family(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "x", "case": "Roe"}, {"text": "y"})
    source = files(path, family_field="case")
    documents = read_documents("notes", source)

    assert next(documents).family == "Roe"
    with pytest.raises(DataError) as caught:
        next(documents)
    assert str(caught.value) == f'{path}:2: field "case" (family_field) is missing or no string'


def test_what_is_learnt_of_a_chat_travels_with_the_document(tmp_path: Path) -> None:
    assert read_one(tmp_path, CHAT, train_on="last_assistant").train_on == "last_assistant"


def test_a_hash_of_the_content_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    turned = {"messages": [dict(reversed(turn.items())) for turn in CHAT["messages"]]}
    first, second = (read_one(tmp_path, json.loads(json.dumps(record))).family for record in (CHAT, turned))

    assert first == second

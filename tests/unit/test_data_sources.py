"""Sources: where they are found, the pieces they are read in, the one line when something is not there."""

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.make_sources import files, read_items, read_texts, refusal, write_lines
from training.config.sources import (
    Icd10cmSource,
    LicencesSource,
    PythonTopicsSource,
    SourceConfig,
)
from training.data.documents import PromptCompletion, Text, sample_evenly
from training.data.read import Piece, Skipped, list_pieces, read_documents, read_piece, trace_source
from training.data.sources.licences import find_family
from training.errors import DataError


def test_globs_are_read_in_sorted_order_and_each_file_once(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder").mkdir()

    assert read_texts(files(tmp_path / "*", tmp_path / "a.txt")) == ["a.txt", "b.md"]


def test_a_file_with_brackets_in_its_name_is_read_before_it_is_a_glob(tmp_path: Path) -> None:
    write_lines(tmp_path / "a[1].jsonl", {"text": "brackets"})
    write_lines(tmp_path / "a1.jsonl", {"text": "glob"})

    assert read_texts(files(tmp_path / "a[1].jsonl")) == ["brackets"]
    assert read_texts(files(tmp_path / "a[0-9].jsonl")) == ["glob"]


def test_a_format_that_is_said_needs_no_ending(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.log", {"text": "x"})

    assert read_texts(files(tmp_path / "a.log", format="jsonl")) == ["x"]


def test_schemas_may_differ_from_file_to_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c"})
    (tmp_path / "b.txt").write_text("t")

    contents = [document.content for document in read_documents("notes", files(tmp_path / "*"))]

    assert contents == [PromptCompletion("p", "c"), Text("t")]


def test_a_missing_file_is_named_with_its_setting(tmp_path: Path) -> None:
    message = refusal(files(tmp_path / "absent.jsonl"))

    assert message.startswith(f"data.sources.notes.paths: no file {tmp_path / 'absent.jsonl'}")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refusal(files(tmp_path)) == (
        f"data.sources.notes.paths: {tmp_path} is a folder; name its files, for instance {tmp_path}/*.jsonl"
    )


def test_plain_text_holds_no_chats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")

    assert "set data.sources.notes.documents=text" in refusal(files(tmp_path / "a.txt", documents="messages"))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: for a moment be somebody who may not."""
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "x"})
    source = files(path)
    (piece,) = list_pieces("notes", source)
    path.chmod(0)

    with as_nobody(), pytest.raises(DataError) as caught:
        list(read_piece("notes", source, piece))

    assert str(caught.value) == (
        f"{path}: cannot be read (Permission denied); give yourself the permission to read it"
    )


def replace(path: Path) -> None:
    write_lines(path.with_suffix(".new"), {"text": "other"})
    path.with_suffix(".new").replace(path)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"text": "more"}\n')


@pytest.mark.parametrize(
    ("change", "words"),
    [(Path.unlink, "the file is gone"), (replace, "changed since it was listed"), (append, "changed since")],
    ids=["deleted", "replaced", "appended"],
)
def test_a_file_that_changes_after_it_was_listed_stops_the_reading(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "x"})
    source = files(path, bad_records="skip")
    (piece,) = list_pieces("notes", source)

    change(path)

    with pytest.raises(DataError) as caught:
        list(read_piece("notes", source, piece))
    assert str(caught.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize("change", [append, lambda path: os.truncate(path, 40)], ids=["appended", "cut"])
def test_a_file_that_changes_while_it_is_read_stops_the_reading(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = write_lines(tmp_path / "a.jsonl", *[{"text": "x" * 1000}] * 3000)
    source = files(path, bad_records="skip")
    (piece,) = list_pieces("notes", source)
    items = read_piece("notes", source, piece)
    next(items)

    change(path)

    with pytest.raises(DataError, match="changed since it was listed"):
        list(items)


def test_the_limit_of_documents_is_kept_over_all_files(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "x"}, {"body": "bad"})
    (tmp_path / "b.jsonl").write_text('{"text": "y"}\n{"text": "z"}\nbroken\n')
    source = files(tmp_path / "*", documents="text", max_documents=3, bad_records="skip")

    (piece,) = list_pieces("notes", source)
    items = list(read_piece("notes", source, piece))

    assert [item.reason if isinstance(item, Skipped) else item.content for item in items] == [
        Text("x"),
        "missing field",
        Text("y"),
        Text("z"),
    ]
    for skip in range(5):
        assert list(read_piece("notes", source, piece, skip=skip)) == items[skip:]


def test_a_trace_has_the_files_the_licence_and_the_users_words(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "x"})
    source = files(path, licence="CC0", provenance={"ward": "3"})

    before = trace_source("notes", source)
    write_lines(path, {"text": "y"})
    os.utime(path, ns=(0, 1))

    assert (before.licence, before.notes) == ("CC0", {"ward": "3"})
    assert before.content.keys() == {str(path)}
    assert trace_source("notes", source).content != before.content


@pytest.mark.parametrize(
    "source",
    [
        LicencesSource(kind="licences", form="questions", clause_characters=80, max_documents=5),
        PythonTopicsSource(kind="python_topics", max_documents=5),
    ],
    ids=["licences", "topics"],
)
def test_a_generated_source_is_one_piece_known_by_its_package(source: SourceConfig) -> None:
    (piece,) = list_pieces("notes", source)

    everything = list(read_piece("notes", source, piece))

    assert piece == Piece("notes", 0, None, trace_source("notes", source).content, piece.bytes)
    assert piece.bytes > 0
    assert list(read_piece("notes", source, piece, skip=3)) == everything[3:] == read_items(source)[3:]


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

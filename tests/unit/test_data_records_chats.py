"""Chats: turns of every dialect, in an order that templates keep; the others are refused or counted."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.make_sources import (
    CALL,
    CALLING,
    CHAT,
    RESULT,
    A,
    Q,
    files,
    read_items,
    read_one,
    write_lines,
)
from training.data.documents import Document, Message, Messages
from training.data.read import Skipped, read_documents
from training.errors import DataError


def read_chat(tmp_path: Path, *turns: object, **other: Any) -> tuple[Message, ...]:
    content = read_one(tmp_path, {"messages": turns}, **other).content
    assert isinstance(content, Messages)
    return content.messages


def test_a_tool_chat_keeps_what_the_template_may_use(tmp_path: Path) -> None:
    asked = {**CALL, "function": {"name": "look", "arguments": '{"at": "x"}'}}
    turns = [
        Q,
        {**CALLING, "tool_calls": [asked]},
        {**RESULT, "name": "look"},
        {**A, "reasoning_content": "hm"},
    ]

    _, call, result, answer = read_chat(tmp_path, *turns)

    assert (call.content, call.extra) == ("", {"tool_calls": [CALL]}), (
        "arguments as an object, not as a string"
    )
    assert (result.role, result.extra) == ("tool", {"tool_call_id": "1", "name": "look"})
    assert answer.extra == {"reasoning_content": "hm"}


def test_sharegpt_calls_become_calls(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "x"}}'},
        {"from": "observation", "value": "42"},
        {"from": "gpt", "value": "a", "weight": 0},
    ]
    record = {"conversations": turns, "tools": '[{"name": "look"}]'}

    content = read_one(tmp_path, record).content

    assert isinstance(content, Messages)
    assert [message.role for message in content.messages] == ["user", "assistant", "tool", "assistant"]
    assert content.messages[1].extra["tool_calls"] == [{"type": "function", "function": CALL["function"]}]
    assert content.messages[3].weight == 0
    assert content.tools == ({"name": "look"},)


def test_a_parquet_column_of_calls_lends_no_call_the_arguments_of_another(tmp_path: Path) -> None:
    def call(**arguments: str) -> dict[str, Any]:
        function = {"name": "look", "arguments": arguments}
        return {"messages": [Q, {"role": "assistant", "tool_calls": [{"function": function}]}]}

    pq.write_table(pa.Table.from_pylist([call(at="x"), call(to="y")]), tmp_path / "a.parquet")

    documents = list(read_documents("notes", files(tmp_path / "a.parquet")))

    contents = [document.content for document in documents]
    assert [
        content.messages[1].extra["tool_calls"][0]["function"]["arguments"]
        for content in contents
        if isinstance(content, Messages)
    ] == [{"at": "x"}, {"to": "y"}]


def test_weights_parts_and_other_words_for_roles_are_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    turns = [{"role": "developer", "content": "d"}, Q, {**A, "weight": 0}, {**Q, "content": parts}, A]

    system, _, first, asked, last = read_chat(tmp_path, *turns)

    assert (system.role, asked.content) == ("system", "bc")
    assert (first.weight, last.weight) == (0, 1)


@pytest.mark.parametrize(
    "turns",
    [
        [Q, A],
        [{"role": "system", "content": "s"}, Q, A, Q, A],
        [Q, Q, A],
        [Q, CALLING, RESULT, RESULT, A],
        [Q, CALLING],
    ],
    ids=["plain", "system", "two users", "tools", "ends with a call"],
)
def test_orders_that_templates_keep_are_read(tmp_path: Path, turns: list[object]) -> None:
    assert len(read_chat(tmp_path, *turns)) == len(turns)


@pytest.mark.parametrize(
    ("turns", "reason", "words"),
    [
        ([A], "wrong roles", "the chat begins with assistant"),
        ([{"role": "system", "content": "s"}, A], "wrong roles", "the chat begins with assistant"),
        ([RESULT, A], "wrong roles", "the chat begins with tool"),
        ([Q, A, A], "wrong roles", "turn 2 is a second assistant in a row"),
        (
            [Q, {"role": "system", "content": "s"}, A],
            "wrong roles",
            "turn 1 is system, which may only come first",
        ),
        ([Q, RESULT, A], "wrong roles", "turn 1 is tool, but no assistant called one before it"),
        ([Q, CALLING, {**RESULT, "tool_call_id": "2"}, A], "wrong roles", "answers the tool call '2'"),
        ([Q, A, Q], "wrong roles", "the chat ends with user"),
        ([Q, {**A, "content": ""}], "empty answer", "turn 1: the assistant says nothing"),
        ([Q, {**A, "content": " \n"}], "empty answer", "turn 1: the assistant says nothing"),
        ([Q, {**A, "role": "bot"}], "wrong roles", "messages[1].role is 'bot', wanted one of system, user"),
        ([Q, {**A, "weight": 0.5}], "wrong type", "messages[1].weight is 0.5, wanted 0 or 1"),
        ([Q, {"role": "assistant"}], "wrong type", "messages[1].content is null, wanted a string"),
        (
            [Q, {**A, "content": [{"type": "image_url"}]}],
            "wrong type",
            "is image_url, wanted a part of type text",
        ),
        (
            [Q, {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "broken JSON",
            "arguments",
        ),
        (["x"], "wrong type", "messages[0] is a string, wanted an object"),
        ([], "wrong type", 'field "messages" is an empty list, wanted a list of turns'),
    ],
)
def test_a_chat_that_cannot_be_is_refused_or_counted(
    tmp_path: Path, turns: list[object], reason: str, words: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", CHAT, {"messages": turns}, CHAT)

    with pytest.raises(DataError) as caught:
        read_items(files(path))
    first, bad, last = read_items(files(path, bad_records="skip"))

    assert str(caught.value).startswith(f"{path}:2: ")
    assert words in str(caught.value)
    assert bad == Skipped(f"{path}:2", reason)
    assert isinstance(first, Document)
    assert isinstance(last, Document)


def test_a_chat_may_end_with_the_user_where_prompts_are_learnt_too(tmp_path: Path) -> None:
    assert len(read_chat(tmp_path, Q, A, Q, train_on="all")) == 3

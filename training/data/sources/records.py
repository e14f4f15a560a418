"""From a record's fields to a document's content, strictly: what does not fit is named, never skipped."""

from typing import Any, Literal

from training.data.documents import Message, Messages, PromptCompletion, Text
from training.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
MESSAGE_KEYS = {"role", "content"}


def parse_content(
    record: dict[str, Any], documents: Literal["messages", "prompt_completion", "text"], place: str
) -> Messages | PromptCompletion | Text:
    """Read the fields that ``documents`` names; other fields are the user's own and stay unread.

    Raises:
        DataError: A field is missing or of another type; the message begins with ``place``.
    """
    match documents:
        case "messages":
            return Messages(_parse_messages(record, place))
        case "prompt_completion":
            return PromptCompletion(_text(record, "prompt", place), _text(record, "completion", place))
        case "text":
            return Text(_text(record, "text", place))


def _text(record: dict[str, Any], field: str, place: str) -> str:
    if field not in record:
        found = ", ".join(map(str, record)) or "nothing"
        raise DataError(f'{place}: field "{field}" is missing; the record has {found}')
    value = record[field]
    if not isinstance(value, str):
        raise DataError(f'{place}: field "{field}" is {_kind(value)}, wanted a string')
    return _checked(value, f'{place}: field "{field}"')


def _parse_messages(record: dict[str, Any], place: str) -> tuple[Message, ...]:
    if "messages" not in record:
        found = ", ".join(map(str, record)) or "nothing"
        raise DataError(f'{place}: field "messages" is missing; the record has {found}')
    turns = record["messages"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{place}: field "messages" is {_kind(turns)}, wanted a list of turns')
    messages = tuple(_parse_message(turn, f"{place}: messages[{index}]") for index, turn in enumerate(turns))
    if messages[0].role in {"assistant", "tool"}:
        raise DataError(f"{place}: the chat begins with {messages[0].role}, wanted system or user first")
    return messages


def _parse_message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{place} is {_kind(turn)}, wanted an object with role and content")
    # A Parquet struct has every key in every row: those without a value say nothing.
    turn = {key: value for key, value in turn.items() if value is not None}
    if other := turn.keys() - MESSAGE_KEYS:
        raise DataError(
            f"{place} has {', '.join(sorted(other))}; only role and content are read, take it out"
        )
    if turn.get("role") not in ROLES:
        raise DataError(f"{place}.role is {turn.get('role')!r}, wanted one of {', '.join(ROLES)}")
    content = turn.get("content")
    if not isinstance(content, str):
        raise DataError(f"{place}.content is {_kind(content)}, wanted a string")
    return Message(turn["role"], _checked(content, f"{place}.content"))


def _checked(text: str, place: str) -> str:
    """Refuse half of a surrogate pair: JSON can spell it, but no tokenizer can read it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place} has {text[error.start]!r} at character {error.start}, half of a surrogate pair; "
            "take it out"
        ) from None
    return text


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object"

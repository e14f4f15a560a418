"""Small questions about a record's values: what kind they are, and whether a tokenizer can read them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from training.data.sources.pieces import BadRecordError


def describe(value: Any) -> str:
    """Name the kind of a JSON value, for errors."""
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", bytes: "bytes"}
    return "null" if value is None else kinds.get(type(value), "an object")


def list_fields(record: Mapping[str, Any]) -> str:
    """List a record's fields, for errors; the first twenty where there are more."""
    names = [str(name) for name in record]
    more = ", ..." if len(names) > 20 else ""  # noqa: PLR2004 -- what fits on a line
    return ", ".join(names[:20]) + more if names else "nothing"


def get_text(record: Mapping[str, Any], field: str) -> str:
    """Take a field that must be a string.

    Raises:
        BadRecordError: It is missing or of another type.
    """
    try:
        value = record[field]
    except KeyError:
        raise missing(record, field) from None
    if type(value) is not str:
        raise BadRecordError("wrong type", f'field "{field}" is {describe(value)}, wanted a string')
    return value


def find_text(record: Mapping[str, Any], field: str) -> str:
    """Take a field that may be absent or null: then it is the empty string.

    Raises:
        BadRecordError: It is of another type.
    """
    return "" if record.get(field) is None else get_text(record, field)


def missing(record: Mapping[str, Any], field: str) -> BadRecordError:
    """Say that a field is missing, and which ones there are."""
    return BadRecordError(
        "missing field", f'field "{field}" is missing; the record has {list_fields(record)}'
    )


def parse_nested(value: Any, field: str) -> Any:
    """Read a nested value that a flat format (CSV, a template) can only hold as JSON text.

    Raises:
        BadRecordError: The text is no JSON.
    """
    if type(value) is not str:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(
            "broken JSON", f'field "{field}" is a string that is no JSON ({error})'
        ) from None


def find_half_pair(parts: Iterable[tuple[str, str]]) -> BadRecordError:
    """Name the first (place, text) with half of a surrogate pair: JSON spells it, no tokenizer reads it."""
    for place, text in parts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return BadRecordError(
                "invalid UTF-8",
                f"{place} has {text[error.start]!r} at character {error.start}, half of a surrogate pair; "
                "take it out",
            )
    return BadRecordError("invalid UTF-8", "the record has half of a surrogate pair; take it out")


def drop_nulls(value: Any) -> Any:
    """Drop keys without a value, at any depth.

    A column of objects has every key of any row in every row: those that are null were never there.
    """
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value

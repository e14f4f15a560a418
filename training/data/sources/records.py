"""From a record's fields to a document, strictly: what does not fit is named, never guessed.

Schemas, in the order in which ``documents: auto`` looks for them in the first record:

=================  ==============================================================================
messages           ``messages``: turns with role and content (OpenAI); ``tools`` where there are
conversations      ``conversations``: turns with from and value (ShareGPT); ``system``, ``tools``
prompt_completion  ``prompt`` and ``completion``: two strings, or two lists of turns (a chat)
instruction        ``instruction``, ``input``, ``output``, ``system``, ``history`` (Alpaca): a chat
text               ``text``
=================  ==============================================================================

A document's family, unless ``family_field`` names it, is the hash of what will be encoded: copies are on the
same side of the split, wherever they lie and whatever else their records say.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, get_args

import xxhash

from training.config.sources import RecordSource
from training.data.documents import Document, Message, Messages, PromptCompletion, Text
from training.data.sources.chats import check_order, parse_turns
from training.data.sources.pieces import BadRecordError, Record, Row, Skipped
from training.data.sources.templates import FieldTemplates
from training.data.sources.values import (
    describe,
    find_half_pair,
    find_text,
    get_text,
    list_fields,
    missing,
    parse_nested,
)
from training.errors import DataError

Schema = Literal["messages", "conversations", "prompt_completion", "instruction", "text"]

NEEDED: dict[Schema, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The fields that a record of each schema must have."""

OPTIONAL = ("input", "system", "history", "tools")

Content = Messages | PromptCompletion | Text

_SEPARATOR = "\x1f"


class RecordParser:
    """Makes documents of one source's records; remembers the schema once it is recognised."""

    def __init__(self, name: str, source: RecordSource, schema: Schema | None = None) -> None:
        """Prepare for the source called ``name``; a given ``schema`` is not looked for again.

        Raises:
            DataError: A setting of the source is wrong: no such field, no valid template.
        """
        self._name = name
        self._source = source
        self._templates = FieldTemplates(f"data.sources.{name}.templates", source.templates)
        self._mapped = bool(source.fields or source.templates)
        known = {field for fields in NEEDED.values() for field in fields} | set(OPTIONAL)
        for setting, wanted in (("fields", source.fields), ("templates", source.templates)):
            for field in wanted:
                if field not in known:
                    raise DataError(
                        f"data.sources.{name}.{setting}.{field}: no schema has such a field; "
                        f"wanted one of {', '.join(sorted(known))}"
                    )
        self.schema: Schema | None = (
            schema if schema or source.documents == "auto" else _as_schema(source.documents)
        )

    def parse(self, place: str, record: Record) -> Document:
        """Make the document that lies at ``place``.

        Raises:
            BadRecordError: The record does not hold what its schema wants.
            DataError: It is the first of its file and of no known schema.
        """
        fields = self._map(record) if self._mapped else record
        schema = self.schema or self.recognise(place, fields)
        content = self._read_content(fields, schema)
        joined = _join(content)
        try:
            encoded = joined.encode()
        except UnicodeEncodeError:
            raise find_half_pair(_list_texts(content)) from None
        source = self._source
        return Document(
            id=place,
            # By content and not by place: the split stays as it is when records are put in before this one.
            family=(
                xxhash.xxh3_64_hexdigest(encoded)
                if source.family_field is None
                else _find_family(record, source.family_field)
            ),
            source=self._name,
            task=schema,
            content=content,
            train_on=source.train_on,
        )

    def recognise(self, place: str, fields: Record) -> Schema:
        """Tell the schema by the fields of the first record, mapping included, and remember it.

        Raises:
            DataError: No schema fits: that is a setting to mend and no single bad record.
        """
        declared = self._source.fields.keys() | self._source.templates.keys()
        fitting = [
            schema
            for schema, needed in NEEDED.items()
            if all(fields.get(field) is not None for field in needed)
        ]
        # What the user maps is what they mean, whatever else the record holds.
        fitting.sort(key=lambda schema: declared.isdisjoint(NEEDED[schema]))
        if not fitting:
            known = "; ".join(" + ".join(needed) for needed in NEEDED.values())
            raise DataError(
                f"{place}: the record has {list_fields(fields)}, which is no known schema ({known}); "
                f"set data.sources.{self._name}.fields or .templates"
            )
        self.schema = fitting[0]
        return fitting[0]

    def recognise_from(self, rows: Iterable[Row]) -> None:
        """Recognise the schema by the first of ``rows`` that can be read at all."""
        for place, record in rows:
            if isinstance(record, BadRecordError):
                continue
            try:
                self.recognise(place, self._map(record))
            except BadRecordError:
                continue
            return

    def _map(self, record: Record) -> Record:
        fields = dict(record)
        for wanted, own in self._source.fields.items():
            try:
                fields[wanted] = _look_up(record, own)
            except BadRecordError:
                if wanted not in OPTIONAL:
                    raise
        fields.update(self._templates.render(record))
        return fields

    def _read_content(self, fields: Record, schema: Schema) -> Content:
        match schema:
            case "messages" | "conversations":
                if schema not in fields:
                    raise missing(fields, schema)
                messages = parse_turns(fields[schema], schema, self._source.train_on)
                if "tools" in fields or "system" in fields:
                    return self._with_system(messages, fields)
                return Messages(messages)
            case "text":
                text = get_text(fields, "text")
                if not text or text.isspace():
                    raise BadRecordError("empty text", 'field "text" is empty; take the record out')
                return Text(text)
            case "prompt_completion":
                return self._read_pair(fields)
            case "instruction":
                return self._read_instruction(fields)

    def _with_system(self, messages: tuple[Message, ...], fields: Record) -> Messages:
        tools = parse_nested(fields.get("tools") or [], "tools")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadRecordError(
                "wrong type", f'field "tools" is {describe(tools)}, wanted a list of objects'
            )
        if fields.get("system") and messages[0].role != "system":
            messages = (Message("system", get_text(fields, "system")), *messages)
        return Messages(messages, tuple(tools))

    def _read_pair(self, fields: Record) -> Content:
        if isinstance(fields.get("prompt"), list) and isinstance(fields.get("completion"), list):
            # TRL's chats in two halves: answers in the prompt are context.
            asked = parse_turns(fields["prompt"], "prompt", "all")
            messages = parse_turns([*fields["prompt"], *fields["completion"]], "completion", "assistant")
            context = tuple(replace(message, weight=0) for message in messages[: len(asked)])
            return self._with_system(context + messages[len(asked) :], fields)
        pair = PromptCompletion(get_text(fields, "prompt"), get_text(fields, "completion"))
        if not pair.completion or pair.completion.isspace():
            raise BadRecordError("empty answer", 'field "completion" is empty; take the record out')
        return pair

    def _read_instruction(self, fields: Record) -> Messages:
        instruction, given = get_text(fields, "instruction"), find_text(fields, "input")
        turns: list[Message] = []
        for index, pair in enumerate(parse_nested(fields.get("history") or [], "history")):
            if not isinstance(pair, list) or [type(item) for item in pair] != [str, str]:
                raise BadRecordError("wrong type", f"history[{index}] is no pair of a question and an answer")
            turns += [Message("user", pair[0]), Message("assistant", pair[1])]
        turns.append(
            Message("user", f"{instruction}\n\n{given}" if instruction and given else instruction or given)
        )
        turns.append(Message("assistant", get_text(fields, "output")))
        check_order(tuple(turns), self._source.train_on)
        return self._with_system(tuple(turns), fields)


def read_rows(
    parser: RecordParser, source: RecordSource, rows: Iterable[Row]
) -> Iterator[Document | Skipped]:
    """Make a document of every row; a bad one is refused or skipped, as the source says.

    Raises:
        DataError: A record is bad and ``bad_records`` is refuse; the message begins with its place.
    """
    for place, record in rows:
        try:
            if isinstance(record, BadRecordError):
                raise record
            document = parser.parse(place, record)
        except BadRecordError as fault:
            if source.bad_records == "refuse":
                raise DataError(f"{place}: {fault}") from None
            yield Skipped(place, fault.reason)
        else:
            yield document


def _as_schema(name: str) -> Schema:
    found: dict[str, Schema] = {schema: schema for schema in get_args(Schema)}
    return found[name]


def _look_up(record: Record, own: str) -> object:
    """Find a field by its name, or by a dotted path where no field is called so."""
    if own in record:
        return record[own]
    value: object = record
    for part in own.split("."):
        if not isinstance(value, dict) or part not in value:
            raise missing(record, own)
        value = value[part]
    return value


def _find_family(record: Record, field: str) -> str:
    family = record.get(field)
    if not isinstance(family, str | int):
        raise BadRecordError("missing field", f'field "{field}" (family_field) is missing or no string')
    return str(family)


def _join(content: Content) -> str:
    match content:
        case Messages(messages=messages, tools=tools):
            parts: list[str] = []
            for message in messages:
                parts += (message.role, message.content)
                if message.extra:
                    parts.append(_dump(message.extra))
            if tools:
                parts.append(_dump(tools))
            return _SEPARATOR.join(parts)
        case PromptCompletion(prompt=prompt, completion=completion):
            return prompt + _SEPARATOR + completion
        case Text(text=text):
            return text


def _dump(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _list_texts(content: Content) -> Iterator[tuple[str, str]]:
    match content:
        case Messages(messages=messages):
            for index, message in enumerate(messages):
                yield f"messages[{index}].content", message.content
        case PromptCompletion(prompt=prompt, completion=completion):
            yield 'field "prompt"', prompt
            yield 'field "completion"', completion
        case Text(text=text):
            yield 'field "text"', text

"""From a list of turns, OpenAI's or ShareGPT's, to messages in an order that chat templates keep.

What is refused is what a template would put into the wrong place, or what nobody would ever ask a model
to continue: a system turn that is not the first (templates move or drop it), an answer to nothing, two
answers in a row, a tool's result without a call, an empty answer. Several user turns in a row are let be:
they occur, and templates either write them one after the other or say themselves that they cannot.
"""

import json
from collections.abc import Mapping
from typing import Any

from training.data.documents import Message, TrainOn
from training.data.sources.pieces import BadRecordError
from training.data.sources.values import describe, parse_nested

ROLES = ("system", "user", "assistant", "tool")
_ROLES = frozenset(ROLES)

OTHER_NAMES = {"developer": "system", "function": "tool"}
"""OpenAI's newer and older words for the same roles; chat templates know neither."""

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""ShareGPT's ``from``, in its dialects."""

_PLAIN_SPEAKERS = {speaker: role for speaker, role in SPEAKERS.items() if speaker != "function_call"}
"""``function_call`` is JSON that becomes a call."""

_NOTHING: Mapping[str, Any] = {}
_new = object.__new__
_set_role, _set_content, _set_weight, _set_extra = (
    Message.__dict__[name].__set__ for name in ("role", "content", "weight", "extra")
)

PLAIN_KEYS = 2


def parse_turns(turns: Any, field: str, train_on: TrainOn) -> tuple[Message, ...]:
    """Read the list of turns in the field called ``field`` and check their order.

    Raises:
        BadRecordError: It is no list, a turn is not what it should be, or the order of roles cannot be.
    """
    if type(turns) is not list:
        turns = parse_nested(turns, field)
    if type(turns) is not list or not turns:
        raise BadRecordError("wrong type", f'field "{field}" is {describe(turns)}, wanted a list of turns')
    messages = []
    for index, turn in enumerate(turns):
        # Nearly every turn of nearly every corpus is plain; the rest takes three times as long.
        if type(turn) is dict and len(turn) == PLAIN_KEYS:
            role, content = turn.get("role"), turn.get("content")
            if role is None:
                speaker, content = turn.get("from"), turn.get("value")
                role = _PLAIN_SPEAKERS.get(speaker) if type(speaker) is str else None
            if type(content) is str and type(role) is str and role in _ROLES:
                messages.append(_make_plain(role, content))
                continue
        messages.append(_parse_turn(turn, f"{field}[{index}]"))
    found = tuple(messages)
    check_order(found, train_on)
    return found


def check_order(messages: tuple[Message, ...], train_on: TrainOn) -> None:
    """Check who speaks after whom, and that every answer says something.

    Raises:
        BadRecordError: See the module's text.
    """
    before = ""
    for index, message in enumerate(messages):
        role = message.role
        if role == "assistant":
            content = message.content
            if before not in {"user", "tool"}:
                raise _misplaced(index, before)
            if (not content or content.isspace()) and not message.extra.get("tool_calls"):
                raise BadRecordError(
                    "empty answer", f"turn {index}: the assistant says nothing; take the chat out"
                )
        elif role == "system":
            if index:
                raise BadRecordError("wrong roles", f"turn {index} is system, which may only come first")
        elif role == "tool":
            _check_tool(messages, index)
        before = role
    if before != "assistant" and train_on != "all":
        raise BadRecordError(
            "wrong roles", f"the chat ends with {before}, of which nothing is learnt; wanted assistant last"
        )


def _misplaced(index: int, before: str) -> BadRecordError:
    if before == "assistant":
        return BadRecordError("wrong roles", f"turn {index} is a second assistant in a row; join the two")
    return BadRecordError("wrong roles", "the chat begins with assistant, wanted user before it")


def _make_plain(role: str, content: str) -> Message:
    """Make a message without weight and extra, in 60% of the time.

    A frozen dataclass sets its fields one by one through object.__setattr__, by name. A record has several
    turns, and reading one must cost little beside encoding it.
    """
    message = _new(Message)
    _set_role(message, role)
    _set_content(message, content)
    _set_weight(message, 1)
    _set_extra(message, _NOTHING)
    return message


def _check_tool(messages: tuple[Message, ...], index: int) -> None:
    if index == 0:
        raise BadRecordError("wrong roles", "the chat begins with tool, wanted system or user first")
    caller = index - 1
    while caller and messages[caller].role == "tool":
        caller -= 1
    calls = messages[caller].extra.get("tool_calls") if messages[caller].role == "assistant" else None
    if not calls:
        raise BadRecordError("wrong roles", f"turn {index} is tool, but no assistant called one before it")
    wanted = messages[index].extra.get("tool_call_id")
    known = {call["id"] for call in calls if "id" in call}
    if wanted is not None and known and wanted not in known:
        raise BadRecordError(
            "wrong roles", f"turn {index} answers the tool call {wanted!r}, which was not made"
        )


def _parse_turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRecordError(
            "wrong type", f"{place} is {describe(turn)}, wanted an object with role and content"
        )
    # A Parquet struct has every key in every row: those without a value say nothing.
    given = {key: value for key, value in turn.items() if value is not None}
    return _parse_full(_as_openai(given, place) if "from" in given else given, place)


def _as_openai(turn: Mapping[str, Any], place: str) -> dict[str, Any]:
    rest = {key: value for key, value in turn.items() if key not in {"from", "value"}}
    speaker, value = turn["from"], turn.get("value")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRecordError(
            "wrong roles", f"{place}.from is {speaker!r}, wanted one of {', '.join(SPEAKERS)}"
        )
    if speaker != "function_call":
        return {"role": role, "content": value, **rest}
    calls = parse_nested(value, f"{place}.value")
    return {"role": role, "tool_calls": calls if isinstance(calls, list) else [calls], **rest}


def _parse_full(turn: dict[str, Any], place: str) -> Message:
    role = turn.pop("role", None)
    role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
        raise BadRecordError("wrong roles", f"{place}.role is {role!r}, wanted one of {', '.join(ROLES)}")
    weight = turn.pop("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise BadRecordError("wrong type", f"{place}.weight is {weight!r}, wanted 0 or 1")
    content = turn.pop("content", None)
    if (call := turn.pop("function_call", None)) is not None:
        turn.setdefault("tool_calls", [call])
    if "tool_calls" in turn:
        turn["tool_calls"] = _parse_calls(turn["tool_calls"], f"{place}.tool_calls")
    if content is None and turn.get("tool_calls"):
        content = ""
    return Message(role, _join_content(content, f"{place}.content"), 1 if weight else 0, turn)


def _join_content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise BadRecordError("wrong type", f"{place} is {describe(content)}, wanted a string")
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else describe(part)
            raise BadRecordError("wrong type", f"{place}[{index}] is {kind}, wanted a part of type text")
        texts.append(part["text"])
    return "".join(texts)


def _parse_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    calls = parse_nested(calls, place)
    if not isinstance(calls, list):
        raise BadRecordError("wrong type", f"{place} is {describe(calls)}, wanted a list of calls")
    return [_parse_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]


def _parse_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecordError("wrong type", f"{place} is no call of a function with name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI sends the arguments as JSON in a string; templates write them as JSON themselves, and
        # would put the string into quotes a second time.
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise BadRecordError("broken JSON", f"{place}: the arguments are no JSON object")
    outer = {} if function is call else {key: value for key, value in call.items() if value is not None}
    named = {"name": function["name"], "arguments": {} if arguments is None else arguments}
    return {"type": "function", **outer, "function": named}

"""Where the answers lie in a rendered chat: with the token that ends the turn, and nothing of the prompt.

Two ways, of which ``template_skeleton.study_template`` finds out which one is exact for a template:

1. the template's ``{% generation %}`` marks;
2. prefixes: the chat before the turn with the generation prompt ends where the answer begins, and the chat
   up to the turn ends where the answer ends. Templates that write a turn otherwise once it is not the last
   (Qwen 3 drops its thoughts) end it with the first end token behind its beginning. Where the chat before
   the turn is no prefix of the whole (Mistral moves the system prompt into the last question), the answer
   follows what opens it behind the message before; that place must be the only one.

The token that ends the turn belongs to the answer, white space after it does not.

All of this takes for granted that only the template writes control tokens: see ``control_tokens``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.data.encoding.template import Chat, ChatTemplate, Span, TemplateRefusalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What is known of a template once it has been studied."""

    marked: bool
    """Its ``{% generation %}`` marks are there and exact."""

    control: re.Pattern[str]
    """Finds a control token."""

    ends: tuple[str, ...]
    """The tokens with which it ends an answer."""

    trailing: str
    """What it writes after the end token of a chat's last answer."""


Openings = Mapping[int, tuple[str, str]]
"""Turn -> the content before an answer, and what the template writes between that and the answer."""


def has_answer(message: Mapping[str, object]) -> bool:
    """Whether there is something to be learnt: an answer's words or a tool call."""
    content = message["content"]
    words = isinstance(content, str) and bool(content) and not content.isspace()
    return message["role"] == "assistant" and (words or bool(message.get("tool_calls")))


def find_answers(
    template: ChatTemplate, chat: Chat, text: str, habits: Habits, openings: Openings
) -> dict[int, Span]:
    """Find every answer of a chat that holds no control token in its contents.

    Args:
        template: The template.
        chat: The chat.
        text: The chat as the template renders it.
        habits: What is known of the template.
        openings: What stands before the answers whose beginning no prefix shows; may be empty.

    Returns:
        Turn -> characters [start, stop) of ``text``, ending with the end token. Empty answers have none.

    Raises:
        TemplateRefusalError: An answer cannot be found exactly.
    """
    turns = [turn for turn, message in enumerate(chat) if has_answer(message)]
    if habits.marked:
        return _find_marked(template, chat, text, habits, turns)
    spans: dict[int, Span] = {}
    cursor = 0
    for turn in turns:
        start = find_start(template, chat, text, turn)
        shown = start is not None
        if start is None and turn in openings:
            start = _search_start(text, cursor, openings[turn])
        stop = None if start is None else _find_stop(template, chat, text, turn, (start, shown), habits)
        if start is None or stop is None or start < cursor:
            raise hidden(turn)
        spans[turn] = start, stop
        cursor = stop
    return spans


def hidden(turn: int) -> TemplateRefusalError:
    """Say that an answer cannot be found."""
    return TemplateRefusalError(f"does not show where the answer messages[{turn}] begins and ends")


def find_start(template: ChatTemplate, chat: Chat, text: str, turn: int) -> int | None:
    """Find where an answer begins by the chat before it, when that is a prefix of the whole."""
    try:
        head = template.render(chat[:turn], prompt=True)
    except TemplateRefusalError:
        return None  # for instance of no message at all, before an answer that opens the chat
    return len(head) if text.startswith(head) else None


def end_answer(text: str, start: int, control: re.Pattern[str]) -> int | None:
    """Find the end of the first control token from ``start`` on."""
    match = control.search(text, start)
    return match.end() if match else None


def _search_start(text: str, cursor: int, opening: tuple[str, str]) -> int | None:
    """Find the one place behind ``cursor`` where the content before the answer and its opening stand."""
    content, written = opening
    for words in (content, content.strip()):
        first = text.find(words + written, cursor)
        if first >= 0:
            again = text.find(words + written, first + 1)
            return first + len(words) + len(written) if again < 0 else None
    return None


def _find_stop(
    template: ChatTemplate, chat: Chat, text: str, turn: int, begin: tuple[int, bool], habits: Habits
) -> int | None:
    start, shown = begin
    if turn + 1 == len(chat):
        return _cut_trailing(text, start, habits)
    if shown:
        until = template.render(chat[: turn + 1])
        stop = _cut_trailing(until, start, habits)
        if stop is not None and text.startswith(until[:stop]):
            return stop
    # Written otherwise than when it was the last. No content holds a control token: the first end is its end.
    places = [(place, token) for token in habits.ends if (place := text.find(token, start)) >= 0]
    if not places:
        return None
    place, token = min(places)
    return place + len(token) if _is_told(text[start:place], chat[turn]) else None


def _is_told(body: str, message: Mapping[str, object]) -> bool:
    """Whether the template wrote the answer, or the last part of it: a thought before it may be dropped."""
    content, body = str(message["content"]).strip(), body.strip()
    return (
        bool(message.get("tool_calls")) or body.endswith(content) or (bool(body) and content.endswith(body))
    )


def _cut_trailing(text: str, start: int, habits: Habits) -> int | None:
    """Find the end of the last control token before what the template writes at the end of a chat."""
    if not text.endswith(habits.trailing):
        return None
    stop = len(text) - len(habits.trailing)
    last = None
    for match in habits.control.finditer(text, start):
        if match.end() <= stop:
            last = match.end()
    return stop if last == stop else None


def _find_marked(
    template: ChatTemplate, chat: Chat, text: str, habits: Habits, turns: Sequence[int]
) -> dict[int, Span]:
    marked, marks = template.render_marked(chat)
    answers: Sequence[int] = [turn for turn, message in enumerate(chat) if message["role"] == "assistant"]
    if len(marks) != len(answers):
        answers = turns  # some mark no empty answer
    if marked != text or len(marks) != len(answers):
        raise TemplateRefusalError(
            f"marks {len(marks)} answers with {{% generation %}}, and there are {len(answers)}"
        )
    spans = {}
    for turn, (start, stop) in zip(answers, marks, strict=True):
        if turn not in turns:
            continue
        closed = _close_mark(text, start, stop, habits)
        head = find_start(template, chat, text, turn)
        if closed is None or (head is not None and start < head):
            raise hidden(turn)
        spans[turn] = start, closed
    return spans


def _close_mark(text: str, start: int, stop: int, habits: Habits) -> int | None:
    """End a mark with the end token: inside, or at once behind it when only the words are marked."""
    inside = [place + len(end) for end in habits.ends if (place := text.rfind(end, start, stop)) >= 0]
    if inside:
        return max(inside)
    match = habits.control.search(text, stop)
    return match.end() if match and not text[stop : match.start()].strip() else None

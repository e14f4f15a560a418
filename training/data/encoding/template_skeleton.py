"""What a chat template writes around the contents, learnt once for each sequence of roles.

Contents are replaced by words that occur nowhere else; what the template makes of that chat is its skeleton:
constant texts with a place for each content, and where the answers begin and end in it. For a real chat of
the same roles the skeleton is filled and compared with what the template renders. If they are equal, and
they nearly always are, every place is known exactly from one rendering. Where they differ (a template that
looks into the contents), the chat is taken by itself: see ``template_answers``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.data.encoding.template import Chat, ChatTemplate, Span, TemplateRefusalError
from training.data.encoding.template_answers import (
    Habits,
    Openings,
    end_answer,
    find_answers,
    find_start,
    has_answer,
    hidden,
)
from training.errors import ModelError

Place = tuple[int, int]
"""A place in a skeleton: the number of a constant, and a character in it."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where records keep what an answer was thought out with, as templates name it."""

WORD = re.compile(r"Qx(\d+)xzQ")
"""What stands for a content in a skeleton: it occurs nowhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The text of all chats with the same roles."""

    constants: tuple[str, ...]
    """What the template writes: one more than there are contents."""

    order: tuple[int, ...]
    """Which message's content stands behind each constant but the last."""

    answers: Mapping[int, tuple[Place, Place]]
    """Turn -> where its answer begins, and where the end token ends."""

    def fill(self, contents: Sequence[str]) -> str:
        """Write the text with these contents."""
        parts = [""] * (2 * len(self.order) + 1)
        parts[::2] = self.constants
        parts[1::2] = [contents[message] for message in self.order]
        return "".join(parts)

    def find_spans(self, contents: Sequence[str]) -> dict[int, Span]:
        """Give each answer's characters in the filled text."""
        begins = [0]
        for constant, message in zip(self.constants[:-1], self.order, strict=True):
            begins.append(begins[-1] + len(constant) + len(contents[message]))
        return {
            turn: (begins[start[0]] + start[1], begins[stop[0]] + stop[1])
            for turn, (start, stop) in self.answers.items()
        }

    def find_openings(self, contents: Sequence[str]) -> Openings:
        """Give the content before each answer, and what the template writes between that and the answer."""
        return {
            turn: (contents[self.order[number - 1]], self.constants[number][:character])
            for turn, ((number, character), _) in self.answers.items()
            if number
        }


def mask(chat: Chat) -> Chat:
    """Put a word that occurs nowhere else in the place of each content that is not empty."""
    return [
        {**message, "content": f"Qx{turn}xzQ" if message["content"].strip() else ""}
        for turn, message in enumerate(chat)
    ]


def build_skeleton(template: ChatTemplate, chat: Chat, habits: Habits) -> Skeleton:
    """Learn what the template writes around the contents of chats like this one.

    Raises:
        TemplateRefusalError: The template fails on such a chat, leaves a message out, or hides an answer.
    """
    masked = mask(chat)
    text = template.render(masked)
    split = WORD.split(text)
    constants, order = tuple(split[::2]), tuple(int(number) for number in split[1::2])
    for turn, message in enumerate(masked):
        if message["content"] and turn not in order:
            raise TemplateRefusalError(f"leaves out the content of messages[{turn}] ({message['role']})")
        if message.get("tool_calls") and not _writes_calls(template, masked, turn, text):
            raise TemplateRefusalError(f"leaves out the tool calls of messages[{turn}]")
        for key in THOUGHTS:
            if message.get(key) and not _writes_thought(template, masked[: turn + 1], key):
                raise TemplateRefusalError(f"leaves out the {key} of messages[{turn}]")
    spans = find_answers(template, masked, text, habits, _find_openings(template, masked, text))
    _check_words(text, spans, masked)
    if not habits.marked:
        _check_opening(template, masked, text, spans)
    bounds = _find_bounds(text)
    answers = {}
    for turn, (start, stop) in spans.items():
        begin, end = _find_place(bounds, start), _find_place(bounds, stop)
        if begin is None or end is None:
            raise hidden(turn)
        answers[turn] = begin, end
    return Skeleton(constants=constants, order=order, answers=answers)


def study_template(template: ChatTemplate, control: re.Pattern[str]) -> Habits:
    """Find out whether and how the answers of a template can be told from the rest.

    Raises:
        ModelError: Neither its marks nor its prefixes are exact, or it ends no answer with a token.
    """
    user, answer = {"role": "user", "content": "Qx0xzQ"}, {"role": "assistant", "content": "Qx1xzQ"}
    try:
        text = template.render([user, answer])
    except TemplateRefusalError as refusal:
        raise ModelError(_advise(f"{template.name} {refusal} (one question and its answer)")) from None
    behind = text.find("Qx1xzQ") + len("Qx1xzQ")
    stop = end_answer(text, behind, control)
    if "Qx1xzQ" not in text or stop is None:
        raise ModelError(
            _advise(
                f"{template.name} writes no special token after an answer: none could be learnt to end it"
            )
        )
    ends = {_last_token(text[:stop], control), *_find_earlier_ends(template, control)}
    reasons = []
    for marked in (True, False) if template.has_marks else (False,):
        habits = Habits(marked=marked, control=control, ends=tuple(sorted(ends)), trailing=text[stop:])
        try:
            build_skeleton(template, [user, answer], habits)
        except TemplateRefusalError as refusal:
            reasons.append(str(refusal))
        else:
            return habits
    raise ModelError(_advise(f"{template.name} {', and '.join(reasons)}"))


def _advise(problem: str) -> str:
    return f"{problem}; set model.chat_template to one whose answers are marked with {{% generation %}}"


def _check_opening(template: ChatTemplate, masked: Chat, text: str, spans: Mapping[int, Span]) -> None:
    """Refuse an answer that begins with a header which no generation prompt writes: it would be learnt."""
    for turn, (start, _) in spans.items():
        word = masked[turn]["content"]
        lead = text[start : text.find(word)].strip() if word and not masked[turn].get("tool_calls") else ""
        if lead and template.render(masked[:turn], prompt=True) == template.render(masked[:turn]):
            raise TemplateRefusalError(
                f"writes {lead!r} before the answer messages[{turn}] and nothing for add_generation_prompt"
            )


def _find_earlier_ends(template: ChatTemplate, control: re.Pattern[str]) -> set[str]:
    """Give the token behind an answer that is not the last: it may be another one."""
    roles = ("user", "assistant", "user")
    chat = [{"role": role, "content": f"Qx{turn}xzQ"} for turn, role in enumerate(roles)]
    try:
        text = template.render(chat)
    except TemplateRefusalError:
        return set()
    stop = end_answer(text, max(text.find("Qx1xzQ"), 0), control)
    return set() if stop is None else {_last_token(text[:stop], control)}


def _last_token(text: str, control: re.Pattern[str]) -> str:
    return [match.group() for match in control.finditer(text)][-1]


def _writes_calls(template: ChatTemplate, masked: Chat, turn: int, text: str) -> bool:
    """Whether the text is another without the turn's tool calls."""
    plain = [*masked[:turn], {**masked[turn], "tool_calls": []}, *masked[turn + 1 :]]
    try:
        return template.render(plain) != text
    except TemplateRefusalError:
        return True


def _writes_thought(template: ChatTemplate, until: Chat, key: str) -> bool:
    """Whether a thought is written while its turn is the last: Qwen 3 drops those of earlier turns."""
    plain = [*until[:-1], {name: value for name, value in until[-1].items() if name != key}]
    try:
        return template.render(plain) != template.render(until)
    except TemplateRefusalError:
        return True


def _find_openings(template: ChatTemplate, masked: Chat, text: str) -> Openings:
    """Find what opens the answers whose chat before them is no prefix of the whole.

    The generation prompt behind the message before must begin what stands there, or go on from it: some
    open a thought for the next answer (DeepSeek R1) which they do not write for answers that are there.
    """
    openings: dict[int, tuple[str, str]] = {}
    for turn, message in enumerate(masked):
        word = message["content"]
        if not has_answer(message) or not word or find_start(template, masked, text, turn) is not None:
            continue
        before = WORD.split(template.render(masked[:turn], prompt=True) if turn else "")
        there = WORD.split(text[: text.find(word)])
        if not before[1:] or not there[1:] or before[-2] != there[-2]:
            continue
        prompt, written = before[-1], there[-1]
        if written.startswith(prompt) or prompt.startswith(written):
            openings[turn] = f"Qx{there[-2]}xzQ", min(prompt, written, key=len)
    return openings


def _check_words(text: str, spans: Mapping[int, Span], masked: Chat) -> None:
    """Make sure that an answer holds its own words once and no others'."""
    for turn, (start, stop) in spans.items():
        own = [str(turn)] if masked[turn]["content"] else []
        if WORD.findall(text[start:stop]) != own or text.count(f"Qx{turn}xzQ") != len(own):
            raise hidden(turn)


def _find_bounds(text: str) -> list[Span]:
    """Give the characters of each constant."""
    words = [match.span() for match in WORD.finditer(text)]
    begins = [0, *(stop for _, stop in words)]
    ends = [*(start for start, _ in words), len(text)]
    return list(zip(begins, ends, strict=True))


def _find_place(bounds: Sequence[Span], character: int) -> Place | None:
    for number, (begin, end) in enumerate(bounds):
        if begin <= character <= end:
            return number, character - begin
    return None

"""What every source yields: one document, whatever file or package it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

TrainOn = Literal["assistant", "last_assistant", "all"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool``."""

    content: str

    weight: Literal[0, 1] = 1
    """0: an answer that is context only."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the chat template may use: ``tool_calls``, ``tool_call_id``, ``name``."""


@dataclass(frozen=True, slots=True)
class Messages:
    """A chat: the assistant's turns are learnt, the others are context."""

    messages: tuple[Message, ...]

    tools: tuple[Mapping[str, Any], ...] = ()
    """Definitions of the functions the assistant may call, for the chat template's ``tools``."""


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """The completion is learnt, the prompt is context."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """Running text: every token is learnt."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One source text, before it is encoded."""

    id: str
    """Names the document in messages: unique in its source, and where it can be found."""

    family: str
    """Documents of one family are wholly in train or wholly held out."""

    source: str
    """The source's name in ``data.sources``."""

    task: str
    """What kind of question it is; results are told by task."""

    content: Messages | PromptCompletion | Text

    train_on: TrainOn = "assistant"
    """Which turns of a chat are targets; ``all`` makes a prompt a target as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a source is made of: kept in the manifest, and part of the corpus's fingerprint."""

    content: dict[str, Any]
    """JSON values that change when the source's documents do."""

    licence: str
    """Under which licence the source may be used; ``unstated`` for the user's own files."""

    notes: dict[str, Any]
    """JSON values worth knowing that say nothing about the documents (a file's time stamp)."""


def sample_evenly(items: list[T], size: int | None) -> list[T]:
    """Take ``size`` items at even distances, always the same ones; all when ``size`` is None or larger."""
    if size is None or size >= len(items):
        return items
    return [items[index * len(items) // size] for index in range(size)]

"""Holds facts against the catalogue: pure. The first cause wins over what follows from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from launcher.why.catalogue import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line of what was found."""

    source: str
    """One of ``catalogue.SOURCES``."""

    text: str
    where: str = ""
    """The file's name, for a person."""

    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A cause, and the facts that speak for it."""

    cause: Cause
    facts: tuple[Fact, ...]
    """The first line of each place in which a sign was found."""


def rank_causes(
    causes: Iterable[Cause], facts: Sequence[Fact], *, completed: bool = False
) -> list[Candidate]:
    """Find the causes whose signs are there, the likeliest first.

    Causes outweigh what follows from them by their weight in the catalogue; of two of the same weight the one
    that was seen in more kinds of places, then the one that is earlier in the catalogue.

    Args:
        causes: The catalogue.
        facts: All lines that were found, of the last start alone.
        completed: The run has: nothing ended it, but something beside it may have failed, or a command that
            was given afterwards.
    """
    by_source: dict[str, list[Fact]] = {}
    for fact in facts:
        by_source.setdefault(fact.source, []).append(fact)
    found = [
        Candidate(cause=cause, facts=seen)
        for cause in causes
        if (seen := _find_signs(cause, by_source)) and (not completed or _is_beside(cause, seen))
    ]
    return sorted(found, key=lambda each: (-each.cause.weight, -len({fact.source for fact in each.facts})))


def _is_beside(cause: Cause, seen: Sequence[Fact]) -> bool:
    return cause.harmless or any(fact.source == "command" for fact in seen)


def _find_signs(cause: Cause, by_source: Mapping[str, Sequence[Fact]]) -> tuple[Fact, ...]:
    first: dict[tuple[str, str], Fact] = {}
    for sign in cause.signs:
        for source in sign.sources:
            for fact in by_source.get(source, ()):
                if (source, fact.where) not in first and sign.pattern.search(fact.text):
                    first[source, fact.where] = fact
    return tuple(first.values())

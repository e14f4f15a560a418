"""Finds the name that was meant."""

import difflib
from collections.abc import Iterable

_MOST = 12
"""Names that fit into a line that somebody reads."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Offer the closest known name, else list what there is; empty when nothing is known."""
    names = sorted(set(known))
    close = find_nearest(name, names)
    if close:
        return f"; did you mean {close}?"
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"; known here: {', '.join(names[:_MOST])}{more}" if names else ""


def show(word: str) -> str:
    """Write a word into a message; an empty one would not be seen."""
    return word or "''"


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that is most like ``name``; None when none is much like it."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None

"""Turns a validation error into the one line a user needs: where, what was found, what was wanted."""

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Describe the first problem in one line, and say how many more there are."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    keys = [str(part) for part in problem["loc"]]
    path = ".".join(keys)
    match problem["type"]:
        case "extra_forbidden":
            known = known_keys(root, keys[:-1])
            line = f"{path} is not a setting{nearest(keys[-1], known)}"
        case "missing":
            line = f"{path} is missing; give it a value, for instance {path}=..."
        case _:
            line = f"{path}={problem['input']!r}: {_wanted(problem['msg'])}"
    more = len(problems) - 1
    return line + (f" (and {more} more)" if more else "")


def nearest(name: str, known: list[str]) -> str:
    """Offer the closest known name, else list what there is; empty when nothing is known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def known_keys(root: type[BaseModel], path: list[str]) -> list[str]:
    """Name the settings below a dotted path; empty where the path leads to no section."""
    sections: list[type[BaseModel]] = [root]
    for key in path:
        found = [
            section
            for candidate in sections
            if key in candidate.model_fields
            for section in _sections(candidate.model_fields[key].annotation)
        ]
        # A mapping's key (data.sources.NAME) or a union's tag names no field: stay where we are.
        sections = found or sections
    return [name for section in sections for name in section.model_fields]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in {typing.Union, types.UnionType, typing.Annotated, dict, list}:
        return [section for part in typing.get_args(annotation) for section in _sections(part)]
    return []


def _wanted(message: str) -> str:
    return f"wanted {message.removeprefix('Input should be ')}".replace("wanted Value error, ", "")

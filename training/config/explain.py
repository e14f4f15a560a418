"""Turns a validation error into the one line a user needs: where, what was found, what was wanted."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from training.config.names import nearest

Problem = Mapping[str, Any]

_WORDS = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_pattern_mismatch": "letters, digits and . _ = , + - only, beginning with a letter or a digit",
    "too_short": "at least one entry",
}


def explain(error: ValidationError, root: type[BaseModel], values: Any) -> str:
    """Describe the first problem in one line, and say how many more settings have one.

    Args:
        error: What pydantic found.
        root: The model that ``values`` were checked against.
        values: What was checked, as it was given.
    """
    problems = error.errors(include_url=False)
    paths = [_typed_path(problem, values) for problem in problems]
    first = paths[0]
    here = [problem for problem, path in zip(problems, paths, strict=True) if path == first]
    line = _describe(here, first, root, values)
    more = len(set(paths)) - 1
    return line + (f" (and {more} more)" if more else "")


def known_keys(root: type[BaseModel], path: Sequence[str], values: Any) -> list[str]:
    """Name the settings below a dotted path; empty where the path leads to no section.

    Where several kinds of section may stand, ``values`` tells which was chosen.
    """
    sections: list[type[BaseModel]] = [root]
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
        found = [
            section
            for candidate in sections
            if key in candidate.model_fields
            for section in _sections(candidate.model_fields[key].annotation)
        ]
        # A mapping's key (data.sources.NAME) names no field: stay where we are.
        sections = found or sections
    chosen = [section for section in sections if _is_kind(section, values)]
    return sorted({name for section in chosen or sections for name in section.model_fields})


def skeleton(section: type[BaseModel]) -> dict[str, Any]:
    """Name all settings of a section and of those in it, without their values."""
    settings: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        below = _sections(field.annotation)
        settings[name] = skeleton(below[0]) if len(below) == 1 else None
    return settings


def _typed_path(problem: Problem, values: Any) -> tuple[str, ...]:
    """Give the path as the user would type it: without the names of union members that pydantic adds."""
    path: list[str] = []
    location = problem["loc"]
    for number, part in enumerate(location):
        if isinstance(values, Mapping):
            is_key = part in values or (
                number == len(location) - 1 and problem["type"] in {"missing", "extra_forbidden"}
            )
            if is_key:
                path.append(str(part))
                values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            path.append(str(part))
            values = values[part] if part < len(values) else None
    return tuple(path)


def _describe(here: Sequence[Problem], keys: tuple[str, ...], root: type[BaseModel], values: Any) -> str:
    path = ".".join(keys)
    problem = here[0]
    found = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            section = "".join(f"{key}." for key in keys[:-1])
            known = [section + name for name in known_keys(root, keys[:-1], values)]
            return f"{path} is not a setting{nearest(path, known)}"
        case "missing":
            return f"{path} is missing; give it a value, for instance {path}=..."
        case "model_type" | "model_attributes_type":
            example = next(iter(known_keys(root, keys, values)), "KEY")
            return (
                f"{path}={_show(found)}: this is a section; set its parts, for instance {path}.{example}=..."
            )
        case "union_tag_not_found":
            return f"{path}.kind is missing; give it a value, for instance {path}.kind=..."
        case "union_tag_invalid":
            tags = [tag.strip("' ") for tag in problem["ctx"]["expected_tags"].split(",")]
            return f"{path}.kind={problem['ctx']['tag']}: wanted one of {', '.join(tags)}" + _meant(
                problem["ctx"]["tag"], tags
            )
    wanted = " or ".join(dict.fromkeys(_wanted(each) for each in here))
    return f"{path}={_show(found)}: wanted {wanted}{_hint(problem, path)}"


def _wanted(problem: Problem) -> str:
    if problem["type"] == "literal_error":
        return str(problem["ctx"]["expected"])
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if message.startswith(("greater than", "less than")):
        message = f"a number {message}"
    return _WORDS.get(problem["type"], message)


def _hint(problem: Problem, path: str) -> str:
    """Say how to type what was probably meant."""
    found = problem["input"]
    match problem["type"]:
        case "literal_error" if isinstance(found, str):
            return _meant(found, [name.strip("' ") for name in _names(problem["ctx"]["expected"])])
        case "string_type" if isinstance(found, int | float):
            return f"; quote it: {path}='\"{_show(found)}\"'"
        case "list_type" if isinstance(found, str):
            return f"; put it in brackets: '{path}=[{found}]'"
    return ""


def _names(expected: str) -> list[str]:
    return expected.replace(" or ", ",").split(",")


def _meant(name: str, known: Sequence[str]) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("; did you mean") else ""


def _show(found: Any) -> str:
    """Write a value as YAML would."""
    match found:
        case None:
            return "null"
        case bool():
            return str(found).lower()
        case "":
            return "''"
    return str(found)


def _is_kind(section: type[BaseModel], values: Any) -> bool:
    field = section.model_fields.get("kind")
    chosen = values.get("kind") if isinstance(values, Mapping) else None
    return field is not None and chosen in typing.get_args(field.annotation)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in {typing.Union, types.UnionType, typing.Annotated, dict, list}:
        return [section for part in typing.get_args(annotation) for section in _sections(part)]
    return []

"""The one line for an override that leads nowhere: what was typed, what was probably meant."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.tree import GROUPS, ConfigTree
from training.config.names import find_nearest, nearest, show

# Mappings whose keys are the user's own: a new one is added with a +.
FREE_MAPPINGS = (
    "model.architecture",
    "strategy.deepspeed_extra",
    "optimizer.rate_factors",
    "data.sources",
    "data.mixture.shares",
    "cluster.environment.variables",
)


def unknown_key(path: str, values: Mapping[str, Any]) -> str:
    """Say that no setting has this dotted path, with the nearest that exists in ``values``."""
    for mapping in FREE_MAPPINGS:
        if path == mapping:
            return f"{mapping} takes new names with a plus: +{mapping}.NAME=... or '+{mapping}={{NAME: ...}}'"
        if path.startswith(f"{mapping}."):
            return _unknown_in_mapping(path, mapping, values)
    known = sorted(setting_paths(values))
    last = path.rpartition(".")[2]
    same_name = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    if same_name:
        return f"{path} is not a setting; did you mean {' or '.join(same_name)}?"
    parent, siblings = _deepest(path, values)
    if parent:
        return f"{path} is not a setting{_below(path, parent, siblings)}"
    close = find_nearest(path, [*known, *GROUPS, *values])
    if close:
        return f"{path} is not a setting; did you mean {close}?"
    return f"{path} is not a setting{nearest(path.partition('.')[0], [*values, *GROUPS])}"


def unknown_choice(group: str, choice: object, tree: ConfigTree) -> str:
    """Say that a group has no such file, with the nearest that it has."""
    shown = "null" if choice is None else choice
    return f"{group}={shown}: there is no such {group}{nearest(str(shown), tree.choices(group))}"


def missing_name(tree: ConfigTree) -> str:
    """Say that a run needs an experiment or a name, and list the experiments."""
    experiments = ", ".join(tree.choices("experiment"))
    return f"name is missing; choose an experiment, experiment=NAME, of {experiments}; or give name=..."


def unreadable(text: str, tree: ConfigTree) -> str:
    """Say that an override is no override, and how it would be one."""
    if text in tree.choices("experiment"):
        return f"{text}: wanted KEY=VALUE; did you mean experiment={text}?"
    key, equals, value = text.partition("=")
    if not equals:
        return f"{show(text)}: wanted KEY=VALUE, for instance experiment=tiny_smoke"
    if not key.lstrip("+~"):
        return f"{text}: there is no key in front of the =; wanted KEY=VALUE"
    plain = value.replace("'", "").replace('"', "")
    path = key.lstrip("+~")
    mapping = next((each for each in FREE_MAPPINGS if f"{path}.".startswith(f"{each}.")), None)
    if mapping is not None:
        name = path.removeprefix(mapping).lstrip(".")
        entries = f"{{{name}: {plain}}}" if name else re.sub(r":(?=\S)", ": ", plain)
        return f"{text}: cannot be read; names stand in braces, without quotes: '+{mapping}={entries}'"
    return (
        f"{text}: the value cannot be read; close its brackets and quotes, or quote it whole: "
        f"'{key}=\"{plain}\"'"
    )


def setting_paths(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Name every setting by its dotted path."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from setting_paths(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def _below(path: str, parent: str, siblings: Sequence[str]) -> str:
    close = find_nearest(path.removeprefix(f"{parent}."), siblings)
    if close:
        return f"; did you mean {parent}.{close}?"
    return f"; {parent} has {', '.join(sorted(siblings)) or 'no parts'}"


def _unknown_in_mapping(path: str, mapping: str, values: Mapping[str, Any]) -> str:
    parent, siblings = _deepest(path, values)
    name = path.removeprefix(f"{parent}.").partition(".")[0]
    return (
        f"{path} is not a setting{nearest(name, siblings)}{'' if siblings else f'; {parent} is empty'}"
        f"; a new key of {mapping} is added with a plus: +{path}=..."
    )


def _deepest(path: str, values: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    """Follow a path as far as it goes; give that part and the names below it."""
    parts: list[str] = []
    here: Any = values
    for part in path.split("."):
        if not isinstance(here, Mapping) or part not in here:
            break
        parts.append(part)
        here = here[part]
    return ".".join(parts), list(here) if isinstance(here, Mapping) else []

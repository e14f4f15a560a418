"""Reads the command line: a verb, Hydra overrides, and a few flags anywhere between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.tools import TOOLS, VALUED, read_node_rank
from training.config.names import nearest, show
from training.errors import ConfigError

COMPOSED_VERBS = ("prepare", "audit", "train", "evaluate", "export", "run")
"""Verbs that take KEY=VALUE and compose a configuration."""

VERBS = (*COMPOSED_VERBS, *TOOLS)
_FLAGS = ("--help", "--version", "--multirun", "--follow", "--cfg", "--config-dir", "--node-rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What was typed."""

    verb: str | None
    overrides: tuple[str, ...]
    multirun: bool
    show_help: bool
    show_version: bool
    show_config: bool
    follow: bool
    node_rank: int | None
    """Of a host that starts its share of a training: its number."""

    config_dir: Path | None
    tool_flags: tuple[tuple[str, str], ...]
    """Flags of a verb that reads its own words, with what followed their ``=``."""


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Tell verb, flags and overrides apart.

    Raises:
        ConfigError: A verb or a flag is unknown, or a flag's value is missing.
    """
    verb: str | None = None
    overrides: list[str] = []
    switches: set[str] = set()
    config_dir: Path | None = None
    node_rank: int | None = None
    tool_flags: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        flag, _, value = word.partition("=")
        match flag:
            case "-h" | "--help" | "--version":
                switches.add({"-h": "--help"}.get(flag, flag))
            case "-cd" | "--config-dir":
                config_dir = Path(value or _value_of(flag, rest))
            case _ if word.startswith("-") and verb in TOOLS:
                tool_flags.append((flag, value or (_value_of(flag, rest) if flag in VALUED else "")))
            case "--node-rank" if verb == "train":
                node_rank = read_node_rank(value or next(rest, ""))
            case "-f" | "--follow" | "-m" | "--multirun":
                switches.add({"-f": "--follow", "-m": "--multirun"}.get(flag, flag))
            case "-c" | "--cfg":
                _check_cfg(value or next(rest, ""))
                switches.add("--cfg")
            case _ if word.startswith("-"):
                raise ConfigError(_unknown_flag(flag))
            case _ if verb is None:
                verb = _check_verb(word)
            case _:
                overrides.append(word)
    return Arguments(
        verb=verb,
        overrides=tuple(overrides),
        multirun="--multirun" in switches,
        show_help="--help" in switches,
        show_version="--version" in switches,
        show_config="--cfg" in switches,
        follow="--follow" in switches,
        node_rank=node_rank,
        config_dir=config_dir,
        tool_flags=tuple(tool_flags),
    )


def _check_verb(word: str) -> str:
    if word not in VERBS:
        if "=" in word:
            raise ConfigError(f"{word}: first say what to do: metier {'|'.join(COMPOSED_VERBS)} {word}")
        raise ConfigError(f"{show(word)} is not a verb{nearest(word, VERBS)}")
    return word


def _check_cfg(value: str) -> None:
    if value != "job":
        raise ConfigError(f"--cfg {value or '(nothing)'}: wanted --cfg job")


def _value_of(flag: str, rest: Iterator[str]) -> str:
    value = next(rest, "")
    if not value:
        what = "a value" if flag in VALUED else "a folder"
        raise ConfigError(f"{flag} needs {what} after it")
    return value


def _unknown_flag(flag: str) -> str:
    if flag == "--node-rank":
        return "--node-rank is for `metier train`, `metier scale` and `metier preflight`, after the verb"
    if flag == "--dry-run":
        return "--dry-run is not a flag; write dry_run=true"
    return f"{flag} is not a flag{nearest(flag, _FLAGS)}; a setting is written without dashes, KEY=VALUE"

"""run.json: the frozen configuration and the versions it was made with."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.config.explain import explain
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.files import write_json

MODEL_REVISION = "model_revision"
"""Among the versions: the commit of the hub that the model was loaded from."""


def check_config(values: dict[str, Any]) -> RunConfig:
    """Give plain values their types.

    Raises:
        ConfigError: A key is unknown or missing, or a value does not fit; one line.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, values)) from None


def write_frozen(path: Path, config: RunConfig, versions: dict[str, str]) -> None:
    """Write ``config`` and the versions of what runs it, complete or not at all."""
    write_json(path, {"config": config.model_dump(mode="json"), "versions": versions})


def note_version(path: Path, name: str, version: str) -> None:
    """Add to the versions of a frozen configuration what is known only once a run has begun.

    Raises:
        StorageError: It cannot be written.
    """
    frozen = json.loads(path.read_text(encoding="utf-8"))
    if frozen["versions"].get(name) != version:
        frozen["versions"][name] = version
        write_json(path, frozen)


def read_frozen(path: Path) -> RunConfig:
    """Read what ``write_frozen`` wrote.

    Raises:
        ConfigError: The file is missing or not a frozen configuration.
    """
    try:
        return check_config(json.loads(path.read_text(encoding="utf-8"))["config"])
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; start the run with `metier train` first") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError, KeyError, TypeError):
        raise ConfigError(f"{path} is not a frozen configuration; remove it and start again") from None

"""run.json: the frozen configuration, the versions it was made with, and which run it is."""

import json
import secrets
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.config.explain import explain
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.files import write_json

MODEL_REVISION = "model_revision"
"""Among the versions: the commit of the hub that the model was loaded from."""
_ID_BYTES = 8


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
    """Write ``config`` and the versions of what runs it, complete or not at all; the run stays the same."""
    run_id = read_run_id(path) if path.exists() else secrets.token_hex(_ID_BYTES)
    write_json(path, {"run_id": run_id, "config": config.model_dump(mode="json"), "versions": versions})


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
    return check_config(_read(path, "config"))


def read_run_id(path: Path) -> str:
    """Read which run it is: by this its checkpoints are known.

    Raises:
        ConfigError: The file is missing or not a frozen configuration.
    """
    return str(_read(path, "run_id"))


def _read(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; start the run with `metier train` first") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is not a frozen configuration; put the former one back, or start under another name"
        ) from None

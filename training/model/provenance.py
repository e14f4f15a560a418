"""What `metier prepare` made a model's folder of, told in the folder itself. Without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config.learning import ModelConfig
from training.errors import ModelError

PROVENANCE = "metier.json"


def describe_source(model: ModelConfig) -> dict[str, Any]:
    """Name what a folder is made of, without a path of this machine."""
    if model.source == "gguf":
        return {"source": "gguf", "file": _last_part(model.path)}
    return {
        "source": "scratch",
        "architecture": model.architecture,
        "tokenizer": _last_part(model.tokenizer),
    }


def check_source(folder: Path, record: Mapping[str, Any]) -> None:
    """Make sure that a folder was made of what is asked for.

    Raises:
        ModelError: It was made of something else, or by somebody else.
    """
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ModelError(
            f"model.folder={folder} holds a model that `metier prepare` did not write; name another "
            f"folder, or use it as it is with model.source=huggingface model.path={folder}"
        ) from None
    for key, wanted in record.items():
        if found.get(key) != wanted:
            here, asked = _show(found.get(key), wanted)
            raise ModelError(
                f"model.folder={folder} was made with {key}={here}, wanted {key}={asked}; "
                "name another model.folder or remove this one"
            )


def _show(found: Any, wanted: Any) -> tuple[Any, Any]:
    """Show of two mappings what differs alone."""
    if not isinstance(found, Mapping) or not isinstance(wanted, Mapping):
        return found, wanted
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return {key: found.get(key) for key in keys}, {key: wanted.get(key) for key in keys}


def _last_part(path: str | None) -> str:
    return (path or "").rsplit("/", 1)[-1]

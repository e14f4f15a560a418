"""Where a model lies: its folder, its name on the hub, or what the hub's cache has of that. Without torch."""

import os
from pathlib import Path

from training.config.learning import ModelConfig
from training.errors import ModelError

CONFIG = "config.json"


def find_model_folder(model: ModelConfig) -> str:
    """Give the folder, or the hub name, from which the model and its tokenizer are loaded.

    Raises:
        ModelError: The folder is missing, was not written yet, or holds no config.json.
    """
    if model.source != "huggingface":
        folder = Path(model.folder or "")
        if not (folder / CONFIG).is_file():
            raise ModelError(
                f"model.folder={folder} holds no model yet; run `metier prepare` with the same settings first"
            )
        return str(folder)
    name = model.path or ""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ModelError(f"model.path={name} holds no {CONFIG}; name a Hugging Face model folder")
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        raise ModelError(f"model.path={name} does not exist; name a Hugging Face model folder or a hub name")
    return name


def find_snapshot(name: str) -> Path | None:
    """Find the folder of the hub's cache that a model's name stands for now; None where it has none.

    A name without a revision means `main`, and `refs/main` says which commit that was when it was fetched
    last (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    repository = _find_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def find_revision(model: ModelConfig) -> str | None:
    """Name the commit of the hub that a model was loaded from; None for a folder of this machine.

    Raises:
        ModelError: ``model.path`` is neither a model folder nor can be a name on the hub.
    """
    name = find_model_folder(model)
    snapshot = None if Path(name).is_dir() else find_snapshot(name)
    return snapshot.name if snapshot else None


def _find_cache() -> Path:
    if own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"

"""Which code runs: the versions of the packages and the commit of a clone."""

import importlib.metadata
import platform
import subprocess

from launcher.tree import OWN_FOLDER

_PACKAGES = (
    "metier",
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "pyarrow",
    "safetensors",
    "numpy",
    "wandb",
    "hydra-core",
    "pydantic",
)


def find_versions() -> dict[str, str]:
    """Name what is installed, Python included; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = find_commit()
    return versions | ({"commit": commit} if commit else {})


def find_commit() -> str | None:
    """Find the commit of the clone that this code lies in, `-changed` added where files differ from it."""
    root = OWN_FOLDER.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-changed" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(OWN_FOLDER.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()

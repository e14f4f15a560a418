"""The folders of YAML: which groups there are, their choices, and what each says of itself."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.errors import ConfigError

# Beside the package in a clone, and beside it in site-packages as well.
OWN_FOLDER = Path(__file__).resolve().parent.parent / "configs"

# In the order in which a reader meets them.
GROUPS = (
    "experiment",
    "model",
    "data",
    "adapter",
    "strategy",
    "optimizer",
    "schedule",
    "cluster",
    "tracker",
    "evaluation",
)


@dataclass(frozen=True, slots=True)
class ConfigTree:
    """Our own configuration folder, with the user's in front of it where there is one."""

    user_folder: Path | None

    @classmethod
    def open(cls, user_folder: Path | None) -> "ConfigTree":
        """Make sure that the user's folder is there.

        Raises:
            ConfigError: It is not.
        """
        if user_folder is not None and not user_folder.is_dir():
            raise ConfigError(
                f"--config-dir {user_folder}: there is no such folder; give a folder that holds "
                "experiment/NAME.yaml or files of another group"
            )
        return cls(user_folder.resolve() if user_folder else None)

    @property
    def folders(self) -> tuple[Path, ...]:
        """First the user's, then ours."""
        return (self.user_folder, OWN_FOLDER) if self.user_folder else (OWN_FOLDER,)

    def choices(self, group: str) -> list[str]:
        """Name the files of a group, without their ending."""
        return _choices(self.folders, group)

    def source_defaults(self, kind: str) -> dict[str, Any]:
        """Give what a source of this kind says unless it says otherwise; empty for an unknown kind.

        Raises:
            ConfigError: The user's file cannot be read.
        """
        for folder in self.folders:
            path = folder / "source" / f"{kind}.yaml"
            if path.is_file():
                return _read_mapping(path)
        return {}

    def summary(self, group: str, choice: str) -> str:
        """Give the first comment line of a choice's file, what it says of itself; may be empty."""
        for folder in self.folders:
            path = folder / group / f"{choice}.yaml"
            if path.is_file():
                return _first_comment(path.read_text(encoding="utf-8"))
        return ""


@functools.cache
def _choices(folders: tuple[Path, ...], group: str) -> list[str]:
    found = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
        if not path.name.startswith("_")  # shared by the choices, no choice itself
    }
    return sorted(found)


def _first_comment(text: str) -> str:
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            return line.removeprefix("#").strip()
    return ""


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a mapping")
    return values

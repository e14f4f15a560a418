"""Which run is meant: a folder, or a name below the folder of all runs."""

import re
from collections.abc import Sequence
from pathlib import Path

from training.config.names import nearest
from training.errors import ConfigError
from training.layout import RunLayout
from training.verdict import UNNAMED

RUN_ROOT = "runs"
"""Where runs lie unless ``run_root=DIR`` is said."""


_SETTING = re.compile(r"[a-z_][a-z0-9_.]*")


def split_words(
    words: Sequence[str], known: Sequence[str] = ("run_root",)
) -> tuple[list[str], dict[str, str]]:
    """Tell names of runs from settings: a run of a sweep has an equals sign in its name.

    Raises:
        ConfigError: A setting is unknown, or said twice.
    """
    names: list[str] = []
    settings: dict[str, str] = {}
    run_root = next((word.partition("=")[2] for word in words if word.startswith("run_root=")), RUN_ROOT)
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or (key not in known and _may_be_run(word, key, run_root)):
            names.append(word)
            continue
        if key not in known:
            raise ConfigError(f"{key} is no setting of this{nearest(key, known)}")
        if key in settings:
            raise ConfigError(f"{key}={settings[key]} {key}={value}: say {key} once")
        settings[key] = value
    return names, settings


def _may_be_run(word: str, key: str, run_root: str) -> bool:
    return not _SETTING.fullmatch(key) or is_run(Path(word)) or is_run(Path(run_root) / word)


def find_run(name: str, run_root: str = RUN_ROOT) -> RunLayout:
    """Find a run by its folder or by its name.

    Raises:
        ConfigError: There is none; what was perhaps meant is said.
    """
    for folder in (Path(name), Path(run_root) / name) if name else ():
        if is_run(folder):
            return RunLayout(folder.absolute())
    known = sorted(layout.root.name for layout in list_runs(run_root))
    if not name:
        raise ConfigError(f"'' is no run's name{nearest(name, known)}")
    raise ConfigError(
        f"{name} is no run, neither {name}/run.json nor {run_root}/{name}/run.json exists"
        f"{nearest(name, known)}"
    )


def find_one_run(names: Sequence[str], verb: str, run_root: str = RUN_ROOT) -> RunLayout:
    """Find the one run that a verb was given.

    Raises:
        ConfigError: None was named, or several, or it does not exist.
    """
    if not names:
        raise ConfigError(f"name a run: metier {verb} RUN")
    if names[1:]:
        raise ConfigError(f"{names[1]}: one run at a time")
    return find_run(names[0], run_root)


def list_runs(run_root: str = RUN_ROOT) -> list[RunLayout]:
    """List the runs of a folder by name."""
    root = Path(run_root)
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [RunLayout(folder.absolute()) for folder in folders if is_run(folder)]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it has a run.json, or has lost it and still has checkpoints.

    That of a preflight which belongs to no run is none.
    """
    return folder.name != UNNAMED and _has_files(folder)


def _has_files(folder: Path) -> bool:
    return (folder / "run.json").is_file() or any((folder / "checkpoints").glob("step_*"))

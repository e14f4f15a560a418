"""Composes the YAML tree and the overrides into one checked configuration: the only file that knows Hydra."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.misspelt import FREE_MAPPINGS, missing_name, unknown_choice, unknown_key, unreadable
from launcher.tree import GROUPS, OWN_FOLDER, ConfigTree
from training.config.explain import skeleton
from training.config.freeze import check_config
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.rules.check import check_rules

_MISSING = "???"
_UNKNOWN_KEY = re.compile(r"Could not override '([^']*)'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """What the user asked for: a run, and whether only to talk about it."""

    config: RunConfig
    dry_run: bool
    after: str | None
    """A job's number or a run's name that must have ended well before this one may begin."""


def compose_run(overrides: Sequence[str], tree: ConfigTree, suffix: str = "") -> Composed:
    """Compose and check one run, whose name gets ``suffix``.

    Raises:
        ConfigError: An override leads nowhere, or a value or a combination cannot be; one line.
    """
    values = compose_values(overrides, tree)
    if values["name"] == _MISSING:
        raise ConfigError(missing_name(tree))
    for path in _missing_paths(values):
        raise ConfigError(f"{path} is missing; give it a value, for instance {path}=...")
    values["name"] = f"{values['name']}{suffix}" if suffix else values["name"]
    composed = _type(values)
    check_rules(composed.config)
    return composed


def compose_typed(overrides: Sequence[str], tree: ConfigTree) -> RunConfig:
    """Compose one run whose values have their types, and may not go together yet.

    Raises:
        ConfigError: An override leads nowhere, or a value cannot be; one line.
    """
    return _type(compose_values(overrides, tree)).config


def _type(values: dict[str, Any]) -> Composed:
    dry_run = values.pop("dry_run")
    if not isinstance(dry_run, bool):
        raise ConfigError(f"dry_run={dry_run}: wanted true or false")
    after = values.pop("after")
    return Composed(config=check_config(values), dry_run=dry_run, after=None if after is None else str(after))


def compose_values(overrides: Sequence[str], tree: ConfigTree) -> dict[str, Any]:
    """Compose plain values, unchecked; what must still be given is ``???``.

    Raises:
        ConfigError: An override leads nowhere, or a file cannot be read.
    """
    with _hydra(tree):
        return _compose(_parse(overrides, tree, sweep=False), tree)


def overridden_paths(overrides: Sequence[str], tree: ConfigTree) -> list[str]:
    """Name what the overrides touch, as dotted paths; a group counts as its section."""
    with _hydra(tree):
        return [override.key_or_group for override in _parse(overrides, tree, sweep=False)]


def parse_sweep(overrides: Sequence[str], tree: ConfigTree) -> list[tuple[str, list[tuple[str, str]]]]:
    """Read overrides with several values: for each key its overrides, each with the value as text.

    Returns:
        One entry per key, in order: the key, and (override, value) for each of its values.

    Raises:
        ConfigError: An override cannot be read or swept.
    """
    swept: dict[str, list[tuple[str, str]]] = {}
    with _hydra(tree):
        for override in _parse(overrides, tree, sweep=True):
            key = override.get_key_element()
            if not override.is_sweep_override():
                text = override.input_line or ""
                swept[key] = [(text, text.partition("=")[2])]
            elif override.is_discrete_sweep():
                swept[key] = [(f"{key}={value}", value) for value in override.sweep_string_iterator()]
            else:
                raise ConfigError(f"{override.input_line}: use values with commas, choice() or range()")
    return list(swept.items())


def _compose(overrides: Sequence[Override], tree: ConfigTree) -> dict[str, Any]:
    texts = [override.input_line or "" for override in overrides]
    try:
        composed = compose("config", texts)
        values = OmegaConf.to_container(composed, resolve=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration cannot be read: {_one_line(error)}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        unknown = _UNKNOWN_KEY.search(str(error))
        groups = [each for each in overrides if each.key_or_group in GROUPS]
        if unknown and len(groups) < len(overrides):
            raise ConfigError(unknown_key(unknown[1], _known_values(unknown[1], groups, tree))) from None
        raise ConfigError(_translate(error)) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{OWN_FOLDER / 'config.yaml'} is not a mapping")
    _fill_sources(values, tree)
    return {str(key): value for key, value in values.items()}


def _fill_sources(values: dict[Any, Any], tree: ConfigTree) -> None:
    # A source that the user added, +data.sources.NAME={kind: ...}, need not repeat what its kind says.
    data, evaluation = values.get("data"), values.get("evaluation")
    if isinstance(data, dict) and isinstance(sources := data.get("sources"), dict):
        data["sources"] = {name: _filled(source, tree) for name, source in sources.items()}
    if isinstance(evaluation, dict):
        evaluation["general"] = _filled(evaluation.get("general"), tree)


def _filled(source: Any, tree: ConfigTree) -> Any:
    if not isinstance(source, dict) or not isinstance(source.get("kind"), str):
        return source
    return {**tree.source_defaults(source["kind"]), **source}


def _known_values(path: str, groups: Sequence[Override], tree: ConfigTree) -> Mapping[str, Any]:
    """Give what there is to choose from, by the schema, which is at hand, where that knows it."""
    if path.startswith(FREE_MAPPINGS):
        return _compose(groups, tree)
    return {**skeleton(RunConfig), "dry_run": None, "after": None}


def _parse(overrides: Sequence[str], tree: ConfigTree, *, sweep: bool) -> list[Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            raise ConfigError(unreadable(text, tree)) from None
        _check_override(override, text, tree, sweep=sweep)
        if override.key_or_group == "experiment" and override.value() is None:
            continue
        parsed.append(override)
    return parsed


def _check_override(override: Override, text: str, tree: ConfigTree, *, sweep: bool) -> None:
    key = override.key_or_group
    if not key:
        raise ConfigError(unreadable(text, tree))
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{text}: Hydra only composes here; use run_root=... and --config-dir instead")
    if override.is_sweep_override() and not sweep:
        raise ConfigError(
            f"{text} gives several values; add -m to run one after another, "
            f"or quote them if this is one value: '{key}=\"...\"'"
        )
    if key not in GROUPS:
        return
    if override.package is not None:
        raise ConfigError(f"{text}: a group has one place here; write {key}=...")
    if override.is_add():
        raise ConfigError(f"{text}: {key} is chosen without a plus: {text.lstrip('+')}")
    chosen = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
    for choice in chosen:
        no_experiment = key == "experiment" and choice in (None, "null")
        if not no_experiment and choice not in tree.choices(key) and not override.is_delete():
            raise ConfigError(unknown_choice(key, choice, tree))


def _missing_paths(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _missing_paths(value, f"{before}{key}.")
        elif value == _MISSING:
            yield f"{before}{key}"


def _translate(error: Exception) -> str:
    text = str(error)
    nothing = re.search(r"Could not delete from config. '([^']*)' does not exist", text)
    if nothing:
        return f"~{nothing[1]}: there is no such setting to remove"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {text.splitlines()[0]}"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


class _UserFolderFirst(SearchPathPlugin):  # type: ignore[misc]  # Hydra is not typed
    """Puts the user's folder in front of ours; Hydra itself would put it behind."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it looks for files."""
        if self.folder is not None:
            search_path.prepend("user", f"file://{self.folder}", anchor="main")


@contextmanager
def _hydra(tree: ConfigTree) -> Iterator[None]:
    plugins = Plugins.instance()
    if _UserFolderFirst not in plugins.discover(SearchPathPlugin):
        plugins.register(_UserFolderFirst)
    _UserFolderFirst.folder = tree.user_folder
    with initialize_config_dir(str(OWN_FOLDER), version_base=None):
        yield

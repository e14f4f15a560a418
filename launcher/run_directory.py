"""The run directory's beginning: run.json is written once, and a changed configuration is refused."""

from collections.abc import Iterable, Mapping
from typing import Any

from launcher.versions import find_versions
from training.config.freeze import check_config, read_frozen, write_frozen
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.layout import RunLayout
from training.rules.check import check_rules

# What may change between two starts: the trained weights do not depend on it, or only by rounding.
_FREE = (
    "tracker",
    "evaluation",
    "export",
    "prepare",
    "loader",
    "audit",
    "cluster",
    "strategy",
    "batch.micro_batch_size",
    "loop.log_every_steps",
    "loop.keep_checkpoints",
    "loop.keep_every_steps",
    "loop.checkpoint_every_steps",
)
# Of those, what changes the arithmetic in ways that we do not know.
_BOUND = ("strategy.deepspeed_extra",)
_SHOWN_DIFFERENCES = 5


def find_layout(config: RunConfig) -> RunLayout:
    """Name the run's directory, absolute."""
    return RunLayout.of(config.run_root, config.name)


def freeze_run(config: RunConfig) -> RunLayout:
    """Create the run directory with its run.json, or make sure that it is the same run's.

    Raises:
        ConfigError: The directory belongs to a run with other settings.
        StorageError: It cannot be written.
    """
    layout = find_layout(config)
    check_same_run(config)
    if layout.config.exists():
        if _dump(read_frozen(layout.config)) == _dump(config):
            return layout
    elif any(layout.checkpoints.glob("step_*")):
        raise ConfigError(
            f"{layout.root} has checkpoints and no run.json, which says whose they are; put it back, or give "
            "another name=..."
        )
    write_frozen(layout.config, config, find_versions())
    return layout


def check_same_run(config: RunConfig) -> None:
    """Make sure that a run of this name, where there is one, has these settings.

    A run of which no rank ever came as far as to claim it (a start that was refused, a command that was only
    printed) has nothing to lose.

    Raises:
        ConfigError: The directory belongs to a run with other settings.
    """
    layout = find_layout(config)
    begun = any(layout.incarnations.glob("*.json")) or any(layout.checkpoints.glob("step_*"))
    if layout.config.exists() and begun:
        refuse_differences(read_frozen(layout.config), config)


def recall_run(config: RunConfig, overridden: Iterable[str]) -> RunConfig:
    """Give an existing run's settings with what the user said anew: evaluation.*, export.* and the like.

    For this time alone: run.json stays what the run was trained with.

    Args:
        config: What was composed; where no experiment was named, it is known by its name alone.
        overridden: The dotted paths that the command line set.

    Raises:
        ConfigError: The run does not exist, or what trained it was said otherwise.
    """
    layout = find_layout(config)
    if not layout.config.exists():
        raise ConfigError(f"{layout.root} is no run, it has no run.json; start it with `metier train` first")
    frozen = read_frozen(layout.config)
    paths = [path for path in overridden if path not in {"name", "run_root", "dry_run", "after"}]
    free = [path for path in paths if _is_free(path)]
    if len(free) < len(paths):
        refuse_differences(frozen, config)
    values, said = _dump(frozen), _dump(config)
    for path in free:
        _copy(path, said, values)
    # Where the run lies now counts, not where it lay when it was frozen: it may have been moved.
    values |= {"name": config.name, "run_root": config.run_root}
    wanted = check_config(values)
    check_rules(wanted)
    return wanted


def refuse_differences(frozen: RunConfig, config: RunConfig) -> None:
    """Refuse settings that would make another run under the same name.

    Raises:
        ConfigError: Some differ; the line shows them, old -> new.
    """
    found = [
        f"{path}: {old} -> {new}" for path, old, new in find_differences(frozen, config) if not _is_free(path)
    ]
    if found:
        shown = ", ".join(found[:_SHOWN_DIFFERENCES])
        more = f" and {len(found) - _SHOWN_DIFFERENCES} more" if len(found) > _SHOWN_DIFFERENCES else ""
        root = find_layout(config).root
        raise ConfigError(
            f"{root} is a run with other settings ({shown}{more}); "
            "give another name=..., or remove that folder"
        )


def find_differences(frozen: RunConfig, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """List what differs: dotted path, old value, new value; where the run lies is no difference."""
    old, new = dict(_flatten(_dump(frozen))), dict(_flatten(_dump(config)))
    paths = [*old, *(path for path in new if path not in old)]
    return [
        (path, _show(old, path), _show(new, path))
        for path in paths
        if path != "run_root" and (path not in old or path not in new or old[path] != new[path])
    ]


def _dump(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _is_free(path: str) -> bool:
    return _is_below(path, _FREE) and not _is_below(path, _BOUND)


def _is_below(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _flatten(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _show(values: Mapping[str, Any], path: str) -> str:
    if path not in values:
        return "(absent)"
    value = values[path]
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def _copy(path: str, source: Mapping[str, Any], target: dict[str, Any]) -> None:
    *parents, last = path.split(".")
    for key in parents:
        source, target = source[key], target[key]
    target[last] = source[last]

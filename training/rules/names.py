"""Do the patterns and module names of the configuration match a model's?

Asked twice, in the same words: on the login node, of the names in the model's files, and of the model itself.
"""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from training.config.names import nearest
from training.errors import ConfigError, ModelError


def match_frozen(patterns: Iterable[str], parameters: Collection[str]) -> set[str]:
    """Give the parameters that ``adapter.frozen`` matches.

    Raises:
        ModelError: A pattern matches none, or all of them are matched.
    """
    frozen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in parameters if fnmatchcase(name, pattern)}
        if not matched:
            meant = nearest(pattern.strip("*."), parameters)
            raise ModelError(
                f"adapter.frozen: {pattern} matches no parameter{meant}; a pattern covers the whole name, as "
                "*.layers.0.* does"
            )
        frozen |= matched
    if len(frozen) == len(parameters):
        raise all_frozen()
    return frozen


def all_frozen() -> ModelError:
    """Say that nothing is left to train."""
    return ModelError("adapter.frozen covers every parameter; leave some to train")


def check_rate_factors(patterns: Iterable[str], trained: Collection[str]) -> None:
    """Make sure that each pattern of ``optimizer.rate_factors`` matches a parameter that is trained.

    Raises:
        ConfigError: One matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trained):
            raise ConfigError(
                f"optimizer.rate_factors.{pattern} matches no trained parameter, the first of which is "
                f"{next(iter(trained))}; a pattern covers the whole name, as *lora_B* does"
            )


def check_targets(targets: str | Iterable[str], linear: Iterable[str]) -> None:
    """Make sure that ``adapter.targets`` names linear layers of the model's body.

    Raises:
        ModelError: One of them is none.
    """
    names = list(linear)
    for target in [] if isinstance(targets, str) else targets:
        if not _find(target, names):
            raise ModelError(
                f"adapter.targets names {target}, which is no linear layer of the model's body; "
                f"it has {', '.join(_last_parts(names))}; or use all-linear"
            )


def check_trained_modules(
    trained: Iterable[str], parameters: Iterable[str], four_bit: Collection[str]
) -> None:
    """Make sure that ``adapter.trained_modules`` names modules that can be trained whole.

    Args:
        trained: The setting.
        parameters: Names of the model's.
        four_bit: The modules whose weights have four bits.

    Raises:
        ModelError: One is none, or has four bits.
    """
    whole = sorted({name.rpartition(".")[0] for name in parameters})
    for wanted in trained:
        found = _find(wanted, whole)
        if not found:
            raise ModelError(
                f"adapter.trained_modules names {wanted}, which is no module with weights of its own; "
                f"the model has {', '.join(_last_parts(whole))}"
            )
        if any(name in four_bit for name in found):
            raise ModelError(
                f"adapter.trained_modules names {wanted}, which has 4 bits and cannot be trained whole; "
                "put it among adapter.targets, or use adapter=lora"
            )


def _find(wanted: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == wanted or name.endswith(f".{wanted}")]


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})

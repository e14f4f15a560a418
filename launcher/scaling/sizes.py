"""What is asked of `metier scale`: sizes, modes, repeats; and the runs that follow from it. Pure."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from training.errors import ConfigError

Mode = Literal["strong", "weak"]
Axis = Literal["nodes", "processes"]

MODES = ("strong", "weak", "both")
_KEYS = ("nodes", "processes", "mode", "repeats", "steps", "warmup", "knee")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was typed."""

    axis: Axis
    """What grows: machines, or processes (GPUs) on each of them."""

    sizes: tuple[int, ...]
    """Ascending."""

    modes: tuple[Mode, ...]
    repeats: int
    steps: int
    """Steps of each run that are measured."""

    warmup: int
    """Steps before them that are not, at each start."""

    knee: float
    """The least efficiency that is still worth its devices."""

    overrides: tuple[str, ...]
    """KEY=VALUE of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One short run."""

    name: str
    modes: tuple[Mode, ...]
    """In whose tables it counts: where the batch is the same, one run serves both."""

    size: int
    repeat: int
    """From 1."""

    factor: int
    """What the global batch is multiplied by."""


def read_words(plain: Sequence[str]) -> Asked:
    """Read what stands behind the verb.

    Raises:
        ConfigError: A number is none, or what grows is not said, or twice.
    """
    own: dict[str, str] = {}
    overrides = []
    for word in plain:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: wanted KEY=VALUE, or `metier scale collect NAME`")
        if key not in _KEYS:
            overrides.append(word)
        elif key in own:
            raise ConfigError(f"{key}={own[key]} {word}: say {key} once")
        else:
            own[key] = value
    axis, sizes = _read_sizes(own)
    for word in overrides:
        if axis == "nodes" and word.lstrip("+").startswith("cluster.nodes="):
            raise ConfigError(
                f"{word} nodes={own['nodes']}: the nodes are what grows; leave cluster.nodes out"
            )
    mode = own.get("mode", "strong")
    if mode not in MODES:
        raise ConfigError(f"mode={mode}: wanted {', '.join(MODES)}")
    return Asked(
        axis=axis,
        sizes=sizes,
        modes=("strong", "weak") if mode == "both" else (cast(Mode, mode),),
        repeats=_read_count(own, "repeats", 1, least=1),
        steps=_read_count(own, "steps", 20, least=1),
        warmup=_read_count(own, "warmup", 5, least=0),
        knee=_read_fraction(own.get("knee", "0.8")),
        overrides=tuple(overrides),
    )


def say_command(asked: Asked) -> str:
    """Write the command as it could be typed again, whatever a later version takes for granted."""
    mode = asked.modes[0] if len(asked.modes) == 1 else "both"
    own = {
        asked.axis: ",".join(map(str, asked.sizes)),
        "mode": mode,
        "repeats": asked.repeats,
        "steps": asked.steps,
        "warmup": asked.warmup,
        "knee": asked.knee,
    }
    return shlex.join(["metier", "scale", *asked.overrides, *(f"{key}={own[key]}" for key in own)])


def plan_pieces(asked: Asked, name: str) -> list[Piece]:
    """List the runs in the order in which they are made.

    All sizes come once before any comes again, so that a machine that grows warm or busy does so for all
    sizes alike.

    Args:
        asked: What was asked for.
        name: Of the experiment.
    """
    pieces = []
    for repeat in range(1, asked.repeats + 1):
        for size in asked.sizes:
            for factor, modes in _find_factors(asked.modes, size).items():
                short = f"{modes[0]}-{asked.axis[0]}{size}-r{repeat}"
                pieces.append(
                    Piece(name=f"{name}.scale-{short}", modes=modes, size=size, repeat=repeat, factor=factor)
                )
    return pieces


def _find_factors(modes: Sequence[Mode], size: int) -> dict[int, tuple[Mode, ...]]:
    found: dict[int, tuple[Mode, ...]] = {}
    for mode in modes:
        factor = size if mode == "weak" else 1
        found[factor] = (*found.get(factor, ()), mode)
    return found


def _read_sizes(own: Mapping[str, str]) -> tuple[Axis, tuple[int, ...]]:
    given = [axis for axis in ("nodes", "processes") if axis in own]
    if len(given) != 1:
        said = "both were given" if given else "neither was given"
        raise ConfigError(
            f"say what grows, nodes=1,2,4 or processes=1,2,4 (on each node): {said}; what stays the same is "
            "cluster.nodes, cluster.gpus_per_node or cluster.processes_per_node"
        )
    axis = given[0]
    texts = [text.strip() for text in own[axis].split(",")]
    if not all(text.isdecimal() and int(text) for text in texts):
        raise ConfigError(f"{axis}={own[axis]}: wanted whole numbers, 1 or more, as in {axis}=1,2,4")
    sizes = [int(text) for text in texts]
    if len(set(sizes)) < len(sizes):
        raise ConfigError(f"{axis}={own[axis]}: a size is there twice; more runs of each are repeats=N")
    return cast(Axis, axis), tuple(sorted(sizes))


def _read_count(own: Mapping[str, str], key: str, default: int, *, least: int) -> int:
    return _read_number(key, own[key], least=least) if key in own else default


def _read_number(key: str, text: str, *, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{key}={text}: wanted a whole number, {least} or more")
    return int(text)


def _read_fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError(f"knee={text}: wanted a fraction above 0 and up to 1, for instance 0.8")
    return value

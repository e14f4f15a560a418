"""scale.plan.json: which runs a scaling experiment consists of, and what became of the attempt to start each.

It is all that `metier scale collect` needs besides the run directories.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.scaling.sizes import Axis, Mode
from training.errors import ConfigError
from training.files import write_json
from training.layout import RunLayout

_FOLDER_ENDING = ".scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of the experiment."""

    name: str
    modes: tuple[Mode, ...]
    size: int
    repeat: int
    devices: int
    global_batch_size: int
    passes: int
    refused: str | None = None
    """Why it was never started."""

    ended: str | None = None
    """Why it could not be submitted, or how a start here ended without being complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One `metier scale`."""

    name: str
    axis: Axis
    modes: tuple[Mode, ...]
    kind: str
    """cluster.kind"""

    device: str
    """What grows is made of: GPU or process."""

    steps: int
    warmup: int
    repeats: int
    knee: float
    shards_optimizer: bool
    settings: dict[str, str]
    """For the reader: what all sizes have in common."""

    versions: dict[str, str]
    began: str
    """UTC, ISO 8601."""

    attempts: tuple[Attempt, ...]

    def with_attempt(self, attempt: Attempt) -> "Experiment":
        """Give the experiment with this attempt in the place of the one of its name."""
        return replace(
            self, attempts=tuple(attempt if old.name == attempt.name else old for old in self.attempts)
        )


@dataclass(frozen=True, slots=True)
class ScaleLayout:
    """The files of one scaling experiment, beside its runs."""

    root: Path

    @classmethod
    def of(cls, run_root: str, name: str) -> "ScaleLayout":
        """Name the files of experiment ``name``, absolute."""
        return cls(Path(run_root).absolute() / f"{name}{_FOLDER_ENDING}")

    @property
    def plan(self) -> Path:
        """The experiment: ``read_experiment``."""
        return self.root / "scale.plan.json"

    @property
    def lock(self) -> Path:
        """Held while runs are started."""
        return self.root / ".lock"

    @property
    def turn(self) -> Path:
        """On hosts without a scheduler: the run that they are at; there while the first of them leads."""
        return self.root / "turn.json"

    @property
    def table(self) -> Path:
        """All numbers."""
        return self.root / "scale.json"

    @property
    def picture(self) -> Path:
        """Throughput and efficiency."""
        return self.root / "scale.png"

    @property
    def page(self) -> Path:
        """All of it in one file."""
        return self.root / "scale.html"

    def run(self, attempt: Attempt) -> RunLayout:
        """Name the files of one of its runs."""
        return RunLayout(self.root.parent / attempt.name)


def write_experiment(layout: ScaleLayout, experiment: Experiment) -> None:
    """Keep it, complete or not at all.

    Raises:
        StorageError: The disk is full or refuses.
    """
    write_json(layout.plan, asdict(experiment))


def read_experiment(layout: ScaleLayout) -> Experiment:
    """Read what ``write_experiment`` wrote.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    try:
        values: dict[str, Any] = json.loads(layout.plan.read_text(encoding="utf-8"))
        attempts = tuple(_read_attempt(each) for each in values.pop("attempts"))
        return Experiment(**{**values, "modes": tuple(values["modes"]), "attempts": attempts})
    except FileNotFoundError:
        raise ConfigError(
            f"{layout.root} is no scaling experiment ({layout.plan.name} is missing); begin one with "
            "`metier scale experiment=... nodes=1,2,4`"
        ) from None
    except (ValueError, KeyError, TypeError, OSError):
        raise ConfigError(f"{layout.plan} cannot be read; remove it and type the command again") from None


def _read_attempt(values: Mapping[str, Any]) -> Attempt:
    return Attempt(**{**values, "modes": tuple(values["modes"])})

"""What the drill trains: a tiny run, once undisturbed and once for each interruption."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from launcher.compose import compose_run, compose_typed
from launcher.tree import ConfigTree
from training.config.cluster import ClusterConfig
from training.config.names import nearest
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.layout import RunLayout

Kind = Literal["notice", "stop", "kill", "requeue"]
"""notice: a signal says that the end is near; stop: the file that `metier stop` writes; kill: kill -9 of a
rank; requeue: the scheduler takes the job away."""

KINDS: tuple[Kind, ...] = get_args(Kind)
UNDISTURBED = "undisturbed"

_KINDS: tuple[Kind, ...] = ("notice", "kill")
_KINDS_WITH_REQUEUE: tuple[Kind, ...] = (*_KINDS, "requeue")
_OWNED = ("name", "data", "data.path", "model", "model.folder", "loop.max_steps", "experiment")
_STEPS = {"local": 40, "slurm": 300}
_LEAST_STEPS = 12
_SAVES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One drill."""

    root: str
    """The drill's folder, absolute: corpus, model, runs, drill.json."""

    kind: str
    """cluster.kind"""

    kinds: tuple[Kind, ...]
    steps: int
    overrides: tuple[str, ...]
    """What all runs have in common; a name comes to it."""

    config: RunConfig
    """Of the undisturbed run."""

    def words(self, name: str) -> list[str]:
        """Give what is typed behind `metier train` for one of the runs."""
        return [*self.overrides, f"name={name}"]

    def layout(self, name: str) -> RunLayout:
        """Name the files of one of the runs."""
        return RunLayout.of(self.config.run_root, name)

    @property
    def strike_after(self) -> int:
        """The step after which a run is interrupted: between two saves, with most of the run to come."""
        return self.steps // 3


def plan_drill(words: Sequence[str], tree: ConfigTree) -> Plan:
    """Compose the drill.

    Raises:
        ConfigError: A word cannot be, or belongs to the drill itself.
    """
    own, rest = _take_own(words)
    # What the user has typed is judged as it stands, before anything is reckoned from it.
    typed = compose_typed(["experiment=tiny_smoke", *rest], tree)
    cluster, root = typed.cluster, RunLayout.of(typed.run_root, "drill").root
    if cluster.kind == "torchrun":
        raise ConfigError(
            "a drill needs this machine, or Slurm: on hosts without a scheduler nobody can start ranks again"
        )
    steps = _read_steps(own.get("steps", str(_STEPS[cluster.kind])))
    each = cluster.gpus_per_node or max(cluster.processes_per_node, 2 // cluster.nodes)
    world = cluster.nodes * each
    overrides = (
        "experiment=tiny_smoke",
        # With dropout, so that a wrong random state would show.
        "adapter=lora",
        "adapter.dropout=0.1",
        f"batch.global_batch_size={2 * world}",
        *([] if cluster.gpus_per_node else [f"cluster.processes_per_node={each}"]),
        *(["deterministic=true"] if cluster.gpus_per_node else []),
        "cluster.slurm.time=0:30:00",
        *rest,
        f"loop.max_steps={steps}",
        f"loop.checkpoint_every_steps={max(1, steps // _SAVES)}",
        f"run_root={root / 'runs'}",
        f"data.path={root / 'data'}",
        f"model.folder={root / 'model'}",
    )
    config = compose_run([*overrides, f"name={UNDISTURBED}"], tree).config
    return Plan(
        root=str(root),
        kind=config.cluster.kind,
        kinds=_read_kinds(own.get("kinds"), config.cluster),
        steps=steps,
        overrides=overrides,
        config=config,
    )


def _take_own(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    own: dict[str, str] = {}
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: wanted KEY=VALUE, for instance cluster=NAME")
        if key in _OWNED:
            raise ConfigError(f"{word}: a drill trains a tiny model of its own; {key} is not yours to set")
        if key in {"steps", "kinds"}:
            own[key] = value
        else:
            rest.append(word)
    return own, rest


def _read_steps(text: str) -> int:
    if not text.isdecimal() or int(text) < _LEAST_STEPS:
        raise ConfigError(f"steps={text}: wanted a whole number, {_LEAST_STEPS} or more")
    return int(text)


def _read_kinds(text: str | None, cluster: ClusterConfig) -> tuple[Kind, ...]:
    requeues = cluster.kind == "slurm" and cluster.slurm.requeue
    if text is None:
        return _KINDS_WITH_REQUEUE if requeues else _KINDS
    kinds = text.split(",")
    if not all(kinds):
        raise ConfigError(
            f"kinds={text}: wanted one or several of {', '.join(KINDS)}, with commas between them"
        )
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"kinds={text}: an interruption is there twice")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kinds={text}: {kind} is no interruption{nearest(kind, KINDS)}")
        if kind == "requeue" and not requeues:
            why = (
                "cluster.slurm.requeue=false says that the site forbids it; leave it out"
                if cluster.kind == "slurm"
                else "only Slurm takes a job away and gives it back; add cluster=slurm"
            )
            raise ConfigError(f"kinds={text}: {why}")
    return tuple(cast(Kind, kind) for kind in kinds)

"""From what was asked to runs that are composed and checked, before the first of them starts."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.commands import count_cores
from launcher.compose import Composed, compose_run, compose_values
from launcher.run_directory import check_same_run
from launcher.scaling.record import Attempt, Experiment
from launcher.scaling.sizes import Asked, Piece, plan_pieces, say_command
from launcher.tree import ConfigTree
from launcher.versions import find_versions
from training.batch import plan_run
from training.config.cluster import ClusterConfig
from training.errors import ConfigError

_MISSING = "???"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """An experiment with its runs."""

    experiment: Experiment
    runs: dict[str, Composed]
    """By name; what was refused is not among them."""

    run_root: str
    dry_run: bool

    @property
    def largest(self) -> ClusterConfig:
        """The cluster of the size with the most nodes."""
        return max((run.config.cluster for run in self.runs.values()), key=lambda cluster: cluster.nodes)


def compose_experiment(asked: Asked, tree: ConfigTree) -> Composition:
    """Compose every run; a size that cannot be is noted as refused, with the reason.

    Raises:
        ConfigError: None of the sizes can be, or a run of one of these names has other settings.
    """
    values = compose_values(asked.overrides, tree)
    if values["name"] == _MISSING:
        compose_run(asked.overrides, tree)  # says what is missing
    _check_axis(asked, values["cluster"]["kind"])
    runs: dict[str, Composed] = {}
    attempts = []
    for piece in plan_pieces(asked, str(values["name"])):
        attempt = _describe(piece, asked, values)
        try:
            run = compose_run(_overrides(piece, asked, values), tree)
            attempt = replace(attempt, passes=plan_run(run.config).gradient_accumulation_steps)
        except ConfigError as error:
            attempt = replace(attempt, refused=str(error))
        else:
            check_same_run(run.config)
            runs[piece.name] = run
        attempts.append(attempt)
    if not runs:
        raise ConfigError(f"none of the sizes can be trained; {attempts[0].name}: {attempts[0].refused}")
    first = next(iter(runs.values()))
    return Composition(
        experiment=_build(asked, values, attempts),
        runs=runs,
        run_root=first.config.run_root,
        dry_run=first.dry_run,
    )


def carry_over(experiment: Experiment, former: Experiment) -> Experiment:
    """Take from an earlier call of the same command what became of its runs, and when it began."""
    known = {attempt.name: attempt for attempt in former.attempts}
    attempts = tuple(
        replace(new, ended=known[new.name].ended) if new.name in known else new for new in experiment.attempts
    )
    return replace(experiment, attempts=attempts, began=former.began)


def _check_axis(asked: Asked, kind: str) -> None:
    if asked.axis == "nodes" and kind == "local" and asked.sizes != (1,):
        raise ConfigError(
            "nodes=... needs machines: add cluster=slurm, cluster=torchrun or a cluster of your own; on this "
            "machine alone say processes=1,2,4"
        )


def _overrides(piece: Piece, asked: Asked, values: Mapping[str, Any]) -> list[str]:
    loop, schedule = values["loop"], values["schedule"]
    steps = asked.warmup + asked.steps
    length = schedule["total_steps"] or schedule["first_step"] + loop["max_steps"]
    before = [
        # No checkpoint but the last one, which every run writes.
        f"loop.checkpoint_every_steps={steps + 1}",
        "loop.keep_every_steps=null",
        "loop.evaluate_every_steps=null",
        "loop.patience=null",
        "loop.sample_documents=0",
        f"loop.log_every_steps={steps}",
        # The beginning of the schedule that the whole run would have.
        f"schedule.total_steps={max(length, schedule['first_step'] + steps)}",
    ]
    forced = [
        f"name={piece.name}",
        f"loop.max_steps={steps}",
        f"batch.global_batch_size={values['batch']['global_batch_size'] * piece.factor}",
        f"cluster.{_axis_key(asked, values)}={piece.size}",
        f"tracker.group={values['name']}.scale",
        "tracker.job_type=scale",
    ]
    if not values["cluster"]["gpus_per_node"] and values["cluster"]["threads_per_process"] is None:
        forced += _share_cores(asked)
    return [*before, *asked.overrides, *forced]


def _share_cores(asked: Asked) -> list[str]:
    """Give a process the same threads at every size: else one alone would have all cores, and win."""
    if asked.axis == "nodes":
        return []
    return [f"cluster.threads_per_process={max(1, count_cores() // max(asked.sizes))}"]


def _axis_key(asked: Asked, values: Mapping[str, Any]) -> str:
    if asked.axis == "nodes":
        return "nodes"
    return "gpus_per_node" if values["cluster"]["gpus_per_node"] else "processes_per_node"


def _describe(piece: Piece, asked: Asked, values: Mapping[str, Any]) -> Attempt:
    cluster = values["cluster"]
    each = cluster["gpus_per_node"] or cluster["processes_per_node"]
    devices = piece.size * (each if asked.axis == "nodes" else cluster["nodes"])
    return Attempt(
        name=piece.name,
        modes=piece.modes,
        size=piece.size,
        repeat=piece.repeat,
        devices=devices,
        global_batch_size=values["batch"]["global_batch_size"] * piece.factor,
        passes=1,
    )


def _build(asked: Asked, values: Mapping[str, Any], attempts: list[Attempt]) -> Experiment:
    cluster, batch = values["cluster"], values["batch"]
    on_gpus = bool(cluster["gpus_per_node"])
    settings = {
        "command": say_command(asked),
        "model": str(values["model"]["path"] or values["model"]["folder"]),
        "precision": str(values["precision"]),
        "zero_stage": str(values["strategy"]["zero_stage"]),
        "sequence_length": str(batch["sequence_length"]),
        "micro_batch_size": str(batch["micro_batch_size"]),
        "cluster": str(cluster["kind"]),
    }
    if asked.axis == "nodes":
        settings["per node"] = str(cluster["gpus_per_node"] or cluster["processes_per_node"])
    elif not on_gpus:
        threads = _share_cores(asked)[0].partition("=")[2]
        settings["threads per process"] = str(cluster["threads_per_process"] or threads)
    now = datetime.datetime.now(datetime.UTC)
    return Experiment(
        name=str(values["name"]),
        axis=asked.axis,
        modes=asked.modes,
        kind=str(cluster["kind"]),
        device="GPU" if on_gpus else "process",
        steps=asked.steps,
        warmup=asked.warmup,
        repeats=asked.repeats,
        knee=asked.knee,
        shards_optimizer=int(values["strategy"]["zero_stage"]) > 0,
        settings=settings,
        versions=find_versions(),
        began=now.isoformat(timespec="seconds"),
        attempts=tuple(attempts),
    )

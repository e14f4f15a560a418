"""The verbs: from a composed run to the process that does the work."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launcher.checks import check_devices, check_model, check_prepared, check_swap_folder, look_ahead
from launcher.commands import child_variables, count_cores, merge_environment, module_command
from launcher.compose import Composed
from launcher.dry_run import describe_command, describe_hosts, describe_job, describe_training
from launcher.hosts import check_cluster, explain_numbers, find_share, join_run
from launcher.local import Ending, train_here
from launcher.processes import run_here
from launcher.run_directory import check_same_run, find_layout, freeze_run, recall_run
from launcher.versions import find_versions
from training.batch import plan_run
from training.config.freeze import write_frozen
from training.config.schema import RunConfig
from training.deepspeed_config import build_deepspeed_config
from training.errors import EXIT_OK, ClusterError, ConfigError, MetierError

_CORPUS_MODULES = {"prepare": "training.prepare", "audit": "training.audit"}
"""Verbs that need a configuration and no run directory."""

_RUN_MODULES = {"evaluate": "training.evaluation", "export": "training.export"}
"""Verbs that look at a run that was trained."""


def run_verb(
    verb: str,
    composed: Composed,
    overridden: Sequence[str],
    *,
    follow: bool = False,
    node_rank: int | None = None,
) -> Ending:
    """Do what ``verb`` says for one run.

    Args:
        verb: prepare, audit, train, evaluate or export.
        composed: The run.
        overridden: The dotted paths that the command line set.
        follow: Under Slurm: stay until the run ends, and show its log.
        node_rank: On hosts without a scheduler: this host's number, where it was typed.

    Raises:
        MetierError: Something that the user can mend.
    """
    config = composed.config
    if verb == "train":
        return _train(composed, node_rank, follow=follow)
    if verb in _CORPUS_MODULES:
        return _work_on_corpus(verb, config, dry_run=composed.dry_run)
    module = _RUN_MODULES[verb]
    if composed.dry_run:
        if find_layout(config).config.exists():
            recall_run(config, overridden)
        return _describe_module(module)
    return _run_module(module, recall_run(config, overridden))


def _train(composed: Composed, node_rank: int | None, *, follow: bool) -> Ending:
    config, on_slurm = composed.config, composed.config.cluster.kind == "slurm"
    if not on_slurm and (follow or composed.after):
        word = "--follow" if follow else f"after={composed.after}"
        raise ConfigError(
            f"{word} goes with a Slurm cluster, as cluster=slurm; this one is {config.cluster.kind}"
        )
    check_training(config, node_rank)
    if composed.dry_run:
        unseen = look_ahead(config, write=False)
        return _say(describe_job(config, unseen) if on_slurm else describe_training(config, unseen))
    if on_slurm:
        return _submit(config, composed.after, follow=follow)
    return _train_here(config, node_rank)


def check_training(config: RunConfig, node_rank: int | None = None) -> None:
    """Refuse what can be refused before anything is looked at.

    Raises:
        MetierError: In one line.
    """
    check_cluster(config.cluster, node_rank)
    check_model(config)
    build_deepspeed_config(config, plan_run(config))  # refuses keys of strategy.deepspeed_extra
    check_same_run(config)


def submit_jobs(runs: Sequence[Composed], name: str) -> Ending:
    """Submit the trainings of a sweep as one job array.

    Raises:
        MetierError: In one line, with the run where it is one run's.
    """
    from launcher.slurm.login import check_and_say  # noqa: PLC0415
    from launcher.slurm.sweep import describe_sweep, plan_sweep, submit_sweep  # noqa: PLC0415

    configs = [run.config for run in runs]
    for config in configs:
        try:
            check_training(config)
            if not runs[0].dry_run:
                check_prepared(config)
            look_ahead(config, write=not runs[0].dry_run)
        except MetierError as error:
            raise type(error)(f"job {config.name}: {error}") from error
    if runs[0].dry_run:
        folder, script = plan_sweep(configs, name)
        return _say(
            f"dry run: nothing is written, nothing is started\n\nThe script, {folder.job_script}\n{script}"
        )
    check_and_say(configs[0], "train")  # the tasks of an array ask for the same
    rows = submit_sweep(configs, name, after=runs[0].after)
    sys.stdout.write(describe_sweep(rows, configs[0]))
    return Ending(exit_code=EXIT_OK, state="SUBMITTED", step=None, line="")


def _train_here(config: RunConfig, node_rank: int | None) -> Ending:
    share = find_share(config.cluster, node_rank, os.environ)
    if share is None:
        sys.stdout.write(describe_hosts(config))
        raise ClusterError(explain_numbers(config.cluster))
    check_devices(config.cluster)
    check_swap_folder(config)
    check_prepared(config)
    look_ahead(config, write=share.is_head)
    if config.cluster.nodes > 1 and share.is_head:
        sys.stdout.write(describe_hosts(config))
        sys.stdout.flush()
    layout = freeze_run(config) if share.is_head else join_run(config)
    return train_here(config, layout, share)


def _submit(config: RunConfig, after: str | None, *, follow: bool) -> Ending:
    # Slurm's side is imported for it alone.
    from launcher.slurm.follow import follow_run  # noqa: PLC0415
    from launcher.slurm.login import check_and_say  # noqa: PLC0415
    from launcher.slurm.submit import find_last_step, say_submission, submit_run  # noqa: PLC0415

    layout = find_layout(config)
    if (step := find_last_step(layout)) is not None:
        line = f"{config.name} is finished after step {step}; to train longer, give another name=..."
        sys.stdout.write(f"metier train: {line}\n")
        return Ending(exit_code=EXIT_OK, state="COMPLETED", step=step, line=line)
    check_prepared(config)
    look_ahead(config, write=True)
    check_and_say(config, "train")
    job = submit_run(config, after=after)
    say_submission(config, job, after=after)
    if follow:
        return follow_run(config, layout)
    return Ending(exit_code=EXIT_OK, state="SUBMITTED", step=None, line="")


def _work_on_corpus(verb: str, config: RunConfig, *, dry_run: bool) -> Ending:
    module = _CORPUS_MODULES[verb]
    if dry_run:
        return _describe_module(module)
    if verb == "audit":
        check_prepared(config)
    return _run_module(module, config)


def _describe_module(module: str) -> Ending:
    return _say(describe_command(module_command(module, Path("FROZEN_CONFIG.json"))))


def _run_module(module: str, config: RunConfig) -> Ending:
    variables = child_variables(config.cluster, count_cores(), processes=1)
    with tempfile.TemporaryDirectory(prefix="metier-") as folder:
        frozen = Path(folder) / "run.json"
        write_frozen(frozen, config, find_versions())
        code = run_here(module_command(module, frozen), merge_environment(os.environ, variables))
    # A negative code is the signal that ended the child; a shell says 128 + signal.
    code = code if code >= 0 else 128 - code
    return Ending(exit_code=code, state="COMPLETED" if code == EXIT_OK else "FAILED", step=None, line="")


def _say(text: str) -> Ending:
    sys.stdout.write(text)
    return Ending(exit_code=EXIT_OK, state="DRY RUN", step=None, line="")

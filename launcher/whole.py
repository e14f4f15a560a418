"""`metier run`: from the documents to the report and the exported model, in one command."""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from launcher.checks import check_documents, check_prepared, look_ahead
from launcher.compose import Composed
from launcher.dry_run import describe_job
from launcher.local import Ending
from launcher.run_directory import find_layout
from launcher.verbs import check_training, run_verb
from training.config.schema import RunConfig
from training.errors import EXIT_OK, ClusterError, ConfigError, DataError, ModelError

VERBS = ("prepare", "train", "evaluate", "export")


def run_whole(
    composed: Composed, overridden: Sequence[str], typed: Sequence[str], *, follow: bool = False
) -> Ending:
    """Do everything that a run needs, here or as jobs that wait for each other.

    Args:
        composed: The run.
        overridden: The dotted paths that the command line set.
        typed: What was typed after the verb, to be shown.
        follow: Under Slurm: stay until the training ends, and show its log.

    Raises:
        MetierError: Something that the user can mend.
    """
    cluster = composed.config.cluster
    if cluster.kind == "slurm":
        return _submit(composed, follow=follow)
    if cluster.nodes > 1:
        raise ClusterError(
            f"metier run is for one machine or Slurm; with cluster.kind={cluster.kind} on {cluster.nodes} "
            "hosts prepare on one, `metier train` on each, then evaluate and export on one"
        )
    if follow or composed.after:
        word = "--follow" if follow else f"after={composed.after}"
        raise ConfigError(f"{word} goes with a Slurm cluster, as cluster=slurm; this one is {cluster.kind}")
    return _run_here(composed, overridden, typed)


def _run_here(composed: Composed, overridden: Sequence[str], typed: Sequence[str]) -> Ending:
    seconds: dict[str, float] = {}
    ending = Ending(exit_code=EXIT_OK, state="COMPLETED", step=None, line="")
    for verb in VERBS:
        _say(f"\n$ metier {verb} {shlex.join(typed)}\n")
        started = time.monotonic()
        ending = run_verb(verb, _alone(composed) if verb == "prepare" else composed, overridden)
        seconds[verb] = time.monotonic() - started
        if ending.exit_code != EXIT_OK or ending.state == "STOPPED":
            return ending
    if not composed.dry_run:
        _say("\n" + "".join(f"{verb:<10}{value:7.0f} s\n" for verb, value in seconds.items()))
        _say(f"{'in all':<10}{sum(seconds.values()):7.0f} s\n")
    return ending


def _alone(composed: Composed) -> Composed:
    """Leave all of the preparation to one call: shares are for jobs side by side."""
    config = composed.config
    share = config.prepare.model_copy(update={"tasks": 1, "task": 0})
    return replace(composed, config=config.model_copy(update={"prepare": share}))


def _submit(composed: Composed, *, follow: bool) -> Ending:
    # Slurm's side is imported for it alone.
    from launcher.slurm.follow import follow_run  # noqa: PLC0415
    from launcher.slurm.login import check_and_say  # noqa: PLC0415
    from launcher.slurm.stages import describe_scripts, describe_stages, submit_stages  # noqa: PLC0415

    config = composed.config
    check_training(config)
    prepares = not _is_prepared(config, write=not composed.dry_run)
    # A job that is waited for may be the one that writes them.
    if prepares and composed.after is None:
        check_documents(config)
    if composed.dry_run:
        training = describe_job(config, look_ahead(config, write=False) if not prepares else [])
        _say(describe_scripts(config, prepares=prepares, training=training))
        return Ending(exit_code=EXIT_OK, state="DRY RUN", step=None, line="")
    check_and_say(config, "run")
    rows = submit_stages(config, prepares=prepares, after=composed.after)
    _say(describe_stages(rows, config))
    if follow:
        return follow_run(config, find_layout(config))
    return Ending(exit_code=EXIT_OK, state="SUBMITTED", step=None, line="")


def _is_prepared(config: RunConfig, *, write: bool) -> bool:
    try:
        check_prepared(config)
        look_ahead(config, write=write)
    except (DataError, ModelError):
        return False
    return True


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

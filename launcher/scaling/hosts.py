"""Without a scheduler: the same command on every host; the head goes through the runs, the others follow it.

Before each run the head writes down which one it is, and takes the note away when all is over. A host takes
part in those runs that are large enough for its number.
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.compose import Composed
from launcher.hosts import explain_numbers, find_number
from launcher.local import Ending
from launcher.scaling.collect import is_complete
from launcher.scaling.local import run_one_after_another
from launcher.scaling.record import Experiment, ScaleLayout
from launcher.verbs import run_verb
from training.config.cluster import ClusterConfig
from training.config.schema import RunConfig
from training.errors import ClusterError, ConfigError, MetierError
from training.files import write_json

_LOOK_SECONDS = 0.5


def find_place(largest: ClusterConfig, node_rank: int | None) -> int:
    """Find this host's number, 0 for the head.

    Args:
        largest: The cluster of the largest size.
        node_rank: What was typed.

    Raises:
        ClusterError: Nothing tells it, or there is no host of this number.
    """
    alone = largest.nodes == 1 and not node_rank
    number = 0 if alone else find_number(largest, node_rank, os.environ)
    if number is None:
        raise ClusterError(explain_numbers(largest))
    return number


def lead(
    experiment: Experiment, runs: Mapping[str, Composed], layout: ScaleLayout, hosts: int
) -> tuple[Experiment, bool]:
    """Train what is not complete, one run after another; the other hosts follow, and go when this ends.

    Returns:
        The experiment with what became of each run, and whether it was stopped.

    Raises:
        StorageError: The disk is full or refuses.
    """
    if hosts > 1:
        numbers = " to ".join(str(number) for number in sorted({1, hosts - 1}))
        sys.stdout.write(f"on each other host: the same command with --node-rank=N, N = {numbers}\n")
        sys.stdout.flush()

    def train(name: str) -> Ending:
        # The same run may begin again: a turn is known by its own mark.
        write_json(layout.turn, {"run": name, "mark": secrets.token_hex(8)})
        return run_verb("train", runs[name], (), node_rank=0)

    try:
        return run_one_after_another(experiment, layout, train)
    finally:
        layout.turn.unlink(missing_ok=True)


def follow(experiment: Experiment, runs: Mapping[str, Composed], layout: ScaleLayout, number: int) -> bool:
    """Take part in every run that has a place for this host, until the head is through.

    Returns:
        Whether it was stopped before.

    Raises:
        MetierError: The head does not come, or means other runs.
    """
    cluster = next(iter(runs.values())).config.cluster
    sys.stdout.write(f"waiting for {cluster.head_address}, which goes through the sizes\n")
    sys.stdout.flush()
    mine = [
        each
        for each in experiment.attempts
        if each.name in runs and number < runs[each.name].config.cluster.nodes
    ]
    deadline = time.monotonic() + cluster.timeout_seconds
    mark: str | None = None
    while True:
        turn = _read_turn(layout.turn)
        if turn is None and (mark is not None or all(is_complete(layout, each) for each in mine)):
            break
        if turn is None and time.monotonic() > deadline:
            raise ClusterError(
                f"{layout.turn} did not appear within {cluster.timeout_seconds} s; start the same command on "
                f"{cluster.head_address}, and see that all hosts share {layout.root.parent}"
            )
        if turn is not None and turn["mark"] != mark:
            mark = turn["mark"]
            if _take_part(_find_run(runs, turn["run"]), number):
                return True
        time.sleep(_LOOK_SECONDS)
    sys.stdout.write(f"{cluster.head_address} is through; what it found is in {layout.root}\n")
    return False


def _find_run(runs: Mapping[str, Composed], name: str) -> Composed:
    found = runs.get(name)
    if found is None:
        raise ConfigError(f"{name} begins, which was not asked for here; type the same command on each host")
    return found


def _take_part(run: Composed, number: int) -> bool:
    """Train this host's share of a run; say whether it was stopped. What fails, the head notes."""
    config: RunConfig = run.config
    if number >= config.cluster.nodes:
        return False
    sys.stdout.write(f"{config.name}\n")
    sys.stdout.flush()
    try:
        return run_verb("train", run, (), node_rank=number).state == "STOPPED"
    except MetierError as error:
        sys.stderr.write(f"metier scale: {error}\n")
        return False


def _read_turn(path: Path) -> dict[str, str] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None

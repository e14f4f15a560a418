"""What a login node can know before a job is submitted: the request against the site, and the folders."""

import re
import shutil
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from launcher.slurm.ask import ask_associations, ask_reservations, ask_site, expand_hosts
from launcher.slurm.call import SlurmAwayError, SlurmError, call_slurm, sbatch_words
from launcher.slurm.limits import check_associations, judge_request
from launcher.slurm.paths import check_paths
from training.config.names import nearest
from training.config.schema import RunConfig
from training.errors import ClusterError

_ATTEMPTS = 3
_MAY_PASS = ("down, drained", "busy", "not responding", "configuration is not available")
"""Reasons of `sbatch --test-only` that may be about today: it gives the last one for nodes that are down as
well as for a request that no node can meet, which ``check_slurm`` has found before."""


def check_slurm(config: RunConfig) -> list[str]:
    """Refuse what Slurm would refuse, or would let wait for ever, and what the nodes would miss.

    Returns:
        What may go wrong, in words.

    Raises:
        ClusterError: There is no Slurm here, or it can never give what is asked for.
        StorageError: The checkpoints do not fit on the disk.
    """
    notes = check_paths(config)
    site = ask_site()
    cluster = config.cluster
    notes += judge_request(cluster, site, expand_hosts(cluster.slurm.exclude))
    if cluster.slurm.reservation is not None:
        _check_reservation(cluster.slurm.reservation)
    if cluster.slurm.account is not None or cluster.slurm.qos is not None:
        associations = ask_associations()
        if associations is None:
            notes.append("whether account and qos are yours: Slurm's accounting does not tell it here")
        else:
            check_associations(cluster, associations)
    return notes


def check_and_say(config: RunConfig, verb: str) -> None:
    """Do ``check_slurm``, and print what it noted.

    Raises:
        ClusterError: There is no Slurm here, or it can never give what is asked for.
        StorageError: The checkpoints do not fit on the disk.
    """
    for note in check_slurm(config):
        sys.stderr.write(f"metier {verb}: note: {note}\n")


def check_script(script: Path) -> str | None:
    """Have Slurm read a job script without submitting it (sbatch --test-only).

    Returns:
        When and where it would start, in Slurm's words; None where it cannot tell today.

    Raises:
        ClusterError: Slurm refuses it.
    """
    words = sbatch_words(script, "--test-only")
    try:
        # Where it would start is told on stderr.
        said = call_slurm(["sh", "-c", 'exec "$@" 2>&1', "sh", *words], attempts=_ATTEMPTS)
    except SlurmAwayError:
        raise
    except SlurmError as error:
        if any(reason in str(error) for reason in _MAY_PASS):
            return None
        raise ClusterError(str(error).replace("sh refused:", "sbatch refused the script:")) from None
    # call_slurm has Slurm write its times as seconds.
    found = re.sub(r"\b\d{10}\b", lambda found: datetime.fromtimestamp(int(found[0])).isoformat(" "), said)
    return found.strip().removeprefix("sbatch: ") or None


def foresee(config: RunConfig, script: str) -> tuple[list[str], str | None]:
    """Give the notes of ``check_slurm``, and when and where Slurm would start a script; nothing is submitted.

    On a machine without Slurm this is told, as a note.

    Raises:
        ClusterError: Slurm can never give what is asked for, or refuses the script.
        StorageError: The checkpoints do not fit on the disk.
    """
    if shutil.which("scontrol") is None:
        return ["whether Slurm gives what is asked for: this machine has none"], None
    notes = check_slurm(config)
    with tempfile.NamedTemporaryFile("w", prefix="metier-", suffix=".sh") as file:
        file.write(script)
        file.flush()
        return notes, check_script(Path(file.name))


def _check_reservation(name: str) -> None:
    found = ask_reservations()
    if name not in found:
        raise ClusterError(f"cluster.slurm.reservation={name} does not exist{nearest(name, found)}")

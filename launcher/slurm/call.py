"""Runs Slurm's commands: a controller that does not answer is waited for, and is nobody's failure."""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from training.errors import ClusterError, first_line

_AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Zero Bytes were transmitted"
    r"|Slurm backup controller|Resource temporarily unavailable|Unable to establish control"
    r"|Transport endpoint is not connected|Communication connection failure"
)
_BUSY = re.compile(
    r"Unable to create step for job \S+: "
    r"(Memory required by task is not available|Requested nodes are busy|Job/step already complet)"
)
_OF_A_JOB = ("SLURM_", "SLURMD_", "METIER_SLURM_LOG")
_OF_A_USER = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CONF_SERVER", "SLURM_JWT"})
_DIRECTIVE = "#SBATCH "
_SECONDS = 60
PATIENT = 60
"""Attempts of a call that must succeed in the end, PAUSE_SECONDS apart: ten minutes."""

PAUSE_SECONDS = 10.0


class SlurmError(ClusterError):
    """Slurm has refused a command."""


class SlurmAwayError(SlurmError):
    """Slurm's controller does not answer."""


def is_away(text: str) -> bool:
    """Whether a command's words mean that the controller did not answer."""
    return bool(_AWAY.search(text))


def is_busy(text: str) -> bool:
    """Whether srun's words mean that Slurm has not yet noticed the end of the job's last step.

    Seen after an outage of the controller: a node repeats the message of a step's end once a minute.
    """
    return bool(_BUSY.search(text))


def sbatch_words(script: Path, *options: str) -> list[str]:
    """Give sbatch's words for a script; of what is said twice the later counts.

    What stands in the script is said on the command line again: else variables that a user has set once for
    all, as SBATCH_ACCOUNT, would count for more than the script (man sbatch, INPUT ENVIRONMENT VARIABLES).

    Raises:
        SlurmError: The script cannot be read.
    """
    try:
        lines = script.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SlurmError(f"{script} cannot be read ({error.strerror})") from None
    stated = [line.removeprefix(_DIRECTIVE) for line in lines if line.startswith(_DIRECTIVE)]
    return ["sbatch", *(word for each in stated for word in shlex.split(each)), *options, str(script)]


def call_slurm(
    words: Sequence[str], *, attempts: int = 1, sleep: Callable[[float], None] = time.sleep
) -> str:
    """Run one of Slurm's commands and give its output.

    Args:
        words: The command.
        attempts: How often it is tried while the controller does not answer.
        sleep: Waits between two attempts.

    Raises:
        SlurmAwayError: The controller did not answer.
        SlurmError: The command is missing or was refused; the message is Slurm's own.
    """
    if shutil.which(words[0]) is None:
        raise SlurmError(f"{words[0]} is missing: this machine is no part of a Slurm cluster")
    said = ""
    for attempt in range(attempts):
        if attempt:
            sleep(PAUSE_SECONDS)
        try:
            done = subprocess.run(
                list(words),
                capture_output=True,
                encoding="utf-8",
                errors="replace",  # a node's reason may be in any encoding
                timeout=_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        except subprocess.TimeoutExpired:
            said = f"{words[0]} did not answer within {_SECONDS} s"
            continue
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        if not is_away(said):
            raise SlurmError(f"{words[0]} refused: {_last_line(said)}")
    raise SlurmAwayError(f"Slurm's controller does not answer ({_last_line(said)}); try again later")


def _environment() -> dict[str, str]:
    # What a job submits inherits its environment. The new job would take the count of our restarts for its
    # own, or itself for a task of an array, and its srun our numbers of tasks for options.
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OF_A_JOB) or name in _OF_A_USER
    }
    # Partitions that a site hides can be used all the same.
    return own | {"SLURM_TIME_FORMAT": "%s", "SCONTROL_ALL": "1", "SQUEUE_ALL": "1"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # sbatch tells the reason first and repeats itself generally last.
    return first_line(Exception(lines[0] if lines else text)).removeprefix("sbatch: error: ")

"""`metier sync RUN`: sends to Weights & Biases what a run has not sent, here or in a job of its own."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.commands import merge_environment, package_variables
from launcher.processes import run_here
from launcher.seeing.facts import read_jobs
from launcher.seeing.read import read_tail
from launcher.seeing.runs import RUN_ROOT, find_one_run, split_words
from launcher.tools import Words, refuse_flags
from training.errors import EXIT_OK, ClusterError, ConfigError
from training.layout import RunLayout

HELP = """\
metier sync RUN [--after] [--partition NAME] [run_root=DIR]

Sends every step, every answer and every node's readings that Weights & Biases does not have yet, into the
one W&B run that this run has, whatever tracker.mode it was trained with. Where compute nodes have no
internet, do it on a login node: now, or in a small job.

  --partition NAME   submit it as a job of one processor to this partition, which must have internet
  --after            let that job wait until the run's newest job is over, however it ends

Examples
  metier sync medical_qlora_smol
  metier sync medical_qlora_smol --partition login
  metier sync medical_qlora_smol --after --partition login
"""

_TIME = "60"
_ANSWER_SECONDS = 60.0


def run(words: Words) -> int:
    """Send, or submit a job that does; give the exit code.

    Raises:
        ClusterError: There is no Slurm to submit to, or it refuses.
        ConfigError: The run does not exist, or a job would have no API key.
    """
    refuse_flags(words, ("--after", "--partition"))
    names, settings = split_words(words.plain)
    layout = find_one_run(names, "sync", settings.get("run_root", RUN_ROOT))
    flags = dict(words.flags)
    command = sync_command(layout)
    if not flags:
        return run_here(command, merge_environment(os.environ, package_variables()))
    after = read_jobs(layout)[-1:] if "--after" in flags else ()
    if "--after" in flags and not after:
        raise ClusterError(f"{layout.jobs} names no job to wait for; leave --after out")
    if not has_key(os.environ):
        raise ConfigError(
            "no API key of Weights & Biases is here, and the job would have none either: run `wandb login`, "
            "or set WANDB_API_KEY"
        )
    job = _submit(submit_command(layout, command, flags.get("--partition"), after))
    waits = f", afterany:{after[0]}" if after else ""
    sys.stdout.write(f"job {job} sends it{waits}; its log is {layout.logs / f'sync_{job}.log'}\n")
    return EXIT_OK


def has_key(environ: Mapping[str, str]) -> bool:
    """Whether there is a key as W&B looks for one: in its variables, or as a login in ~/.netrc."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    folder = Path(environ.get("HOME", ""))
    places = [Path(environ["NETRC"])] if environ.get("NETRC") else [folder / ".netrc", folder / "_netrc"]
    return any("password" in "\n".join(read_tail(place)) for place in places)


def sync_command(layout: RunLayout) -> list[str]:
    """Give the command that sends what is left."""
    return [sys.executable, "-m", "training.metrics.tracker", str(layout.root), "--online"]


def submit_command(
    layout: RunLayout, command: Sequence[str], partition: str | None, after: Sequence[str]
) -> list[str]:
    """Give the sbatch line of a small job that runs ``command``, perhaps after another job."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in package_variables().items()]
    return [
        "sbatch",
        "--parsable",
        f"--job-name=sync-{layout.root.name}",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=1",
        f"--time={_TIME}",
        f"--output={str(layout.logs).replace('%', '%%')}/sync_%j.log",
        *([f"--partition={partition}"] if partition else []),
        *(f"--dependency=afterany:{job}" for job in after),
        f"--wrap={' '.join([*variables, shlex.join(command)])}",
    ]


def _submit(command: Sequence[str]) -> str:
    if shutil.which("sbatch") is None:
        raise ClusterError("sbatch is not here; without --after and --partition it is sent from this machine")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterError("Slurm's controller does not answer; try again later") from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"sbatch ended with {done.returncode}"
        raise ClusterError(f"Slurm refused the job: {reason}")
    return done.stdout.strip().partition(";")[0]

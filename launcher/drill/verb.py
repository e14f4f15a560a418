"""`metier drill`: a tiny run, interrupted in several ways, must equal an undisturbed one bit for bit."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.checks import check_devices
from launcher.commands import merge_environment, package_variables
from launcher.drill.cases import Case, run_case, run_undisturbed, say_table, say_verdict
from launcher.drill.local import LocalStage
from launcher.drill.plan import UNDISTURBED, Plan, plan_drill
from launcher.drill.slurm import SlurmStage
from launcher.drill.stage import Stage
from launcher.drill.trace import Trace
from launcher.hosts import check_cluster
from launcher.scaling.jobs import find_alive
from launcher.slurm.login import check_and_say
from launcher.tools import Words, refuse_flags
from launcher.tree import ConfigTree
from launcher.versions import find_versions
from training.config.schema import RunConfig
from training.errors import EXIT_FAILED, EXIT_OK, ClusterError
from training.files import hold_lock, write_json
from training.layout import RunLayout

FORMAT = 1
"""Of drill.json."""

_WIDTH = 14

HELP = """\
metier drill [cluster=NAME] [KEY=VALUE...] [steps=N] [kinds=notice,kill,...]

Proves on this machine, or on your cluster, that an interrupted training equals an undisturbed one: trains a
tiny model of its own once undisturbed, and once for each kind of interruption; lets it go on; compares the
final checkpoint tensor by tensor, the losses and the samples step by step, and looks for what was left
behind. Ends with one line, `safe: ...` or `NOT safe: ... because ...`; exit code 0 or 1. All of it is in
run_root/drill, the result in drill.json.

  notice    the signal that says that the end is near (SIGUSR1); the run saves and stops
  kill      kill -9 of one rank
  requeue   Slurm alone, where the site allows it: scontrol requeue of the job
  stop      the file that `metier stop` writes; only if asked for
  steps     of each run: 40 here; 300 under Slurm, because shared disks show a file's growth late

Faults of whole nodes are not provoked: they would be other people's as well.

Examples
  metier drill
  metier drill cluster=slurm cluster.slurm.partition=gpu cluster.nodes=2 cluster.gpus_per_node=4
  metier drill kinds=kill steps=100
"""


def run(words: Words) -> int:
    """Do what the words say; give the exit code.

    Raises:
        MetierError: Something that the user can mend.
    """
    refuse_flags(words)
    plan = plan_drill(words.plain, words.tree)
    _check_place(plan.config)
    stage: Stage = SlurmStage(words.tree) if plan.kind == "slurm" else LocalStage(words.tree)
    root = Path(plan.root)
    with hold_lock(root / ".lock", busy=f"another drill is at work in {root}; wait for its end"):
        _clear(plan)
        _say("drill", f"{plan.steps} steps in {root}")
        _prepare(plan, words.tree)
        line, cases = perform(plan, stage)
    write_json(root / "drill.json", describe(plan, cases, line))
    sys.stdout.write((f"\n{say_table(cases)}\n" if cases else "\n") + f"{line}\n")
    return EXIT_FAILED if line.startswith("NOT") else EXIT_OK


def perform(plan: Plan, stage: Stage) -> tuple[str, list[Case]]:
    """Train undisturbed, then through every interruption; give the verdict and the cases.

    Raises:
        MetierError: A start is refused.
    """
    name: str = UNDISTURBED
    cases = []
    try:
        began = time.monotonic()
        expected = run_undisturbed(plan, stage, name, os.environ)
        if (trouble := _find_trouble(expected.trace)) is not None:
            return f"NOT safe: undisturbed the run {trouble}; {stage.say_why(plan, name)}", []
        _say(name, f"{len(expected.trace.lines)} steps, {time.monotonic() - began:.0f} s")
        for kind in plan.kinds:
            name = kind
            case = run_case(plan, stage, kind, expected, os.environ)
            cases.append(case)
            _say(kind, _describe_case(case))
    except BaseException:
        stage.end(plan, name)
        raise
    return say_verdict(cases), cases


def describe(plan: Plan, cases: list[Case], line: str) -> dict[str, Any]:
    """Lay out drill.json."""
    return {
        "format": FORMAT,
        "verdict": line,
        "safe": line.startswith("safe"),
        "cluster": plan.config.cluster.model_dump(mode="json"),
        "overrides": plan.overrides,
        "steps": plan.steps,
        "versions": find_versions(),
        "cases": [asdict(case) | {"fault": case.fault} for case in cases],
    }


def _check_place(config: RunConfig) -> None:
    """Refuse what the first start would refuse, before anything is made for it.

    Raises:
        MetierError: This machine, or the cluster, cannot give what is asked for.
    """
    check_cluster(config.cluster, None)
    check_devices(config.cluster)
    if config.cluster.kind == "slurm":
        check_and_say(config, "drill")


def _clear(plan: Plan) -> None:
    """Begin anew: what an earlier drill has trained would only be found finished.

    Raises:
        ClusterError: A job of an earlier drill lives.
    """
    runs = Path(plan.config.run_root)
    for path in runs.glob("*/jobs.jsonl"):
        if (job := find_alive(RunLayout(path.parent))) is not None:
            raise ClusterError(f"job {job} of an earlier drill lives; `scancel {job}` ends it")
    shutil.rmtree(runs, ignore_errors=True)
    for path in Path(plan.root).glob("*.txt"):
        path.unlink()


def _prepare(plan: Plan, tree: ConfigTree) -> None:
    began = time.monotonic()
    folder = [f"--config-dir={tree.user_folder}"] if tree.user_folder else []
    command = [sys.executable, "-m", "launcher", "prepare", *folder, *plan.words(UNDISTURBED)]
    # Here, wherever the runs are: it takes seconds.
    command += ["cluster.kind=local", "cluster.nodes=1"]
    environment = merge_environment(os.environ, package_variables())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"the corpus of the drill could not be prepared: {said}")
    _say("prepare", f"{time.monotonic() - began:.0f} s")


def _find_trouble(undisturbed: Trace) -> str | None:
    if undisturbed.state != "COMPLETED":
        return f"does not finish ({undisturbed.message or undisturbed.state or 'it was killed'})"
    if undisturbed.trouble:
        return f"has no checkpoint that can be read ({undisturbed.trouble})"
    return None


def _describe_case(case: Case) -> str:
    if case.step is None:
        return case.struck
    return (
        f"{case.struck} after step {case.step}; {case.starts} starts, {case.redone} steps done again, "
        f"{case.seconds:.0f} s"
    )


def _say(what: str, text: str) -> None:
    sys.stdout.write(f"{what:<{_WIDTH}}{text}\n")
    sys.stdout.flush()

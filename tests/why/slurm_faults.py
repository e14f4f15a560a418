"""Faults of jobs, provoked by small batch scripts on the test cluster; what Slurm says is kept as well."""

import atexit
import json
from contextlib import ExitStack
from functools import cache

from launcher.seeing.slurm import queue_words
from launcher.why.sacct import FIELDS
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import job_nodes, submit, wait_for_job, wait_for_state, wait_until_ended
from tests.slurm.lifetime import new_root, started
from tests.slurm.runs import Training
from tests.slurm.settings import Settings
from tests.why.work import Work, wait_for

_HEAD = "#!/bin/bash\n"
_ACCOUNTS_COUNT = "AccountingStorageEnforce=associations,qos"
_SLEEP = "srun sleep 600\n"
_GREEDY = "python3 -c 'a = [bytearray([120]) * (1 << 24) for _ in range(60)]; import time; time.sleep(60)'\n"


@cache
def get_cluster(*extra: str) -> Cluster:
    """Start the cluster with the first fault; it ends with the recorder."""
    stack = ExitStack()
    atexit.register(stack.close)
    settings = Settings(root=new_root(), nodes=3, gpus=2, accounting=True, enforces_memory=True, extra=extra)
    return stack.enter_context(started(settings))


def submit_script(work: Work, script: str, *options: str) -> int:
    """Submit a script as a job of the run; its log lies where a run's job's does."""
    logs = work.run / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = work.run / "job.sh"
    path.write_text(_HEAD + script)
    output = () if any(word.startswith("--output") for word in options) else (f"--output={logs}/job_%j.log",)
    words = ("--parsable", "--open-mode=append", *output, *options, str(path))
    job = submit(get_cluster(), *words[1:], cwd=work.folder)
    line = {"event": "submitted", "job": str(job), "nodes": 1}
    (work.run / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    return job


def keep_rows(work: Work, job: int | str, state: str) -> None:
    """Keep what sacct says of the job, or of several with commas between them, once it says so."""
    words = ("sacct", "-D", "-P", f"--format={','.join(FIELDS)}", "-j", str(job))
    rows = ""

    def is_said() -> bool:
        nonlocal rows
        rows = get_cluster().run(*words, check=False).stdout
        return state in rows

    wait_for(is_said, f"{state} of job {job} in sacct")
    (work.folder / "sacct.txt").write_text(rows)


def run_script(work: Work, script: str, state: str, *options: str) -> None:
    """Submit a script, wait for its end, keep what Slurm says."""
    job = submit_script(work, script, *options)
    wait_until_ended(get_cluster(), job)
    keep_rows(work, job, state)


def refused(work: Work, *options: str, site: str = "EnforcePartLimits=ALL") -> None:
    """Keep the words by which sbatch refuses a job, at a site that refuses what a partition forbids."""
    path = work.folder / "job.sh"
    path.write_text(_HEAD + _SLEEP)
    words = ("sbatch", *options, str(path))
    said = get_cluster(site).run(*words, check=False, cwd=work.folder)
    work.keep(said.stdout + said.stderr)


def waits(work: Work, reason: str, *options: str) -> None:
    """Keep what Slurm says of a job that it lets wait for ever, at a site that does not refuse it."""
    cluster = get_cluster()
    job = submit_script(work, _SLEEP, *options)
    wait_for_job(cluster, job, lambda found: reason in found.fields["Reason"], 60, reason)
    keep_rows(work, job, "PENDING")
    (work.folder / "squeue.txt").write_text(cluster.run(*queue_words([str(job)])).stdout)
    cluster.run("scancel", str(job))


def command_not_found(work: Work) -> None:
    run_script(work, "python3.99 -m training.worker\n", "FAILED")


def modules_missing(work: Work) -> None:
    run_script(work, "set -e\nmodule load cuda/12.4\n", "FAILED")


def program_missing(work: Work) -> None:
    run_script(work, "srun /opt/environment/bin/python -m training.worker\n", "FAILED")


def folder_missing(work: Work) -> None:
    run_script(work, "srun cat data.txt\n", "FAILED", f"--chdir={work.folder}/gone")


def job_failed(work: Work) -> None:
    run_script(work, "exit 3\n", "FAILED")


def log_unwritable(work: Work) -> None:
    run_script(work, "true\n", "FAILED", "--output=/nowhere/logs/job_%j.log")


def step_refused(work: Work) -> None:
    run_script(work, "srun --ntasks=64 --nodes=1 --immediate=5 true\n", "FAILED", "--nodes=1")


def task_killed(work: Work) -> None:
    run_script(work, "srun --ntasks=2 --kill-on-bad-exit=1 bash -c 'kill -9 $$'\n", "FAILED", "--ntasks=2")


def out_of_memory(work: Work) -> None:
    run_script(work, f"srun {_GREEDY}", "|0:", "--mem=100M")


def job_cancelled(work: Work) -> None:
    job = submit_script(work, _SLEEP)
    wait_for_state(get_cluster(), job, "RUNNING")
    get_cluster().run("scancel", str(job))
    wait_until_ended(get_cluster(), job)
    keep_rows(work, job, "CANCELLED")


def dependency_failed(work: Work) -> None:
    before = submit_script(work, "echo 'the corpus was not prepared' >&2; exit 3\n", "--hold")
    waits = ("--kill-on-invalid-dep=yes", f"--dependency=afterok:{before}")
    job = submit_script(work, _SLEEP, *waits)
    lines = (
        {"event": "stage", "job": str(before), "stage": "prepare", "after": None},
        {"event": "submitted", "job": str(job), "after": str(before), "nodes": 1},
    )
    (work.run / "jobs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    get_cluster().run("scontrol", "release", str(before))
    wait_until_ended(get_cluster(), job)
    keep_rows(work, f"{before},{job}", "CANCELLED")


def preempted(work: Work) -> None:
    job = submit_script(work, _SLEEP, "--partition=abrupt", "--nodes=3", "--exclusive", "--requeue")
    wait_for_state(get_cluster(), job, "RUNNING")
    words = ("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 30")
    higher = submit(get_cluster(), *words)
    keep_rows(work, job, "PREEMPTED")
    get_cluster().run("scancel", str(job), str(higher))
    wait_until_ended(get_cluster(), job)


def node_failed(work: Work) -> None:
    job = submit_script(work, _SLEEP, "--nodes=2", "--no-requeue")
    found = wait_for_state(get_cluster(), job, "RUNNING")
    node = job_nodes(get_cluster(), found)[1]
    get_cluster().power_off(node)
    wait_until_ended(get_cluster(), job)
    keep_rows(work, job, "NODE_FAIL")
    get_cluster().boot(node)


def time_limit(work: Work) -> None:
    run_script(work, _SLEEP, "TIMEOUT", "--time=1")


def partition_unknown(work: Work) -> None:
    refused(work, "--partition=nowhere")


def account_invalid(work: Work) -> None:
    refused(work, "--account=nowhere", site=_ACCOUNTS_COUNT)


def qos_invalid(work: Work) -> None:
    refused(work, "--qos=nowhere", site=_ACCOUNTS_COUNT)


def nodes_unavailable(work: Work) -> None:
    refused(work, "--gpus-per-node=16")


def too_many_nodes(work: Work) -> None:
    refused(work, "--nodes=99")


def waits_for_nodes(work: Work) -> None:
    waits(work, "PartitionConfig", "--nodes=99")


def time_refused(work: Work) -> None:
    refused(work, "--partition=short", "--time=2-00:00:00")


def waits_for_time(work: Work) -> None:
    waits(work, "PartitionTimeLimit", "--partition=short", "--time=2-00:00:00")


def training_out_of_memory(work: Work) -> None:
    """The partition's default is less than two processes need."""
    training = Training(get_cluster(), work.folder, name="mine")
    job = training.submit("cluster.nodes=1")
    wait_until_ended(get_cluster(), job)
    keep_rows(work, job, "FAILED")


def preflight_refused(work: Work) -> None:
    """No disk has so much room as is asked for, and the run may not train without the node that lacks it."""
    training = Training(get_cluster(), work.folder, name="mine")
    limits = ("cluster.preflight.mode=stop", "cluster.preflight.min_free_bytes=1000000000000000")
    room = ("cluster.slurm.memory=3000M", f"cluster.local_path={work.folder}")
    job = training.submit("cluster.nodes=1", *room, *limits)
    wait_until_ended(get_cluster(), job)
    keep_rows(work, job, "FAILED")


def interface_missing(work: Work) -> None:
    """The cluster's file names an interface of another site; the preflight finds it."""
    training = Training(get_cluster(), work.folder, name="mine")
    settings = ("cluster.preflight.mode=exclude", "cluster.network.interface=eth9")
    room = ("cluster.slurm.memory=3000M", "cluster.preflight.min_free_bytes=1000000")
    job = training.submit("cluster.nodes=1", f"cluster.local_path={work.folder}", *room, *settings)
    wait_until_ended(get_cluster(), job)
    keep_rows(work, job, "FAILED")


def cancelled_and_saved(work: Work) -> None:
    """A training is cancelled, saves within Slurm's grace, and stays so."""
    training = Training(get_cluster(), work.folder, name="mine")
    job = training.submit("cluster.nodes=1", "cluster.slurm.memory=3000M", "loop.max_steps=300")
    training.wait_for_step()
    get_cluster().run("scancel", str(job))
    wait_until_ended(get_cluster(), job)
    keep_rows(work, job, "CANCELLED")


def controller_away(work: Work) -> None:
    cluster = get_cluster("EnforcePartLimits=ALL")
    cluster.stop_controller()
    try:
        refused(work)
    finally:
        cluster.start_controller()


CASES = {
    "command_not_found": command_not_found,
    "modules_missing": modules_missing,
    "program_missing": program_missing,
    "folder_missing": folder_missing,
    "job_failed": job_failed,
    "log_unwritable": log_unwritable,
    "step_refused": step_refused,
    "rank_killed.task": task_killed,
    "out_of_memory": out_of_memory,
    "job_cancelled": job_cancelled,
    "dependency_failed": dependency_failed,
    "preempted": preempted,
    "node_failed": node_failed,
    "time_limit": time_limit,
    "partition_unknown": partition_unknown,
    "account_invalid": account_invalid,
    "account_invalid.qos": qos_invalid,
    "nodes_unavailable": nodes_unavailable,
    "nodes_unavailable.count": too_many_nodes,
    "nodes_unavailable.waits": waits_for_nodes,
    "time_refused": time_refused,
    "time_refused.waits": waits_for_time,
    "out_of_memory.training": training_out_of_memory,
    "preflight_refused": preflight_refused,
    "interface_missing.preflight": interface_missing,
    "cancelled_and_saved": cancelled_and_saved,
    "controller_away": controller_away,
}

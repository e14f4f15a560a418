"""`metier scale`: one short run per size, and a table, a picture, a page of what more devices are worth."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.commands import merge_environment, package_variables
from launcher.hosts import check_cluster
from launcher.scaling.collect import Found, Job, Table, build_tables, describe, look_at
from launcher.scaling.compose import Composition, carry_over, compose_experiment
from launcher.scaling.hosts import find_place, follow, lead
from launcher.scaling.jobs import submit_all, wait_for_all
from launcher.scaling.local import drop_checkpoints, run_one_after_another
from launcher.scaling.page import build_page
from launcher.scaling.record import Experiment, ScaleLayout, read_experiment, write_experiment
from launcher.scaling.sizes import read_words
from launcher.scaling.words import NOTES, say_doubt, say_knee, say_table
from launcher.slurm.facts import find_job_state
from launcher.slurm.journal import newest_job, read_journal
from launcher.tools import Words, find_node_rank, refuse_flags
from launcher.verbs import run_verb
from training.errors import EXIT_FAILED, EXIT_OK, ConfigError
from training.files import hold_lock, write_json, write_text
from training.layout import RunLayout

_STOPPED = 130  # what a shell says after Ctrl-C

HELP = """\
metier scale KEY=VALUE... nodes=1,2,4,8 [mode=strong] [repeats=1] [steps=20] [warmup=5] [knee=0.8]
metier scale KEY=VALUE... processes=1,2,4 ...
metier scale collect NAME [run_root=runs]

Trains the same for a few steps at every size and says what more devices are worth: tokens per second,
efficiency, MFU, where a step's time goes, memory, device-hours per billion tokens, and up to which size it
pays (the knee). Writes run_root/NAME.scale: scale.json, scale.png, scale.html; each run has a folder of its
own, run_root/NAME.scale-MODE-SIZE-REPEAT.

  nodes, processes   what grows: machines, or processes (GPUs) on each; the other one stays as cluster.* says
  mode               strong: the same global batch; weak: the same batch per device, so the global batch is
                     batch.global_batch_size x size; both
  repeats            runs of each size; from 2 on the table shows their range
  steps, warmup      steps that are measured, and steps before them that are not
  knee               the least efficiency that is still worth its devices

Here the runs follow one another. Under Slurm each is a job: the command submits them and returns; the same
command again, or `metier scale collect NAME`, shows what is done. With cluster=torchrun the same command is
typed on every host, with --node-rank=N on all but the first, which leads and makes the table. A size that
fails is reported with its reason and leaves the others standing; the exit code is then 1.

  --wait             under Slurm: stay until all have ended
  --again            under Slurm: submit those that failed once more
  --node-rank=N      with cluster=torchrun: this host's number

Examples
  metier scale experiment=medical_qlora_smol processes=1,2 repeats=3
  metier scale experiment=llama3_8b_full_zero3 cluster=slurm nodes=1,2,4,8 mode=both --wait
  metier scale collect llama3_8b_full_zero3
"""


def run(words: Words) -> int:
    """Do what the words say; give the exit code.

    Raises:
        MetierError: Something that the user can mend.
    """
    refuse_flags(words, ("--wait", "--again", "--node-rank"))
    flags = {flag for flag, _ in words.flags}
    if words.plain[:1] == ("collect",):
        return _collect(words.plain[1:], wait="--wait" in flags)
    composition = compose_experiment(read_words(words.plain), words.tree)
    largest, node_rank = composition.largest, find_node_rank(words)
    check_cluster(largest, node_rank)
    if composition.dry_run:
        sys.stdout.write(_describe_plan(composition))
        return EXIT_OK
    layout = ScaleLayout.of(composition.run_root, composition.experiment.name)
    number = find_place(largest, node_rank) if largest.kind == "torchrun" else 0
    if number:
        return _STOPPED if follow(composition.experiment, composition.runs, layout, number) else EXIT_OK
    with hold_lock(
        layout.lock,
        busy=f"another `metier scale` is at work on {layout.root}; wait for its end, or see "
        f"what is done with `metier scale collect {composition.experiment.name}`",
    ):
        experiment = composition.experiment
        if layout.plan.exists():
            experiment = carry_over(experiment, read_experiment(layout))
        write_experiment(layout, experiment)
        runs, stopped = composition.runs, False
        match largest.kind:
            case "slurm":
                experiment = submit_all(experiment, runs, layout, again="--again" in flags)
                if "--wait" in flags:
                    wait_for_all(experiment, layout)
            case "torchrun":
                experiment, stopped = lead(experiment, runs, layout, largest.nodes)
            case _:
                experiment, stopped = run_one_after_another(
                    experiment, layout, lambda name: run_verb("train", runs[name], ())
                )
        if stopped:
            sys.stderr.write("metier scale: stopped; the same command goes on\n")
            return _STOPPED
        return _publish(experiment, layout)


def _collect(words: Sequence[str], *, wait: bool) -> int:
    names = [word for word in words if "=" not in word]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    if len(names) != 1 or set(settings) - {"run_root"}:
        raise ConfigError("wanted `metier scale collect NAME [run_root=FOLDER]`")
    layout = ScaleLayout.of(settings.get("run_root", "runs"), names[0].removesuffix(".scale"))
    experiment = read_experiment(layout)
    if wait:
        wait_for_all(experiment, layout)
    return _publish(experiment, layout)


def _publish(experiment: Experiment, layout: ScaleLayout) -> int:
    found = look_at(experiment, layout, _find_job if experiment.kind == "slurm" else lambda _: None)
    drop_checkpoints(experiment, layout)
    tables = build_tables(experiment, found)
    write_json(layout.table, describe(experiment, tables, found))
    picture = _draw(layout)
    write_text(layout.page, build_page(experiment, tables, picture))
    _say(experiment, tables, found, layout)
    failed = any(row.state == "failed" for table in tables for row in table.rows)
    return EXIT_FAILED if failed else EXIT_OK


def _find_job(run: RunLayout) -> Job | None:
    job = newest_job(read_journal(run.jobs))
    return Job(number=job, alive=find_job_state(job) is not None) if job is not None else None


def _draw(layout: ScaleLayout) -> bytes | None:
    command = [sys.executable, "-m", "launcher.scaling.draw", str(layout.table), str(layout.picture)]
    environment = merge_environment(os.environ, package_variables())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        sys.stderr.write(f"metier scale: the picture could not be drawn ({reason}); the numbers are there\n")
        return None
    return layout.picture.read_bytes()


def _say(
    experiment: Experiment, tables: Sequence[Table], found: Sequence[Found], layout: ScaleLayout
) -> None:
    for table in tables:
        sys.stdout.write(f"\n{say_table(experiment, table)}")
    if any(each.speed for each in found):
        sys.stdout.write("\n" + "".join(f"{note}\n" for note in NOTES))
    sys.stdout.write("\n")
    for table in tables:
        sys.stdout.write(f"{say_knee(table, experiment)}\n")
        if (doubt := say_doubt(table)) is not None:
            sys.stdout.write(f"{doubt}\n")
    waiting = sum(each.speed is None and each.reason is None for each in found)
    if waiting:
        sys.stdout.write(
            f"{waiting} of {len(found)} runs have not ended: the same command goes on, and "
            f"`metier scale collect {experiment.name}` shows what is done\n"
        )
    if experiment.kind == "slurm" and any(each.reason and not each.attempt.refused for each in found):
        sys.stdout.write("the same command with --again submits what failed once more\n")
    sys.stdout.write(f"{layout.page}\n")


def _describe_plan(composition: Composition) -> str:
    lines = ["dry run: nothing is written, nothing is started", ""]
    for attempt in composition.experiment.attempts:
        state = f"refused: {attempt.refused}" if attempt.refused else f"{attempt.passes} passes per step"
        lines.append(
            f"{attempt.name}  {attempt.devices} x {composition.experiment.device}, "
            f"global_batch_size {attempt.global_batch_size}, {state}"
        )
    lines.append(f"\n{Path(composition.run_root) / (composition.experiment.name + '.scale')}")
    return "\n".join(lines) + "\n"

"""What a run would do, in words and numbers; nothing is written."""

import json
from collections.abc import Sequence

from launcher.commands import show_command, torchrun_command, training_variables
from launcher.run_directory import find_layout
from training.batch import BatchPlan, plan_run
from training.config.cluster import ClusterConfig
from training.config.schema import RunConfig
from training.deepspeed_config import build_deepspeed_config
from training.schedule import learning_rate_at, schedule_length

_LEFT_TO_THE_RANKS = (
    "the tokenizer against the corpus', the attention kernel, memory: the ranks do when they start"
)


def describe_training(config: RunConfig, unseen: Sequence[str]) -> str:
    """Describe a training start: batch, schedule, DeepSpeed's JSON, the command of every host.

    Args:
        config: The run.
        unseen: What could not be looked at, in words.
    """
    return _describe(config, unseen, describe_hosts(config))


def describe_job(config: RunConfig, unseen: Sequence[str]) -> str:
    """Describe a training under Slurm: batch, schedule, DeepSpeed's JSON, the script to be submitted.

    Raises:
        ClusterError: Slurm can never give what is asked for.
        StorageError: The checkpoints do not fit on the disk.
    """
    from launcher.slurm.login import foresee  # noqa: PLC0415
    from launcher.slurm.script import write_script  # noqa: PLC0415

    layout = find_layout(config)
    script = write_script(config, layout)
    notes, start = foresee(config, script)
    soon = f"Slurm says: {start}\n\n" if start else ""
    return _describe(config, [*unseen, *notes], f"{soon}The script, {layout.job_script}\n{script}")


def _describe(config: RunConfig, unseen: Sequence[str], last: str) -> str:
    plan = plan_run(config)
    layout = find_layout(config)
    deepspeed = json.dumps(build_deepspeed_config(config, plan), indent=2)
    return f"""\
dry run: nothing is written, nothing is started

run            {layout.root}
batch          {_batch_in_words(plan, config.loop.max_steps)}
devices        {_devices_in_words(config.cluster)}
learning rate  {_schedule_in_words(config)}

Not looked at
{_list(unseen)}

DeepSpeed's configuration
{deepspeed}

{last}"""


def describe_command(command: Sequence[str]) -> str:
    """Describe a verb that is one process."""
    return f"dry run: nothing is written, nothing is started\n\n{show_command(list(command), {})}\n"


def describe_hosts(config: RunConfig) -> str:
    """Give the command that is to be run on each host."""
    cluster, root, variables = config.cluster, find_layout(config).root, training_variables(config)
    if cluster.nodes == 1:
        return f"Command\n{show_command(torchrun_command(config, root), variables)}\n"
    where = (
        f"hosts, the first of them {cluster.head_address}, in the same folder on a shared disk "
        "(`metier train` runs it)"
    )
    if cluster.rendezvous == "c10d":
        command = show_command(torchrun_command(config, root), variables)
        return f"On each of the {cluster.nodes} {where}\n{command}\n"
    commands = (
        f"node {rank}: {show_command(torchrun_command(config, root, rank), variables)}\n"
        for rank in range(cluster.nodes)
    )
    return f"On the {cluster.nodes} {where}\n{''.join(commands)}"


def _batch_in_words(plan: BatchPlan, max_steps: int) -> str:
    tokens = plan.tokens_per_step
    return f"""\
{_count(plan.global_batch_size, "sample")} per step = {plan.micro_batch_size} per pass \
x {_teams_in_words(plan)} x {_count(plan.gradient_accumulation_steps, "pass", "passes")}
               {plan.micro_batch_size * plan.teams:,} samples per pass over all ranks, \
gradient_accumulation_steps {plan.gradient_accumulation_steps}
               {tokens:,} tokens per step (samples of {plan.sequence_length:,}), \
{tokens * max_steps:,} in {max_steps:,} steps, padding included"""


def _teams_in_words(plan: BatchPlan) -> str:
    if plan.team_size == 1:
        return _count(plan.world_size, "rank")
    return f"{_count(plan.teams, 'team')} of {plan.team_size} ranks"


def _devices_in_words(cluster: ClusterConfig) -> str:
    if cluster.gpus_per_node:
        each = f"{_count(cluster.gpus_per_node, 'GPU')}, nccl"
    else:
        each = f"{_count(cluster.processes_per_node, 'process', 'processes')} on CPUs, gloo"
    return f"{_count(cluster.nodes, 'node')}, each with {each}"


def _schedule_in_words(config: RunConfig) -> str:
    schedule, steps = config.schedule, config.loop.max_steps
    peak = config.optimizer.learning_rate
    length = schedule_length(schedule, steps)
    last = learning_rate_at(steps - 1, optimizer=config.optimizer, schedule=schedule, max_steps=steps)
    final = f"{peak * schedule.final_fraction:g} after step {length} (this run's last step has {last:.3g})"
    rise = f"rises to {peak:g} over {schedule.warmup_steps} steps, " if schedule.warmup_steps else ""
    rise = rise or f"begins at {peak:g}, "
    if schedule.first_step:
        rise = f"from step {schedule.first_step} of {length}: {rise}"
    match schedule.kind:
        case "cosine":
            return f"{rise}then falls along half a cosine towards {final}"
        case "linear":
            return f"{rise}then falls in a straight line towards {final}"
        case "constant":
            return f"{rise}then stays"
        case "inverse_sqrt":
            return f"{rise}then falls with the root of the step"
        case "wsd":
            first = length - schedule.decay_steps
            return f"{rise}stays until step {first}, then falls in a straight line towards {final}"


def _list(unseen: Sequence[str]) -> str:
    return "\n".join(f"  - {each}" for each in [*unseen, _LEFT_TO_THE_RANKS])


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"

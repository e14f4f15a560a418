"""Where a run goes: machines, how a scheduler is asked for them, and what is watched while it is there."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
)

from training.config.base import Section


def _like(pattern: str, wanted: str) -> AfterValidator:
    """Check a text against a pattern; ``wanted`` is what the user reads when it does not fit."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(wanted)
        return text

    return AfterValidator(check)


def _check_names(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"names of letters, digits and _, no digit in front, and found {name}")
    return variables


_SEXAGESIMAL = 60


def _refuse_numbers(value: Any) -> Any:
    """Take a small number for minutes, as typed on the command line, and refuse what YAML made of a time.

    12:00:00 without quotes is the number 43200 there, and 1:00 is 60: nothing below comes of it.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if 0 <= value < _SEXAGESIMAL:
        return str(value)
    raise ValueError(
        "a time in quotes, for instance '12:00:00' (YAML takes one without quotes for a number of seconds); "
        "on the command line 1:30:00, or 90:00 for 90 minutes"
    )


TimeLimit = Annotated[
    str,
    _like(
        r"\d+-([01]?\d|2[0-3])(:[0-5]\d){0,2}|\d+(:[0-5]\d){0,2}",
        "a time as Slurm writes it: 90, 12:00:00, 2-00:00:00; minutes and seconds behind a colon are at most "
        "59, hours behind a dash 23",
    ),
    BeforeValidator(_refuse_numbers),
    WithJsonSchema({"type": "string"}),
]
"""As Slurm writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""

Word = Annotated[
    str, _like(r"[^\s'\"\\$`;|&<>(){}#]+", "one word without quotes, blanks and characters of the shell")
]
"""One word of a batch script's directive or of a command."""

Line = Annotated[str, _like(r"[^\n\r]+", "a single line")]

LocalPath = Annotated[
    str,
    _like(
        r"(/|\$[A-Za-z_])([^\s\"'`\\$,:;]|\$[A-Za-z_])*",
        "a folder from / on, or from a $VARIABLE of the node on, without blanks, quotes, commas and colons",
    ),
]
"""A folder of each node, which the login node need not have."""

MailEvent = Literal["BEGIN", "END", "FAIL", "REQUEUE", "ALL", "TIME_LIMIT", "TIME_LIMIT_90", "ARRAY_TASKS"]


class SlurmConfig(Section):
    """What Slurm is asked for, and what the site allows."""

    account: Word | None = Field(description="--account; null: the user's own")
    partition: Word | None = Field(description="--partition; null: the site's default")
    qos: Word | None = Field(description="--qos")
    constraint: (
        Annotated[
            str, _like(r"[^\s'\"\\$`;<>#]+", "features without blanks and quotes, for instance a100&nvlink")
        ]
        | None
    ) = Field(description="--constraint: features that the nodes must have, for instance a100&nvlink")
    reservation: Word | None = Field(description="--reservation")
    time: TimeLimit = Field(
        description="--time of one job, as Slurm writes it: 30 (minutes), 12:00:00, 2-00:00:00. A run may "
        "take several"
    )
    exclusive: bool = Field(description="--exclusive: no other job on the nodes")
    cpus_per_process: PositiveInt | None = Field(
        description="--cpus-per-task; null: the site's default, or with exclusive all"
    )
    memory: Annotated[str, _like(r"\d+[KMGT]?", "a size such as 480G; 0 for all of it")] | None = Field(
        description="--mem per node, for instance 480G; 0: all of it; null: the site's default"
    )
    gpu_type: Word | None = Field(description="--gpus-per-node=TYPE:N, for instance a100; null: any")
    exclude: list[Word] = Field(description="--exclude: nodes that are not to be used")
    mail_user: Word | None = Field(description="--mail-user")
    mail_events: list[MailEvent] = Field(description="--mail-type")
    comment: Annotated[str, _like(r"[^\n\r'\"]*", "one line without quotes")] | None = Field(
        description="--comment, for sites that account by it"
    )
    extra: list[Line] = Field(
        description="further options of sbatch, each as --option=value; those that this configuration owns "
        "are refused"
    )
    requeue: bool = Field(
        description="whether the site lets a job be requeued; false: the run goes on in a chain of jobs, "
        "each depending on the one before"
    )
    spare_nodes: NonNegativeInt = Field(
        description="nodes asked for beyond cluster.nodes: when one dies, the run goes on at once on those "
        "that are left, in the same job"
    )
    stop_lead_seconds: PositiveInt | None = Field(
        description="how long before the end of the job's time the run saves and stops; null: 60 + twice the "
        "longest save so far"
    )
    starts_without_progress: PositiveInt = Field(
        description="starts in a row that may fail without a new checkpoint before the run is given up; of "
        "those that were told to stop five times as many"
    )
    array_limit: PositiveInt = Field(description="jobs of a sweep that may run at the same time")


class EnvironmentConfig(Section):
    """What a node must load before Python starts; written into the job's script."""

    modules: list[Word] = Field(description="environment modules: module load NAME, in this order")
    setup: list[Line] = Field(
        description="lines of shell run once on each job's first node after the modules"
    )
    variables: Annotated[dict[str, str], AfterValidator(_check_names)] = Field(
        description="environment variables of every process, as they are; what needs the value of another "
        "is written as a line of setup: export NAME=$OTHER/x"
    )
    python: str | None = Field(
        description="the Python of the nodes; null: the one that runs this command, or in a container python"
    )


class ContainerConfig(Section):
    """The image that the training processes run in; the job's script itself runs outside of it."""

    kind: Literal["none", "apptainer", "pyxis"] = Field(
        description="pyxis: NVIDIA's plugin of srun, with enroot"
    )
    image: str | None = Field(description="a .sif or .sqsh file, or an address that the tool understands")
    mounts: list[
        Annotated[
            str,
            _like(r"/[^\s,:]*(:/[^\s,:]*)?(:(ro|rw))?", "/outside:/inside, or /same, behind it :ro or :rw"),
        ]
    ] = Field(description="folders to show inside, as /outside:/inside or /same; run and data are added")


class NetworkConfig(Section):
    """How the nodes talk to each other; the variables come from launcher/slurm/fabrics.yaml."""

    fabric: Literal["default", "tcp", "infiniband", "slingshot", "efa", "roce"] = Field(
        description="which of NCCL's settings are set; default: none, NCCL looks for itself"
    )
    interface: Word | None = Field(
        description="network interface of the first contact and of gloo, for instance ib0; null: found"
    )


class PreflightConfig(Section):
    """What each job looks at before it starts to train; `metier preflight` looks at the same."""

    mode: Literal["off", "warn", "exclude", "stop"] = Field(
        description="off: nothing is looked at; warn: say it and train; exclude: go on without the bad ones; "
        "stop: end the job"
    )
    budget_seconds: PositiveInt = Field(description="the most that it may take")
    slow_factor: float = Field(
        gt=1, description="a node is slow that needs this many times the median of the nodes"
    )
    min_matmul_tflops: PositiveFloat | None = Field(
        description="a device below this is bad; null: compared with the others alone"
    )
    min_allreduce_gbps: PositiveFloat | None = Field(
        description="gigabytes a second of bus bandwidth below which the network is bad; null: compared alone"
    )
    min_disk_mbps: PositiveFloat = Field(
        description="megabytes a second to the run directory and the node's disk below which a disk is bad"
    )
    min_free_bytes: NonNegativeInt = Field(description="free space wanted of each path")
    max_clock_skew_seconds: PositiveFloat = Field(description="between two nodes")


class WatchConfig(Section):
    """When a rank counts as stuck or slow; looked at by the lead rank's node, told in events.jsonl."""

    enabled: bool = Field(description="false: only the collectives' own timeout ends a run that hangs")
    start_seconds: PositiveInt = Field(description="from a process's start to its first step: imports, model")
    step_seconds: PositiveInt = Field(
        description="the least limit of a step; a larger one is step_factor x their 95th percentile"
    )
    step_factor: float = Field(gt=1, description="times the 95th percentile of the steps so far")
    save_seconds: PositiveInt = Field(description="of a save that training waits for")
    evaluate_seconds: PositiveInt = Field(description="of a measurement of the held-out loss")
    slow_factor: float = Field(
        gt=1, description="a rank is named as slow whose own work takes this many times the ranks' median"
    )
    slow_window_steps: PositiveInt = Field(description="over so many steps")


class ClusterConfig(Section):
    """Where it runs: how many nodes, and how many processes on each. One process per device."""

    kind: Literal["local", "torchrun", "slurm"] = Field(
        description="local: this machine; torchrun: hosts without a scheduler, one command on each; slurm: "
        "submitted as a job"
    )
    nodes: PositiveInt = Field(description="machines")
    gpus_per_node: NonNegativeInt = Field(description="0: train on CPUs, over gloo; else nccl")
    processes_per_node: PositiveInt = Field(description="CPU only: processes on each node")
    threads_per_process: PositiveInt | None = Field(description="null: the node's cores shared out evenly")
    head_address: str = Field(description="torchrun: host of rank 0, as seen from every node")
    head_port: int = Field(ge=1, le=65535, description="torchrun: port of the rendezvous on that host")
    rendezvous: Literal["static", "c10d"] = Field(
        description="torchrun: static: each host is told its number; c10d: hosts number themselves"
    )
    elastic_restarts: NonNegativeInt = Field(
        description="torchrun: how often it may start all processes again after a failure"
    )
    timeout_seconds: PositiveInt = Field(description="a collective that takes longer ends the run")
    local_path: LocalPath | None = Field(
        description="folder on each node's own disk for caches and temporary files, may hold $VARIABLES of "
        "the node; null: the system's temporary folder"
    )
    slurm: SlurmConfig
    environment: EnvironmentConfig
    container: ContainerConfig
    network: NetworkConfig
    preflight: PreflightConfig
    watch: WatchConfig

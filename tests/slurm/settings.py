"""What a test cluster is like, and the files that say it to Slurm; no process is started here."""

import dataclasses
import json
import os
import pwd
import random
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOGIN = "login"
"""The host of the users and of the controller."""

_NETWORK = "10.88.0"
_CONTROLLER_PORT = 6817
_HIGHEST_FIRST_JOB = 60_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One cluster."""

    root: Path
    """A folder of its own, with a short name: sockets lie in it, and their paths end at 107 characters."""
    nodes: int = 4
    cpus: int = 8
    gpus: int = 0
    """So many devices that only look like GPUs, per node."""
    memory_mb: int = 4000
    namespaces: bool = True
    """Every node is a host of its own. Without: several slurmd of one host, which needs no privilege."""
    accounting: bool = False
    """sacct works: slurmdbd and MariaDB run as well."""
    tracking: str = "linuxproc"
    """ProctrackType: linuxproc, pgid, or what real clusters have, cgroup (root and cgroup v1 only)."""
    signals_preemption: bool = False
    """SlurmctldParameters=preempt_send_user_signal."""
    enforces_memory: bool = False
    """A job that uses more memory than it asked for is killed."""
    shared_disk: str = ""
    """The size, as 1M, of a small file system that all hosts see as ``ROOT/shared``."""
    local_disk: str = ""
    """The size of every node's own ``ROOT/local``; empty: as large as the machine's disk."""
    slurmd_timeout: int = 6
    extra: tuple[str, ...] = ()
    """More lines of slurm.conf."""
    port: int = 0
    """The first of ``nodes + 3`` free ports of this host, where there are no namespaces."""
    first_job: int = field(default_factory=lambda: random.randrange(1, _HIGHEST_FIRST_JOB))
    """Job ids of clusters differ: what jobs leave in shared places does not collide."""

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc/slurm.conf"

    @property
    def socket(self) -> Path:
        """Where the supervisor listens."""
        return self.root / "run/supervisor.sock"

    @property
    def database_ports(self) -> tuple[int, int]:
        """The ports of slurmdbd and of MariaDB."""
        return (self.port + self.nodes + 1, self.port + self.nodes + 2) if self.port else (6819, 3306)

    def address(self, host: str) -> str:
        """Give a host's address."""
        if not self.namespaces:
            return "127.0.0.1"
        return f"{_NETWORK}.{1 if host == LOGIN else 10 + int(host.removeprefix('node'))}"

    def controller_host(self) -> str:
        return LOGIN if self.namespaces else socket.gethostname().split(".")[0]


def save(settings: Settings) -> None:
    """Keep the settings in the cluster's folder, for other processes."""
    values: dict[str, Any] = dataclasses.asdict(settings)
    (settings.root / "etc/cluster.json").write_text(json.dumps({**values, "root": str(settings.root)}))


def load(root: Path) -> Settings:
    """Read what ``save`` kept.

    Raises:
        FileNotFoundError: There is no cluster in this folder.
    """
    values = json.loads((root / "etc/cluster.json").read_text())
    return Settings(**{**values, "root": Path(values["root"]), "extra": tuple(values["extra"])})


def user_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def slurm_conf(settings: Settings) -> str:
    """Write slurm.conf. Where a value is not Slurm's own, the comment names what it costs to leave it."""
    root, controller = settings.root, settings.controller_host()
    lines = [
        "ClusterName=test",
        f"FirstJobId={settings.first_job}",
        f"SlurmctldHost={controller}({settings.address(LOGIN)})",
        f"SlurmctldPort={settings.port or _CONTROLLER_PORT}",
        *(["SlurmdPort=6818"] if settings.namespaces else []),
        f"SlurmUser={user_name()}",
        f"SlurmdUser={user_name()}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        "# A requeued job waits until its credential has expired: 120 s by default, and no less than 5.",
        f"AuthInfo=socket={root}/run/munge.sock,cred_expire=5",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldPidFile={root}/run/slurmctld.pid",
        f"SlurmdPidFile={root}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={root}/log/slurmctld.log",
        f"SlurmdLogFile={root}/log/slurmd-%n.log",
        "SlurmctldDebug=verbose",
        "SlurmdDebug=verbose",
        f"ProctrackType=proctrack/{settings.tracking}",
        "TaskPlugin=task/none",
        "MpiDefault=none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
        "GresTypes=gpu",
        "JobSubmitPlugins=lua",
        *_scheduling(settings),
        *_faults(settings),
        *_accounting(settings),
        *settings.extra,
        *_nodes(settings),
        *_partitions(),
    ]
    return "\n".join(lines) + "\n"


def _scheduling(settings: Settings) -> list[str]:
    memory = ["JobAcctGatherParams=OverMemoryKill", "SelectTypeParameters=CR_Core_Memory", "DefMemPerCPU=200"]
    return [
        "SelectType=select/cons_tres",
        # OverMemoryKill does nothing unless memory is a resource that is shared out.
        *(memory if settings.enforces_memory else ["SelectTypeParameters=CR_Core"]),
        "SlurmdParameters=config_overrides",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2",
        "PriorityType=priority/basic",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        *(["SlurmctldParameters=preempt_send_user_signal"] if settings.signals_preemption else []),
        "JobRequeue=1",
        "MinJobAge=3600",
    ]


def _faults(settings: Settings) -> list[str]:
    return [
        "# A node that was lost comes back by itself.",
        "ReturnToService=2",
        "SlurmctldTimeout=10",
        "# 300 by default: so long nobody would notice a dead node.",
        f"SlurmdTimeout={settings.slurmd_timeout}",
        "KillWait=5",
        "BatchStartTimeout=10",
        "MessageTimeout=5",
        "TCPTimeout=2",
        "# Below 60 a controller's outage drains nodes: a step repeats its last message once a minute.",
        "UnkillableStepTimeout=180",
        "CompleteWait=0",
        "OverTimeLimit=0",
    ]


def _accounting(settings: Settings) -> list[str]:
    if not settings.accounting:
        return ["AccountingStorageType=accounting_storage/none", "JobCompType=jobcomp/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={settings.address(LOGIN)}",
        f"AccountingStoragePort={settings.database_ports[0]}",
        f"AccountingStoragePass={settings.root}/run/munge.sock",
        "AccountingStorageTRES=gres/gpu",
    ]


def _nodes(settings: Settings) -> list[str]:
    common = f"CPUs={settings.cpus} RealMemory={settings.memory_mb} State=UNKNOWN"
    if settings.gpus:
        common += f" Gres=gpu:{settings.gpus}"
    lines = []
    for number, name in enumerate(settings.node_names, 1):
        host = name if settings.namespaces else settings.controller_host()
        port = "" if settings.namespaces else f" Port={settings.port + number}"
        lines.append(f"NodeName={name} NodeHostname={host} NodeAddr={settings.address(name)}{port} {common}")
    return lines


def _partitions() -> list[str]:
    common = "Nodes=ALL State=UP OverSubscribe=NO"
    kinds = {
        "main": "Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
        "short": "MaxTime=10 PriorityTier=10 PreemptMode=OFF",
        "norequeue": "MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
        "low": "MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=5",
        "abrupt": "MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
        "high": "MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF",
    }
    return [f"PartitionName={name} {common} {kind}" for name, kind in kinds.items()]


JOB_SUBMIT_LUA = """\
-- Some sites let no job requeue itself; Slurm has no setting for it, they write this.
function slurm_job_submit(job, partitions, uid)
  if job.partition == "norequeue" then job.requeue = 0 end
  return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end
"""


def gres_conf(settings: Settings, devices: list[str]) -> str:
    """Write gres.conf.

    Args:
        settings: Of the cluster.
        devices: Character devices, others are refused; the digit at a name's end is the GPU's index.
    """
    if not settings.gpus:
        return "AutoDetect=off\n"
    names = ",".join(settings.node_names)
    return f"AutoDetect=off\nNodeName={names} Name=gpu Flags=nvidia_gpu_env File={','.join(devices)}\n"


CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=no
"""


def slurmdbd_conf(settings: Settings) -> str:
    """Write slurmdbd.conf; its file may be read by its owner only."""
    root, (port, database_port) = settings.root, settings.database_ports
    return f"""\
AuthType=auth/munge
AuthInfo={root}/run/munge.sock
DbdHost={settings.controller_host()}
DbdAddr={settings.address(LOGIN)}
DbdPort={port}
SlurmUser={user_name()}
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
DebugLevel=verbose
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def hosts_file(settings: Settings) -> str:
    """Write /etc/hosts of every host."""
    names = [LOGIN, *settings.node_names]
    return "127.0.0.1 localhost\n" + "".join(f"{settings.address(name)} {name}\n" for name in names)

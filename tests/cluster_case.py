"""A run for a Slurm cluster, and what Slurm's commands print, for tests without one."""

import functools
from typing import Any

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.freeze import check_config
from training.config.schema import RunConfig

PARTITIONS_20_11 = """\
PartitionName=boost AllowGroups=ALL AllowAccounts=ALL AllowQos=normal,long AllocNodes=ALL Default=NO \
QoS=N/A DefaultTime=00:30:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=64 \
MaxTime=1-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=gpu[001-003] PriorityJobFactor=1 \
PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP \
TotalCPUs=96 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=DefCpuPerGPU=8 DefMemPerNode=UNLIMITED \
MaxMemPerNode=UNLIMITED
PartitionName=cpu AllowGroups=ALL AllowAccounts=physics,bio AllowQos=ALL AllocNodes=ALL Default=YES \
QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED \
MaxTime=UNLIMITED MinNodes=1 LLN=NO MaxCPUsPerNode=32 Nodes=cn[1-2] PriorityJobFactor=1 PriorityTier=1 \
RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=96 \
TotalNodes=2 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerCPU=3800 MaxMemPerNode=150000
PartitionName=old AllowGroups=ALL DenyAccounts=bio AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A \
DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=120 Hidden=NO MaxNodes=2 \
MaxTime=02:00:00 MinNodes=2 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=gpu[001-003] PriorityJobFactor=1 \
PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=CANCEL State=DOWN \
TotalCPUs=96 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED \
MaxMemPerNode=UNLIMITED
"""
"""Slurm 20.11: three partitions, of which the default has no GPUs."""

_GPU_NODE = """\
NodeName={name} Arch=x86_64 CoresPerSocket=16  CPUAlloc=0 CPUTot=32 CPULoad=0.01 \
AvailableFeatures=a100,nvlink ActiveFeatures=a100,nvlink Gres=gpu:a100:4(S:0-1),nvme:1 NodeAddr={name} \
NodeHostName={name} Version=20.11.9 OS=Linux 4.18.0-305.el8.x86_64 #1 SMP Wed Apr 28 13:33:11 UTC 2021  \
RealMemory=512000 AllocMem=0 FreeMem=500123 Sockets=2 Boards=1 State={state} ThreadsPerCore=1 TmpDisk=0 \
Weight=1 Owner=N/A MCS_label=N/A Partitions=boost,old  BootTime=2024-01-01T00:00:00 \
CfgTRES=cpu=32,mem=500G,billing=32 AllocTRES= CapWatts=n/a CurrentWatts=0 AveWatts=0 Reason=disk \
full=yes [root@2024-02-02T00:00:00]
"""
_CPU_NODE = """\
NodeName={name} Arch=x86_64 CoresPerSocket=24  CPUAlloc=48 CPUEfctv=46 CPUTot=48 CPULoad=48.00 \
AvailableFeatures=(null) ActiveFeatures=(null) Gres=(null) NodeAddr={name} NodeHostName={name} \
Version=24.05.4 OS=Linux 5.14.0-427.el9.x86_64 #1 SMP PREEMPT_DYNAMIC Fri Feb 23 01:51:18 EST 2024 \
RealMemory=190000 AllocMem=190000 FreeMem=1 Sockets=2 Boards=1 CoreSpecCount=2 State=ALLOCATED+PLANNED \
ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=cpu BootTime=2024-01-01T00:00:00 \
SlurmdStartTime=2024-01-01T00:01:00 LastBusyTime=2024-05-05T00:00:00 ResumeAfterTime=None \
CfgTRES=cpu=46,mem=190000M,billing=46 AllocTRES=cpu=46 Extra=(null) Comment=(null)
"""

NODES = "".join(
    (
        _GPU_NODE.format(name="gpu001", state="IDLE"),
        _GPU_NODE.format(name="gpu002", state="MIXED+CLOUD"),
        _GPU_NODE.format(name="gpu003", state="DOWN*+DRAIN"),
        _CPU_NODE.format(name="cn1"),
        _CPU_NODE.format(name="cn2"),
    )
)
"""Nodes as Slurm 20.11 and 24.05 print them: four A100 each, and none."""

SETTINGS = """\
Configuration data as of 2024-05-05T00:00:00
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = leo
JobRequeue              = 1
PreemptMode             = REQUEUE
SelectTypeParameters    = CR_CORE_MEMORY
SLURM_VERSION           = 20.11.9
SwitchType              = switch/none

Slurmctld(primary) at head is UP
"""


@functools.cache
def _tiny_smoke() -> RunConfig:
    return compose_run(["experiment=tiny_smoke", "cluster=slurm"], ConfigTree(None)).config


def slurm_run(**changes: Any) -> RunConfig:
    """Give the smallest experiment for Slurm, with settings changed as section__key=value."""
    values = _tiny_smoke().model_dump()
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
    return check_config(values)

"""What the ranks tell each other: plain values, sent as JSON. None means: was not looked at."""

from typing import Literal

from pydantic import Field

from training.config.base import Section


class PathFacts(Section):
    """One folder as one node sees it."""

    what: Literal["run directory", "local disk", "corpus", "model"]
    path: str
    missing: bool = False
    error: str | None = None
    """What the disk answered, when it refused."""

    free_bytes: int | None = None
    write_mbps: float | None = None
    """Megabytes a second, with fsync."""

    read_mbps: float | None = None


class GpuHealth(Section):
    """What NVML tells of one GPU."""

    uncorrected_errors: int | None = None
    """Uncorrected ECC errors since the driver was loaded."""

    rows_pending: bool | None = None
    """Rows or pages to be retired: the node needs a reset."""

    rows_failed: bool | None = None
    """A row could not be remapped: the GPU is to be replaced."""

    xids: tuple[int, ...] = ()
    """Critical errors while this looked (https://docs.nvidia.com/deploy/xid-errors/)."""

    throttled: tuple[str, ...] = ()
    """Why the clocks are held back."""

    celsius: int | None = None
    used_bytes: int | None = None
    """Memory that was in use before this looked."""

    error: str | None = None
    """Why this could not be asked."""


class DeviceFacts(Section):
    """The device of one rank."""

    name: str
    uuid: str | None = None
    matmul_tflops: float | None = None
    cpu_share: float | None = None
    """On a CPU: seconds of processor time per second and thread of the product; 1: undisturbed."""

    to_device_gbps: float | None = None
    from_device_gbps: float | None = None
    health: GpuHealth | None = None
    error: str | None = None


class HostFacts(Section):
    """What the first rank of a node tells of it."""

    gpus: int | None = None
    memory_copy_gbps: float | None = None
    paths: tuple[PathFacts, ...] = ()
    shm_free_bytes: int | None = None
    limits: dict[str, int] = Field(default_factory=dict)
    """Soft limits of the process; -1: none."""

    infiniband: tuple[str, ...] = ()
    """Adapters."""

    interfaces: tuple[str, ...] = ()
    """Network interfaces."""

    versions: dict[str, str] = Field(default_factory=dict)


class RankFacts(Section):
    """What one rank found on its own."""

    rank: int
    node: str
    device: DeviceFacts | None = None
    host: HostFacts | None = None
    undone: tuple[str, ...] = ()
    """Looks that were left out, and why."""


class Pair(Section):
    """The link between two nodes."""

    nodes: tuple[str, str]
    gbps: float


class NetworkFacts(Section):
    """What one rank found together with the others."""

    rank: int
    node: str
    clock_offset_seconds: float | None = None
    """This node's clock less the lead's."""

    clock_doubt_seconds: float | None = None
    """Half of the quickest round trip: the offset is right within this."""

    latency_seconds: float | None = None
    """Of an all-reduce of one number over all ranks."""

    bus_gbps: float | None = None
    """Gigabytes a second of a large all-reduce, as nccl-tests count: 2 (n - 1) / n x bytes / seconds."""

    pairs: tuple[Pair, ...] = ()
    contact_error: str | None = None
    """Why this rank did not come into contact with all others, when it did not hang."""

    undone: tuple[str, ...] = ()


class Facts(Section):
    """All that is known of all nodes."""

    gpus_wanted: int
    interface_wanted: str | None = None
    """cluster.network.interface."""

    nodes: tuple[str, ...]
    """In the order of their first ranks."""

    silent: dict[str, str] = Field(default_factory=dict)
    """Nodes with a rank that did not answer: when it was last heard."""

    ranks: tuple[RankFacts, ...]
    network: tuple[NetworkFacts, ...]

"""The batch arithmetic: how one global batch is cut over ranks and forward passes."""

from dataclasses import dataclass

from training.config.schema import BatchConfig, ClusterConfig
from training.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """``global_batch_size == micro_batch_size * gradient_accumulation_steps * world_size``."""

    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    sequence_length: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens of all ranks in one optimizer step, padding included."""
        return self.global_batch_size * self.sequence_length

    @property
    def samples_per_rank(self) -> int:
        """Samples of one rank in one optimizer step."""
        return self.global_batch_size // self.world_size

    def first_sample(self, rank: int, micro: int) -> int:
        """Place of a pass's first sample in the global batch: each rank takes one contiguous piece of it.

        Neighbours in a global batch come from neighbouring lanes, so a node fetches few shards.
        """
        return rank * self.samples_per_rank + micro * self.micro_batch_size


def find_world_size(cluster: ClusterConfig) -> int:
    """Count the processes: one per GPU, or ``processes_per_node`` where there is none."""
    return cluster.nodes * (cluster.gpus_per_node or cluster.processes_per_node)


def plan_batch(config: BatchConfig, world_size: int) -> BatchPlan:
    """Derive the accumulation steps that make the global batch come out exactly.

    Raises:
        ConfigError: The global batch cannot be cut evenly; the message offers the nearest that can.
    """
    samples_per_pass = config.micro_batch_size * world_size
    steps, rest = divmod(config.global_batch_size, samples_per_pass)
    if rest:
        lower, upper = steps * samples_per_pass, (steps + 1) * samples_per_pass
        choices = f"{lower} or {upper}" if lower else f"{upper}"
        raise ConfigError(
            f"batch.global_batch_size={config.global_batch_size} is not a multiple of "
            f"batch.micro_batch_size x world_size = {config.micro_batch_size} x {world_size} = "
            f"{samples_per_pass}; use {choices}"
        )
    return BatchPlan(
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=steps,
        world_size=world_size,
        sequence_length=config.sequence_length,
    )

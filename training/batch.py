"""The batch arithmetic: how one global batch is cut over ranks and forward passes."""

from dataclasses import dataclass

from training.config.cluster import ClusterConfig
from training.config.schema import BatchConfig, RunConfig
from training.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """``global_batch_size == micro_batch_size * gradient_accumulation_steps * teams``."""

    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    sequence_length: int
    team_size: int = 1
    """Neighbouring ranks that share every pass between them: a *team*. 1: each rank is a team of its own."""

    @property
    def teams(self) -> int:
        """Teams that each have passes of their own."""
        return self.world_size // self.team_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens of all ranks in one optimizer step, padding included."""
        return self.global_batch_size * self.sequence_length

    @property
    def samples_per_rank(self) -> int:
        """Samples that one rank reads in one optimizer step; ranks of one team read the same."""
        return self.global_batch_size // self.teams

    def first_sample(self, rank: int, micro: int) -> int:
        """Place of a pass's first sample in the global batch: each team takes one contiguous piece of it.

        Neighbours in a global batch come from neighbouring lanes, so a node fetches few shards.
        """
        team = rank // self.team_size
        return team * self.samples_per_rank + micro * self.micro_batch_size


def find_world_size(cluster: ClusterConfig) -> int:
    """Count the processes: one per GPU, or ``processes_per_node`` where there is none."""
    return cluster.nodes * (cluster.gpus_per_node or cluster.processes_per_node)


def plan_run(config: RunConfig) -> BatchPlan:
    """Plan the batch of a whole run: ``plan_batch`` for the processes that its cluster starts.

    Raises:
        ConfigError: As ``plan_batch``.
    """
    strategy = config.strategy
    return plan_batch(
        config.batch,
        find_world_size(config.cluster),
        strategy.sequence_parallel_size,
        strategy.tensor_parallel_size,
    )


def plan_batch(
    config: BatchConfig, world_size: int, sequence_parallel_size: int = 1, tensor_parallel_size: int = 1
) -> BatchPlan:
    """Derive the accumulation steps that make the global batch come out exactly.

    Args:
        config: Sizes of samples, passes and steps.
        world_size: Processes.
        sequence_parallel_size: Ranks that share the tokens of every pass.
        tensor_parallel_size: Ranks that share the matrices of every pass; the rules allow one of the two.

    Raises:
        ConfigError: Ranks, rows or the global batch cannot be cut evenly; the message offers what can.
    """
    size = sequence_parallel_size * tensor_parallel_size
    name = "sequence_parallel_size" if sequence_parallel_size > 1 else "tensor_parallel_size"
    if world_size % size:
        raise ConfigError(
            f"strategy.{name}={size} does not divide world_size={world_size}; use a divisor, best one of the "
            "GPUs of a node"
        )
    _check_tokens(config, sequence_parallel_size)
    teams = world_size // size
    samples_per_pass = config.micro_batch_size * teams
    steps, rest = divmod(config.global_batch_size, samples_per_pass)
    if rest:
        lower, upper = steps * samples_per_pass, (steps + 1) * samples_per_pass
        choices = f"{lower} or {upper}" if lower else f"{upper}"
        named = "world_size" if size == 1 else f"world_size / strategy.{name} of {size}"
        raise ConfigError(
            f"batch.global_batch_size={config.global_batch_size} is not a multiple of "
            f"batch.micro_batch_size x {named} = {config.micro_batch_size} x {teams} = {samples_per_pass}; "
            f"use {choices}"
        )
    return BatchPlan(
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=steps,
        world_size=world_size,
        sequence_length=config.sequence_length,
        team_size=size,
    )


def _check_tokens(config: BatchConfig, size: int) -> None:
    tokens = config.micro_batch_size * config.sequence_length
    if tokens % size:
        raise ConfigError(
            f"strategy.sequence_parallel_size={size} does not divide batch.micro_batch_size x "
            f"batch.sequence_length = {tokens} tokens; use batch.sequence_length="
            f"{-(-config.sequence_length // size) * size}"
        )

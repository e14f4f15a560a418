"""Which method goes with which strategy, optimizer and precision; docs/strategies.md is written from this.

Every rule names an outside fact and what to use instead. What a rule lets through is not thereby tested:
the page says which combinations a test runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from training.batch import find_world_size
from training.config.schema import RunConfig
from training.errors import ConfigError

Method = Literal["none", "lora", "dora", "qlora", "qdora"]
_THREE = 3
_ELEMENTWISE = ("adamw", "adamw_cpu", "adamw_paged", "lion")
"""Optimizers that treat each element by itself, so that a part of a matrix is as good as the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """What decides whether a run can be: of each group of settings, the part that meets the others."""

    method: Method
    zero_stage: int
    offload_optimizer: str
    offload_parameters: str
    secondary_ranks: int
    quantized_weights: bool
    quantized_gradients: bool
    sequence_parallel_size: int
    tensor_parallel_size: int
    optimizer: str
    precision: str

    @property
    def is_quantized(self) -> bool:
        """Whether gathers or reductions travel in fewer bits."""
        return self.quantized_weights or self.quantized_gradients


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a combination can be trained."""

    kind: Literal["works", "refused", "needs a GPU"]
    reason: str = ""
    """Of a refusal: one line with what to use instead. Of a need: what wants it."""


def judge(combination: Combination) -> Verdict:
    """Apply every rule: the first that refuses, else the first that has a need, else it works."""
    for refuses in _REFUSALS:
        reason = refuses(combination)
        if reason:
            return Verdict("refused", reason)
    return _find_need(combination) or Verdict("works")


def find_combination(config: RunConfig) -> Combination:
    """Take out of a configuration what the rules look at."""
    adapter, strategy = config.adapter, config.strategy
    return Combination(
        method=find_method(adapter.kind, adapter.base_bits),
        zero_stage=strategy.zero_stage,
        offload_optimizer=strategy.offload_optimizer,
        offload_parameters=strategy.offload_parameters,
        secondary_ranks=strategy.secondary_ranks,
        quantized_weights=strategy.quantized_weights,
        quantized_gradients=strategy.quantized_gradients,
        sequence_parallel_size=strategy.sequence_parallel_size,
        tensor_parallel_size=strategy.tensor_parallel_size,
        optimizer=config.optimizer.kind,
        precision=config.precision,
    )


def find_method(kind: Literal["none", "lora", "dora"], base_bits: int) -> Method:
    """Name a method: an adapter's kind, with a q in front where its base has 4 bits.

    Raises:
        ConfigError: Nothing but adapters can be trained on 4-bit weights.
    """
    if base_bits == 16:  # noqa: PLR2004
        return kind
    if kind == "none":
        raise ConfigError(
            "adapter.base_bits=4 needs adapter.kind=lora: 4-bit weights cannot be trained; use adapter=qlora"
        )
    return "qlora" if kind == "lora" else "qdora"


def check_strategy(config: RunConfig) -> None:
    """Refuse what cannot be trained at all, or not on this cluster.

    Raises:
        ConfigError: One line that says what to use instead.
    """
    verdict = judge(find_combination(config))
    on_gpu = config.cluster.gpus_per_node > 0
    if verdict.kind == "refused" or (verdict.kind == "needs a GPU" and not on_gpu):
        raise ConfigError(verdict.reason)
    strategy, ranks = config.strategy, find_world_size(config.cluster)
    if strategy.sequence_parallel_size > 1 and config.model.attention.startswith("flash_attention"):
        raise ConfigError(
            f"strategy.sequence_parallel_size={strategy.sequence_parallel_size} does not go with "
            f"model.attention={config.model.attention}, which sees a rank's own tokens alone; use "
            "model.attention=auto"
        )
    if strategy.swaps_to_disk and not strategy.nvme_path:
        raise ConfigError("strategy.nvme_path is missing; name a folder on the node's own fast disk")
    if ranks % strategy.secondary_ranks:
        raise ConfigError(
            f"strategy.secondary_ranks={strategy.secondary_ranks} does not divide the {ranks} ranks; use the "
            "number of GPUs of a node, or 1"
        )


def effective_stage(zero_stage: int, precision: str) -> int:
    """Give the stage that DeepSpeed is told.

    Its stage 0 sums the gradients of passes and ranks in bf16, so that the loss would depend on how a batch
    is cut (law 1), and refuses to sum them in fp32. Stage 1 does the same work with fp32 sums, as much
    traffic and, on one rank, as much memory.
    """
    return 1 if zero_stage == 0 and precision == "bf16" else zero_stage


def _needs_stage_three(c: Combination) -> str | None:
    wanted = {
        f"strategy.offload_parameters={c.offload_parameters}": c.offload_parameters != "none",
        # At stages 1 and 2 DeepSpeed takes nvme for none, without a word.
        "strategy.offload_optimizer=nvme": c.offload_optimizer == "nvme",
        f"strategy.secondary_ranks={c.secondary_ranks}": c.secondary_ranks > 1,
        "strategy.quantized_weights": c.quantized_weights,
        "strategy.quantized_gradients": c.quantized_gradients,
    }
    for setting, is_wanted in wanted.items():
        if is_wanted and c.zero_stage != _THREE:
            return f"{setting} needs strategy.zero_stage=3, found {c.zero_stage}"
    return None


def _offload_needs_zero(c: Combination) -> str | None:
    if c.offload_optimizer != "none" and c.zero_stage == 0:
        return f"strategy.offload_optimizer={c.offload_optimizer} needs strategy.zero_stage=1, 2 or 3"
    return None


def _adafactor_needs_whole_matrices(c: Combination) -> str | None:
    if c.optimizer == "adafactor" and (c.zero_stage > 0 or c.precision == "bf16"):
        return (
            "optimizer.kind=adafactor needs whole matrices, and ZeRO lays all parameters end to end (with "
            "precision=bf16 at stage 0 too); use optimizer=lion or optimizer=adamw_8bit, or strategy=zero0 "
            "precision=fp32"
        )
    return None


def _cpu_adam_needs_offload(c: Combination) -> str | None:
    if c.optimizer == "adamw_cpu" and c.offload_optimizer == "none":
        return (
            "optimizer.kind=adamw_cpu steps on the CPU and needs strategy.offload_optimizer=cpu; use "
            "optimizer=adamw"
        )
    return None


def _bitsandbytes_steps_on_gpus(c: Combination) -> str | None:
    if c.optimizer in {"adamw_8bit", "adamw_paged"} and c.offload_optimizer != "none":
        return (
            f"optimizer.kind={c.optimizer} steps on the GPU, where strategy.offload_optimizer="
            f"{c.offload_optimizer} leaves nothing to step on; use optimizer=adamw"
        )
    return None


def _tensor_parallel_cuts_what_is_trained(c: Combination) -> str | None:
    if c.tensor_parallel_size == 1:
        return None
    setting = f"strategy.tensor_parallel_size={c.tensor_parallel_size}"
    if c.sequence_parallel_size > 1:
        return (
            f"{setting} and strategy.sequence_parallel_size={c.sequence_parallel_size} share a pass in two "
            "ways; use sequence_parallel_size for long rows, tensor_parallel_size for large layers"
        )
    if c.method != "none":
        return (
            f"{setting} cuts the matrices that are trained, and an adapter's are too small to gain by it; "
            "use strategy.tensor_parallel_size=1 with strategy=zero3, or adapter=none"
        )
    if c.zero_stage not in {1, 2}:
        why = "gathers whole layers" if c.zero_stage == _THREE else "takes each rank's model for the whole"
        return (
            f"{setting} does not go with strategy.zero_stage={c.zero_stage}, which {why}; use strategy=zero1 "
            "or zero2"
        )
    if c.optimizer not in _ELEMENTWISE:
        return (
            f"optimizer.kind={c.optimizer} looks at more than one element at a time, and {setting} leaves a "
            "part of each matrix; use optimizer=adamw or lion"
        )
    return None


def _find_need(c: Combination) -> Verdict | None:
    if c.method == "qdora" and c.zero_stage == _THREE:
        return Verdict(
            "needs a GPU",
            "DoRA on a 4-bit base at strategy.zero_stage=3 needs a GPU: on CPUs peft puts another tensor in "
            "the place of each weight, which ZeRO-3 then does not know; use strategy=zero2",
        )
    if c.optimizer in {"adamw_8bit", "adamw_paged"}:
        return Verdict(
            "needs a GPU", f"optimizer.kind={c.optimizer} needs a GPU; use optimizer=adamw on CPUs"
        )
    if c.is_quantized:
        return Verdict(
            "needs a GPU",
            "strategy.quantized_weights and quantized_gradients need a GPU (DeepSpeed's kernels for them); "
            "set both to false on CPUs",
        )
    return None


_REFUSALS: tuple[Callable[[Combination], str | None], ...] = (
    _offload_needs_zero,
    _needs_stage_three,
    _adafactor_needs_whole_matrices,
    _cpu_adam_needs_offload,
    _bitsandbytes_steps_on_gpus,
    _tensor_parallel_cuts_what_is_trained,
)

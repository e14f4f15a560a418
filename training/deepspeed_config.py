"""DeepSpeed's JSON, written from the typed configuration by one pure function; never a user's file."""

from typing import Any

from training.batch import BatchPlan
from training.config.schema import RunConfig
from training.deepspeed_sizes import (
    SUB_GROUP,
    ModelShape,
    cap_for_nvme,
    choose_parameter_buffers,
    choose_persistence_threshold,
    choose_prefetch_bucket,
    choose_reduce_bucket,
)
from training.errors import ConfigError
from training.rules.strategies import effective_stage

_FROM_MODEL = "chosen from the model's size"
_OWNED = {
    "train_batch_size": "batch.global_batch_size",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_size",
    "gradient_accumulation_steps": "batch.global_batch_size",
    "gradient_clipping": "optimizer.max_grad_norm",
    "bf16": "precision",
    "fp16": "precision",
    "data_types": "precision",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_optimization": "strategy",
    "activation_checkpointing": "strategy.activation_checkpointing",
    "tensor_parallel": "strategy.tensor_parallel_size",
}


def build_deepspeed_config(
    config: RunConfig, plan: BatchPlan, shape: ModelShape | None = None
) -> dict[str, Any]:
    """Write DeepSpeed's configuration, with the keys that its JSON reference (version 0.19) names.

    Without the model's ``shape`` it is to be read by people: sizes that depend on it say so.

    Raises:
        ConfigError: strategy.deepspeed_extra sets a key that this configuration owns.
    """
    strategy = config.strategy
    built: dict[str, Any] = {
        # DeepSpeed takes every rank for a reader of its own: so many would they read.
        "train_batch_size": plan.global_batch_size * plan.team_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": _zero(config, plan.world_size, shape),
        # The optimizer is built by us: DeepSpeed would compile its own at first use, which takes a minute.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # The loop reports; DeepSpeed stays silent.
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if config.precision == "bf16":
        # Micro-batches are summed in fp32, or the loss would depend on how the batch is cut (law 1).
        built["data_types"] = {"grad_accum_dtype": "fp32"}
    if strategy.swaps_to_disk:
        # It rounds lengths up to 1024 bytes for each of these: four times that is what every disk takes.
        built["aio"] = {"intra_op_parallelism": 4}
    if strategy.tensor_parallel_size > 1:
        built["tensor_parallel"] = {
            "autotp_size": strategy.tensor_parallel_size,
            # The fused loss reads the whole output layer.
            "vocab_parallel_lm_head": False,
            "partition_config": "the model's own plan for its layers",
        }
    for key, value in strategy.deepspeed_extra.items():
        if key in _OWNED:
            raise ConfigError(f"strategy.deepspeed_extra.{key} belongs to {_OWNED[key]}; set that instead")
        built[key] = value
    return built


def _zero(config: RunConfig, world_size: int, shape: ModelShape | None) -> dict[str, Any]:
    strategy = config.strategy
    stage = effective_stage(strategy.zero_stage, config.precision)
    zero: dict[str, Any] = {"stage": stage}
    if stage == 0:
        return zero
    zero |= {
        "overlap_comm": strategy.overlap_comm,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": strategy.reduce_bucket_size
        or (choose_reduce_bucket(shape, world_size) if shape else _FROM_MODEL),
    }
    if strategy.offload_optimizer != "none":
        zero["offload_optimizer"] = _offload(config, strategy.offload_optimizer)
    if strategy.offload_optimizer == "nvme":
        zero["sub_group_size"] = SUB_GROUP
    if stage == 3:  # noqa: PLR2004
        prefetch, threshold = strategy.prefetch_bucket_size, strategy.parameter_persistence_threshold
        if prefetch is None and shape:
            prefetch = choose_prefetch_bucket(shape)
        if threshold is None and shape:
            threshold = choose_persistence_threshold(shape)
        zero |= {
            "stage3_prefetch_bucket_size": _FROM_MODEL if prefetch is None else prefetch,
            "stage3_param_persistence_threshold": _FROM_MODEL if threshold is None else threshold,
            "stage3_gather_16bit_weights_on_model_save": False,
            "zero_hpz_partition_size": strategy.secondary_ranks,
            "zero_quantized_weights": strategy.quantized_weights,
            "zero_quantized_gradients": strategy.quantized_gradients,
        }
        if strategy.offload_parameters != "none":
            zero["offload_param"] = _offload(config, strategy.offload_parameters)
        if strategy.offload_parameters == "nvme":
            zero |= _read_as_needed(zero, config, world_size, shape)
    return zero


def _read_as_needed(
    zero: dict[str, Any], config: RunConfig, world_size: int, shape: ModelShape | None
) -> dict[str, Any]:
    """Let parameters come from the disk when a layer needs them, and go when it is done.

    Reading ahead takes buffers that the next layer may then not find: DeepSpeed ends the run there.
    """
    threshold: int | str = _FROM_MODEL
    count: int | str = _FROM_MODEL
    size: int | str = _FROM_MODEL
    if shape:
        threshold = cap_for_nvme(zero["stage3_param_persistence_threshold"])
        adapted = config.adapter.kind != "none"
        count, size = choose_parameter_buffers(shape, world_size, adapted=adapted)
    return {
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": threshold,
        # Unless it is told so, DeepSpeed keeps the first thousand million in the host's memory.
        "offload_param": zero["offload_param"]
        | {"max_in_cpu": 0, "buffer_count": count, "buffer_size": size},
    }


def _offload(config: RunConfig, device: str) -> dict[str, Any]:
    place: dict[str, Any] = {"device": device, "pin_memory": _on_gpu(config)}
    return place | {"nvme_path": config.strategy.nvme_path} if device == "nvme" else place


def _on_gpu(config: RunConfig) -> bool:
    return config.cluster.gpus_per_node > 0

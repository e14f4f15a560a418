"""DeepSpeed's JSON: what a strategy becomes, and how sizes follow from the model and the cluster."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.batch import plan_run
from training.config.schema import RunConfig
from training.deepspeed_config import build_deepspeed_config
from training.deepspeed_sizes import (
    ModelShape,
    cap_for_nvme,
    choose_parameter_buffers,
    choose_persistence_threshold,
    choose_prefetch_bucket,
    choose_reduce_bucket,
)

LLAMA_8B = ModelShape(
    parameters=8_030_261_248,
    trained=8_030_261_248,
    layer=218_112_000,
    hidden=4096,
    adapter=0,
    tensor=525_336_576,
    tensors=12,
)
TINY = ModelShape(
    parameters=300_000, trained=300_000, layer=40_000, hidden=64, adapter=0, tensor=16_384, tensors=12
)


def compose(*changes: str) -> RunConfig:
    return compose_run(["experiment=tiny_smoke", *changes], ConfigTree.open(None)).config


def build(*changes: str, shape: ModelShape | None = TINY) -> dict[str, Any]:
    config = compose(*changes)
    return build_deepspeed_config(config, plan_run(config), shape)


def test_a_reduction_grows_with_the_ranks_and_is_never_more_than_the_gradients() -> None:
    sizes = [choose_reduce_bucket(LLAMA_8B, ranks) for ranks in (1, 64, 256, 1024)]
    assert sizes == [50_000_000, 50_000_000, 128_000_000, 512_000_000]
    assert choose_reduce_bucket(TINY, 8) == 300_000
    assert choose_reduce_bucket(replace(LLAMA_8B, trained=4_000_000), 8) == 4_000_000


def test_one_layer_is_gathered_ahead_and_vectors_stay_on_every_rank() -> None:
    assert choose_prefetch_bucket(LLAMA_8B) == 218_112_000
    threshold = choose_persistence_threshold(LLAMA_8B)
    # A norm and a joint bias of queries, keys and values; but not the smallest matrix.
    assert 3 * 4096 < threshold < 1024 * 4096


def test_matrices_of_an_adapter_stay_on_every_rank() -> None:
    shape = replace(LLAMA_8B, adapter=64 * 14336)
    assert choose_persistence_threshold(shape) == 64 * 14336 + 1


def test_sizes_that_are_given_are_taken_and_the_others_follow_the_model() -> None:
    zero = build("strategy=zero3", "strategy.prefetch_bucket_size=7")["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == 7
    assert zero["stage3_param_persistence_threshold"] == 640
    assert zero["reduce_bucket_size"] == 300_000


def test_without_the_model_the_sizes_say_where_they_come_from() -> None:
    zero = build("strategy=zero3", shape=None)["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == zero["reduce_bucket_size"] == "chosen from the model's size"


def test_offload_to_nvme_names_its_folder_and_reads_parameters_as_they_are_needed() -> None:
    built = build("strategy=zero3_nvme", "strategy.nvme_path=/scratch")
    zero = built["zero_optimization"]
    place = {"device": "nvme", "pin_memory": False, "nvme_path": "/scratch"}
    buffers = {"max_in_cpu": 0, "buffer_count": 12, "buffer_size": 16_384}
    assert (zero["offload_optimizer"], zero["offload_param"]) == (place, place | buffers)
    assert zero["stage3_prefetch_bucket_size"] == zero["stage3_max_reuse_distance"] == 0
    assert zero["sub_group_size"] == 100_000_000
    assert built["aio"]["intra_op_parallelism"] * 1024 == 4096


def test_buffers_for_parameters_from_the_disk_are_those_of_a_layer_and_hold_the_longest_part() -> None:
    assert choose_parameter_buffers(LLAMA_8B, 8, adapted=False) == (12, 65_667_072)
    assert choose_parameter_buffers(replace(LLAMA_8B, tensor=17), 8, adapted=True) == (36, 3)
    # What stays on every rank is never on the disk: it would all be read at once.
    assert cap_for_nvme(10**9) * 4 < 2**20
    assert cap_for_nvme(640) == 640


def test_zero_plus_plus_becomes_deepspeeds_keys() -> None:
    changes = ["strategy=zeropp", "cluster=gpu_node", "cluster.gpus_per_node=8", "batch.global_batch_size=8"]
    zero = build(*changes)["zero_optimization"]
    keys = ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients")
    assert [zero[key] for key in keys] == [8, True, True]


@pytest.mark.parametrize(("stage", "wanted"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_bf16_sums_gradients_in_fp32_at_every_stage(stage: int, wanted: int) -> None:
    built = build("precision=bf16", f"strategy.zero_stage={stage}")
    assert built["zero_optimization"]["stage"] == wanted
    assert built["data_types"] == {"grad_accum_dtype": "fp32"}
